"""The contract suite passes for every loss in the table, and every loss equals an independently written loop.

The loops are as slow and as plain as the formulas of the papers: one number at a time, in float64, in PyTorch's operations on
scalars, so that their gradients are references too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmcl.core.precision import in_float32
from mmcl.core.sigreg import random_directions
from mmcl.errors import UserError
from mmcl.losses import LOSSES, LossEntry
from mmcl.testing import LOSS_CHECKS, check_loss
from mmcl.testing.losses import check_compiled, check_reference, toy_loss_arguments

NAME = pytest.mark.parametrize("name", LOSSES)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())


def distance(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().sum().sqrt()


def log_sum(values: list[Tensor]) -> Tensor:
    return torch.stack(values).exp().sum().log()


def mean(values: list[Tensor], otherwise: Tensor) -> Tensor:
    return sum(values[1:], start=values[0]) / len(values) if values else otherwise.sum() * 0


def numbers(rows: Tensor, ids: Tensor | None) -> list[int]:
    return list(range(len(rows))) if ids is None else ids.tolist()


def one_direction(query: Tensor, key: Tensor, temperature: Any, ids: Tensor | None = None) -> Tensor:
    own, losses = numbers(query, ids), []
    for i in range(len(query)):
        logits = [cosine(query[i], key[j]) / temperature for j in range(len(key))]
        positives = [logits[j] for j in range(len(key)) if own[j] == own[i]]
        losses.append(log_sum(logits) - mean(positives, query))
    return mean(losses, query)


def among_themselves(rows: Tensor, ids: list[int], temperature: Any, *, decoupled: bool = False) -> Tensor:
    losses = []
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        logit = {j: cosine(rows[i], rows[j]) / temperature for j in others}
        positives = [logit[j] for j in others if ids[j] == ids[i]]
        below = [logit[j] for j in others if not decoupled or ids[j] != ids[i]]
        if positives and below:
            losses.append(log_sum(below) - mean(positives, rows))
    return mean(losses, rows)


def clip(image: Tensor, text: Tensor, scale: Any, ids: Tensor | None = None) -> Tensor:
    return (one_direction(image, text, 1 / scale, ids) + one_direction(text, image, 1 / scale, ids)) / 2


def nt_xent(a: Tensor, b: Tensor, temperature: Any, ids: Tensor | None = None) -> Tensor:
    return among_themselves(torch.cat([a, b]), 2 * numbers(a, ids), temperature)


def dcl(a: Tensor, b: Tensor, temperature: Any, ids: Tensor | None = None) -> Tensor:
    return among_themselves(torch.cat([a, b]), 2 * numbers(a, ids), temperature, decoupled=True)


def supcon(rows: Tensor, ids: Tensor, temperature: Any) -> Tensor:
    return among_themselves(rows, ids.tolist(), temperature)


def siglip(image: Tensor, text: Tensor, scale: Any, bias: Any, ids: Tensor | None = None) -> Tensor:
    own, total = numbers(image, ids), image.sum() * 0
    for i, j in itertools.product(range(len(image)), range(len(text))):
        sign = 1 if own[i] == own[j] else -1
        total = total + (1 + (-sign * (scale * cosine(image[i], text[j]) + bias)).exp()).log()
    return total / len(image)


def moco(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: Any,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
) -> Tensor:
    losses = []
    for i in range(len(query)):
        positive = cosine(query[i], key[i].detach()) / temperature
        kept = [j for j in range(len(queue)) if ids is None or queue_ids is None or queue_ids[j] != ids[i]]
        losses.append(log_sum([positive, *(cosine(query[i], queue[j].detach()) / temperature for j in kept)]) - positive)
    return mean(losses, query)


def simcse(
    a: Tensor, b: Tensor, negative: Tensor, temperature: Any, negative_log_weight: float, ids: Tensor | None = None
) -> Tensor:
    own, losses = numbers(a, ids), []
    for i in range(len(a)):
        logits = [cosine(a[i], b[j]) / temperature for j in range(len(b))]
        positives = [logits[j] for j in range(len(b)) if own[j] == own[i]]
        hard = [cosine(a[i], negative[j]) / temperature + negative_log_weight * (i == j) for j in range(len(a))]
        losses.append(log_sum(logits + hard) - mean(positives, a))
    return mean(losses, a)


def unit(rows: Tensor) -> list[Tensor]:
    return [row / row.square().sum().sqrt() for row in rows]


def triplet(rows: Tensor, ids: Tensor, miner: str, margin: float = 0.2) -> Tensor:
    x, losses = unit(rows), []
    for a, p, n in itertools.product(range(len(x)), repeat=3):
        if a != p and ids[a] == ids[p] and ids[a] != ids[n]:
            losses.append((distance(x[a], x[p]) - distance(x[a], x[n]) + margin).clamp(min=0))
    return mean(losses, rows)


def contrastive_pair(rows: Tensor, ids: Tensor, margin: float) -> Tensor:
    losses = []
    for i, j in itertools.combinations(range(len(rows)), 2):
        d = distance(rows[i], rows[j])
        losses.append(d.square() if ids[i] == ids[j] else (margin - d).clamp(min=0).square())
    return mean(losses, rows)


def margin(rows: Tensor, ids: Tensor, beta: Any, negatives: str, alpha: float = 0.2) -> Tensor:
    x, losses = unit(rows), []
    for i, j in itertools.permutations(range(len(x)), 2):
        if ids[i] != ids[j]:
            losses.append((alpha + beta - distance(x[i], x[j])).clamp(min=0))
        elif any(ids[k] != ids[i] for k in range(len(x))):
            losses.append((alpha + distance(x[i], x[j]) - beta).clamp(min=0))
    return mean([loss for loss in losses if loss > 0], rows)


def barlow_twins(a: Tensor, b: Tensor) -> Tensor:
    def standardized(column: Tensor) -> Tensor:
        centered = column - column.mean()
        return centered / (centered.square().mean() + 1e-5).sqrt()

    total = a.sum() * 0
    for i, j in itertools.product(range(a.shape[1]), range(b.shape[1])):
        c = (standardized(a[:, i]) * standardized(b[:, j])).mean()
        total = total + ((1 - c).square() if i == j else 0.0051 * c.square())
    return total


def vicreg(a: Tensor, b: Tensor) -> Tensor:
    total, dims, rows = 25 * (a - b).square().mean(), a.shape[1], len(a)
    for x in (a, b):
        centered = x - x.mean(0)
        for i, j in itertools.product(range(dims), repeat=2):
            covariance = (centered[:, i] * centered[:, j]).sum() / max(rows - 1, 1)
            total = total + (12.5 * (1 - (covariance + 1e-4).sqrt()).clamp(min=0) if i == j else covariance.square()) / dims
    return total


def lejepa(a: Tensor, b: Tensor, slices: int, weight: float) -> Tensor:
    """The integral by `torch.trapezoid` over both signs of t, in complex numbers."""
    directions = random_directions(a.shape[1], slices, 0).to(a)
    t = torch.linspace(-3, 3, 33, dtype=a.dtype)
    normal, rows, statistics = (-(t**2) / 2).exp(), max(len(a), 1), []
    for view, direction in itertools.product((a, b), directions.T):
        angles = torch.stack([t * (row * direction).sum() for row in view]) if len(view) else a.new_zeros(0, 33)
        difference = (1j * angles).exp().sum(0) / rows - normal
        statistics.append(len(a) * torch.trapezoid((difference * difference.conj()).real * normal, t))
    center = (a + b) / 2
    distance = mean([((view[i] - center[i]) ** 2).mean() for view in (a, b) for i in range(len(a))], a)
    return (1 - weight) * distance + weight * torch.stack(statistics).mean()


def byol(prediction: Tensor, target: Tensor) -> Tensor:
    return mean([distance(p, z).square() for p, z in zip(unit(prediction), unit(target.detach()), strict=True)], prediction)


def swav(a: Tensor, b: Tensor, prototypes: Tensor, temperature: Any) -> Tensor:
    scores = [torch.stack([torch.stack([cosine(row, c) for c in prototypes]) for row in crop]) for crop in (a, b)]
    codes = []
    for score in scores:
        weight = (score.detach() / 0.05).exp()
        for _ in range(3):
            weight = weight / weight.sum(0)
            weight = weight / weight.sum(1, keepdim=True)
        codes.append(weight)
    losses = [
        -(code[i] * ((score[i] / temperature) - log_sum(list(score[i] / temperature)))).sum()
        for code, score in ((codes[0], scores[1]), (codes[1], scores[0]))
        for i in range(len(a))
    ]
    return mean(losses, a)


REFERENCES: dict[str, Callable[..., Tensor]] = {
    "barlow_twins": barlow_twins,
    "byol": byol,
    "clip": clip,
    "contrastive_pair": contrastive_pair,
    "dcl": dcl,
    "info_nce": one_direction,
    "lejepa": lejepa,
    "margin": margin,
    "moco": moco,
    "nt_xent": nt_xent,
    "siglip": siglip,
    "simcse": simcse,
    "supcon": supcon,
    "swav": swav,
    "triplet": triplet,
    "vicreg": vicreg,
}


def test_every_loss_has_a_reference() -> None:
    assert REFERENCES.keys() == set(LOSSES)


@NAME
@pytest.mark.parametrize("check", LOSS_CHECKS)
def test_the_contract(name: str, check: str) -> None:
    LOSS_CHECKS[check](LOSSES.entry(name))


@NAME
def test_the_loss_is_that_of_the_loop(name: str) -> None:
    check_reference(LOSSES.entry(name), REFERENCES[name])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.long
@NAME
def test_the_compiler_takes_the_loss_in_one_graph(name: str) -> None:
    check_compiled(LOSSES.entry(name))


def wrong(**changes: Any) -> LossEntry:
    return LossEntry(**{"needs": "two views", "rows": ("a", "b"), "differentiable": (), **changes})


def plain(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum()


BROKEN: dict[str, tuple[LossEntry, str]] = {
    "no scalar": (wrong(function=lambda a, b: (a * b).sum(1)), "must be a scalar"),
    "not pure": (wrong(function=lambda a, b: (a.mul_(2) * b).sum()), "two calls"),
    "draws": (wrong(function=lambda a, b: plain(a, b) + 0 * torch.rand(())), "global generator"),
    "order": (wrong(function=lambda a, b: (a[0] * b[-1]).sum()), "another order"),
    "length": (wrong(function=plain), "other lengths"),
    "half precision": (wrong(function=plain, unit=False), "must be float32"),
    "accepts anything": (wrong(function=in_float32(plain), unit=False), "a no tensor gives"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_loss_that_breaks_the_contract_is_found(fault: str) -> None:
    entry, message = BROKEN[fault]
    with pytest.raises(AssertionError, match=message):
        check_loss(entry)


def test_a_gradient_that_is_cut_is_found() -> None:
    entry = wrong(function=lambda a, b: plain(a, b.detach()), unit=False, differentiable=None)
    with pytest.raises((AssertionError, RuntimeError), match="Jacobian mismatch"):
        check_loss(entry)


def test_a_reference_that_disagrees_is_found() -> None:
    with pytest.raises(AssertionError, match="beside its reference"):
        check_loss("clip", lambda **given: 1.01 * clip(**given))


def test_a_loss_of_ones_own_is_listed_and_looked_up() -> None:
    entry = LossEntry(function=plain, needs="two views", rows=("a", "b"), unit=False)
    table = type(LOSSES)({"plain": entry})
    assert table["plain"] is plain
    assert table.entry("plain") == entry
    with pytest.raises(UserError, match="already registered"):
        table.add("plain", entry)
    with pytest.raises(UserError, match="did you mean 'plain'"):
        table.entry("plane")


def test_toy_arguments_are_the_same_again_and_have_repeated_ids() -> None:
    first, second = (toy_loss_arguments(LOSSES.entry("clip")) for _ in range(2))
    assert all(torch.equal(torch.as_tensor(first[name]), torch.as_tensor(second[name])) for name in first)
    assert len(first["ids"].unique()) < len(first["ids"])
