"""Sample order over several sources in exact proportions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmcl.data.batches.order import BatchOrder
from mmcl.data.batches.permutations import Permutations
from mmcl.data.random_streams import Stream
from mmcl.errors import UserError


class MixedOrder(BatchOrder):
    """An endless stream of rounds, cut into global batches. A round shows `counts[k]` rows of part k, in random positions.

    Each part cycles through permutations of its samples, so that no sample repeats before all others of its part were shown.
    The position in the stream determines the sample: slot s of a round's permutation belongs to a part, and is its
    (round * count + s)-th row.

    Args:
        sizes: name -> number of samples of the part; indices run through the parts one after the other.
        counts: name -> rows of the part per round, at least 1.
        batch_size: rows of the global batch; at most those of a round.
        seed: seed of all permutations.

    Raises:
        UserError: the batch is larger than a round.
    """

    def __init__(self, sizes: Mapping[str, int], counts: Mapping[str, int], batch_size: int, seed: int):
        self.names = list(sizes)
        self.sizes_K = np.array([sizes[name] for name in self.names], np.int64)
        self.counts_K = np.array([counts[name] for name in self.names], np.int64)
        self.size, self.batch_size, self.seed = int(self.counts_K.sum()), batch_size, seed
        if not 1 <= batch_size <= self.size:
            raise UserError(f"train.batch_size is {batch_size}: choose 1 to {self.size}, the rows of one epoch of data.mix")
        self._rounds = Permutations(self.size, seed, Stream.PART)
        self._parts = [Permutations(int(n), seed, Stream.PART, k + 1) for k, n in enumerate(self.sizes_K)]
        self._told = 0, 0, np.zeros_like(self.counts_K)
        self._first_sample_K = np.cumsum(self.sizes_K) - self.sizes_K
        self._first_slot_K = np.cumsum(self.counts_K) - self.counts_K

    def rows_by_part(self, step: int) -> dict[str, int]:
        """Number of rows of every part in all steps before `step`."""
        rounds, rest = divmod(step * self.batch_size, self.size)
        known_round, known_rest, begun_K = self._told
        if known_round != rounds or known_rest > rest:
            known_rest, begun_K = 0, np.zeros_like(self.counts_K)
        place_b = np.arange(known_rest, rest)
        part_b = self._part_of(self._rounds.at(np.full_like(place_b, rounds), place_b))
        begun_K = begun_K + np.bincount(part_b, minlength=len(self.names))
        self._told = rounds, rest, begun_K  # Called after every step, it only counts the rows of that step.
        return dict(zip(self.names, (rounds * self.counts_K + begun_K).tolist(), strict=True))

    def _rows(self, step: int, row_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        round_b, offset_b = np.divmod(step * self.batch_size + row_b, self.size)
        slot_b = self._rounds.at(round_b, offset_b)
        part_b = self._part_of(slot_b)
        ordinal_b = round_b * self.counts_K[part_b] + slot_b - self._first_slot_K[part_b]
        lap_b, place_b = np.divmod(ordinal_b, self.sizes_K[part_b])
        index_b = self._first_sample_K[part_b]
        for part in np.unique(part_b):
            here = part_b == part
            index_b[here] += self._parts[part].at(lap_b[here], place_b[here])
        return lap_b, index_b

    def _part_of(self, slot_b: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._first_slot_K, slot_b, side="right") - 1


def rows_of_a_round(
    sizes: Mapping[str, int], *, weights: Mapping[str, float] | None = None, epochs: Mapping[str, float] | None = None
) -> dict[str, int]:
    """Computes the number of rows of each part per round.

    Args:
        sizes: name -> number of samples.
        weights: name -> relative share of a round that has as many rows as there are samples.
        epochs: name -> number of times a round shows each sample; default: once.

    Returns:
        name -> rows per round, at least 1.
    """
    if weights is None:
        return {name: max(1, round((epochs or {}).get(name, 1.0) * size)) for name, size in sizes.items()}
    total, rows = sum(weights.values()), sum(sizes.values())
    exact = {name: weights[name] / total * rows for name in sizes}
    counts = {name: int(share) for name, share in exact.items()}
    # Largest-remainder rounding.
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[: rows - sum(counts.values())]:
        counts[name] += 1
    return {name: max(1, count) for name, count in counts.items()}
