"""The losses as modules, which hold learned parameters and state: scales, a bias, prototypes, a queue.

Pass the parameters of a module to the optimizer and, under DDP, put the module into the wrapped model, for instance
`nn.ModuleDict({"towers": ..., "loss": ClipLoss()})`. `forward` takes the arguments of the function before its `*`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmcl.core.clustering import Prototypes
from mmcl.core.host_count import HostCount
from mmcl.core.key_queue import KeyQueue
from mmcl.core.metric_learning import Miner
from mmcl.core.precision import unit_rows
from mmcl.losses.arguments import check_mixing, check_positive, check_sigreg
from mmcl.losses.metric_learning import contrastive_pair_loss, margin_loss, triplet_loss
from mmcl.losses.sigmoid import siglip_loss
from mmcl.losses.softmax import Similarity, clip_loss, info_nce, moco_loss, simcse_loss
from mmcl.losses.two_views import dcl_loss, nt_xent, supcon_loss
from mmcl.losses.without_negatives import barlow_twins_loss, byol_loss, lejepa_loss, swav_loss, vicreg_loss


class Loss(nn.Module):
    """Base class that stores the options of the function and shows them in its repr."""

    def __init__(self, **options: Any):
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class InfoNCELoss(Loss):
    """`info_nce` at a fixed temperature.

    Example:
        >>> criterion = InfoNCELoss(temperature=0.5)
        >>> round(criterion(torch.eye(3), torch.eye(3)).item(), 4)
        0.2395
    """

    def __init__(self, *, temperature: float = 0.1, similarity: Similarity = "cosine"):
        super().__init__(temperature=temperature, similarity=similarity)

    def forward(self, query: Tensor, key: Tensor, ids: Tensor | None = None, key_ids: Tensor | None = None) -> Tensor:
        return info_nce(query, key, ids, key_ids, **self.options)


class ClipLoss(Loss):
    """`clip_loss` with a learned scale.

    Args:
        temperature: initial temperature; 0.07 in the paper.
        max_scale: largest inverse temperature; before each use, the log-scale is clamped to [0, ln max_scale]. Without this
            bound, training can become unstable (section 2.5 of the paper).
        learnable: whether the scale is learned; exclude its parameter from weight decay.

    Attributes:
        log_scale: scalar.

    Example:
        >>> criterion = ClipLoss(temperature=0.5)
        >>> round(criterion(torch.eye(3), torch.eye(3)).item(), 4)
        0.2395
    """

    log_scale: Tensor

    def __init__(self, *, temperature: float = 0.07, max_scale: float = 100.0, learnable: bool = True):
        check_positive(temperature=temperature, max_scale=max_scale)
        super().__init__(max_scale=max_scale, learnable=learnable)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learnable)

    def forward(self, image: Tensor, text: Tensor, ids: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            self.log_scale.clamp_(0, math.log(self.options["max_scale"]))
        return clip_loss(image, text, ids, scale=self.log_scale.exp())


class SigLipLoss(Loss):
    """`siglip_loss` with a learned scale and bias.

    Args:
        temperature: initial temperature; 0.1 in the paper.
        bias: initial bias; -10 in the paper, for batches of about 22,000. For N pairs, -ln(N - 1) gives each pair its prior.

    Attributes:
        log_scale, bias: scalars; exclude them from weight decay.

    Example:
        >>> criterion = SigLipLoss(bias=-5.0)
        >>> round(criterion(torch.eye(3), torch.eye(3)).item(), 4)
        0.0201
    """

    def __init__(self, *, temperature: float = 0.1, bias: float = -10.0):
        check_positive(temperature=temperature)
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, image: Tensor, text: Tensor, ids: Tensor | None = None) -> Tensor:
        return siglip_loss(image, text, ids, scale=self.log_scale.exp(), bias=self.bias)


class NTXentLoss(Loss):
    """`nt_xent` at a fixed temperature.

    Example:
        >>> criterion = NTXentLoss(temperature=0.5)
        >>> round(criterion(torch.eye(3), torch.eye(3)).item(), 4)
        0.4327
    """

    def __init__(self, *, temperature: float = 0.1, hardness: float = 0.0, positive_prior: float = 0.0):
        super().__init__(temperature=temperature, hardness=hardness, positive_prior=positive_prior)

    def forward(self, a: Tensor, b: Tensor, ids: Tensor | None = None) -> Tensor:
        return nt_xent(a, b, ids, **self.options)


class DCLLoss(Loss):
    """`dcl_loss` at a fixed temperature.

    Example:
        >>> criterion = DCLLoss(temperature=0.5)
        >>> round(criterion(torch.eye(3), torch.eye(3)).item(), 4)  # ln 4 - 2
        -0.6137
    """

    def __init__(self, *, temperature: float = 0.1):
        super().__init__(temperature=temperature)

    def forward(self, a: Tensor, b: Tensor, ids: Tensor | None = None) -> Tensor:
        return dcl_loss(a, b, ids, **self.options)


class SupConLoss(Loss):
    """`supcon_loss` at a fixed temperature.

    Example:
        >>> criterion, ids = SupConLoss(temperature=0.5), torch.tensor([0, 1, 1, 0, 1, 1])
        >>> round(criterion(torch.eye(3).repeat(2, 1), ids).item(), 4)
        1.3215
    """

    def __init__(self, *, temperature: float = 0.1, positives: Literal["outside", "inside"] = "outside"):
        super().__init__(temperature=temperature, positives=positives)

    def forward(self, rows: Tensor, ids: Tensor) -> Tensor:
        return supcon_loss(rows, ids, **self.options)


class SimCSELoss(Loss):
    """`simcse_loss` at a fixed temperature.

    Example:
        >>> criterion = SimCSELoss(temperature=0.5)
        >>> round(criterion(torch.eye(3), torch.eye(3)).item(), 4)
        0.2395
    """

    def __init__(self, *, temperature: float = 0.05, negative_log_weight: float = 0.0):
        super().__init__(temperature=temperature, negative_log_weight=negative_log_weight)

    def forward(self, a: Tensor, b: Tensor, ids: Tensor | None = None, negative: Tensor | None = None) -> Tensor:
        return simcse_loss(a, b, ids, negative, **self.options)


class ContrastivePairLoss(Loss):
    """`contrastive_pair_loss`.

    Example:
        >>> criterion = ContrastivePairLoss(margin=2.0)
        >>> round(criterion(torch.eye(3), torch.tensor([0, 0, 1])).item(), 4)
        0.8954
    """

    def __init__(self, *, margin: float = 1.0, normalize: bool = False):
        super().__init__(margin=margin, normalize=normalize)

    def forward(self, rows: Tensor, ids: Tensor) -> Tensor:
        return contrastive_pair_loss(rows, ids, **self.options)


class _DrawingLoss(Loss):
    """Seeds the draws by the step number alone, so that all processes and a resumed run draw the same."""

    step: Tensor

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def generator(self, rows: Tensor) -> torch.Generator | None:
        if "distance_weighted" not in self.options.values():
            return None
        generator = torch.Generator(rows.device).manual_seed(int(self.step))
        self.step += self.training
        return generator


class MoCoLoss(_DrawingLoss):
    """`moco_loss` with its queue. In training mode, the keys are added to the queue after the loss, so call it once per step.

    Args:
        size: K, the capacity of the queue, which is initially empty.
        dim: width of the rows.
        temperature: 0.2 in MoCo v2, 0.07 in v1.
        mixed, mixed_with_query, hardest: see `moco_loss`; what is mixed depends on the step number.

    Attributes:
        queue: keys and ids of past batches; part of the state dict.

    Example:
        >>> criterion = MoCoLoss(size=4, dim=3, temperature=0.5)
        >>> [round(criterion(torch.eye(3), torch.eye(3), torch.arange(3) + step).item(), 4) for step in (0, 3)]
        [0.0, 0.8201]
    """

    def __init__(
        self,
        *,
        size: int = 65536,
        dim: int = 128,
        temperature: float = 0.2,
        mixed: int = 0,
        mixed_with_query: int = 0,
        hardest: int | None = None,
    ):
        check_mixing(mixed=mixed, mixed_with_query=mixed_with_query, hardest=hardest)
        super().__init__(temperature=temperature, mixed=mixed, mixed_with_query=mixed_with_query, hardest=hardest)
        self.queue = KeyQueue(size, dim)

    def forward(self, query: Tensor, key: Tensor, ids: Tensor | None = None) -> Tensor:
        """Computes the loss. `ids` are sample numbers, 0 or more; give them in every call or in none."""
        # A copy, because the graph of the loss refers to the old keys and `push` changes the queue in place.
        queue_ids = None if ids is None else self.queue.ids.clone()
        seed = int(self.step) if self.options["mixed"] or self.options["mixed_with_query"] else 0
        loss = moco_loss(query, key, ids, queue=self.queue.keys.clone(), queue_ids=queue_ids, seed=seed, **self.options)
        if self.training:
            self.queue.push(unit_rows(key.detach()), torch.full((len(key),), -1, device=key.device) if ids is None else ids)
            self.step += 1
        return loss


class TripletLoss(_DrawingLoss):
    """`triplet_loss`; the draws of "distance_weighted" depend on the step number, which is part of the state dict.

    Example:
        >>> criterion = TripletLoss(miner="all")
        >>> round(criterion(torch.eye(3), torch.tensor([0, 0, 1])).item(), 4)
        0.2
    """

    def __init__(self, *, margin: float = 0.2, miner: Miner = "semi_hard", normalize: bool = True):
        super().__init__(margin=margin, miner=miner, normalize=normalize)

    def forward(self, rows: Tensor, ids: Tensor) -> Tensor:
        return triplet_loss(rows, ids, generator=self.generator(rows), **self.options)


class MarginLoss(_DrawingLoss):
    """`margin_loss` with a learned boundary distance; draws in the same way as `TripletLoss`.

    Args:
        alpha: half of the margin.
        beta: initial boundary distance; 1.2 in the paper.
        negatives, normalize: see `margin_loss`.

    Attributes:
        beta: scalar; exclude it from weight decay.

    Example:
        >>> criterion = MarginLoss(negatives="all")
        >>> round(criterion(torch.eye(3), torch.tensor([0, 0, 1])).item(), 4)
        0.4142
    """

    def __init__(
        self,
        *,
        alpha: float = 0.2,
        beta: float = 1.2,
        negatives: Literal["all", "distance_weighted"] = "distance_weighted",
        normalize: bool = True,
    ):
        super().__init__(alpha=alpha, negatives=negatives, normalize=normalize)
        self.beta = nn.Parameter(torch.tensor(float(beta)))

    def forward(self, rows: Tensor, ids: Tensor) -> Tensor:
        return margin_loss(rows, ids, beta=self.beta, generator=self.generator(rows), **self.options)


class BarlowTwinsLoss(Loss):
    """`barlow_twins_loss`.

    Example:
        >>> a = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(BarlowTwinsLoss()(a, -a).item(), 4)  # two correlations of -1 that should be 1
        7.9999
    """

    def __init__(self, *, off_diagonal: float = 0.0051):
        super().__init__(off_diagonal=off_diagonal)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return barlow_twins_loss(a, b, **self.options)


class VICRegLoss(Loss):
    """`vicreg_loss`.

    Example:
        >>> a = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(VICRegLoss()(a, a + 1).item(), 4)  # 25 times the mean square of the difference
        25.0
    """

    def __init__(self, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0):
        super().__init__(invariance=invariance, variance=variance, covariance=covariance)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return vicreg_loss(a, b, **self.options)


class LeJEPALoss(Loss):
    """`lejepa_loss` with other directions in every call in training mode.

    Attributes:
        step: int64 scalar, number of calls in training mode so far.

    Example:
        >>> criterion = LeJEPALoss(weight=0.0)
        >>> round(criterion(torch.zeros(3, 2), torch.ones(3, 2)).item(), 4)  # both are 1/2 from their mean
        0.25
    """

    step: Tensor

    def __init__(self, *, weight: float = 0.05, slices: int = 1024, knots: int = 17, upper: float = 3.0):
        check_sigreg(weight=weight, slices=slices, knots=knots, upper=upper)
        super().__init__(weight=weight, slices=slices, knots=knots, upper=upper)
        self._steps = HostCount(self, "step")

    def forward(self, a: Tensor, b: Tensor, small: Sequence[Tensor] = ()) -> Tensor:
        loss = lejepa_loss(a, b, small, step=int(self._steps), **self.options)
        if self.training:
            self._steps.add(1)
        return loss


class BYOLLoss(Loss):
    """`byol_loss`.

    Example:
        >>> round(BYOLLoss()(torch.eye(3), -torch.eye(3)).item(), 4)  # opposite directions
        4.0
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return byol_loss(prediction, target)


class SwAVLoss(Loss):
    """`swav_loss` with its prototypes.

    Args:
        count: K, the number of prototypes; about ten times the number of classes.
        dim: width of the rows.
        temperature: temperature of the predictions.
        epsilon, iterations: Sinkhorn options for the codes.

    Attributes:
        prototypes: learned; scaled to unit length before each use. The paper freezes them in the first epoch:
            `criterion.prototypes.requires_grad_(False)`.

    Example:
        >>> criterion = SwAVLoss(count=5, dim=3)
        >>> criterion(torch.eye(3), torch.eye(3)).shape
        torch.Size([])
    """

    def __init__(
        self, *, count: int = 3000, dim: int = 128, temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3
    ):
        super().__init__(temperature=temperature, epsilon=epsilon, iterations=iterations)
        self.prototypes = Prototypes(count, dim)

    def forward(self, a: Tensor, b: Tensor, small: Sequence[Tensor] = ()) -> Tensor:
        self.prototypes.normalize()
        return swav_loss(a, b, small, prototypes=self.prototypes.weight, **self.options)
