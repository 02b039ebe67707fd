"""Distillation of what teachers say about all pairs of a batch, into rows of any other width; tiled like `info_nce`.

The loss is linear in the targets: their cross term is each query's product with a weighted mean of the keys. A tile of targets
is made of the teachers' rows where it is needed, and again in the backward pass, so the memory is O((N + M) D) plus one tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.special import entr

from mmcl.core.higher_derivatives import recomputed
from mmcl.core.info_nce import Reduction, contrast_of
from mmcl.core.precision import as_scalar, in_float32
from mmcl.core.sigmoid import sigmoid_loss
from mmcl.core.tiled.pairs import TileShape, check_rows, choose_tile


class TeacherRows(NamedTuple):
    """The rows of a teacher for the same queries and keys, without gradient.

    Attributes:
        query_NE, key_ME: unit-length rows of any width.
        scale: its inverse temperature, positive.
        bias: added to its logits, where it is a sigmoid teacher.
    """

    query_NE: Tensor
    key_ME: Tensor
    scale: float
    bias: float = 0.0


@in_float32
def distillation_loss(
    query_ND: Tensor,
    key_MD: Tensor,
    *,
    teachers: Sequence[TeacherRows],
    scale: Tensor | float,
    query_row_N: Tensor | None = None,
    key_row_M: Tensor | None = None,
    reduction: Reduction = "mean",
    tile: TileShape | None = None,
) -> Tensor:
    r"""One direction of the distillation of a softmax over the batch.

    With the student's $s_{ij} = \mathrm{scale} \cdot q_i^\top k_j$, and the mean of the softmaxes of the teachers as targets,

    $$p_{ij} = \frac{1}{T} \sum_t \mathrm{softmax}_j(\mathrm{scale}_t \cdot a_{ti}^\top b_{tj}), \qquad
    \ell_i = \mathrm{KL}\big(p_i \,\|\, \mathrm{softmax}(s_i)\big) = \sum_j p_{ij} \log p_{ij} - \sum_j p_{ij} s_{ij}
    + \log \sum_j e^{s_{ij}}$$

    It is 0 where the student's softmax equals the targets. Its gradient is that of the mean of the divergences from each
    teacher, which is larger by a constant (Vasu et al., "MobileCLIP: Fast Image-Text Models through Multi-Modal Reinforced
    Training", 2024, section 3). Positives need no ids: the teachers know them. The bias of a sigmoid teacher cancels.

    Args:
        query_ND, key_MD: the student's rows, of unit length, any floating type.
        teachers: at least one.
        scale: the student's inverse temperature, positive, a number or a one-element tensor (with a gradient if it is learned).
        query_row_N, key_row_M: int64 row numbers; a pair of equal ones is left out of all softmaxes. Give both or neither.
        reduction: "mean" over the queries or "sum" over them; a query without keys counts as 0.
        tile: queries and keys compared at once; by default chosen from the shapes.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes do not match, there is no teacher, or a number or option is out of range.
    """
    numbers = _numbers(query_ND, key_MD)
    teachers = [one._replace(bias=0.0) for one in _checked(teachers, query_ND, key_MD, reduction)]
    if (query_row_N is None) != (key_row_M is None):
        raise ValueError("give the row numbers of queries and keys, or of neither")
    scale = as_scalar("scale", scale, query_ND, positive=True)
    rows = () if query_row_N is None or key_row_M is None else (query_row_N, key_row_M)

    def log_sums(query: Tensor, key: Tensor, scale: Tensor | float) -> Tensor:
        return contrast_of(query, key, scale, *numbers, query_row_N, key_row_M, tile=tile).log_sum_exp("all")

    with torch.no_grad():
        totals = [log_sums(one.query_NE, one.key_ME, one.scale) for one in teachers]
    cross_N, entropy_N = _target_sums(_softmax_targets, query_ND, key_MD, teachers, totals, rows, tile)
    log_sum_N = log_sums(query_ND, key_MD, scale)
    total = torch.where(log_sum_N > -torch.inf, log_sum_N - scale * cross_N - entropy_N, 0).sum()
    return total if reduction == "sum" else total / max(len(query_ND), 1)


@in_float32
def sigmoid_distillation_loss(
    image_ND: Tensor,
    text_MD: Tensor,
    *,
    teachers: Sequence[TeacherRows],
    scale: Tensor | float,
    bias: Tensor | float,
    reduction: Reduction = "mean",
    tile: TileShape | None = None,
) -> Tensor:
    r"""Distillation of sigmoids of pairs, as SigLIP has them: binary cross-entropy with soft targets.

    With the student's $s_{ij} = \mathrm{scale} \cdot q_i^\top k_j + \mathrm{bias}$, and the mean of the teachers' probabilities
    $p_{ij} = \frac{1}{T} \sum_t \sigma(\mathrm{scale}_t \cdot a_{ti}^\top b_{tj} + \mathrm{bias}_t)$ as targets:

    $$\ell = -\sum_{ij} p_{ij} \log \sigma(s_{ij}) + (1 - p_{ij}) \log \sigma(-s_{ij})$$

    With targets of 0 and 1 it is `mmcl.core.sigmoid.sigmoid_loss`.

    Args:
        image_ND, text_MD: the student's rows, of unit length, any floating type.
        teachers: at least one.
        scale: the student's inverse temperature, positive, a number or a one-element tensor (with a gradient if it is learned).
        bias: added to the student's logits, a number or a one-element tensor.
        reduction: "mean" divides the sum by the number of images N, as SigLIP does.
        tile: images and texts compared at once; by default chosen from the shapes.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes do not match, there is no teacher, or a number or option is out of range.
    """
    image_id_N, text_id_M = _numbers(image_ND, text_MD)
    teachers = _checked(teachers, image_ND, text_MD, reduction)
    scale, bias = as_scalar("scale", scale, image_ND, positive=True), as_scalar("bias", bias, image_ND)
    cross_N, mass_N = _target_sums(_sigmoid_targets, image_ND, text_MD, teachers, (), (), tile)
    # Without any positive, the loss of SigLIP is the sum of log(1 + e^s).
    without_N = sigmoid_loss(
        image_ND, text_MD, image_id_N=image_id_N, text_id_M=text_id_M, scale=scale, bias=bias, reduction="sum", tile=tile
    )
    total = without_N - (scale * cross_N + bias * mass_N).sum()
    return total if reduction == "sum" else total / max(len(image_ND), 1)


def _numbers(query_ND: Tensor, key_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Ids of which no two are equal. Raises ValueError unless the rows have the same width."""
    number = torch.arange(len(query_ND) + len(key_MD), device=query_ND.device)
    query_id_N, key_id_M = number[: len(query_ND)], number[len(query_ND) :]
    check_rows(query_ND, key_MD, query_id_N, key_id_M)
    return query_id_N, key_id_M


def _checked(teachers: Iterable[TeacherRows], query_ND: Tensor, key_MD: Tensor, reduction: str) -> list[TeacherRows]:
    """The teachers with rows of the student's type. Raises ValueError if there is none, or one does not fit."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
    checked = [
        TeacherRows(one.query_NE.detach().to(query_ND), one.key_ME.detach().to(query_ND), one.scale, one.bias)
        for one in teachers
    ]
    if not checked:
        raise ValueError("give at least one teacher")
    for query_NE, key_ME, scale, bias in checked:
        as_scalar("scale of a teacher", scale, query_NE, positive=True)
        as_scalar("bias of a teacher", bias, query_NE)
        shapes = query_NE.shape[:1], key_ME.shape[:1], query_NE.shape[1:]
        if shapes != (query_ND.shape[:1], key_MD.shape[:1], key_ME.shape[1:]):
            raise ValueError(
                f"rows of a teacher {tuple(query_NE.shape)} and {tuple(key_ME.shape)} must be [N, E] and [M, E] with "
                f"N = {len(query_ND)} and M = {len(key_MD)}"
            )
    return checked


def _target_sums(
    targets: Callable[..., tuple[Tensor, Tensor]],
    query_ND: Tensor,
    key_MD: Tensor,
    teachers: Sequence[TeacherRows],
    totals: Sequence[Tensor],
    rows: Sequence[Tensor],
    tile: TileShape | None,
) -> tuple[Tensor, Tensor]:
    r"""$\sum_j p_{ij} q_i^\top k_j$ of every query, [N], and the sum over its keys of a second function of the targets, [N].

    Args:
        targets: maps the rows of a tile to its targets and that function of them, see `_softmax_targets`.
        query_ND, key_MD: the student's rows.
        teachers: checked.
        totals: numbers of every query that the targets need, one tensor [N] for each teacher, or none.
        rows: row numbers of queries and of keys, or ().
        tile: as given.
    """
    tile = tile or choose_tile(len(query_ND), len(key_MD), query_ND.device.type)
    function = partial(_sums_of_tile, targets, [(one.scale, one.bias) for one in teachers], len(totals), bool(rows))
    of_queries = [query_ND, *(one.query_NE for one in teachers), *totals, *rows[:1]]
    of_keys = [key_MD, *(one.key_ME for one in teachers), *rows[1:]]
    if tile is None:
        return function(*of_queries, *of_keys)
    sums = [
        _added([recomputed(function, *queries, *keys) for keys in _parts(of_keys, tile[1])])
        for queries in _parts(of_queries, tile[0])
    ]
    cross_N, other_N = (torch.cat(parts) for parts in zip(*sums, strict=True))
    return cross_N, other_N


def _parts(tensors: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    """The tensors of every part of some rows; of no rows, those of one empty part."""
    return [list(parts) for parts in zip(*(tensor.split(size) for tensor in tensors), strict=True)]


def _added(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(reduce(torch.add, values) for values in zip(*parts, strict=True))


def _sums_of_tile(
    targets: Callable[..., tuple[Tensor, Tensor]],
    numbers: Sequence[tuple[float, float]],
    totals: int,
    has_rows: bool,
    *tensors: Tensor,
) -> tuple[Tensor, Tensor]:
    """The sums of one tile in plain autograd; the tensors are those of its queries, then of its keys."""
    queries = 1 + len(numbers) + totals + has_rows
    query_nD, key_mD = tensors[0], tensors[queries]
    of_query, of_key = tensors[1:queries], tensors[queries + 1 :]
    logits = [
        (scale * query_nE) @ key_mE.T + bias for (scale, bias), query_nE, key_mE in zip(numbers, of_query, of_key, strict=False)
    ]
    left_out = of_query[-1][:, None] == of_key[-1] if has_rows else None
    target_nm, other_nm = targets(logits, of_query[len(numbers) : len(numbers) + totals], left_out)
    return (query_nD * (target_nm @ key_mD)).sum(1), other_nm.sum(1)


def _softmax_targets(logits: Sequence[Tensor], totals: Sequence[Tensor], left_out: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean of the teachers' softmaxes, and what each target adds to the entropy.

    Args:
        logits: [n, m] of each teacher.
        totals: log-sum-exps of these over all keys, [n].
        left_out: pairs with a target of 0, bool [n, m]; None for no pair.
    """
    logs = [of_pairs - total_n[:, None] for of_pairs, total_n in zip(logits, totals, strict=True)]
    if left_out is not None:
        logs = [log.masked_fill(left_out, -torch.inf) for log in logs]
    target_nm = reduce(torch.add, [log.exp() for log in logs]) / len(logs)
    return target_nm, entr(target_nm)


def _sigmoid_targets(logits: Sequence[Tensor], totals: Sequence[Tensor], left_out: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean of the teachers' probabilities, twice: their sum multiplies the bias."""
    target_nm = reduce(torch.add, [of_pairs.sigmoid() for of_pairs in logits]) / len(logits)
    return target_nm, target_nm
