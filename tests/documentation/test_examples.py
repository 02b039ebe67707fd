"""The examples run unchanged in a folder like the one they describe, and the shipped configurations load."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

import mmcl
from mmcl.config import load_config
from mmcl.runs.components import check_components
from tests.documentation.snippets import quick_config
from tests.warm import python

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


EXAMPLES = {
    "zero_shot_classification": (["photos/cat.png", "photos/dog.png", "--labels", "cat", "dog"], "photos/dog.png"),
    "image_text_retrieval": (["photos", "a dog", "--index", "photos.mmcl"], "image -> texts"),
    "train_clip_from_python": (["--steps", "1", "--run_dir", "runs/short"], "red apple"),
    "simclr_mnist": (["--offline", "--steps", "2", "--run_dir", "runs/digits"], "raw pixels"),
    "bare_loop": (["--steps", "100"], "R@1 on new pairs: 1.000"),
}


LOSS_EXAMPLES = ("barlow_twins", "byol", "moco", "siglip", "simclr", "simcse", "supcon", "swav", "triplet", "vicreg")


def test_every_example_is_tested_and_short() -> None:
    files = {path.relative_to(ROOT / "examples").with_suffix("").as_posix(): path for path in (ROOT / "examples").rglob("*.py")}
    assert files.keys() == EXAMPLES.keys() | {f"losses/{name}" for name in LOSS_EXAMPLES}
    assert all(len(path.read_text().splitlines()) <= 80 for path in files.values())


@pytest.mark.parametrize("name", LOSS_EXAMPLES)
def test_an_example_of_a_loss(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, where torch is imported already. It says what was learned beside the same net before."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--steps", "2"])
    path = ROOT / "examples" / "losses" / f"{name}.py"
    runpy.run_path(str(path), run_name="__main__")
    assert re.search(r"learned \d\.\d{3}, untrained \d\.\d{3}, (raw pixels|chance) \d\.\d{3}", capsys.readouterr().out)
    # Training is the loop's own: of mmcl, losses and data alone.
    assert set(re.findall(r"^from (mmcl[.\w]*) import", path.read_text(), re.MULTILINE)) == {"mmcl.losses"}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_found(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process. Training is shortened by flags after its own, as on the pages."""
    words, printed = EXAMPLES[name]
    monkeypatch.setattr(mmcl, "load_config", quick_config)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert printed in capsys.readouterr().out


@pytest.mark.long  # one trains with the evaluation of the default configuration
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_as_it_is(name: str, place: Path) -> None:
    words, printed = EXAMPLES[name]
    script = str(ROOT / "examples" / f"{name}.py")
    done = python(script, *words, cwd=place, timeout=250)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_loads_and_is_checked(path: Path) -> None:
    config = load_config(path)
    check_components(config)
    assert config.run_dir == f"runs/{path.stem}"
    assert isinstance(yaml.safe_load(path.read_text()), dict)
