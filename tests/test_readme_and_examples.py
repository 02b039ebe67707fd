"""The README's Python snippets and the examples run as they stand, in a folder like the one they speak of."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmcl.cli.train import train
from mmcl.config import load_config
from mmcl.data.sources.emoji import EmojiSource
from mmcl.runs.components import check_components

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/clip_emoji, trained for a step, and photos/ with captions."""
    folder = tmp_path_factory.mktemp("place")
    photos = folder / "photos"
    photos.mkdir()
    emoji = EmojiSource(None, None, fold="test")
    wanted = {"cat face": "cat", "dog face": "dog", "red apple": "apple", "automobile": "car", "sun": "sun"}
    lines = ["image,caption"]
    for sample in (emoji[row] for row in range(len(emoji))):
        if (name := wanted.get(sample.captions[0])) is not None:
            assert isinstance(sample.image, bytes)
            (photos / f"{name}.png").write_bytes(sample.image)
            lines.append(f"{name}.png,{sample.captions[0]}")
    assert len(lines) == 6
    (photos / "captions.csv").write_text("\n".join(lines) + "\n")
    short = ["--train.steps", "1", "--train.batch_size", "16", "--train.threads", "1", "--evaluate", "[]"]
    train([*short, "--run_dir", str(folder / "runs" / "clip_emoji")])
    return folder


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_readme_snippet(number: int, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    exec(compile(SNIPPETS[number], f"README.md, snippet {number}", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out


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


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, place: Path) -> None:
    words, printed = EXAMPLES[name]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *words],
        capture_output=True,
        text=True,
        cwd=place,
        timeout=250,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_loads_and_is_checked(path: Path) -> None:
    config = load_config(path)
    check_components(config)
    assert config.run_dir == f"runs/{path.stem}"
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_readme_names_only_what_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:mmcl|configs|scripts|examples|tests)/[\w/.]+\.\w+)`|\]\(([\w/.]+)\)", text):
        assert (ROOT / next(filter(None, path))).exists(), path
