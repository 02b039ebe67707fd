"""P x K sampling for supervised contrastive and metric learning."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mmcl.data.batches.order import BatchOrder
from mmcl.data.random_streams import Stream
from mmcl.errors import UserError
from mmcl.rng import permutation


class ClassOrder(BatchOrder):
    """P x K sampling (Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017, section 2).

    Steps are grouped in rounds of ceil(C / P), with C the number of classes. A round shows every class, in its own random
    order, and fills its last step with classes already shown; the P classes of a step are always distinct. Each class cycles
    through permutations of its samples, K at a time, so samples of small classes are seen more often than those of large ones.

    A class with fewer than K samples repeats them within a step, each time with different draws for the views. Unlabeled
    samples are never shown.

    Args:
        labels_N: int64 [N], negative for unlabeled samples.
        batch_size: P * K.
        samples_per_class: K.
        seed: seed of all permutations.

    Raises:
        UserError: K does not divide the batch, or there are fewer than P classes.
    """

    def __init__(self, labels_N: np.ndarray, batch_size: int, samples_per_class: int, seed: int):
        self.members = [np.flatnonzero(labels_N == label) for label in np.unique(labels_N[labels_N >= 0])]
        self.size, self.batch_size, self.seed = int((labels_N >= 0).sum()), batch_size, seed
        self.samples_per_class = samples_per_class
        self.classes_per_step, remainder = divmod(batch_size, samples_per_class)
        if remainder or not 1 <= self.classes_per_step <= len(self.members):
            raise UserError(
                f"train.batch_size is {batch_size}: with data.samples_per_class {samples_per_class} choose a multiple of it, "
                f"up to {samples_per_class * len(self.members)} for {len(self.members)} classes"
            )

    def _rows(self, step: int, row_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        classes = len(self.members)
        round_number, step_in_round = divmod(step, -(-classes // self.classes_per_step))
        place_b, sample_b = np.divmod(row_b, self.samples_per_class)
        slot_b = step_in_round * self.classes_per_step + place_b
        class_b = _permutation(classes, self.seed, Stream.CLASSES, round_number)[slot_b % classes]
        size_b = np.array([len(rows) for rows in self.members])[class_b]
        lap_b, offset_b = np.divmod(round_number * self.samples_per_class + sample_b, size_b)
        # The classes that fill a round use separate permutations, so that no sample gets the same draws twice.
        epoch_b = 2 * lap_b + (slot_b >= classes)
        places = zip(class_b.tolist(), epoch_b.tolist(), offset_b.tolist(), strict=True)
        return epoch_b, np.array([self._sample(*place) for place in places], np.int64)

    def _sample(self, class_number: int, lap: int, offset: int) -> int:
        members = self.members[class_number]
        return int(members[_permutation(len(members), self.seed, Stream.CLASSES, lap, class_number)[offset]])


@lru_cache(maxsize=4096)
def _permutation(size: int, *key: int) -> np.ndarray:
    return permutation(size, *key)
