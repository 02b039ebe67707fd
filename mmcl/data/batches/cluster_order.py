"""Batches made of clusters of samples that lie near each other, so that their negatives are hard."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmcl.data.batches.order import BatchOrder
from mmcl.data.batches.permutations import Permutations
from mmcl.data.random_streams import Stream
from mmcl.errors import UserError


class ClusterOrder(BatchOrder):
    """An endless stream of epochs, cut into global batches; each epoch shows every sample once, and clusters in random order.

    Clusters of K samples begin at multiples of K of the stream, so that no batch cuts one. What an epoch has before the first
    and after the last such multiple are samples that fill no cluster and, where these are not enough, a cluster that is taken
    apart in this epoch.

    Args:
        file: the samples, cluster by cluster, .npy of int64 [N]; see `Clusters.order_N`. It is read with the first batch.
        samples: N.
        batch_size: rows of the global batch, a multiple of K and at most N.
        cluster: K.
        seed: seed of the permutations.

    Raises:
        UserError: the batch does not fit.
    """

    def __init__(self, file: Path, samples: int, batch_size: int, cluster: int, seed: int):
        self.file, self.size, self.batch_size, self.cluster, self.seed = file, samples, batch_size, cluster, seed
        largest = samples // cluster * cluster
        if not largest:
            raise UserError(f"data.hard_batches.cluster is {cluster}: choose 2 to {samples}, the number of samples")
        if batch_size % cluster or not cluster <= batch_size <= largest:
            raise UserError(
                f"train.batch_size is {batch_size}: with data.hard_batches.cluster {cluster} choose a multiple of it, up to "
                f"{largest} for {samples} samples"
            )
        self._epochs = Permutations(samples // cluster, seed, Stream.CLUSTERS)

    def _rows(self, step: int, row_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        clusters, rest = divmod(self.size, self.cluster)
        epoch_b, offset_b = np.divmod(step * self.batch_size + row_b, self.size)
        before_b = -epoch_b * self.size % self.cluster
        whole_b = (self.size - before_b) // self.cluster
        number_b, member_b = np.divmod(offset_b - before_b, self.cluster)
        is_single = (number_b < 0) | (number_b >= whole_b)
        single_b = np.where(number_b < 0, offset_b, offset_b - whole_b * self.cluster)
        number_b = self._epochs.at(epoch_b, np.where(is_single, clusters - 1, number_b))
        place_b = number_b * self.cluster + np.where(is_single, single_b - rest, member_b)
        place_b = np.where(is_single & (single_b < rest), clusters * self.cluster + single_b, place_b)
        # Mapped for each piece, so that its content is not sent to loader processes.
        index_b: np.ndarray = np.load(self.file, mmap_mode="r", allow_pickle=False)[place_b]
        return epoch_b, index_b
