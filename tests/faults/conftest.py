"""Fixtures shared by the tests of faults: images, and uninterrupted runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from mmcl.config import Config
from mmcl.runs.run import train
from tests.engine.tiny import make_folder
from tests.faults.runs import run, small_vocabulary, tiny_run


@pytest.fixture(scope="package")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("faults") / "squares")


@pytest.fixture(scope="package", autouse=True)
def _warm(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A run in this process imports all that a run needs, so that its children need not."""
    with small_vocabulary():
        train(tiny_run(image_folder, tmp_path_factory.mktemp("warm") / "run", "--train.steps", "1"))
        yield


@pytest.fixture(scope="package")
def uninterrupted(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """The run that nothing happened to, by world size and flags."""

    @cache
    def made(world: int = 1, *flags: str) -> Config:
        config = tiny_run(image_folder, tmp_path_factory.mktemp("uninterrupted") / "run", *flags)
        assert run(config, world) == [0] * world
        return config

    return made
