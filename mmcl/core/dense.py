"""Contrasts of few pairs: logits as one matrix and pairs as masks, in PyTorch's own operations.

No shape and no branch depends on ids or values, so nothing waits for the device, and a compiler takes it in one graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.core.tiled.pairs import PairKind


class DenseContrast:
    """Logits of N queries with M keys, and their sums by kind of pair.

    Args:
        query_ND, key_MD: rows of one type, float32 or float64.
        scale: inverse temperature, a number or a scalar tensor.
        query_id_N, key_id_M: int64 ids; equal ids are positives.
        query_row_N, key_row_M: int64 row numbers, or None for both; a pair of equal numbers is excluded.
        key_valid_M: bool; the pairs of the other keys are excluded.
    """

    def __init__(
        self,
        query_ND: Tensor,
        key_MD: Tensor,
        *,
        scale: Tensor | float,
        query_id_N: Tensor,
        key_id_M: Tensor,
        query_row_N: Tensor | None = None,
        key_row_M: Tensor | None = None,
        key_valid_M: Tensor | None = None,
    ):
        self.logits_NM = scaled_products(query_ND, key_MD, scale)
        self.equal_NM = query_id_N[:, None] == key_id_M
        same_NM = None if query_row_N is None or key_row_M is None else query_row_N[:, None] == key_row_M
        invalid_NM = None if key_valid_M is None else ~key_valid_M.expand(self.equal_NM.shape)
        self.excluded_NM = _either(same_NM, invalid_NM)
        self.positive_NM = self.equal_NM if self.excluded_NM is None else self.equal_NM & ~self.excluded_NM

    @property
    def positive_count_N(self) -> Tensor:
        """Number of positives of every query, int64."""
        return self.positive_NM.sum(1)

    @property
    def negative_count_N(self) -> Tensor:
        """Number of negatives of every query, int64."""
        either_NM = _either(self.equal_NM, self.excluded_NM)
        assert either_NM is not None
        return (~either_NM).sum(1)

    def positive_sum(self) -> Tensor:
        """Sum of every query's positive logits, [N]; 0 without positives."""
        return torch.where(self.positive_NM, self.logits_NM, 0).sum(1)

    def log_sum_exp(self, kind: PairKind, power: float = 1.0) -> Tensor:
        """log of the sum of e^(power s) over every query's keys of a kind, [N]; minus infinity without such keys."""
        return self._log_sum_exp(kind, 1, power)

    def log_sums_of_both(self) -> tuple[Tensor, Tensor]:
        """log of the sums of e^s over the keys of every query, [N], and over the queries of every key, [M]."""
        return self._log_sum_exp("all", 1), self._log_sum_exp("all", 0)

    def _log_sum_exp(self, kind: PairKind, dim: int, power: float = 1.0) -> Tensor:
        logits_NM = self.logits_NM if power == 1 else power * self.logits_NM
        others_NM = None if kind == "all" else self.equal_NM if kind == "negatives" else ~self.equal_NM
        excluded_NM = _either(others_NM, self.excluded_NM)
        if excluded_NM is None and logits_NM.shape[dim]:
            return logits_NM.logsumexp(dim)
        return log_sum_exp(logits_NM if excluded_NM is None else logits_NM.masked_fill(excluded_NM, -torch.inf), dim)


def scaled_products(query_ND: Tensor, key_MD: Tensor, scale: Tensor | float) -> Tensor:
    """Logits [N, M]. The smaller of rows and products is scaled, as the keys decide: queries may be one process's part."""
    return scale * (query_ND @ key_MD.T) if query_ND.shape[1] > len(key_MD) else (scale * query_ND) @ key_MD.T


def _either(a_NM: Tensor | None, b_NM: Tensor | None) -> Tensor | None:
    """Union of masks that may be empty."""
    return b_NM if a_NM is None else a_NM if b_NM is None else a_NM | b_NM


def log_sum_exp(logits: Tensor, dim: int) -> Tensor:
    """Log-sum-exp that is minus infinity for empty sums, with derivatives of every order, all 0 there.

    (PyTorch's own function has a second derivative of NaN for them.)
    """
    if not logits.shape[dim]:
        return logits.new_full(logits.sum(dim).shape, -torch.inf)
    highest = logits.detach().amax(dim, keepdim=True)
    highest = highest.masked_fill(highest == -torch.inf, 0)
    total = (logits - highest).exp().sum(dim)
    empty = total == 0
    return (total + empty).log().masked_fill(empty, -torch.inf) + highest.squeeze(dim)
