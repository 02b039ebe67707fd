"""The losses as loops over Python floats: slow, obvious, and independent of the code under test."""

from __future__ import annotations

import math
from itertools import product

from torch import Tensor


def info_nce_loop(
    query: Tensor,
    key: Tensor,
    query_id: Tensor,
    key_id: Tensor,
    scale: float,
    *,
    query_row: Tensor | None = None,
    key_row: Tensor | None = None,
    valid: Tensor | None = None,
    own_key: Tensor | None = None,
    weight: Tensor | None = None,
    positives: str = "outside",
    denominator: str = "all",
    hardness: float = 0.0,
    positive_prior: float = 0.0,
    reduction: str = "mean",
) -> float:
    total = weights = 0.0
    queries, keys = _floats(query), _floats(key)
    query_ids, key_ids = query_id.tolist(), key_id.tolist()
    query_rows, key_rows = (None, None) if query_row is None or key_row is None else (query_row.tolist(), key_row.tolist())
    for i in range(len(query)):
        positive: list[float] = []
        negative: list[float] = []
        for j in range(len(key)):
            same = query_rows is not None and key_rows is not None and query_rows[i] == key_rows[j]
            if not same and (valid is None or valid[j]):
                (positive if query_ids[i] == key_ids[j] else negative).append(scale * _dot(queries[i], keys[j]))
        if own_key is not None:
            positive.append(scale * _dot(queries[i], _floats(own_key)[i]))
        if not positive or (denominator == "negatives" and not negative):
            continue
        below = _negatives(negative, positive, hardness, positive_prior, scale)
        if denominator == "all":
            below += sum(map(math.exp, positive))
        mean = sum(positive) / len(positive)
        above = mean if positives == "outside" else math.log(sum(map(math.exp, positive)) / len(positive))
        share = 1.0 if weight is None else weight[i].item()
        total += share * (math.log(below) - above)
        weights += share
    return total if reduction == "sum" else total / weights if weights else 0.0


def _floats(rows: Tensor) -> list[list[float]]:
    floats: list[list[float]] = rows.detach().double().tolist()
    return floats


def _dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _negatives(negative: list[float], positive: list[float], hardness: float, prior: float, scale: float) -> float:
    """The g of "Debiased Contrastive Learning", with the weights of "Contrastive Learning with Hard Negative Samples"."""
    if not negative:
        return 0.0
    importance = [math.exp(hardness * s) for s in negative]
    mean = sum(importance) / len(importance)
    total = sum(w / mean * math.exp(s) for w, s in zip(importance, negative, strict=True))
    if prior == 0:
        return total
    expected = prior * len(negative) * sum(map(math.exp, positive)) / len(positive)
    return max((total - expected) / (1 - prior), len(negative) * math.exp(-scale))


def sigmoid_loop(image: Tensor, text: Tensor, image_id: Tensor, text_id: Tensor, scale: float, bias: float) -> float:
    """The sum over all pairs."""
    total = 0.0
    images, texts = _floats(image), _floats(text)
    for i, j in product(range(len(image)), range(len(text))):
        sign = 1 if image_id[i] == text_id[j] else -1
        logit = sign * (scale * _dot(images[i], texts[j]) + bias)
        total += math.log1p(math.exp(-logit)) if logit > 0 else math.log1p(math.exp(logit)) - logit
    return total
