"""Losses of Euclidean distances within and between classes: thin wrappers of `mmcl.core.metric_learning`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmcl.core import metric_learning as core
from mmcl.core.metric_learning import Miner
from mmcl.core.precision import unit_rows
from mmcl.losses.arguments import check_numbers, check_rows, checked_ids, number


def triplet_loss(
    rows: Tensor,
    ids: Tensor,
    *,
    margin: float = 0.2,
    miner: Miner = "semi_hard",
    normalize: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Triplet loss: requires positives to be nearer to the anchor than negatives by a margin.

    $$\ell = \mathrm{mean}_{(a, p, n)} \max(0, d_{ap} - d_{an} + m)$$

    Args:
        rows: embeddings.
        ids: classes; equal ids are positives.
        margin: m.
        miner: selection of the triplets: "all"; "batch_hard", for each anchor the farthest positive and the nearest negative
            (Hermans et al., 2017, eq. 5); "semi_hard", those with $d_{ap} < d_{an} < d_{ap} + m$ (section 3.2 of the paper);
            "distance_weighted", one sampled negative for each anchor and positive (Wu et al., 2017, section 4.1).
        normalize: scale the rows to unit length first, as the paper does; distances are then at most 2.
        generator: source of the random draws, on the device of the rows; required for "distance_weighted".

    Shape:
        rows [N, D]; ids [N], of integers; returns a scalar, 0 with a usable gradient if there are no triplets.

    Requirements:
        Several rows per class in a batch. The mean is over the selected triplets of the whole batch; on several processes,
        use `gathered`. Memory is O(N^2).

    Relations:
        Uses distances, where the paper uses their squares. `margin_loss` learns the boundary between positives and negatives.

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.
        ValueError: the miner is unknown, or it needs a generator and none is given.

    Source:
        Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering", 2015, eq. 3.

    Example:
        >>> rows, ids = torch.eye(3), torch.tensor([0, 0, 1])
        >>> round(triplet_loss(rows, ids, miner="all").item(), 4)  # all distances are equal: the margin is left
        0.2
    """
    rows, ids = _prepared(rows, ids, normalize)
    check_numbers(margin=margin)
    return core.triplet_loss(rows, ids, margin=margin, miner=miner, generator=generator)


def contrastive_pair_loss(rows: Tensor, ids: Tensor, *, margin: float = 1.0, normalize: bool = False) -> Tensor:
    r"""Contrastive loss of pairs: pulls positives together and pushes negatives at least a margin apart.

    $$\ell = \mathrm{mean}_{i < j} \begin{cases} d_{ij}^2 & \text{equal ids} \\ \max(0, m - d_{ij})^2 & \text{others}
    \end{cases}$$

    Args:
        rows: embeddings.
        ids: classes; equal ids are positives.
        margin: m, the distance beyond which negatives have no loss.
        normalize: scale the rows to unit length first; the paper does not.

    Shape:
        rows [N, D]; ids [N], of integers; returns a scalar, 0 with a usable gradient for a single row.

    Requirements:
        The mean is over all pairs of the whole batch; on several processes, use `gathered`. Memory is O(N^2).

    Relations:
        Twice the paper's loss, which has a factor of 1/2. `margin_loss` does not pull positives all the way together.

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.

    Source:
        Hadsell et al., "Dimensionality Reduction by Learning an Invariant Mapping", 2006, eq. 4.

    Example:
        >>> rows, ids = torch.tensor([[0.0, 0.0], [0.3, 0.4], [3.0, 4.0]]), torch.tensor([0, 0, 1])
        >>> round(contrastive_pair_loss(rows, ids).item(), 4)  # one of three pairs costs 0.5^2
        0.0833
    """
    rows, ids = _prepared(rows, ids, normalize)
    check_numbers(margin=margin)
    return core.contrastive_pair_loss(rows, ids, margin=margin)


def margin_loss(
    rows: Tensor,
    ids: Tensor,
    *,
    alpha: float = 0.2,
    beta: Tensor | float = 1.2,
    negatives: Literal["all", "distance_weighted"] = "distance_weighted",
    normalize: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Margin loss: keeps positives within a learned distance and negatives beyond it.

    $$\ell = \mathrm{mean} \max\big(0, \alpha + y_{ij} (d_{ij} - \beta)\big), \quad y = 1 \text{ for equal ids, else } -1$$

    over the pairs with a positive loss.

    Args:
        rows: embeddings.
        ids: classes; equal ids are positives.
        alpha: half of the margin between positives and negatives.
        beta: the boundary distance between them, a number or a one-element tensor (with a gradient if it is learned, see
            `MarginLoss`).
        negatives: "distance_weighted", one sampled for each positive pair (section 4.1), or "all".
        normalize: scale the rows to unit length first, as the paper does.
        generator: source of the random draws, on the device of the rows; required for "distance_weighted".

    Shape:
        rows [N, D]; ids [N], of integers; returns a scalar, 0 with a usable gradient if no pair has a loss.

    Requirements:
        Several rows per class in a batch. The mean is over the pairs of the whole batch; on several processes, use
        `gathered`. Memory is O(N^2).

    Relations:
        `triplet_loss` compares distances with each other; this loss compares them with $\beta$.

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.
        ValueError: `negatives` is unknown, or it needs a generator and none is given.

    Source:
        Wu et al., "Sampling Matters in Deep Embedding Learning", 2017, section 4.2.

    Example:
        >>> rows, ids = torch.eye(3), torch.tensor([0, 0, 1])
        >>> round(margin_loss(rows, ids, negatives="all").item(), 4)  # positives at sqrt 2 cost 0.2 + sqrt 2 - 1.2
        0.4142
    """
    rows, ids = _prepared(rows, ids, normalize)
    check_numbers(alpha=alpha)
    beta = number("beta", beta, rows)
    return core.margin_loss(rows, ids, alpha=alpha, beta=beta, negatives=negatives, generator=generator)


def _prepared(rows: Tensor, ids: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    check_rows({"rows": rows})
    ids = checked_ids("ids", ids, "rows", rows)
    return (unit_rows(rows) if normalize else rows), ids
