"""Settings of the whole process: how many threads a run takes, and what it leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import threadpoolctl
import torch

from mmcl.engine.process_settings import processor_settings
from mmcl.errors import UserError
from mmcl.runs.run import train
from tests.engine.tiny import tiny_config


@pytest.mark.parametrize(
    ("asked_for", "environment", "threads"),
    [
        (None, {}, 6),
        (None, {"OMP_NUM_THREADS": "3"}, 3),
        (None, {"OMP_NUM_THREADS": " 3,2"}, 3),
        (None, {"OMP_NUM_THREADS": "all"}, 6),
        (2, {"OMP_NUM_THREADS": "3"}, 2),
        (None, {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, 6),
        (None, {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, 3),
        (None, {"LOCAL_WORLD_SIZE": "8"}, 1),
    ],
)
def test_threads(monkeypatch: pytest.MonkeyPatch, asked_for: int | None, environment: dict[str, str], threads: int) -> None:
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    with processor_settings(asked_for):
        assert torch.get_num_threads() == threads


def state_of_the_process() -> list[object]:
    """Threads of torch and of the libraries that compute, half of the smallest normal number, and the random generator."""
    threads = {one["num_threads"] for one in threadpoolctl.threadpool_info()}
    return [torch.get_num_threads(), threads, (torch.full((1,), 2e-39) / 2).item(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("fails", [False, True], ids=["complete", "failed"])
def test_a_run_leaves_the_process_as_it_was(folder: Path, tmp_path: Path, fails: bool) -> None:
    before = state_of_the_process()
    assert before[2] != 0
    flags = ("--train.threads", "2", "--train.steps", "2", "--optim.lr", "1e38" if fails else "0.001")
    if fails:
        with pytest.raises(UserError, match="nothing was updated"):
            train(tiny_config(folder, tmp_path / "run", *flags))
    else:
        train(tiny_config(folder, tmp_path / "run", *flags))
    assert state_of_the_process() == before
