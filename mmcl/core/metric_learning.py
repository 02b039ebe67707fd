"""Metric-learning losses of Euclidean distances: triplet, contrastive and margin loss, with their miners.

All take the rows of all processes, because the mean is over the triplets of the whole batch. Memory is O(N^2): triplets are
counted by sorting, never listed. Second derivatives come from autograd (`create_graph=True`). Of the transforms of
`torch.func`, `torch.cdist` supports only first derivatives in reverse mode and `vmap`, and raises an error otherwise.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core.precision import in_float32, statistics_dtype

Miner = Literal["all", "batch_hard", "semi_hard", "distance_weighted"]


@in_float32
def triplet_loss(
    row_ND: Tensor,
    id_N: Tensor,
    *,
    margin: float = 0.2,
    miner: Miner = "semi_hard",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The mean of $\max(0, d_{ap} - d_{an} + m)$ over the mined triples of an anchor, a positive and a negative.

    Schroff et al., "FaceNet", 2015, eq. 3, with distances in place of their squares. Miners:

    - "all": every triple.
    - "batch_hard": for each anchor the farthest positive and the nearest negative (Hermans et al., "In Defense of the Triplet
      Loss for Person Re-Identification", 2017, eq. 5).
    - "semi_hard": the triples with $d_{ap} < d_{an} < d_{ap} + m$ (FaceNet, section 3.2).
    - "distance_weighted": for each anchor and positive one drawn negative, see `draw_negatives`.

    Args:
        row_ND: [N, D]; of unit length for "distance_weighted".
        id_N: int64; equal ids are positives.
        margin: m.
        miner: see above.
        generator: source of the random draws, on the device of the rows; required only for "distance_weighted".

    Returns:
        A scalar; 0 with a usable gradient if there are no triplets.

    Raises:
        ValueError: shapes do not match, the miner is unknown, or it needs a generator.
    """
    pairs = _distances(row_ND, id_N)
    if miner in ("all", "semi_hard"):
        return _sum_of_triples(pairs, margin, semi_hard=miner == "semi_hard")
    if miner == "batch_hard":
        positive_N, negative_N = _hardest(pairs)
        valid_N = pairs.positive_NN.any(1) & pairs.negative_NN.any(1)
        return _mean(F.relu(positive_N - negative_N + margin), valid_N)
    if miner != "distance_weighted" or generator is None:
        raise ValueError(f"miner {miner!r} must be all, batch_hard, semi_hard, or distance_weighted with a generator")
    negative_NN = pairs.distance_NN.gather(1, draw_negatives(pairs, row_ND.shape[1], generator))
    valid_NN = pairs.positive_NN & pairs.negative_NN.any(1, keepdim=True)
    return _mean(F.relu(pairs.distance_NN - negative_NN + margin), valid_NN)


@in_float32
def contrastive_pair_loss(row_ND: Tensor, id_N: Tensor, *, margin: float = 1.0) -> Tensor:
    r"""The mean over all pairs of $d^2$ for positives and $\max(0, m - d)^2$ for negatives.

    Hadsell et al., "Dimensionality Reduction by Learning an Invariant Mapping", 2006, eq. 4, without its factor 1/2.

    Args:
        row_ND: [N, D].
        id_N: int64; equal ids are positives.
        margin: m, the distance beyond which negatives have no loss.

    Returns:
        A scalar; 0 with a usable gradient for a single row.

    Raises:
        ValueError: shapes do not match.
    """
    pairs = _distances(row_ND, id_N)
    loss_NN = torch.where(pairs.positive_NN, pairs.distance_NN.square(), F.relu(margin - pairs.distance_NN).square())
    return _mean(loss_NN, pairs.positive_NN | pairs.negative_NN)


@in_float32
def margin_loss(
    row_ND: Tensor,
    id_N: Tensor,
    *,
    alpha: float = 0.2,
    beta: Tensor | float = 1.2,
    negatives: Literal["all", "distance_weighted"] = "distance_weighted",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The mean of $\max(0, \alpha \pm (d - \beta))$ over the pairs with a positive loss; plus: positives, minus: negatives.

    Wu et al., "Sampling Matters in Deep Embedding Learning", 2017, section 4.2. Of the negatives, one is drawn for each
    positive pair (section 4.1, see `draw_negatives`), or "all" count.

    Args:
        row_ND: [N, D]; of unit length for "distance_weighted".
        id_N: int64; equal ids are positives.
        alpha: half of the margin between positives and negatives.
        beta: the boundary distance between them, a number or a scalar tensor (with a gradient if it is learned).
        negatives: "distance_weighted" or "all", see above.
        generator: source of the random draws, on the device of the rows; required only for "distance_weighted".

    Returns:
        A scalar; 0 with a usable gradient if no pair has a loss.

    Raises:
        ValueError: shapes do not match, `negatives` is unknown, or it needs a generator.
    """
    pairs = _distances(row_ND, id_N)
    valid_NN = pairs.positive_NN & pairs.negative_NN.any(1, keepdim=True)
    if negatives == "all":
        negative_NN, wanted_NN = pairs.distance_NN, pairs.negative_NN
    elif negatives == "distance_weighted" and generator is not None:
        negative_NN, wanted_NN = pairs.distance_NN.gather(1, draw_negatives(pairs, row_ND.shape[1], generator)), valid_NN
    else:
        raise ValueError(f"negatives {negatives!r} must be all, or distance_weighted with a generator")
    near_NN = torch.where(valid_NN, F.relu(alpha + pairs.distance_NN - beta), 0)
    far_NN = torch.where(wanted_NN, F.relu(alpha + beta - negative_NN), 0)
    return (near_NN.sum() + far_NN.sum()) / ((near_NN > 0).sum() + (far_NN > 0).sum()).clamp(min=1)


class PairDistances(NamedTuple):
    """Distances of all pairs of N rows.

    Attributes:
        distance_NN: Euclidean distances with a gradient, which is zero for equal rows.
        positive_NN, negative_NN: bool; a row is neither for itself.
    """

    distance_NN: Tensor
    positive_NN: Tensor
    negative_NN: Tensor


@torch.no_grad()
def draw_negatives(pairs: PairDistances, dim: int, generator: torch.Generator) -> Tensor:
    r"""Draws, for every pair, a negative of its first row by distance: indices, int64 [N, N].

    The probability is inverse to the density of distances on the sphere, $q(d) \propto d^{D-2} (1 - d^2/4)^{(D-3)/2}$, so that
    all distances are drawn alike (Wu et al., 2017, eqs. 4 to 6). As in the published code, distances below 0.5 count as 0.5,
    and negatives beyond 1.4 are drawn only if there are no closer ones. Rows without negatives draw arbitrary rows.
    """
    distance_NN = pairs.distance_NN.to(statistics_dtype(pairs.distance_NN)).clamp(min=0.5, max=1.99)
    log_density_NN = (dim - 2) * distance_NN.log() + (dim - 3) / 2 * (1 - distance_NN.square() / 4).log()
    near_NN = pairs.negative_NN & (pairs.distance_NN < 1.4)
    far_only_N1 = ~near_NN.any(1, keepdim=True)
    log_weight_NN = torch.where(far_only_N1, 0, -log_density_NN)
    kept_NN = torch.where(far_only_N1, pairs.negative_NN, near_NN) | ~pairs.negative_NN.any(1, keepdim=True)
    weight_NN = log_weight_NN.masked_fill(~kept_NN, -torch.inf).softmax(1)
    if not len(weight_NN):
        return torch.zeros_like(weight_NN, dtype=torch.int64)
    return torch.multinomial(weight_NN, len(weight_NN), replacement=True, generator=generator)


def _distances(row_ND: Tensor, id_N: Tensor) -> PairDistances:
    if row_ND.ndim != 2 or id_N.shape != row_ND.shape[:1]:
        raise ValueError(f"rows {tuple(row_ND.shape)} must be [N, D] and ids {tuple(id_N.shape)} [N]")
    # Computed from scalar products, small distances would be mostly rounding error.
    distance_NN = torch.cdist(row_ND, row_ND, compute_mode="donot_use_mm_for_euclid_dist")
    equal_NN = id_N[:, None] == id_N
    self_NN = torch.eye(len(id_N), dtype=torch.bool, device=id_N.device)
    return PairDistances(distance_NN, equal_NN & ~self_NN, ~equal_NN)


def _hardest(pairs: PairDistances) -> tuple[Tensor, Tensor]:
    """Distance of each row to its farthest positive and its nearest negative; 0 if there is none."""
    if not len(pairs.distance_NN):
        return pairs.distance_NN.sum(1), pairs.distance_NN.sum(1)
    positive_N = pairs.distance_NN.masked_fill(~pairs.positive_NN, 0).amax(1)
    far = pairs.distance_NN.detach().amax() + 1
    nearest_N = torch.where(pairs.negative_NN, pairs.distance_NN, far).amin(1)
    return positive_N, torch.where(pairs.negative_NN.any(1), nearest_N, 0)


def _sum_of_triples(pairs: PairDistances, margin: float, *, semi_hard: bool) -> Tensor:
    """Mean loss over all (semi-hard) triples: each distance times its number of triples with a positive loss."""
    reach_NN = pairs.distance_NN + margin  # A triple has a positive loss if its negative is closer than this.
    with torch.no_grad():
        distance_NN = pairs.distance_NN.detach()
        positive_count_NN = _count_below(distance_NN, pairs.negative_NN, reach_NN.detach())
        negative_count_NN = _count_above(reach_NN.detach(), pairs.positive_NN, distance_NN)
        triples_N = pairs.positive_NN.sum(1) * pairs.negative_NN.sum(1)
        if semi_hard:
            positive_count_NN -= _count_below(distance_NN, pairs.negative_NN, distance_NN, or_equal=True)
            negative_count_NN -= _count_above(distance_NN, pairs.positive_NN, distance_NN, or_equal=True)
            triples_N = (positive_count_NN * pairs.positive_NN).sum(1)
    total = (pairs.positive_NN * positive_count_NN * reach_NN).sum()
    total = total - (pairs.negative_NN * negative_count_NN * pairs.distance_NN).sum()
    return total / triples_N.sum().clamp(min=1)


def _count_below(value_NN: Tensor, kept_NN: Tensor, limit_NN: Tensor, *, or_equal: bool = False) -> Tensor:
    """Number of kept values in the row that are below each limit."""
    sorted_NN = value_NN.masked_fill(~kept_NN, torch.inf).sort(1).values
    return torch.searchsorted(sorted_NN, limit_NN.contiguous(), right=or_equal)


def _count_above(value_NN: Tensor, kept_NN: Tensor, limit_NN: Tensor, *, or_equal: bool = False) -> Tensor:
    """Number of kept values in the row that are above each limit."""
    return _count_below(-value_NN, kept_NN, -limit_NN, or_equal=or_equal)


def _mean(loss: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, loss, 0).sum() / valid.sum().clamp(min=1)
