"""A folder of shards has the same bytes, whoever fills it and however often that is killed."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch.multiprocessing as mp
from PIL import Image

import mmcl
from mmcl.cli.exit import exit_cleanly
from mmcl.config import SourceConfig
from mmcl.files import atomic
from mmcl.runs.embedding import job as jobs
from mmcl.runs.embedding import runners
from mmcl.runs.embedding.job import EmbeddingJob, ShardEncoder
from mmcl.runs.embedding.runners import run_embedding_job
from mmcl.search.shards import files
from mmcl.search.shards.files import DONE, Claims, open_shards, read_shard
from mmcl.search.shards.plan import CLASSES, PLAN, read_plan
from tests.embedding.conftest import BAD, ROWS, SHARDS, Bytes, content
from tests.faults.runs import KILLED, kill_at


def in_process(job: EmbeddingJob, fault: Callable[[], None] = lambda: None, **env: str) -> int | None:
    """Does a job in a process of its own. Returns its exit code, negative for a signal."""

    def child() -> None:
        os.environ |= env
        fault()
        sys.exit(exit_cleanly(lambda: run_embedding_job(job, workers=None if env else 1)))

    process = mp.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def test_a_folder_holds_what_the_model_gives(job: EmbeddingJob, expected: Bytes) -> None:
    outcome = run_embedding_job(job, workers=1)
    plan, model = read_plan(job.folder), mmcl.load_model(job.model, device="cpu")
    assert (plan.rows, plan.shards, plan.classes, outcome.left) == (ROWS, SHARDS, 0, 0)
    source = mmcl.open_source("auto", str(job.data.path))
    rows = [row for number in range(SHARDS) for row in read_shard(job.folder, plan, number).to_pylist()]
    images = [row for row in rows if row["kind"] == "image"]
    assert [row["row"] for row in images] == [row["id"] for row in images] == list(range(ROWS))
    # Names and reasons do not tell where the data are: copies give equal bytes.
    assert [row["name"] for row in images] == [Path(source[number].name).name for number in range(ROWS)]
    assert not any(str(job.data.path).encode() in shard for shard in expected.values())
    for row in rows:
        given = source[row["row"]]
        if row["reason"] is not None:
            assert (row["row"], row["kind"], row["embedding"]) == (BAD, "image", None)
            assert row["reason"].startswith("broken.png: ")
        elif row["kind"] == "image":
            assert np.allclose(row["embedding"], model.encode_image(given.required_image())[0], atol=1e-5)
        else:
            assert row["name"] in given.captions
            assert np.allclose(row["embedding"], model.encode_text(row["name"])[0], atol=1e-5)
    assert sum(row["kind"] == "text" for row in rows) == ROWS
    assert outcome.done is not None
    assert (outcome.done.images, outcome.done.texts, outcome.done.bad) == (ROWS, ROWS, 1)
    assert content(job.folder) == expected


def test_features_and_classes(data: Path, run_dir: Path, tmp_path: Path) -> None:
    """Features are those of the encoder, of the images alone; classes have a file of their own."""
    classes = tmp_path / "classes"
    for number, name in enumerate(("red", "blue", "red", "blue", "red")):
        (classes / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), name).save(classes / name / f"{number}.png")
    config = SourceConfig(path=str(classes))
    one = EmbeddingJob(data=config, model=str(run_dir), folder=tmp_path / "a", shard_rows=2, device="cpu")
    done = run_embedding_job(one, workers=1).done
    assert done is not None
    assert list(done.files)[-1] == CLASSES
    table = pq.read_table(tmp_path / "a" / CLASSES)
    model = mmcl.load_model(run_dir, device="cpu")
    assert table["label"].to_pylist() == ["blue", "red"]
    assert np.allclose(table["embedding"].to_pylist(), model.encode_text(["blue", "red"]), atol=1e-5)
    first = pq.read_table(tmp_path / "a" / "part-00000-of-00003.parquet")
    assert first["label"].to_pylist() == ["blue", "blue"]

    raw = replace(one, folder=tmp_path / "b", features=True)
    done = run_embedding_job(raw, workers=1).done
    assert done is not None
    assert CLASSES not in done.files
    rows = np.concatenate([np.array(pq.read_table(tmp_path / "b" / name)["embedding"].to_pylist()) for name in done.files])
    source = mmcl.open_source("auto", str(classes))
    assert np.allclose(rows, model.image_features(source), atol=1e-5)


@pytest.mark.parametrize("shard", [1, *(pytest.param(shard, marks=pytest.mark.long) for shard in range(2, SHARDS)), SHARDS])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_killed_at_every_boundary(shard: int, before: bool, job: EmbeddingJob, expected: Bytes) -> None:
    """As many shards are there as were finished, each whole, and the same command does the others."""
    assert in_process(job, kill_at(jobs, "write_shard", shard, before=before)) == KILLED
    plan = read_plan(job.folder)
    assert open_shards(job.folder, plan) == list(range(shard - before, SHARDS))
    assert not (job.folder / DONE).exists()
    run_embedding_job(job, workers=1)
    assert content(job.folder) == expected


FAILPOINTS = {
    "in the middle of the file": (pq, "write_table", 3, False, 2),
    "before it is on the disk": (os, "fsync", 5, True, 1),
    "before the rename": (Path, "replace", 4, True, 2),
    "after the rename": (Path, "replace", 4, False, 3),
    "before the folder is on the disk": (atomic, "sync", 9, True, 3),
    "before the plan": (Path, "replace", 1, True, None),
    "before the list of all": (Path, "replace", 1 + SHARDS + 1, True, SHARDS),
}


SOME = ("in the middle of the file", "after the rename", "before the list of all")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in SOME else [pytest.mark.long]) for name in FAILPOINTS])
def test_killed_inside_a_write(name: str, job: EmbeddingJob, expected: Bytes) -> None:
    module, function, call, before, whole = FAILPOINTS[name]
    assert in_process(job, kill_at(module, function, call, before=before)) == KILLED
    names = set(content(job.folder)) if job.folder.exists() else set()
    assert DONE not in names
    assert {one: content(job.folder)[one] for one in names} == {one: expected[one] for one in names}
    assert len(names - {PLAN}) == (whole or 0)
    assert in_process(job) == 0
    assert content(job.folder) == expected


@pytest.mark.long
def test_killed_again_and_again(job: EmbeddingJob, expected: Bytes) -> None:
    """Each start writes one shard and is killed in the next."""
    for _ in range(SHARDS):
        assert in_process(job, kill_at(jobs, "write_shard", 2)) in (KILLED, 0)
    assert in_process(job) == 0
    assert content(job.folder) == expected


def test_two_ranks_equal_one(job: EmbeddingJob, expected: Bytes) -> None:
    assert in_process(job, RANK="1", WORLD_SIZE="2") == 0
    plan = read_plan(job.folder)
    assert open_shards(job.folder, plan) == [0, 2, 4, 6]
    assert not (job.folder / DONE).exists()
    assert in_process(job, RANK="0", WORLD_SIZE="2") == 0
    assert content(job.folder) == expected


def test_a_rank_that_is_killed_costs_its_shards_alone(job: EmbeddingJob, expected: Bytes) -> None:
    assert in_process(job, kill_at(jobs, "write_shard", 2), RANK="0", WORLD_SIZE="2") == KILLED
    assert in_process(job, RANK="1", WORLD_SIZE="2") == 0
    assert open_shards(job.folder, read_plan(job.folder)) == [2, 4, 6]
    assert in_process(job) == 0
    assert content(job.folder) == expected


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_several_workers_equal_one(
    method: str, job: EmbeddingJob, expected: Bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fork is quick, and right here, where there is one thread."""
    monkeypatch.setattr(runners, "_START_METHOD", method)
    run_embedding_job(job, workers=3)
    assert content(job.folder) == expected
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(("seconds", "several"), [(0.0, True), (1e6, False)])
def test_workers_are_started_if_that_pays(
    seconds: float, several: bool, job: EmbeddingJob, expected: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Counted(runners._Worker):
        def __init__(self, *args: Any):
            started.append(args)
            super().__init__(*args)

    monkeypatch.setattr(runners, "_START_METHOD", "fork")
    monkeypatch.setattr(runners, "_START_SECONDS", seconds)
    monkeypatch.setattr(runners, "_default_workers", lambda job: 3)
    monkeypatch.setattr(runners, "_Worker", Counted)
    run_embedding_job(job)
    assert bool(started) == several
    assert content(job.folder) == expected


def test_what_a_killed_worker_leaves_is_done_by_the_first(
    job: EmbeddingJob, expected: Bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here, real, died = os.getpid(), files.write_shard, mp.get_context("fork").Event()

    def deadly(*args: Any) -> None:
        if os.getpid() != here:
            died.set()
            os.kill(os.getpid(), signal.SIGKILL)
        assert died.wait(60)
        real(*args)

    monkeypatch.setattr(runners, "_START_METHOD", "fork")
    monkeypatch.setattr(jobs, "write_shard", deadly)
    run_embedding_job(job, workers=2)
    assert content(job.folder) == expected
    assert "a worker was ended by SIGKILL; the others do its shards" in {record.message for record in caplog.records}


def test_a_claimed_shard_is_left_to_its_process(job: EmbeddingJob, expected: Bytes) -> None:
    ShardEncoder(job)  # writes the plan
    claimed, done = mp.get_context("fork").Event(), mp.get_context("fork").Event()

    def other() -> None:
        with Claims(job.folder) as claims, claims.claim(3) as is_ours:
            assert is_ours
            claimed.set()
            done.wait(60)

    process = mp.get_context("fork").Process(target=other)
    process.start()
    assert claimed.wait(60)
    outcome = run_embedding_job(job, workers=1)
    assert (outcome.left, outcome.done) == (1, None)
    assert open_shards(job.folder, outcome.plan) == [3]
    process.kill()  # a claim ends with its process
    process.join()
    assert run_embedding_job(job, workers=1).left == 0
    assert content(job.folder) == expected


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_ray_equals_one_process_though_an_actor_is_killed(job: EmbeddingJob, expected: Bytes, tmp_path: Path) -> None:
    code = "import sys; from tests.embedding.ray_job import main; sys.exit(main(sys.argv[1:]))"
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        code,
        str(job.data.path),
        job.model,
        str(job.folder),
        str(tmp_path / "struck"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "struck").exists()
    assert content(job.folder) == expected
