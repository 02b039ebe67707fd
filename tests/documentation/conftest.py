"""A folder like the one that the documentation describes, made once for all pages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmcl.cli.train import train
from mmcl.data.sources.emoji import EmojiSource
from tests.documentation.snippets import QUICK, RETRIEVAL, SMALL_TEXT

_PHOTOS = {"cat face": "cat", "dog face": "dog", "red apple": "apple", "automobile": "car", "sun": "sun"}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ with captions, labelled/ with classes, and runs/clip_emoji, runs/a and runs/b, trained for a step."""
    folder = tmp_path_factory.mktemp("place")
    _write_images(folder)
    short = ["--train.steps", "1", "--train.batch_size", "16", *QUICK, *SMALL_TEXT, "--evaluate", RETRIEVAL]
    before = Path.cwd()
    os.chdir(folder)  # the runs name their data from here
    try:
        for seed, name in enumerate(("clip_emoji", "a", "b")):
            train([*short, "--train.seed", str(seed), "--run_dir", f"runs/{name}"])
    finally:
        os.chdir(before)
    return folder


def _write_images(folder: Path) -> None:
    captions = ["image,caption"]
    for fold in ("test", "train"):
        emoji = EmojiSource(None, None, fold=fold)
        for row in range(len(emoji)):
            sample = emoji[row]
            assert isinstance(sample.image, bytes)
            name = _PHOTOS.get(sample.captions[0])
            if name is not None and fold == "test":
                _write(folder / "photos" / f"{name}.png", sample.image)
                captions.append(f"{name}.png,{sample.captions[0]}")
            if name in ("cat", "dog"):
                _write(folder / "labelled" / name / f"{fold}_{row}.png", sample.image)
    assert len(captions) == 6
    (folder / "photos" / "captions.csv").write_text("\n".join(captions) + "\n")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
