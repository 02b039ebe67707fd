"""Exact nearest neighbors by inner product: one query by a matrix-vector product, many in blocks, without the N x M matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.core.precision import in_float32

_SPARE = 16
_BLOCK = 2**24
_GROUP = 32
_RESCORED = 4096
"""Rows that are scored again in float64 at a time."""
_FEW = 8
"""Keys are selected before the product if at most one of this many is allowed."""


@torch.no_grad()
@in_float32
def nearest(
    query_ND: Tensor, key_MD: Tensor, k: int, *, chunk_size: int | None = None, among_M: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Finds the k keys with the highest inner product with each query, best first; ties in the order of the key rows.

    The last bit of a float32 matrix product depends on the shape of the block. Therefore more candidates than requested are
    found in float32, then scored again in float64 and rounded: for one query all that rounding may have put below the k-th,
    for many 16 more. Equal keys get equal scores, and the result does not depend on `chunk_size`, unless more than 16 keys tie
    at the k-th place of one of several queries.

    Args:
        query_ND, key_MD: rows of any floating type; of unit length for cosine.
        k: at least 1, at most the number of keys that may be found.
        chunk_size: queries per block; by default as many as fill 64 MB of scores.
        among_M: bool [M], the keys that may be found; None for all.

    Returns:
        Scores float32 [N, k] and key rows int64 [N, k].

    Example:
        >>> score, row = nearest(torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), 1)
        >>> row.flatten().tolist()
        [0, 1]
    """
    allowed = len(key_MD) if among_M is None else int(among_M.sum())
    if not 1 <= k <= allowed:
        raise ValueError(f"k must be from 1 to the number of keys, {allowed}, not {k}")
    if among_M is not None and (len(query_ND) != 1 or _FEW * allowed <= len(key_MD)):
        place_A = among_M.nonzero().flatten()
        score_NK, row_NK = nearest(query_ND, key_MD[place_A], k, chunk_size=chunk_size)
        return score_NK, place_A[row_NK]
    if len(query_ND) == 1:
        score_K, row_K = _nearest_to_one(query_ND[0], key_MD, k, among_M)
        return score_K[None], row_K[None]
    return _nearest_to_many(query_ND, key_MD, k, chunk_size)


def _nearest_to_one(query_D: Tensor, key_MD: Tensor, k: int, among_M: Tensor | None) -> tuple[Tensor, Tensor]:
    """`nearest` of one query: float32 [k] and int64 [k]. Exact whatever the number of ties, for keys of equal length."""
    score_M = torch.mv(key_MD, query_D)
    if among_M is not None:
        score_M.masked_fill_(~among_M, -torch.inf)
    first = _largest(score_M[None], k)[0]
    # A float32 product of D terms is off by at most D / 2 units in the last place of the product of the lengths, each of two.
    longest = key_MD[first].norm(dim=1).max()
    margin = key_MD.shape[1] * torch.finfo(score_M.dtype).eps * query_D.norm() * longest
    candidate = (score_M >= score_M[first].min() - margin).nonzero().flatten()
    parts = (torch.mv(key_MD[rows].double(), query_D.double()) for rows in candidate.split(_RESCORED))
    score = torch.cat(list(parts)).float()
    best = score.argsort(descending=True, stable=True)[:k]
    return score[best], candidate[best]


def _nearest_to_many(query_ND: Tensor, key_MD: Tensor, k: int, chunk_size: int | None) -> tuple[Tensor, Tensor]:
    """`nearest` of many queries, in blocks."""
    wide = min(k + _SPARE, len(key_MD))
    rows = chunk_size or max(1, _BLOCK // max(len(key_MD), wide * key_MD.shape[1]))
    score_NK = torch.empty(len(query_ND), k, device=query_ND.device)
    row_NK = torch.empty(len(query_ND), k, dtype=torch.int64, device=query_ND.device)
    # Memory is reused for every block; allocating it would take as long as the product.
    memory = query_ND.new_empty(min(rows, len(query_ND)), len(key_MD))
    for start in range(0, len(query_ND), rows):
        query = query_ND[start : start + rows]
        score_NM = torch.mm(query, key_MD.T, out=memory[: len(query)])
        # In row order, so that the stable sort below leaves equal scores in it.
        candidate = _largest(score_NM, wide).sort(dim=1).values
        score = torch.einsum("nd,nkd->nk", query.double(), key_MD[candidate].double()).float()
        best = score.argsort(dim=1, descending=True, stable=True)[:, :k]
        score_NK[start : start + rows] = score.gather(1, best)
        row_NK[start : start + rows] = candidate.gather(1, best)
    return score_NK, row_NK


def _largest(score_NM: Tensor, k: int) -> Tensor:
    """Columns of the k largest scores of every row, in any order, int64 [N, k].

    Columns are divided into groups; the k groups with the largest maxima contain the k largest scores. Maxima are far cheaper
    than a partial sort of all columns.
    """
    rows, groups = len(score_NM), score_NM.shape[1] // _GROUP
    if groups < 2 * k:
        return score_NM.topk(k, dim=1, sorted=False).indices
    grouped = score_NM[:, : groups * _GROUP].unflatten(1, (_GROUP, groups))
    best_NK = grouped.amax(dim=1).topk(k, dim=1, sorted=False).indices
    member_G = torch.arange(_GROUP, device=score_NM.device) * groups
    rest = torch.arange(groups * _GROUP, score_NM.shape[1], device=score_NM.device)
    column = torch.cat([(best_NK[:, None] + member_G[:, None]).flatten(1), rest.expand(rows, -1)], dim=1)
    return column.gather(1, score_NM.gather(1, column).topk(k, dim=1, sorted=False).indices)
