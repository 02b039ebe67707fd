"""Contrasts of many pairs: what `mmcl.core.dense` computes from one matrix, from tiles of it."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.core.higher_derivatives import is_transformed
from mmcl.core.tiled.log_sum_exp import pair_log_sum_exp
from mmcl.core.tiled.pairs import PairKind, Pairs
from mmcl.core.tiled.positive_logits import positive_dot_sum


class TiledContrast:
    """Sums of the logits of N queries with M keys, by kind of pair, in memory O((N + M) D) plus one tile.

    The constructor waits for the device once; a sum waits again only where logits may be beyond 70.

    Args:
        query_ND, key_MD: rows of one type, float32 or float64.
        pairs: positive pairs, self pairs and tiles.
        scale: inverse temperature, a number or a scalar tensor.
    """

    def __init__(self, query_ND: Tensor, key_MD: Tensor, pairs: Pairs, *, scale: Tensor | float):
        self.rows, self.pairs = (query_ND, key_MD), pairs
        self.scale = torch.as_tensor(scale, dtype=query_ND.dtype, device=query_ND.device)
        self.facts = None if is_transformed() else pairs.facts(query_ND, key_MD, self.scale)

    @property
    def positive_count_N(self) -> Tensor:
        """Number of positives of every query, int64."""
        return self.pairs.positive_count()

    @property
    def negative_count_N(self) -> Tensor:
        """Number of negatives of every query, int64."""
        return self.pairs.negative_count()

    def positive_sum(self) -> Tensor:
        """Sum of every query's positive logits, [N]; 0 without positives."""
        in_order = self.facts is not None and self.facts.in_order
        return self.scale * positive_dot_sum(*self.rows, self.pairs, in_order=in_order)

    def log_sum_exp(self, kind: PairKind, power: float = 1.0) -> Tensor:
        """log of the sum of e^(power s) over every query's keys of a kind, [N]; minus infinity without such keys."""
        return pair_log_sum_exp(*self.rows, self.pairs, scale=self.scale, facts=self.facts, power=power, kind=kind)[0]

    def log_sums_of_both(self) -> tuple[Tensor, Tensor]:
        """log of the sums of e^s over the keys of every query, [N], and over the queries of every key, [M]."""
        rows_N, columns_M = pair_log_sum_exp(*self.rows, self.pairs, scale=self.scale, facts=self.facts, both=True)
        assert columns_M is not None
        return rows_N, columns_M
