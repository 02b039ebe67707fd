"""Softmax losses within one set of rows, such as two views or classes: thin wrappers of `mmcl.core.info_nce`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmcl.core import info_nce as core
from mmcl.core.precision import unit_rows
from mmcl.core.tiled.pairs import TileShape
from mmcl.losses.arguments import check_rows, checked_ids, inverse, stacked


def nt_xent(
    a: Tensor,
    b: Tensor,
    ids: Tensor | None = None,
    *,
    temperature: Tensor | float,
    hardness: float = 0.0,
    positive_prior: float = 0.0,
    tile: TileShape | None = None,
) -> Tensor:
    r"""NT-Xent, the loss of SimCLR: classifies the other view of each sample among the 2N - 1 other rows.

    $$\ell = -\frac{1}{2N} \sum_{i=1}^{2N} \log \frac{e^{s_{i p(i)} / T}}{\sum_{k \ne i} e^{s_{ik} / T}}$$

    where $s$ are the cosines of all rows and $p(i)$ is the other view of row i.

    Args:
        a, b: two views; row i of each belongs to the same sample. Scaled to unit length.
        ids: samples with equal ids are positives too; without ids, every sample is its own class.
        temperature: T, a number above 0 or a one-element tensor; the paper's 0.1 for ImageNet, 0.5 for CIFAR-10.
        hardness: $\beta \ge 0$; the weight of a negative is $\propto e^{\beta s / T}$ (Robinson et al., "Contrastive Learning
            with Hard Negative Samples", 2021, section 3).
        positive_prior: $\tau^+ \in [0, 1)$, the expected share of false negatives (Chuang et al., "Debiased Contrastive
            Learning", 2020, eq. 7 and 8).
        tile: rows compared at once; by default chosen from the shapes.

    Shape:
        a, b [N, D]; ids [N], of integers; returns a scalar.

    Requirements:
        Large batches and strong augmentation. Apply the loss after a projection head, and evaluate the features before it.

    Relations:
        Equals `info_nce` of the stacked views with themselves, and `supcon_loss` with unique labels. `dcl_loss` omits the
        positive from the denominator. Constant rows give ln(2N - 1).

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020, eq. 1.

    Example:
        >>> a, b = torch.eye(3), torch.eye(3)
        >>> round(nt_xent(a, b, temperature=0.5).item(), 4)
        0.4327
        >>> round(nt_xent(torch.ones(3, 8), torch.ones(3, 8), temperature=0.5).item(), 4)  # ln 5
        1.6094
    """
    return _two_views(a, b, ids, temperature, hardness=hardness, positive_prior=positive_prior, tile=tile)


def dcl_loss(
    a: Tensor, b: Tensor, ids: Tensor | None = None, *, temperature: Tensor | float, tile: TileShape | None = None
) -> Tensor:
    r"""Decoupled contrastive loss: NT-Xent without the positive in the denominator.

    $$\ell = -\frac{1}{2N} \sum_{i=1}^{2N} \Big( s_{i p(i)} / T - \log \sum_{k \ne i, p(i)} e^{s_{ik} / T} \Big)$$

    Args:
        a, b: two views; row i of each belongs to the same sample. Scaled to unit length.
        ids: samples with equal ids are positives too; without ids, every sample is its own class.
        temperature: T, a number above 0 or a one-element tensor; the paper's 0.1.
        tile: rows compared at once; by default chosen from the shapes.

    Shape:
        a, b [N, D]; ids [N], of integers; returns a scalar.

    Requirements:
        At least two different ids, because rows without negatives are left out. Works with smaller batches than `nt_xent`.

    Relations:
        `nt_xent` is larger by $\log(1 + e^{s_{ip}/T} / \sum_k e^{s_{ik}/T})$ in each row. Constant rows give ln(2N - 2). The
        loss may be negative.

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.

    Source:
        Yeh et al., "Decoupled Contrastive Learning", 2022, eq. 5.

    Example:
        >>> a, b = torch.eye(3), torch.eye(3)
        >>> round(dcl_loss(a, b, temperature=0.5).item(), 4)  # ln 4 - 2
        -0.6137
    """
    return _two_views(a, b, ids, temperature, denominator="negatives", tile=tile)


def supcon_loss(
    rows: Tensor,
    ids: Tensor,
    *,
    temperature: Tensor | float,
    positives: Literal["outside", "inside"] = "outside",
    tile: TileShape | None = None,
) -> Tensor:
    r"""Supervised contrastive loss: all rows of one class are positives of each other.

    $$\ell = \frac{1}{N} \sum_i \frac{-1}{|P(i)|} \sum_{p \in P(i)} \log \frac{e^{s_{ip} / T}}{\sum_{a \ne i} e^{s_{ia} / T}}$$

    Args:
        rows: embeddings of any number of views, stacked; scaled to unit length.
        ids: classes; a row that is alone in its class is only a negative for the others, not a query.
        temperature: T, a number above 0 or a one-element tensor; the paper's 0.1.
        positives: takes the mean over the positives "outside" the logarithm (eq. 2, as above, the better one in the paper) or
            "inside" it (eq. 3).
        tile: rows compared at once; by default chosen from the shapes.

    Shape:
        rows [N, D]; ids [N], of integers; returns a scalar.

    Requirements:
        Several rows per class in a batch. For two views, use `torch.cat([a, b])` with `ids.repeat(2)`.

    Relations:
        `nt_xent(a, b)` is `supcon_loss` of both views with a distinct id per sample. "inside" is never larger than "outside".

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.

    Source:
        Khosla et al., "Supervised Contrastive Learning", 2020, eq. 2 and 3.

    Example:
        >>> rows, ids = torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 1, 0, 1, 1])
        >>> round(supcon_loss(rows, ids, temperature=0.5).item(), 4)
        1.3215
    """
    check_rows({"rows": rows})
    return _among_themselves(rows, checked_ids("ids", ids, "rows", rows), temperature, positives=positives, tile=tile)


def _two_views(a: Tensor, b: Tensor, ids: Tensor | None, temperature: Tensor | float, **options: object) -> Tensor:
    check_rows({"a": a, "b": b})
    both_ids = checked_ids("ids", ids, "a", a).repeat(2)
    return _among_themselves(stacked(a, b), both_ids, temperature, **options)


def _among_themselves(rows: Tensor, ids: Tensor, temperature: Tensor | float, **options: object) -> Tensor:
    """Contrasts every row with all others. Passing one tensor as queries and keys halves the number of products."""
    unit, number = unit_rows(rows), torch.arange(len(rows), device=rows.device)
    return core.info_nce(
        unit,
        unit,
        query_id_N=ids,
        key_id_M=ids,
        query_row_N=number,
        key_row_M=number,
        scale=inverse(temperature, rows),
        **options,  # type: ignore[arg-type]
    )
