"""Exact nearest neighbors by inner product, in blocks of queries, without the full N x M matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.core.precision import in_float32

_SPARE = 16
_BLOCK = 2**24
_GROUP = 32


@torch.no_grad()
@in_float32
def nearest(query_ND: Tensor, key_MD: Tensor, k: int, *, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Finds the k keys with the highest inner product with each query, best first; ties in the order of the key rows.

    The last bit of a float32 matrix product depends on the shape of the block. Therefore 16 more candidates than requested are
    found in float32, then scored again in float64 and rounded. Equal keys get equal scores, and the result does not depend on
    `chunk_size`, unless more than 16 keys tie at the k-th place.

    Args:
        query_ND, key_MD: rows of any floating type; of unit length for cosine.
        k: at least 1, at most M.
        chunk_size: queries per block; by default as many as fill 64 MB of scores.

    Returns:
        Scores float32 [N, k] and key rows int64 [N, k].
    """
    if not 1 <= k <= len(key_MD):
        raise ValueError(f"k must be from 1 to the number of keys, {len(key_MD)}, not {k}")
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
