"""The contents of an installation, and how they are found."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_file_that_the_package_reads(wheel: Path) -> None:
    found = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "mmcl", "configs"], cwd=ROOT, check=True, capture_output=True, text=True)
    expected = {name if name.startswith("mmcl/") else f"mmcl/{name}" for name in tracked.stdout.split()}
    assert {"mmcl/configs/clip_emoji.yaml", "mmcl/data/bundled/emoji/noto.parquet"} < expected
    assert {name for name in found if ".dist-info/" not in name} == expected


def test_an_unpacked_wheel_finds_its_configurations(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import mmcl; print(mmcl.__file__, mmcl.load_config('simclr_mnist').run_dir)"
    commands = {"simclr_mnist": ["-c", code], "name: simclr": ["-m", "mmcl", "config", "simclr_mnist"]}
    for expected, words in {**commands, "  simclr_mnist ": ["-m", "mmcl", "list", "configs"]}.items():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
        assert "-c" not in words or done.stdout.startswith(str(tmp_path / "site"))


def test_the_package_is_found_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    """As in the folder into which people clone the repository: Python must not take the clone for a namespace package."""
    (tmp_path / "mmcl" / "mmcl").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import mmcl; print(mmcl.__file__, mmcl.load_config.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("__init__.py load_config\n")
