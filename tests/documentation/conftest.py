"""A folder like the one that the documentation describes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmcl.cli.train import train
from mmcl.data.example import write_example
from tests.documentation.snippets import QUICK, RETRIEVAL, SMALL_TEXT
from tests.faults.runs import small_vocabulary


@pytest.fixture
def few_tokens() -> Iterator[None]:
    """Text encoders of a few tokens: writing, reading and hashing the others takes most of the time of a short command."""
    with small_vocabulary():
        yield


@pytest.fixture
def place(few_tokens: None, _place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, for one test: what a test makes in it is not there for the next."""
    folder = tmp_path / "place"
    shutil.copytree(_place, folder, copy_function=os.link)  # files that a run writes are new ones, under the old name
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ and labeled/ as `mmcl example` writes them, and runs/clip_emoji, trained for a step."""
    folder = tmp_path_factory.mktemp("place")
    write_example(folder / "photos")
    write_example(folder / "labeled", "classes")
    short = ["--train.steps", "1", "--train.batch_size", "16", *QUICK, *SMALL_TEXT, "--evaluate", RETRIEVAL]
    before = Path.cwd()
    os.chdir(folder)  # the runs name their data from here
    try:
        with small_vocabulary():
            train("clip_emoji", *short, "--run_dir", "runs/clip_emoji")
    finally:
        os.chdir(before)
    return folder
