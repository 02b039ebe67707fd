"""InfoNCE keyed by ids: CLIP, NT-Xent and their relatives are calls of this one function.

A positive pair is a pair of equal ids; a self pair is a pair of equal row numbers and leaves the softmax. Queries may be a part
of the rows (those of one process) and keys all of them, so the loss never has to know about processes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce(
    query_ND: Tensor,
    key_MD: Tensor,
    *,
    query_id_N: Tensor,
    key_id_M: Tensor,
    scale: Tensor | float,
    query_row_N: Tensor | None = None,
    key_row_M: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Softmax contrast of every query with all keys.

    With $s_{ij} = \mathrm{scale} \cdot q_i^\top k_j$, $A(i)$ all keys but the query itself and $P(i) \subset A(i)$ those with
    the query's id:

    $$\ell_i = \log \sum_{a \in A(i)} e^{s_{ia}} - \frac{1}{|P(i)|} \sum_{p \in P(i)} s_{ip}$$

    This is L_out of Khosla et al. ("Supervised Contrastive Learning", 2020, eq. 2); with one positive per row it is InfoNCE
    (van den Oord et al., 2018, eq. 4), with image queries and text keys one direction of CLIP (Radford et al., 2021, fig. 3),
    with both views of a batch as queries and keys NT-Xent (Chen et al., "SimCLR", 2020, eq. 1). Constant embeddings give
    ln |A|: ln M for CLIP, ln(M - 1) where self pairs are dropped.

    Logits, log-sum-exp and scale are float32 (float64 for float64 inputs) whatever the autocast type.

    Args:
        query_ND, key_MD: unit-length rows, any floating type.
        query_id_N, key_id_M: int64 ids; equal ids are positives.
        scale: inverse temperature, positive, a number or a scalar tensor (with gradient, if it is learned).
        query_row_N, key_row_M: int64 row numbers; a query and a key of equal number are the same row and no pair. Give both or
            neither.
        reduction: "mean" over the queries that have a positive (0 with a usable gradient where none has), or "sum" over them.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes do not fit, or only one of the row numbers is given.
    """
    _check_shapes(query_ND, key_MD, query_id_N, key_id_M, query_row_N, key_row_M)
    dtype = torch.promote_types(torch.promote_types(query_ND.dtype, key_MD.dtype), torch.float32)
    with torch.autocast(query_ND.device.type, enabled=False):
        logits_NM = scale * (query_ND.to(dtype) @ key_MD.to(dtype).T)
        positive_NM = query_id_N[:, None] == key_id_M[None, :]
        if query_row_N is not None and key_row_M is not None:
            self_NM = query_row_N[:, None] == key_row_M[None, :]
            positive_NM &= ~self_NM
            logits_NM = logits_NM.masked_fill(self_NM, -torch.inf)
        count_N = positive_NM.sum(1)
        # `where` and not a product: a dropped self pair is -inf, and 0 * -inf is not a number.
        positive_logit_N = torch.where(positive_NM, logits_NM, 0).sum(1) / count_N.clamp(min=1)
        has_positive_N = count_N > 0
        loss_N = torch.where(has_positive_N, logits_NM.logsumexp(1) - positive_logit_N, 0)
    if reduction == "sum":
        return loss_N.sum()
    return loss_N.sum() / has_positive_N.sum().clamp(min=1)


def _check_shapes(
    query_ND: Tensor,
    key_MD: Tensor,
    query_id_N: Tensor,
    key_id_M: Tensor,
    query_row_N: Tensor | None,
    key_row_M: Tensor | None,
) -> None:
    if query_ND.ndim != 2 or key_MD.ndim != 2 or query_ND.shape[1] != key_MD.shape[1]:
        raise ValueError(f"queries {tuple(query_ND.shape)} and keys {tuple(key_MD.shape)} must be [N, D] and [M, D]")
    if query_id_N.shape != query_ND.shape[:1] or key_id_M.shape != key_MD.shape[:1]:
        raise ValueError(
            f"ids {tuple(query_id_N.shape)}, {tuple(key_id_M.shape)} must be [N], [M] = [{len(query_ND)}], [{len(key_MD)}]"
        )
    if (query_row_N is None) != (key_row_M is None):
        raise ValueError("give the row numbers of queries and keys, or of neither")
