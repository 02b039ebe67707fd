"""LeJEPA (Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics", 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.core.host_count import HostCount
from mmcl.core.sigreg import lejepa_loss, random_directions
from mmcl.losses.arguments import check_sigreg
from mmcl.methods.crops import LARGE, crop_views
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossOutput


class LeJEPA(Method):
    """Match views while their rows stay distributed as an isotropic Gaussian (SIGReg), without teacher, predictor or negatives.

    Every view is compared with the mean of the two large ones. Whether rows are Gaussian is tested on random directions, which
    are others in every step, and over the global batch.

    Args:
        towers: "image", with an MLP as head.
        weight: share of SIGReg in the loss, from 0 to 1; 0.05 in the paper.
        slices: number of random directions; 1024 in the paper, 256 in its minimal example.
        knots, upper: points at which characteristic functions are compared, and the largest of them.
        small_crops: number of views `small_0`, `small_1`, ... besides `a` and `b`; `data.views.small` sets their size.
    """

    views: Mapping[str, Literal["image", "text"]] = LARGE
    embedding: ClassVar[Literal["projection", "features"]] = "features"
    unit_rows: ClassVar[bool] = False

    step: Tensor
    test_args: ClassVar[Mapping[str, Any]] = {"slices": 6, "small_crops": 1}

    def __init__(
        self,
        towers: nn.ModuleDict,
        *,
        weight: float = 0.05,
        slices: int = 1024,
        knots: int = 17,
        upper: float = 3.0,
        small_crops: int = 0,
    ):
        super().__init__(towers)
        check_sigreg(weight=weight, slices=slices, knots=knots, upper=upper)
        self.views = crop_views(small_crops)
        self.weight, self.slices, self.knots, self.upper = weight, slices, knots, upper
        self._steps = HostCount(self, "step")

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        row_VBD = torch.stack([embeddings.all[view] for view in self.views])
        direction_DM = random_directions(row_VBD.shape[2], self.slices, int(self._steps)).to(row_VBD.device)
        loss = lejepa_loss(row_VBD, direction_DM, large=len(LARGE), weight=self.weight, knots=self.knots, upper=self.upper)
        return LossOutput(embeddings.share * loss)

    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        self._steps.add(1)
