"""MoCo with mixed negatives: the formula and its gradients, and parts of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmcl import losses
from mmcl.core.negative_mixing import mixed_log_sum_exp
from mmcl.rng import sample_seed

IDS, QUEUE_IDS = torch.arange(5), torch.arange(9) + 3  # the last two queries have a stale key
COUNTS = [(6, 0), (0, 4), (6, 4)]


@pytest.fixture
def rows(rng: torch.Generator) -> tuple[Tensor, ...]:
    """Queries, their keys, the queue, and a temperature."""
    drawn = (torch.randn((len(ids), 4), generator=rng, dtype=torch.float64) for ids in (IDS, IDS, QUEUE_IDS))
    query, key, queue = (normalize(one, dim=1) for one in drawn)
    return query.requires_grad_(), key, queue, torch.tensor(0.2, dtype=torch.float64, requires_grad=True)


def moco(rows: tuple[Tensor, ...], counts: tuple[int, int], *, part: slice = slice(None)) -> Tensor:
    query, key, queue, temperature = rows
    given: dict[str, Any] = {"queue_ids": QUEUE_IDS, "temperature": temperature, "hardest": 4, "seed": 3}
    mixed, with_query = counts
    return losses.moco_loss(query[part], key[part], IDS[part], queue=queue, mixed=mixed, mixed_with_query=with_query, **given)


@pytest.mark.parametrize("counts", COUNTS)
def test_mixtures_join_the_denominator(rows: tuple[Tensor, ...], counts: tuple[int, int]) -> None:
    given, key, queue, temperature = rows
    query = normalize(given, dim=1)  # as the loss does, through which the gradient passes
    drawn: dict[str, Any] = {"hardest": 4, "pairs": counts[0], "with_query": counts[1], "seed": sample_seed(3)}
    options = {"scale": 1 / temperature, **drawn}
    mixtures_N = mixed_log_sum_exp(query, queue, query_id_N=IDS, key_id_M=QUEUE_IDS, **options).exp()
    terms = []
    for q, k, own, mixtures in zip(query, key, IDS, mixtures_N, strict=True):
        positive = (q @ k / temperature).exp()
        negatives = sum((q @ n / temperature).exp() for n, sample in zip(queue, QUEUE_IDS, strict=True) if sample != own)
        terms.append(-(positive / (positive + negatives + mixtures)).log())
    expected = torch.stack(terms).mean()
    found = moco(rows, counts)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    leaves = (given, temperature)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("counts", COUNTS)
def test_parts_of_a_batch_give_the_whole(rows: tuple[Tensor, ...], counts: tuple[int, int]) -> None:
    parts = [slice(0, 2), slice(2, 3), slice(3, 5)]
    total = sum(moco(rows, counts, part=part) * (part.stop - part.start) for part in parts) / len(IDS)
    torch.testing.assert_close(total, moco(rows, counts), rtol=1e-12, atol=0)


def test_an_empty_queue_has_nothing_to_mix(rows: tuple[Tensor, ...]) -> None:
    query, key, queue, temperature = rows
    loss = losses.moco_loss(query, key, queue=queue[:0], temperature=temperature, mixed=3, mixed_with_query=2)
    assert loss.item() == 0
    loss.backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_samples_and_steps_do_not_share_draws(rng: torch.Generator) -> None:
    """The same query and queue under other ids and seeds: small numbers must not meet, as 1 and 0 would with 0 and 1."""
    query, key = (normalize(torch.randn((1, 4), generator=rng, dtype=torch.float64), dim=1) for _ in range(2))
    queue = normalize(torch.randn((30, 4), generator=rng, dtype=torch.float64), dim=1)
    stale = torch.arange(30) + 100
    given: dict[str, Any] = {"queue": queue, "queue_ids": stale, "temperature": 0.2, "mixed": 5}
    pairs = [(sample, seed) for sample in range(6) for seed in range(6)]
    found = {losses.moco_loss(query, key, torch.tensor([sample]), seed=seed, **given).item() for sample, seed in pairs}
    assert len(found) == len(pairs)
