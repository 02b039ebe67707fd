"""Sample orders: pure functions of (seed, step) that are the same for any number of processes and workers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from mmcl.data.batches.permutations import Permutations
from mmcl.errors import UserError


class BatchOrder(ABC):
    """Base class of the sample orders.

    Attributes:
        size: number of samples.
        batch_size: rows of the global batch.
        seed: seed of the order and of all other draws for its batches.
    """

    size: int
    batch_size: int
    seed: int

    def rows(self, step: int, rank: int = 0, world: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Returns one process's share of a step: a contiguous slice, so that the shares in rank order form the global batch.

        Returns:
            The epoch of every row and its index in the dataset, both int64 [batch_size / world]. Every such pair is unique: it
            determines the random draws for the row.

        Raises:
            UserError: `world` processes cannot share the batch equally.
        """
        share, remainder = divmod(self.batch_size, world)
        if remainder:
            raise UserError(f"train.batch_size is {self.batch_size}: choose a multiple of {world}, the number of processes")
        return self.part(step, rank * share, (rank + 1) * share)

    def part(self, step: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epochs and dataset indices of the rows from `start` to `stop` of a global batch, as `rows` does."""
        return self._rows(step, np.arange(start, stop))

    @abstractmethod
    def _rows(self, step: int, row_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epochs and dataset indices of given rows, 0 to batch_size - 1, of a global batch."""

    def rows_by_part(self, step: int) -> dict[str, int]:
        """Returns the number of rows of every named part in all steps before `step`; empty without parts."""
        return {}

    def steps(self, epochs: float) -> int:
        """Number of steps in which `epochs` times the number of samples are seen."""
        return math.ceil(epochs * self.size / self.batch_size)

    def epochs(self, steps: int) -> float:
        """Number of epochs in a number of steps; an epoch has as many rows as samples, or as a round of a mixture."""
        return steps * self.batch_size / self.size


@dataclass(frozen=True, slots=True)
class Order(BatchOrder):
    """An endless stream of permutations of the dataset, one per epoch, cut into global batches.

    A batch may cross the end of an epoch. So every sample is seen exactly once per epoch, no tail is dropped, and all batches
    have the same size.

    Args:
        size: number of samples.
        batch_size: rows of the global batch; at most `size`, so that a batch never repeats a sample within an epoch.
        seed: seed of the permutations.

    Raises:
        UserError: the dataset is empty or has fewer than `batch_size` samples.
    """

    size: int
    batch_size: int
    seed: int
    _epochs: Permutations = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_epochs", Permutations(self.size, self.seed))
        if self.size == 0:
            raise UserError("the dataset is empty")
        if not 1 <= self.batch_size <= self.size:
            raise UserError(f"train.batch_size is {self.batch_size}: choose 1 to {self.size}, the number of samples")

    def _rows(self, step: int, row_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epoch, offset = np.divmod(step * self.batch_size + row_b, self.size)
        return epoch, self._epochs.at(epoch, offset)
