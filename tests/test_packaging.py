"""What an installation holds, and that it is found."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_file_that_the_package_reads(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    found = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "mmcl", "configs"], cwd=ROOT, check=True, capture_output=True, text=True)
    expected = {name if name.startswith("mmcl/") else f"mmcl/{name}" for name in tracked.stdout.split()}
    assert {"mmcl/configs/clip_emoji.yaml", "mmcl/data/bundled/emoji/noto.parquet"} < expected
    assert {name for name in found if ".dist-info/" not in name} == expected


def test_the_package_is_found_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    """As in the folder into which people clone the repository: Python must not take the clone for a namespace package."""
    (tmp_path / "mmcl" / "mmcl").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import mmcl; print(mmcl.__file__, mmcl.load_config.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("__init__.py load_config\n")
