"""Negatives mixed from the hardest ones (Kalantidis et al., "Hard Negative Mixing for Contrastive Learning", 2020, section 4).

Which keys are the nearest can turn on the last bit of a row, which depends on the batch that it was encoded in. So draws
belong to keys, not to ranks: where rounding decides between two keys, all that it changes is the few mixtures of these two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcl.core.dense import log_sum_exp
from mmcl.core.higher_derivatives import is_transformed, recomputed
from mmcl.core.precision import as_scalar, in_float32
from mmcl.core.tiled.pairs import check_rows

_BLOCK = 2**22
"""Numbers that are compared or mixed at once."""


@in_float32
def mixed_log_sum_exp(
    query_ND: Tensor,
    key_MD: Tensor,
    *,
    query_id_N: Tensor,
    key_id_M: Tensor,
    scale: Tensor | float,
    hardest: int,
    pairs: int,
    with_query: int,
    seed: int,
) -> Tensor:
    r"""Computes the log of the sum of $e^{\mathrm{scale} \cdot q^\top h}$ over mixed negatives h of every query.

    With $n_i$ and $n_j$ two of the keys that are nearest to the query q, and uniform $\alpha \in [0, 1)$ and
    $\beta \in [0, 0.5)$, the mixtures are, scaled to unit length,

    $$\alpha n_i + (1 - \alpha) n_j \quad \text{and} \quad \beta q + (1 - \beta) n_j$$

    (Kalantidis et al., 2020, section 4.1 and 4.2). They are constants: only q has a gradient, and it is a positive of none.

    The nearest keys are put in a random order, and each is mixed with the next one, in a second round with the one after that;
    the paper draws both. Every pair is as likely as any other, and no key is drawn again before all were. Order and weights
    are hashes of the seed, the query's id and the row of the key, so they are the same in every part of a batch. Products with
    queries are float64: given the rows, neither blocks nor processes change which keys are nearest. Where rows differ by
    rounding, one of two keys that are equally near can be replaced by the other; at most four mixtures of two keys and two
    with the query differ then, of all in a first round.

    Args:
        query_ND, key_MD: unit-length rows, any floating type. Keys get no gradient.
        query_id_N, key_id_M: int64 ids; keys of the query's own id are not mixed.
        scale: inverse temperature, positive, a number or a one-element tensor (with a gradient if it is learned).
        hardest: number of keys nearest to the query that are mixed, at least 1; of fewer keys, all.
        pairs: mixtures of two keys; none for a query with fewer than two keys.
        with_query: mixtures of a key and the query; none for a query without keys.
        seed: an integer that determines the draws; another one in every step.

    Returns:
        [N]; minus infinity for a query without mixtures.

    Raises:
        ValueError: shapes do not match, or a number is out of range.

    Example:
        >>> query, key = torch.eye(3)[:1], torch.eye(3)[1:]
        >>> ids = {"query_id_N": torch.tensor([0]), "key_id_M": torch.tensor([1, 2])}
        >>> mixed_log_sum_exp(query, key, **ids, scale=5.0, hardest=2, pairs=4, with_query=0, seed=0)  # ln 4
        tensor([1.3863])
    """
    check_rows(query_ND, key_MD, query_id_N, key_id_M)
    for name, number, least in (("hardest", hardest, 1), ("pairs", pairs, 0), ("with_query", with_query, 0)):
        if number < least:
            raise ValueError(f"{name} is {number}, and must be at least {least}")
    scale = torch.as_tensor(as_scalar("scale", scale, query_ND, positive=True)).to(query_ND.device, torch.float64)
    if not len(key_MD) or not pairs + with_query:
        return (0 * query_ND).sum(1) - torch.inf
    key_MD = key_MD.detach()
    wide_MD = key_MD.double()
    rows = max(1, _BLOCK // max(len(key_MD), pairs * key_MD.shape[1], with_query))
    blocks = zip(query_ND.split(rows), query_id_N.split(rows), strict=True)
    counts = min(hardest, len(key_MD)), pairs, with_query
    parts = [_of_block(query_nD, id_n, key_MD, wide_MD, key_id_M, scale, counts, seed) for query_nD, id_n in blocks]
    return torch.cat(parts).to(query_ND)


def mixed_negatives(query_ND: Tensor, key_MD: Tensor, **options: Any) -> dict[str, Any]:
    """Returns the arguments of `info_nce` by which mixed negatives join its denominator.

    Args:
        query_ND, key_MD, options: see `mixed_log_sum_exp`.
    """
    # The logit of a row of zeros is 0, so that its weight is the sum over all of them.
    log_sum_N = mixed_log_sum_exp(query_ND, key_MD, **options)
    return {"own_negative_ND": torch.zeros_like(query_ND), "own_negative_log_weight": log_sum_N}


def _of_block(
    query_nD: Tensor,
    id_n: Tensor,
    key_MD: Tensor,
    wide_MD: Tensor,
    key_id_M: Tensor,
    scale: Tensor,
    counts: tuple[int, int, int],
    seed: int,
) -> Tensor:
    hardest, pairs, with_query = counts
    with torch.no_grad():
        own_nM = id_n[:, None] == key_id_M
        score_nM = _scores(query_nD, query_nD, wide_MD)
        place_nH = score_nM[:, :-1].masked_fill(own_nM, -torch.inf).topk(hardest, dim=1, sorted=False).indices
        first_nS, second_nS, share_nS, missing_nS = draw_mixtures(
            place_nH, own_nM.gather(1, place_nH), id_n, pairs, with_query, itself=len(key_MD), seed=seed
        )
        between = (key_MD[first_nS[:, :pairs]] * key_MD[second_nS[:, :pairs]]).sum(2).double()
        products_nS = torch.cat([between, score_nM.gather(1, second_nS[:, pairs:])], dim=1)
        rest_nS = 1 - share_nS
        # The squared length of a mixture of two unit-length rows.
        length_nS = (share_nS**2 + rest_nS**2 + 2 * share_nS * rest_nS * products_nS).clamp(min=1e-12).sqrt()
    places_and_weights = first_nS, second_nS, share_nS / length_nS, rest_nS / length_nS, missing_nS
    inputs = query_nD, query_nD.detach(), wide_MD, scale, *places_and_weights
    [sum_n] = _log_sums(*inputs) if is_transformed() else recomputed(_log_sums, *inputs)
    return sum_n


def _scores(query_nD: Tensor, constant_nD: Tensor, key_MD: Tensor) -> Tensor:
    """Products of queries with the keys and, in a last column, with their own constant copies, float64 [n, M + 1]."""
    wide_nD = query_nD.double()
    return torch.cat([wide_nD @ key_MD.T, (wide_nD * constant_nD).sum(1, keepdim=True)], dim=1)


def _log_sums(
    query_nD: Tensor,
    constant_nD: Tensor,
    key_MD: Tensor,
    scale: Tensor,
    first_nS: Tensor,
    second_nS: Tensor,
    first_weight_nS: Tensor,
    second_weight_nS: Tensor,
    missing_nS: Tensor,
) -> tuple[Tensor]:
    score_nM = _scores(query_nD, constant_nD, key_MD)
    mixed_nS = first_weight_nS * score_nM.gather(1, first_nS) + second_weight_nS * score_nM.gather(1, second_nS)
    return (log_sum_exp((scale * mixed_nS).masked_fill(missing_nS, -torch.inf), 1),)


def draw_mixtures(
    place_nH: Tensor, own_nH: Tensor, id_n: Tensor, pairs: int, with_query: int, *, itself: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw what is mixed: for every query the mixtures of two keys, then those of itself and a key.

    Args:
        place_nH, own_nH: rows of the nearest keys in any order, and whether they have the query's id and are left out.
        id_n, pairs, with_query, seed: see `mixed_log_sum_exp`.
        itself: the place that stands for the query.

    Returns:
        Places of the first and the second of each mixture, int64 [n, S], the share of the first, float64, and whether there are
        too few keys for it.
    """
    state_n1, count_n1 = _hash(id_n ^ seed)[:, None], (~own_nH).sum(1, keepdim=True)
    hash_nH = _hash(_hash(state_n1) ^ place_nH).masked_fill(own_nH, torch.iinfo(torch.int64).max)
    place_nH = place_nH.gather(1, hash_nH.argsort(dim=1))

    number_S = torch.arange(pairs + with_query, device=id_n.device)
    keys_S = 2 - (number_S >= pairs).long()  # that a mixture is made of
    number_S = number_S - pairs * (2 - keys_S)
    size_n1 = count_n1.clamp(min=1)
    round_nS, slot_nS = number_S // size_n1, number_S % size_n1
    next_nS = (slot_nS + 1 + round_nS % (size_n1 - 1).clamp(min=1)) % size_n1
    second_nS = place_nH.gather(1, slot_nS)
    first_nS = torch.where(keys_S == 2, place_nH.gather(1, next_nS), itself)
    draw_nS = _uniform(_hash(_hash(state_n1 ^ (2 * round_nS + 3 - keys_S)) ^ second_nS))
    return first_nS, second_nS, draw_nS * keys_S / 2, count_n1 < keys_S


def _hash(state: Tensor) -> Tensor:
    """One step of splitmix64, as in `mmcl.rng.hash_integers`, on signed integers."""
    x = state + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _uniform(hash_nS: Tensor) -> Tensor:
    """Numbers in [0, 1) of hashes, float64, as in `mmcl.rng.uniform`."""
    return _shifted(hash_nS, 11).double() * 2.0**-53


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift to the right, with zeros from the left."""
    shifted: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _signed(number: int) -> int:
    """The signed integer of the same 64 bits, of a number from 2^63."""
    return number - 2**64
