"""A folder like the one that the documentation describes, made once for all pages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmcl.cli.train import train
from mmcl.data.example import write_example
from tests.documentation.snippets import QUICK, RETRIEVAL, SMALL_TEXT


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ and labeled/ as `mmcl example` writes them, and runs/clip_emoji, trained for a step."""
    folder = tmp_path_factory.mktemp("place")
    write_example(folder / "photos")
    write_example(folder / "labeled", "classes")
    short = ["--train.steps", "1", "--train.batch_size", "16", *QUICK, *SMALL_TEXT, "--evaluate", RETRIEVAL]
    before = Path.cwd()
    os.chdir(folder)  # the runs name their data from here
    try:
        train("clip_emoji", *short, "--run_dir", "runs/clip_emoji")
    finally:
        os.chdir(before)
    return folder
