"""Progress bar, metrics.jsonl and experiment trackers of a training run."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmcl.errors import UserError
from mmcl.files.atomic import write_file
from mmcl.files.untrusted import reason
from mmcl.logging import get_logger
from mmcl.progress import can_be_drawn, progress_bar
from mmcl.types import BadSample, Batch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmcl.config import TrainConfig

logger = get_logger(__name__)

WAIT_SHARE, WAIT_SECONDS = 0.2, 10.0
"""Warn about an accelerator that waits for data above this share of the time and this total in seconds."""

LINE_SECONDS = 15.0, 600.0
"""Fewest and most seconds between two lines of progress where no bar is drawn."""

EVALUATION = "evaluation_seconds"
"""Key that marks a line of metrics.jsonl as evaluation scores; the lines of training steps do not have it."""


class Logbook:
    """Progress bar, log files and trackers of a run; only the first process writes.

    Args:
        run_dir: folder of metrics.jsonl and bad_samples.jsonl.
        accelerator: its trackers receive the same rows as metrics.jsonl.
        train: sets how often metrics are written and which score the progress bar shows.
        done, total: steps done and in total.
    """

    def __init__(self, run_dir: Path, accelerator: Accelerator, train: TrainConfig, *, done: int, total: int):
        self.accelerator, self.train, self.total = accelerator, train, total
        self.is_writer = accelerator.is_main_process
        self.progress = Progress(done=done, total=total, batch_size=train.batch_size, shown=self.is_writer)
        self.measured_at, self.measured_step = time.perf_counter(), done
        self.waited = self.waited_in_total = 0.0
        self.has_warned = False
        if self.is_writer:
            self.metrics = StepLog(run_dir / "metrics.jsonl", resume_from=done)
            self.unusable = StepLog(run_dir / "bad_samples.jsonl", resume_from=done)

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches and measure the time spent waiting for them, except for the first, when the loader starts."""
        batch = next(batches, None)
        while batch is not None:
            yield batch
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - began

    def is_logged(self, step: int) -> bool:
        """Return True if this process writes the metrics of a step."""
        return self.is_writer and (step % self.train.log_every == 0 or step in (1, self.total))

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of a step."""
        self.progress.advance(metrics)
        if self.is_logged(step):
            self._write({"step": step, "total_steps": self.total, **metrics, **self._pace(step)})

    def evaluation(
        self, step: int, scores: Mapping[str, float], seconds: float, *, figures: Mapping[str, bytes] | None = None
    ) -> None:
        """Record the scores after a step. The time of the evaluation is not counted as training time.

        Args:
            figures: PNG files by name, for the trackers.
        """
        self.measured_at += seconds
        if self.is_writer:
            shown = self.train.keep_best or next(iter(scores), "")
            if shown in scores:
                self.progress.show({shown.rpartition("/")[2]: scores[shown]})
            self._write({"step": step, **scores, EVALUATION: seconds})
            track_figures(self.accelerator, step, figures or {})

    def bad_samples(self, step: int, samples: Sequence[BadSample]) -> None:
        """Record the samples of a step that could not be read."""
        if self.is_writer and samples:
            self.unusable.write(*({"step": step, **asdict(sample)} for sample in samples))

    def close(self) -> None:
        """Close the progress bar."""
        self.progress.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        self.metrics.write(row)
        tracked = {key: value for key, value in row.items() if key not in ("step", "total_steps", "verdict")}
        self.accelerator.log(tracked, step=row["step"])

    def _pace(self, step: int) -> dict[str, float]:
        """Return samples per second, and the share of the time spent waiting for data, since the last call."""
        now = time.perf_counter()
        seconds = max(now - self.measured_at, 1e-9)
        rate, share = (step - self.measured_step) * self.train.batch_size / seconds, self.waited / seconds
        self.waited_in_total += self.waited
        self.measured_step, self.measured_at, self.waited = step, now, 0.0
        # A CPU does not wait: the same cores prepare the data and train.
        waits = share >= WAIT_SHARE and self.waited_in_total >= WAIT_SECONDS and self.accelerator.device.type != "cpu"
        if waits and not self.has_warned:
            self.has_warned = True
            logger.warning(f"the accelerator waits for data {share:.0%} of the time: raise --data.workers")
        return {"samples_per_second": rate, "data_wait": share}


def track_figures(accelerator: Accelerator, step: int, figures: Mapping[str, bytes]) -> None:
    """Show figures, PNG files by name, in the experiment trackers that take images."""
    for tracker in accelerator.trackers if figures else ():
        # Each takes a batch of images; TensorBoard's would be channels first without this.
        options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        for name, png in figures.items() if hasattr(tracker, "log_images") else ():
            image_1HWC = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))[None]
            tracker.log_images({name: image_1HWC}, step=step, **options)


class StepLog:
    """File of JSON lines, each with its "step"; each step is recorded once, even if the run was interrupted and resumed."""

    def __init__(self, path: Path, *, resume_from: int = 0):
        """Open the log and remove lines after the checkpoint of step `resume_from`, which will be computed again."""
        self.path = path
        if not path.exists():
            return
        lines = [json.dumps(row) + "\n" for row in read_log(path) if _is_before(row, resume_from)]
        write_file(path, "".join(lines))

    def write(self, *rows: Mapping[str, Any]) -> None:
        """Append lines; non-finite numbers become null. Raises UserError when the disk is full."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({key: _plain(value) for key, value in row.items()}) + "\n" for row in rows)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({reason(error)}); the checkpoints are untouched") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return all complete lines; truncated lines and lines that were not written by a run are skipped."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _is_before(row: Mapping[str, Any], checkpoint: int) -> bool:
    """Return True if a row need not be computed again. A step is evaluated after its checkpoint, so its scores must be."""
    return row["step"] < checkpoint or (row["step"] == checkpoint and EVALUATION not in row)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress:
    """Progress of a run: a bar where one can be drawn; elsewhere, such as in the file of a batch job, a line now and then.

    Args:
        done, total: steps done and in total.
        batch_size: samples per step.
        shown: false for processes other than the first.
    """

    def __init__(self, *, done: int, total: int, batch_size: int, shown: bool):
        self.step, self.total, self.batch_size = done, total, batch_size
        self.numbers: dict[str, str] = {}
        self.is_logged = shown and not can_be_drawn()
        self.began_at, self.began_after = time.monotonic(), done
        self.logged_at, self.logged_after = self.began_at, done
        # The bar counts samples, so its rate is in samples/s.
        self.bar = progress_bar(
            total=total * batch_size,
            shown=shown,
            initial=done * batch_size,
            unit=" samples",
            unit_scale=True,
            bar_format="{percentage:3.0f}%|{bar}| {remaining} left, {rate_noinv_fmt}{postfix}",
            smoothing=0.1,
            leave=True,
        )

    def advance(self, metrics: Mapping[str, Any]) -> None:
        """Advance by one step and show its loss and temperature."""
        self.step += 1
        self.show({name: metrics[name] for name in ("loss", "temperature") if name in metrics})
        self.bar.update(self.batch_size)
        if self.is_logged and self._line_is_due():
            self._log_line()

    def show(self, numbers: Mapping[str, float]) -> None:
        """Show numbers next to the bar; each stays until it is replaced."""
        self.numbers |= {name: f"{number:.3g}" for name, number in numbers.items()}
        self.bar.set_postfix_str(self._numbers(), refresh=False)

    def close(self) -> None:
        """Close the bar."""
        self.bar.close()

    def _numbers(self) -> str:
        return ", ".join(f"{name} {number}" for name, number in self.numbers.items())

    def _line_is_due(self) -> bool:
        """Return True after a twentieth of the run, but neither too often nor too rarely."""
        seconds, steps = time.monotonic() - self.logged_at, self.step - self.logged_after
        return seconds >= LINE_SECONDS[0] and (steps >= self.total / 20 or seconds >= LINE_SECONDS[1])

    def _log_line(self) -> None:
        self.logged_at, self.logged_after = time.monotonic(), self.step
        pace = (self.logged_at - self.began_at) / (self.step - self.began_after)
        left = tqdm.format_interval((self.total - self.step) * pace)
        logger.info(
            f"step {self.step:,} of {self.total:,} ({self.step / self.total:.0%}): {left} left, "
            f"{self.batch_size / pace:,.0f} samples/s, {self._numbers()}"
        )
