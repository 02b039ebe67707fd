"""Metric learning: three losses on Euclidean distances between images of the same and of different classes.

Each loss is a separate method because each has its own arguments.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.core.host_count import HostCount
from mmcl.core.metric_learning import Miner, contrastive_pair_loss, margin_loss, triplet_loss
from mmcl.methods.method import Method
from mmcl.methods.two_views import all_rows, label_ids
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput


class MetricMethod(Method):
    """Base of the metric-learning methods: both views of every image are rows, and rows with equal labels are positives.

    Every process computes the loss of all rows. A row without a label is a negative of all others. Random sampling in the
    losses depends only on the step, so all processes and resumed runs draw the same samples.
    """

    views: Mapping[str, Literal["image", "text"]] = {"a": "image", "b": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "features"
    positives: ClassVar[Literal["ids", "labels"]] = "labels"

    step: Tensor

    def __init__(self, towers: nn.ModuleDict):
        super().__init__(towers)
        self._steps = HostCount(self, "step")

    @property
    def nested_rows(self) -> Collection[str]:
        return self.embedded_views

    def describe(self, global_batch: int) -> LossFacts:
        return LossFacts(negatives=2 * global_batch - 2)

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        rows = label_ids(all_rows(embeddings))
        generator = torch.Generator(rows.row_ND.device).manual_seed(int(self._steps))
        return LossOutput(embeddings.share * self.row_loss(rows.row_ND, rows.id_N, generator))

    @abstractmethod
    def row_loss(self, row_ND: Tensor, id_N: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of the global batch."""

    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        self._steps.add(1)


class Triplet(MetricMethod):
    """Keep every positive closer than every negative by a margin (Schroff et al., "FaceNet", 2015, eq. 3).

    Args:
        towers: "image".
        margin: required difference between the two distances; 0.2 in the paper.
        miner: selection of triplets: "all", "batch_hard", "semi_hard" or "distance_weighted", see `triplet_loss`.
    """

    # With another miner the mean is over the selected triplets, and it falls more slowly than their number.
    test_args: ClassVar[Mapping[str, Any]] = {"miner": "all"}

    def __init__(self, towers: nn.ModuleDict, *, margin: float = 0.2, miner: Miner = "semi_hard"):
        super().__init__(towers)
        self.margin, self.miner = margin, miner

    def row_loss(self, row_ND: Tensor, id_N: Tensor, generator: torch.Generator) -> Tensor:
        return triplet_loss(row_ND, id_N, margin=self.margin, miner=self.miner, generator=generator)


class ContrastivePair(MetricMethod):
    """Pull positives together and push negatives at least a margin apart (Hadsell et al., 2006, eq. 4).

    Args:
        towers: "image".
        margin: at most 2, the largest distance between unit-length rows.
    """

    def __init__(self, towers: nn.ModuleDict, *, margin: float = 1.0):
        super().__init__(towers)
        self.margin = margin

    def row_loss(self, row_ND: Tensor, id_N: Tensor, generator: torch.Generator) -> Tensor:
        return contrastive_pair_loss(row_ND, id_N, margin=self.margin)


class Margin(MetricMethod):
    """Keep positives within a learned distance and negatives beyond it (Wu et al., "Sampling Matters", 2017, section 4.2).

    Args:
        towers: "image".
        alpha: half of the margin.
        beta: initial value of the learned distance.
        negatives: "distance_weighted" draws one negative for each positive pair (section 4.1); "all" uses every negative.
    """

    # The drawn negatives depend on the order of the rows.
    test_args: ClassVar[Mapping[str, Any]] = {"negatives": "all"}

    def __init__(
        self,
        towers: nn.ModuleDict,
        *,
        alpha: float = 0.2,
        beta: float = 1.2,
        negatives: Literal["all", "distance_weighted"] = "distance_weighted",
    ):
        super().__init__(towers)
        self.alpha, self.negatives = alpha, negatives
        self.beta = nn.Parameter(torch.tensor(beta))

    def row_loss(self, row_ND: Tensor, id_N: Tensor, generator: torch.Generator) -> Tensor:
        return margin_loss(row_ND, id_N, alpha=self.alpha, beta=self.beta, negatives=self.negatives, generator=generator)
