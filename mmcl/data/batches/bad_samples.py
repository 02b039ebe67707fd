"""How many samples may be unusable before a run stops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmcl.errors import UserError
from mmcl.types import BadSample

SHOWN = 10
GRACE = 1000


class BadSampleBudget:
    """Counts what the loader had to replace, over all processes.

    The share is judged as if at least `GRACE` samples had been seen, so that one bad file at the start of a run does not end
    it; a budget of 0 does so at once. The share says little late in a long run, when a disk or a server goes away: that is seen
    by the rows that were bad one after the other.

    Args:
        max_fraction: largest share of bad samples among those seen.
        max_consecutive: most rows in a row whose own sample was bad, in the order of the run.

    Attributes:
        count: rows so far whose sample was bad; one that is met in every epoch counts every time.
        seen: rows so far.
        run: rows whose sample was bad at the end of what was seen.
    """

    def __init__(self, max_fraction: float, max_consecutive: int):
        self.max_fraction, self.max_consecutive = max_fraction, max_consecutive
        self.count = self.seen = self.run = 0
        self._first: dict[int, BadSample] = {}

    def add(self, bad_samples: Sequence[BadSample], bad_rows: Iterable[int], seen: int) -> None:
        """Counts one global batch.

        Args:
            bad_samples: what could not be used, replacements included.
            bad_rows: the rows, 0 to `seen` - 1 and rising, whose own sample is among them.
            seen: rows of the batch.

        Raises:
            UserError: the budget is spent; lists the first bad samples.
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
        """Of those that touch this batch; `run` becomes the one at its end."""
        longest, before = 0, -1
        for row in bad_rows:
            self.run = self.run + 1 if row == before + 1 else 1
            longest, before = max(longest, self.run), row
        if before != seen - 1:
            self.run = 0
        return longest


def _listing(bad_samples: Iterable[BadSample]) -> str:
    return "; ".join(bad.reason for bad in bad_samples)
