"""The time spent waiting for data, as logged, and the progress that a run shows."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import re
import struct
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmcl.cli.output import printed_log
from mmcl.config import TrainConfig
from mmcl.engine.log import Logbook, Progress, StepLog, read_log
from mmcl.logging import get_logger
from mmcl.progress import progress_bar
from mmcl.types import Batch


class Clock:
    """A clock that only moves when it is advanced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        for name in ("perf_counter", "monotonic"):
            monkeypatch.setattr(f"time.{name}", lambda: self.now)

    def batches(self, seconds: float, count: int) -> Iterator[Batch]:
        for row in torch.arange(count)[:, None]:
            self.now += seconds
            yield Batch({}, ids=row, index=row)


def train(run_dir: Path, clock: Clock, *, waiting: float, working: float, steps: int = 40, device: str = "cuda") -> list[float]:
    run_dir.mkdir(exist_ok=True)
    accelerator = SimpleNamespace(is_main_process=True, log=lambda values, step: None, device=SimpleNamespace(type=device))
    book = Logbook(run_dir, accelerator, TrainConfig(batch_size=8, log_every=10), done=0, total=steps)
    for step, _ in enumerate(book.timed(clock.batches(waiting, steps)), start=1):
        clock.now += working
        book.step(step, {"loss": 1.0})
    book.close()
    return [row["data_wait"] for row in read_log(run_dir / "metrics.jsonl")]


def test_the_share_of_waiting_is_logged_and_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shares = train(tmp_path, Clock(monkeypatch), waiting=1.0, working=3.0)
    # The first batch waits for the processes of the loader to start.
    assert shares == pytest.approx([0, 0.25, 0.25, 0.25, 0.25])
    told = [line for line in caplog.messages if "waits for data" in line]
    assert told == ["the accelerator waits for data 25% of the time: raise --data.workers"]


@pytest.mark.parametrize(("waiting", "working"), [(1.0, 9.0), (0.1, 0.1)], ids=["small share", "short time"])
def test_a_little_waiting_causes_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, waiting: float, working: float
) -> None:
    shares = train(tmp_path, Clock(monkeypatch), waiting=waiting, working=working)
    assert shares[1:] == pytest.approx([waiting / (waiting + working)] * 4)
    assert "waits for data" not in caplog.text


def test_a_processor_does_not_wait_for_what_it_prepares_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shares = train(tmp_path, Clock(monkeypatch), waiting=1.0, working=1.0, device="cpu")
    assert shares[1:] == pytest.approx([0.5] * 4)
    assert caplog.text == ""


def test_an_evaluation_without_scores_is_recorded(tmp_path: Path) -> None:
    """As when no evaluator could compute its scores."""
    accelerator = SimpleNamespace(is_main_process=True, log=lambda values, step: None, trackers=[], device=torch.device("cpu"))
    book = Logbook(tmp_path, accelerator, TrainConfig(), done=0, total=9)
    book.evaluation(3, {}, 0.5)
    book.close()
    assert [row["step"] for row in read_log(tmp_path / "metrics.jsonl")] == [3]


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


class Terminal:
    """A terminal of 80 columns that keeps what it shows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.reader, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        monkeypatch.setattr(sys, "stderr", os.fdopen(slave, "w", encoding="utf-8"))
        monkeypatch.delenv("COLUMNS", raising=False)

    def lines(self) -> list[str]:
        """The lines on the screen, of text with "\r", "\n" and the movement of the cursor by a line up."""
        sys.stderr.close()
        written = b""
        try:
            while part := os.read(self.reader, 65536):
                written += part
        except OSError:  # the end of a pseudo-terminal
            os.close(self.reader)
        screen: dict[int, str] = {}
        row = column = 0
        for piece in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", written.decode()):
            if piece in ("\r", "\n", "\x1b[A"):
                column = 0 if piece == "\r" else column
                row += {"\r": 0, "\n": 1, "\x1b[A": -1}[piece]
                continue
            line = screen.get(row, "").ljust(column)
            screen[row] = line[:column] + piece + line[column + len(piece) :]
            column += len(piece)
        return [screen.get(number, "").rstrip() for number in range(max(screen) + 1)]


def test_a_bar_has_room_and_words_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    progress = Progress(done=100, total=400, batch_size=512, shown=True)
    progress.bar.mininterval = 0
    for _ in range(100):
        progress.advance({"loss": 3.21456, "temperature": 0.0512345, "effective_rank_image": 57.1, "gradient_norm": 1.0})
    progress.close()
    (line,) = terminal.lines()
    assert len(line) <= 80
    found = re.fullmatch(r" 50%\|([^|]+)\| [\d:]+ left, [\d.]+[kM]? samples/s, loss 3\.21, temperature 0\.0512", line)
    assert found is not None, line
    assert len(found[1]) >= 10
    assert found[1].rstrip().count("█") == len(found[1]) // 2


def test_messages_stand_above_every_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    logger = get_logger("mmcl.of_a_test")
    progress = Progress(done=0, total=4, batch_size=1, shown=True)
    progress.bar.mininterval = 0
    with printed_log():
        progress.advance({"loss": 2.0})
        logger.warning("a first warning")
        progress.advance({"loss": 2.0})
        inner = progress_bar(total=2, desc="rows", mininterval=0)
        inner.update()
        logger.warning("a second warning")
        inner.update()
        inner.close()
        progress.advance({"loss": 1.0})
        logging.getLogger("mmcl.of_a_test").warning("a third")
        progress.advance({"loss": 1.0})
        progress.close()
        logger.warning("a last one")  # after the bar, which stays
    lines = [line for line in terminal.lines() if line]
    assert lines[:3] == ["warning: a first warning", "warning: a second warning", "warning: a third"]
    assert lines[3].startswith("100%|")
    assert lines[4:] == ["warning: a last one"]


def test_where_there_is_no_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    clock = Clock(monkeypatch)
    with caplog.at_level(logging.INFO, "mmcl"):
        for seconds, steps in ((1.0, 200), (0.01, 200), (100.0, 100)):
            progress = Progress(done=0, total=steps, batch_size=8, shown=True)
            for _ in range(steps):
                clock.now += seconds
                progress.advance({"loss": 0.5, "rank": 2.0})
            progress.close()
        silent = Progress(done=0, total=1, batch_size=8, shown=False)
        clock.now += 1000.0
        silent.advance({"loss": 0.5})
    assert stream.getvalue() == ""
    assert len(caplog.messages) == 200 // 15 + 0 + 100 // 5
    assert caplog.messages[0] == "step 15 of 200 (8%): 03:05 left, 8 samples/s, loss 0.5"
