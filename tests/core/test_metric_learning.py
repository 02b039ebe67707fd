"""Metric losses against explicit triples and pairs, one at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core.metric_learning import Miner, PairDistances, contrastive_pair_loss, draw_negatives, margin_loss, triplet_loss

IDS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 1])


def rows_of(rng: torch.Generator, count: int = 8, dim: int = 3) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=rng, dtype=torch.float64), dim=1).requires_grad_()


def triples(ids: Tensor) -> list[tuple[int, int, int]]:
    """All of an anchor, a positive and a negative."""
    every = itertools.product(range(len(ids)), repeat=3)
    return [(a, p, n) for a, p, n in every if a != p and ids[a] == ids[p] and ids[a] != ids[n]]


def mined(row_ND: Tensor, ids: Tensor, miner: str, margin: float) -> list[tuple[int, int, int]]:
    d = torch.cdist(row_ND, row_ND, compute_mode="donot_use_mm_for_euclid_dist")
    if miner == "all":
        return triples(ids)
    if miner == "semi_hard":
        return [(a, p, n) for a, p, n in triples(ids) if d[a, p] < d[a, n] < d[a, p] + margin]
    hardest: dict[int, tuple[int, int, int]] = {}
    for a, p, n in triples(ids):
        best = hardest.get(a)
        if best is None or d[a, p] - d[a, n] > d[a, best[1]] - d[a, best[2]]:
            hardest[a] = (a, p, n)
    return list(hardest.values())


@pytest.mark.parametrize("margin", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("miner", ["all", "batch_hard", "semi_hard"])
def test_triplet_loss_is_that_of_torch_on_the_mined_triples(rng: torch.Generator, miner: str, margin: float) -> None:
    ours, theirs = rows_of(rng), rows_of(rng.manual_seed(0))
    a, p, n = torch.tensor(mined(theirs, IDS, miner, margin)).T
    expected = F.triplet_margin_loss(theirs[a], theirs[p], theirs[n], margin=margin, eps=0)
    loss = triplet_loss(ours, IDS, margin=margin, miner=miner)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    for total in (loss, expected):
        total.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_distances_that_tie_are_counted_once(rng: torch.Generator) -> None:
    """Corners of a square: many triples have equal distances, and some are just on the border of the margin."""
    rows = torch.tensor([[0.0, 0.0], [1, 0], [0, 1], [1, 1], [0, 0], [1, 0]], dtype=torch.float64)
    ids = torch.tensor([0, 1, 0, 1, 1, 0])
    for miner, margin in itertools.product(("all", "semi_hard"), (0.0, 0.5, 1.0)):
        d = torch.cdist(rows, rows)
        chosen = mined(rows, ids, miner, margin)
        expected = sum(max(0.0, float(d[a, p] - d[a, n]) + margin) for a, p, n in chosen) / max(len(chosen), 1)
        got = triplet_loss(rows, ids, margin=margin, miner=miner)  # type: ignore[arg-type]
        assert got.item() == pytest.approx(expected, abs=1e-12)


def test_pair_loss_is_the_mean_over_pairs(rng: torch.Generator) -> None:
    rows, margin = rows_of(rng), 0.9
    losses = []
    for i, j in itertools.combinations(range(8), 2):
        d = math.dist(rows[i].tolist(), rows[j].tolist())
        losses.append(d**2 if IDS[i] == IDS[j] else max(0.0, margin - d) ** 2)
    assert contrastive_pair_loss(rows, IDS, margin=margin).item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_margin_loss_is_the_mean_over_the_pairs_that_cost(rng: torch.Generator) -> None:
    rows, alpha, beta = rows_of(rng), 0.2, torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    costs, slope = [], 0
    for i, j in itertools.permutations(range(8), 2):
        sign = 1 if IDS[i] == IDS[j] else -1
        cost = alpha + sign * (math.dist(rows[i].tolist(), rows[j].tolist()) - beta.item())
        if cost > 0:
            costs.append(cost)
            slope -= sign
    loss = margin_loss(rows, IDS, alpha=alpha, beta=beta, negatives="all")
    assert loss.item() == pytest.approx(sum(costs) / len(costs), rel=1e-12)
    loss.backward()
    assert beta.grad is not None
    assert beta.grad.item() == pytest.approx(slope / len(costs), rel=1e-12)


def weighted_loss(rows: Tensor, ids: Tensor) -> Tensor:
    return triplet_loss(rows, ids, miner="distance_weighted", generator=torch.Generator().manual_seed(0))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "all": lambda rows, ids: triplet_loss(rows, ids, miner="all"),
    "semi_hard": lambda rows, ids: triplet_loss(rows, ids, miner="semi_hard"),
    "batch_hard": lambda rows, ids: triplet_loss(rows, ids, miner="batch_hard"),
    "distance_weighted": weighted_loss,
    "pair": contrastive_pair_loss,
    "margin": lambda rows, ids: margin_loss(rows, ids, negatives="all"),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_gradients_are_exact(loss: Callable[[Tensor, Tensor], Tensor], rng: torch.Generator) -> None:
    assert torch.autograd.gradcheck(lambda rows: loss(rows, IDS), (rows_of(rng),))


@pytest.mark.parametrize("ids", [[0], [0, 0, 0], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("pair", "margin")])
def test_no_valid_triple_is_zero_with_a_usable_gradient(name: str, ids: list[int], rng: torch.Generator) -> None:
    rows = rows_of(rng, len(ids))
    loss = LOSSES[name](rows, torch.tensor(ids))
    loss.backward()
    assert loss.item() == 0
    assert rows.grad is not None
    assert not rows.grad.any()


@pytest.mark.parametrize("miner", ["all", "batch_hard", "semi_hard", "distance_weighted"])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_no_rows_and_rows_of_zeros_have_a_loss_of_zero_or_the_margin(miner: Miner, count: int) -> None:
    for ids in (torch.zeros(count, dtype=torch.int64), torch.arange(count), torch.arange(count) % 2):
        rows = torch.zeros(count, 3, requires_grad=True)
        rng = torch.Generator().manual_seed(0)
        for loss, most in (
            (triplet_loss(rows, ids, miner=miner, margin=0.3, generator=rng), 0.3),
            (contrastive_pair_loss(rows, ids, margin=0.3), 0.09),
            (margin_loss(rows, ids, generator=rng), 1.4),
        ):
            assert 0 <= loss.item() <= most + 1e-6
            assert torch.autograd.grad(loss, rows)[0].isfinite().all()


def test_rows_at_one_place_have_a_finite_gradient() -> None:
    rows = torch.ones(8, 3, dtype=torch.float64, requires_grad=True)
    for loss in LOSSES.values():
        loss(rows, IDS).backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_negatives_are_drawn_inversely_to_the_density_of_their_distance() -> None:
    """Frequencies against equations 4 to 6, with the published cut-offs at 0.5 and 1.4."""
    dim, distances = 4, [0.0, 0.3, 0.5, 0.9, 1.3, 1.6]
    wanted = []
    for d in distances:
        clipped = max(d, 0.5)
        wanted.append(1 / (clipped ** (dim - 2) * (1 - clipped**2 / 4) ** ((dim - 3) / 2)) if 0 < d < 1.4 else 0.0)
    probability = torch.tensor(wanted) / sum(wanted)
    count = 600
    row = torch.tensor(distances).repeat(count // 6)
    pairs = PairDistances(row.expand(count, -1).clone(), torch.zeros(count, count).bool(), (row > 0).expand(count, -1))
    drawn = draw_negatives(pairs, dim, torch.Generator().manual_seed(0)) % 6
    frequency = torch.bincount(drawn.flatten(), minlength=6) / drawn.numel()
    torch.testing.assert_close(frequency, probability, rtol=0.02, atol=1e-9)


def test_far_negatives_are_drawn_where_there_are_no_others() -> None:
    distance = torch.tensor([[0.0, 0.2, 1.5, 1.9], [0.2, 0.0, 1.5, 1.9], [1.5, 1.5, 0.0, 1.8], [1.9, 1.9, 1.8, 0.0]])
    ids = torch.tensor([0, 0, 1, 2])
    equal = ids[:, None] == ids
    drawn = draw_negatives(PairDistances(distance, equal, ~equal), 8, torch.Generator().manual_seed(0))
    assert not equal.gather(1, drawn).any()


def test_equals_pytorch_metric_learning(rng: torch.Generator) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    reducers = pytest.importorskip("pytorch_metric_learning.reducers")
    rows = rows_of(rng)
    theirs = losses.TripletMarginLoss(margin=0.3, reducer=reducers.MeanReducer())(rows, IDS)
    torch.testing.assert_close(triplet_loss(rows, IDS, margin=0.3, miner="all"), theirs, rtol=1e-6, atol=1e-8)


def test_wrong_arguments_are_named(rng: torch.Generator) -> None:
    rows = rows_of(rng)
    with pytest.raises(ValueError, match="generator"):
        triplet_loss(rows, IDS, miner="distance_weighted")
    with pytest.raises(ValueError, match="miner 'hard'"):
        triplet_loss(rows, IDS, miner="hard")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negatives 'some'"):
        margin_loss(rows, IDS, negatives="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ids \(3,\)"):
        contrastive_pair_loss(rows, IDS[:3])
