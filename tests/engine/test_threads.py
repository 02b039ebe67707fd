"""How many threads of the CPU a run takes."""

from __future__ import annotations

import os

import pytest
import torch

from mmcl.engine.launch import set_threads


@pytest.mark.parametrize(
    ("asked_for", "environment", "threads"),
    [
        (None, {}, 6),
        (None, {"OMP_NUM_THREADS": "3"}, 3),
        (None, {"OMP_NUM_THREADS": "3,2"}, 6),
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
    set_threads(asked_for)
    assert torch.get_num_threads() == threads
