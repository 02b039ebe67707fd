"""The time spent waiting for data, as logged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmcl.config import TrainConfig
from mmcl.engine.log import Logbook, StepLog, read_log
from mmcl.types import Batch


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def batches(self, seconds: float, count: int) -> Iterator[Batch]:
        for row in torch.arange(count)[:, None]:
            self.now += seconds
            yield Batch({}, ids=row, index=row)


def train(run_dir: Path, clock: Clock, *, waiting: float, working: float, steps: int = 40) -> list[float]:
    run_dir.mkdir(exist_ok=True)
    accelerator = SimpleNamespace(is_main_process=True, log=lambda values, step: None)
    book = Logbook(run_dir, accelerator, TrainConfig(batch_size=8, log_every=10), done=0, total=steps)
    for step, _ in enumerate(book.timed(clock.batches(waiting, steps)), start=1):
        clock.now += working
        book.step(step, {"loss": 1.0})
    book.close()
    return [row["data_wait"] for row in read_log(run_dir / "metrics.jsonl")]


def test_the_share_of_waiting_is_in_the_log_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shares = train(tmp_path, Clock(monkeypatch), waiting=1.0, working=3.0)
    # The first batch waits for the processes of the loader to start.
    assert shares == pytest.approx([0, 0.25, 0.25, 0.25, 0.25])
    told = [line for line in caplog.messages if "waiting for data" in line]
    assert told == ["waiting for data 25% of the time: raise --data.workers"]


@pytest.mark.parametrize(("waiting", "working"), [(1.0, 9.0), (0.1, 0.1)], ids=["small share", "short time"])
def test_a_little_waiting_is_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, waiting: float, working: float
) -> None:
    shares = train(tmp_path, Clock(monkeypatch), waiting=waiting, working=working)
    assert shares[1:] == pytest.approx([waiting / (waiting + working)] * 4)
    assert "waiting for data" not in caplog.text


def test_lines_that_no_run_wrote_are_left_out(tmp_path: Path) -> None:
    lines = [
        b'{"step": 1, "loss": 2.0}',
        b"3",
        b"[1]",
        b'"a"',
        b'{"loss": 1}',
        b'{"step": "x"}',
        b"\xff\xfe",
        b'{"step": 2',
        b"[" * 100_000,
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert read_log(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
    StepLog(tmp_path / "metrics.jsonl", resume_from=1)
    assert len(read_log(tmp_path / "metrics.jsonl")) == 1
