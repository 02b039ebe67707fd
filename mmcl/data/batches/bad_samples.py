"""Limit on the number of bad samples in a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmcl.errors import UserError
from mmcl.types import BadSample

SHOWN = 10
GRACE = 1000


class BadSampleBudget:
    """Counts the samples that the loader replaced, over all processes.

    The share is computed as if at least `GRACE` samples had been seen, so that one bad file at the start does not end a run; a
    budget of 0 ends it at once. Late in a long run, the share barely reacts when a disk or server fails; the number of
    consecutive bad rows detects that.

    Args:
        max_fraction: largest share of bad samples among those seen.
        max_consecutive: largest number of consecutive rows, in the order of the run, whose sample was bad.

    Attributes:
        count: rows so far whose sample was bad; the same sample counts again in every epoch.
        seen: rows so far.
        run: length of the current run of consecutive bad rows.
    """

    def __init__(self, max_fraction: float, max_consecutive: int):
        self.max_fraction, self.max_consecutive = max_fraction, max_consecutive
        self.count = self.seen = self.run = 0
        self._first: dict[int, BadSample] = {}

    def add(self, bad_samples: Sequence[BadSample], bad_rows: Iterable[int], seen: int) -> None:
        """Counts one global batch.

        Args:
            bad_samples: samples that could not be used, including bad replacements.
            bad_rows: rows, 0 to `seen` - 1 in ascending order, whose own sample was bad.
            seen: rows of the batch.

        Raises:
            UserError: the budget is exceeded; lists the first bad samples.
        """
        bad_rows = list(bad_rows)
        self.count += len(bad_rows)
        self.seen += seen
        for bad in bad_samples:
            if len(self._first) < SHOWN:
                self._first.setdefault(bad.index, bad)
        if self.count > self.max_fraction * max(self.seen, GRACE):
            raise UserError(
                f"{self.count} of {self.seen} samples could not be used, more than data.max_bad_fraction {self.max_fraction} "
                f"allows; fix or remove them, or raise it. The first: {_listing(self._first.values())}"
            )
        if self._longest_run(bad_rows, seen) > self.max_consecutive:
            raise UserError(
                f"more than data.max_bad_consecutive {self.max_consecutive} samples, one after the other, could not be used: "
                f"are the data still there? The last: {_listing(bad_samples[-SHOWN:])}"
            )

    def _longest_run(self, bad_rows: Iterable[int], seen: int) -> int:
        """Longest run of bad rows that overlaps this batch; sets `run` to the run at its end."""
        longest, before = 0, -1
        for row in bad_rows:
            self.run = self.run + 1 if row == before + 1 else 1
            longest, before = max(longest, self.run), row
        if before != seen - 1:
            self.run = 0
        return longest


def _listing(bad_samples: Iterable[BadSample]) -> str:
    return "; ".join(bad.reason for bad in bad_samples)
