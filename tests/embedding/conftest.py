"""A small model, data with an unreadable image, and the shards that nothing happened to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmcl.config import SourceConfig
from mmcl.runs.embedding.job import EmbeddingJob
from mmcl.runs.embedding.runners import run_embedding_job
from mmcl.runs.run import train
from tests.engine.tiny import make_folder
from tests.faults.runs import small_vocabulary, tiny_run

ROWS, SHARD_ROWS, BAD = 26, 4, 7
SHARDS = 7
Bytes = dict[str, bytes]


@pytest.fixture(autouse=True, scope="package")
def _small_vocabulary() -> Iterator[None]:
    """Text encoders of a few tokens: their runs take a third of the time."""
    with small_vocabulary():
        yield


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 images with captions, and an unreadable one among them."""
    folder = make_folder(tmp_path_factory.mktemp("embedding") / "squares")
    lines = (folder / "captions.csv").read_text().splitlines()
    (folder / "broken.png").write_bytes(b"no image")
    lines.insert(1 + BAD, "broken.png,a square that cannot be read")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="package")
def run_dir(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("model") / "run"
    train(tiny_run(make_folder(run.parent / "squares"), run, "--train.steps", "1"))
    return run


@pytest.fixture
def job(data: Path, run_dir: Path, tmp_path: Path) -> EmbeddingJob:
    config = SourceConfig(path=str(data))
    return EmbeddingJob(data=config, model=str(run_dir), folder=tmp_path / "shards", shard_rows=SHARD_ROWS, device="cpu")


@pytest.fixture(scope="package")
def expected(data: Path, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bytes:
    """The files that nothing happened to."""
    folder = tmp_path_factory.mktemp("expected") / "shards"
    config = SourceConfig(path=str(data))
    one = EmbeddingJob(data=config, model=str(run_dir), folder=folder, shard_rows=SHARD_ROWS, device="cpu")
    assert run_embedding_job(one, workers=1).done is not None
    return content(folder)


def content(folder: Path) -> Bytes:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
