"""How many samples may be unusable before a run stops."""

from __future__ import annotations

from collections.abc import Sequence

from mmcl.errors import UserError
from mmcl.types import BadSample

SHOWN = 10
GRACE = 1000


class BadSampleBudget:
    """Counts what the loader had to replace.

    The share is judged as if at least `GRACE` samples had been seen, so that one bad file at the start of a run does not end
    it; a budget of 0 does so at once.

    Args:
        max_fraction: largest share of bad samples among those seen.

    Attributes:
        count: bad samples so far; one that is met in every epoch counts every time.
        seen: samples so far.
    """

    def __init__(self, max_fraction: float):
        self.max_fraction = max_fraction
        self.count = self.seen = 0
        self._first: dict[int, BadSample] = {}

    def add(self, bad_samples: Sequence[BadSample], seen: int) -> None:
        """Counts one batch of `seen` samples.

        Raises:
            UserError: the budget is spent; lists the first bad samples.
        """
        self.count += len(bad_samples)
        self.seen += seen
        for bad in bad_samples:
            if len(self._first) < SHOWN:
                self._first.setdefault(bad.index, bad)
        if self.count > self.max_fraction * max(self.seen, GRACE):
            listing = "; ".join(bad.reason for bad in self._first.values())
            raise UserError(
                f"{self.count} of {self.seen} samples could not be used, more than data.max_bad_fraction {self.max_fraction} "
                f"allows; mend or remove them, or raise it. The first: {listing}"
            )
