"""InfoNCE with positives defined by ids; CLIP, NT-Xent, SupCon, MoCo, SimCSE, DCL and HCL are special cases.

A pair of equal ids is a positive pair. A pair of equal row numbers is a self pair and is excluded from the softmax. Queries may
be some of the rows (those of one process) and keys all of them, so the loss is independent of processes. Denominators are tiled
(see log_sum_exp.py) and positives are sums over equal ids, so the memory is O((N + M) D) plus one tile.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mmcl.core.dense import DenseContrast
from mmcl.core.precision import as_scalar, in_float32
from mmcl.core.tiled.contrast import TiledContrast
from mmcl.core.tiled.pairs import PairKind, Pairs, TileShape, check_rows, choose_tile

Reduction = Literal["mean", "sum"]


@in_float32
def info_nce(
    query_ND: Tensor,
    key_MD: Tensor,
    *,
    query_id_N: Tensor,
    key_id_M: Tensor,
    scale: Tensor | float,
    query_row_N: Tensor | None = None,
    key_row_M: Tensor | None = None,
    key_valid_M: Tensor | None = None,
    own_key_ND: Tensor | None = None,
    own_negative_ND: Tensor | None = None,
    own_negative_log_weight: Tensor | float = 0.0,
    query_weight_N: Tensor | None = None,
    positives: Literal["outside", "inside"] = "outside",
    denominator: Literal["all", "negatives"] = "all",
    hardness: float = 0.0,
    positive_prior: float = 0.0,
    reduction: Reduction = "mean",
    tile: TileShape | None = None,
) -> Tensor:
    r"""InfoNCE: contrasts every query with all keys in a softmax.

    With $s_{ij} = \mathrm{scale} \cdot q_i^\top k_j$, $A(i)$ all keys but the query itself and $P(i) \subset A(i)$ those with
    the query's id:

    $$\ell_i = \log \sum_{a \in A(i)} e^{s_{ia}} - \frac{1}{|P(i)|} \sum_{p \in P(i)} s_{ip}$$

    This is L_out of Khosla et al. ("Supervised Contrastive Learning", 2020, eq. 2); with one positive per row it is InfoNCE
    (van den Oord et al., 2018, eq. 4), with image queries and text keys one direction of CLIP (Radford et al., 2021, fig. 3),
    with both views of a batch as queries and keys NT-Xent (Chen et al., "SimCLR", 2020, eq. 1), with a second dropout mask (and
    hard negatives of ids of their own) as keys SimCSE (Gao et al., 2021, eq. 4 and 5), with a queue as keys and `own_key_ND`
    MoCo (He et al., 2020, eq. 1). Constant embeddings give ln |A|: ln M for CLIP, ln(M - 1) where self pairs are dropped.

    Variants, which combine; $N_i$ is the number of negatives of query i:

    - `positives="inside"`: the mean over the positives inside the logarithm, $\log \frac{1}{|P(i)|} \sum_p e^{s_{ip}}$ (Khosla
      et al., eq. 3): never larger than L_out.
    - `denominator="negatives"`: the denominator excludes the positives (Yeh et al., "Decoupled Contrastive Learning", 2022,
      section 3).
    - `hardness`: negatives weigh $w_{ij} \propto e^{\beta s_{ij}}$, with mean 1 (Robinson et al., "Contrastive Learning with
      Hard Negative Samples", 2021, section 3).
    - `positive_prior`: corrects for the share $\tau$ of negatives that are truly positives (Chuang et al., "Debiased
      Contrastive Learning", 2020, eq. 7 and 8). With both, the negatives' part of the denominator is
      $\max\big((\sum_j w_{ij} e^{s_{ij}} - \tau N_i \overline{e^{s_{ip}}}) / (1 - \tau),\; N_i e^{-\mathrm{scale}}\big)$.

    Logits, log-sum-exp and scale are float32 (float64 for float64 inputs) whatever the autocast type.
    Derivatives of every order are exact, as are the transforms of `torch.func`, in tiles too. `torch.compile` takes up to 2^26
    pairs in one graph, where all of them are in memory at once; beyond that the tiles break the graph.

    Args:
        query_ND, key_MD: unit-length rows, any floating type. Where queries and keys are the same tensors, ids and row numbers
            included, every pair is computed once for both of its rows: half of the work.
        query_id_N, key_id_M: int64 ids; equal ids are positives.
        scale: inverse temperature, positive, a number or a one-element tensor (with a gradient if it is learned).
        query_row_N, key_row_M: int64 row numbers; a query and a key with equal numbers are the same row, and the pair is
            excluded. Give both or neither.
        key_valid_M: bool; the other keys are ignored.
        own_key_ND: one additional positive key for every query, not used by the other queries.
        own_negative_ND: one additional negative key for every query, not used by the other queries; not together with
            `hardness` or `positive_prior`.
        own_negative_log_weight: log of how many keys it counts as (the log of alpha in Gao et al., "SimCSE", 2021, section
            5.2), a number or one for every query [N]; minus infinity removes it.
        query_weight_N: weights of the rows, not negative.
        positives: "outside" or "inside" of the logarithm.
        denominator: "all" keys or the "negatives".
        hardness: beta, at least 0.
        positive_prior: tau, in [0, 1).
        reduction: "mean" over the queries that have a positive (0 with a usable gradient where none has), or "sum" over them.
            Weighted queries: the mean divides by the sum of their weights. With `denominator="negatives"`, a query without
            negatives is left out too.
        tile: queries and keys compared at once; by default chosen from the shapes.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes do not match, only one of the row numbers is given, or a number or option is unknown or out of range.
    """
    check_rows(query_ND, key_MD, query_id_N, key_id_M)
    _check_shape("key_valid_M", key_valid_M, key_id_M.shape)
    _check_shape("query_weight_N", query_weight_N, query_id_N.shape)
    _check_shape("own_key_ND", own_key_ND, query_ND.shape)
    _check_shape("own_negative_ND", own_negative_ND, query_ND.shape)
    _check_choice("positives", positives, ("outside", "inside"))
    _check_choice("denominator", denominator, ("all", "negatives"))
    _check_choice("reduction", reduction, ("mean", "sum"))
    _check_weighting(hardness, positive_prior, has_own_negatives=own_negative_ND is not None)
    if (query_row_N is None) != (key_row_M is None):
        raise ValueError("give the row numbers of queries and keys, or of neither")
    scale = as_scalar("scale", scale, query_ND, positive=True)
    own_logit_N = None if own_key_ND is None else scale * (query_ND * own_key_ND).sum(1)
    own_negative_N = None
    if own_negative_ND is not None:
        own_negative_N = scale * (query_ND * own_negative_ND).sum(1) + own_negative_log_weight
    of_keys = contrast_of(query_ND, key_MD, scale, query_id_N, key_id_M, query_row_N, key_row_M, key_valid_M, tile)
    contrast = _WithOwnKeys(of_keys, scale, own_logit_N, own_negative_N)
    # Positives first: the backward pass starts with the part computed last, and frees its tiles before the other part begins.
    positive_N = contrast.mean_positive() if positives == "outside" else contrast.log_mean_exp_positive()
    log_denominator_N = contrast.log_denominator(denominator, hardness, positive_prior)
    counts_N = contrast.positive_count_N > 0
    if denominator == "negatives":
        counts_N &= contrast.negative_count_N > 0
    loss_N = torch.where(counts_N, log_denominator_N - positive_N, 0)
    return _reduce(loss_N, counts_N, query_weight_N, reduction)


@in_float32
def symmetric_info_nce(
    a_ND: Tensor,
    b_ND: Tensor,
    *,
    id_N: Tensor,
    scale: Tensor | float,
    reduction: Reduction = "mean",
    tile: TileShape | None = None,
) -> Tensor:
    r"""Both directions of CLIP (Radford et al., 2021, fig. 3), a to b plus b to a, from the same matrix products.

    Equals `info_nce(a, b) + info_nce(b, a)`, for half of the products: row i of a and row i of b are a pair, and the rows are
    those of the whole batch. Constant embeddings give 2 ln N.

    Args:
        a_ND, b_ND: unit-length rows, any floating type.
        id_N: int64 ids of the pairs; equal ids are positives.
        scale: inverse temperature, positive, a number or a one-element tensor (with a gradient if it is learned).
        reduction: "mean" over the N pairs or "sum" over them.
        tile: rows of a and of b compared at once; by default chosen from the shapes.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes do not match, the scale is out of range, or the reduction is unknown.
    """
    check_rows(a_ND, b_ND, id_N, id_N)
    _check_choice("reduction", reduction, ("mean", "sum"))
    scale = as_scalar("scale", scale, a_ND, positive=True)
    contrast = contrast_of(a_ND, b_ND, scale, id_N, id_N, tile=tile)
    # Summed over the batch, both directions have the same mean positives: sums within each group, divided by its size.
    positive_N = contrast.positive_sum() / contrast.positive_count_N  # first, as in `info_nce`
    rows_N, columns_N = contrast.log_sums_of_both()
    total = (rows_N + columns_N - 2 * positive_N).sum()
    return total if reduction == "sum" else total / max(len(id_N), 1)


def contrast_of(
    query_ND: Tensor,
    key_MD: Tensor,
    scale: Tensor | float,
    query_id_N: Tensor,
    key_id_M: Tensor,
    query_row_N: Tensor | None = None,
    key_row_M: Tensor | None = None,
    key_valid_M: Tensor | None = None,
    tile: TileShape | None = None,
) -> DenseContrast | TiledContrast:
    """All pairs at once if they are few, else in tiles. The arguments are those of `info_nce`, checked."""
    tile = tile or choose_tile(len(query_ND), len(key_MD), query_ND.device.type)
    if tile is None:
        return DenseContrast(
            query_ND,
            key_MD,
            scale=scale,
            query_id_N=query_id_N,
            key_id_M=key_id_M,
            query_row_N=query_row_N,
            key_row_M=key_row_M,
            key_valid_M=key_valid_M,
        )
    if key_valid_M is not None:
        key_MD, key_id_M = key_MD[key_valid_M], key_id_M[key_valid_M]
        key_row_M = None if key_row_M is None else key_row_M[key_valid_M]
    mirrored = key_MD is query_ND and key_id_M is query_id_N and key_row_M is query_row_N
    pairs = Pairs(query_id_N, key_id_M, query_row_N, key_row_M, tile, mirrored)
    return TiledContrast(query_ND, key_MD, pairs, scale=scale)


class _WithOwnKeys:
    """Log-sums of the logits of N queries, in the terms of the formulas above, with keys that only one query uses.

    Args:
        of_keys: sums over the keys of all queries.
        scale: inverse temperature.
        own_logit_N: logits of the queries' own keys.
        own_negative_logit_N: logits of the queries' own negatives, including their log-weights.
    """

    def __init__(
        self,
        of_keys: DenseContrast | TiledContrast,
        scale: Tensor | float,
        own_logit_N: Tensor | None,
        own_negative_logit_N: Tensor | None,
    ):
        self.of_keys, self.scale = of_keys, scale
        self.own_logit_N, self.own_negative_logit_N = own_logit_N, own_negative_logit_N
        self.positive_count_N = of_keys.positive_count_N + (own_logit_N is not None)

    @property
    def negative_count_N(self) -> Tensor:
        return self.of_keys.negative_count_N + (self.own_negative_logit_N is not None)

    def mean_positive(self) -> Tensor:
        """Mean positive logit; 0 for rows without positives."""
        total_N = self.of_keys.positive_sum()
        if self.own_logit_N is not None:
            total_N = total_N + self.own_logit_N
        return total_N / self.positive_count_N.clamp(min=1)

    def log_mean_exp_positive(self) -> Tensor:
        """log of the mean e^s over the positives; 0 for rows without positives."""
        count_N = self.positive_count_N
        log_sum_N = torch.where(count_N > 0, self.log_sum_exp("positives"), 0)
        return log_sum_N - _log(count_N, log_sum_N.dtype)

    def log_denominator(self, kind: str, hardness: float, prior: float) -> Tensor:
        """log of the denominator: the sum over all keys or over the negatives, re-weighted if `hardness` or `prior` is set."""
        if kind == "all" and not hardness and not prior:
            return self.log_sum_exp("all")
        log_negatives_N = self.log_reweighted_negatives(hardness, prior)
        if kind == "negatives":
            return log_negatives_N
        log_positives_N = torch.where(self.positive_count_N > 0, self.log_sum_exp("positives"), 0)
        return _log_add_exp(log_positives_N, log_negatives_N)

    def log_reweighted_negatives(self, hardness: float, prior: float) -> Tensor:
        """log of the negatives' sum, with HCL weights and debiased by `prior`; minus infinity for rows without negatives."""
        count_N = self.negative_count_N
        # Rows without negatives use a finite placeholder, because -inf would make the gradient NaN.
        has_negative_N = count_N > 0
        log_sum_N = torch.where(has_negative_N, self.log_sum_exp("negatives", power=1 + hardness), 0)
        log_count_N = _log(count_N, log_sum_N.dtype)
        if hardness:
            log_weight_N = torch.where(has_negative_N, self.log_sum_exp("negatives", power=hardness), 0)
            log_sum_N = log_sum_N - log_weight_N + log_count_N
        if prior:
            expected_N = self.log_mean_exp_positive() + log_count_N + math.log(prior)
            log_sum_N = torch.maximum(_log_difference(log_sum_N, expected_N) - math.log1p(-prior), log_count_N - self.scale)
        return torch.where(has_negative_N, log_sum_N, -torch.inf)

    def log_sum_exp(self, kind: PairKind, power: float = 1.0) -> Tensor:
        """log of the sum of e^(power s) over the keys of a kind; minus infinity for rows without such keys."""
        log_sum_N = self.of_keys.log_sum_exp(kind, power)
        if self.own_logit_N is not None and kind != "negatives":
            log_sum_N = _log_add_exp(log_sum_N, power * self.own_logit_N)
        if self.own_negative_logit_N is not None and kind != "positives":
            log_sum_N = _log_add_exp(log_sum_N, self.own_negative_logit_N)
        return log_sum_N


def _log(count_N: Tensor, dtype: torch.dtype) -> Tensor:
    """log of counts; 0 for a count of 0."""
    return count_N.clamp(min=1).to(dtype).log()


def _log_add_exp(a: Tensor, b: Tensor) -> Tensor:
    """log(e^a + e^b), with derivatives of every order even if a term is minus infinity."""
    both = torch.logaddexp(a.masked_fill(a == -torch.inf, 0), b.masked_fill(b == -torch.inf, 0))
    return torch.where(a == -torch.inf, b, torch.where(b == -torch.inf, a, both))


def _log_difference(a: Tensor, b: Tensor) -> Tensor:
    """log(e^a - e^b); minus infinity, without gradient, if b is not smaller."""
    gap = torch.where(b < a, b - a, -1)
    return torch.where(b < a, a + torch.log(-torch.expm1(gap)), -torch.inf)


def _reduce(loss_N: Tensor, counts_N: Tensor, weight_N: Tensor | None, reduction: Reduction) -> Tensor:
    weight_N = counts_N.to(loss_N.dtype) if weight_N is None else torch.where(counts_N, weight_N, 0)
    total, weight = (weight_N * loss_N).sum(), weight_N.sum()
    return total if reduction == "sum" else total / torch.where(weight > 0, weight, 1)


def _check_shape(name: str, tensor: Tensor | None, shape: torch.Size) -> None:
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{name} {tuple(tensor.shape)} must be {list(shape)}")


def _check_weighting(hardness: float, positive_prior: float, *, has_own_negatives: bool) -> None:
    if hardness < 0 or not 0 <= positive_prior < 1:
        raise ValueError(f"hardness {hardness} must be at least 0 and positive_prior {positive_prior} in [0, 1)")
    if has_own_negatives and (hardness or positive_prior):
        raise ValueError("own_negative_ND has a weight of its own: set hardness and positive_prior to 0")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
