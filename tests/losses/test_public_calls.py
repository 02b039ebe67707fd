"""The natural call of a loss is the loss of the paper, or an error that names the fix."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mmcl
from mmcl import losses
from mmcl.errors import UserError


def views(rng: torch.Generator, rows: int = 6) -> tuple[Tensor, Tensor]:
    a = torch.randn(rows, 5, generator=rng, dtype=torch.float64)
    return a, a + torch.randn(rows, 5, generator=rng, dtype=torch.float64)


def plain_nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    z = F.normalize(torch.cat([a, b]), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(a)))


def test_two_stacked_views_are_nt_xent_however_they_are_given(rng: torch.Generator) -> None:
    a, b = views(rng)
    expected = plain_nt_xent(a, b, 0.1)
    z, ids = torch.cat([a, b]), torch.arange(6).repeat(2)
    number = torch.arange(12)
    calls = {
        "two views": losses.nt_xent(a, b, temperature=0.1),
        "one tensor": losses.info_nce(z, z, ids, temperature=0.1),
        "with the ids twice": losses.info_nce(z, z, ids, ids.clone(), temperature=0.1),
        "a copy with row numbers": losses.info_nce(z, z.clone(), ids, rows=number, key_rows=number, temperature=0.1),
        "unit length": losses.info_nce(unit := F.normalize(z, dim=1), unit, ids, temperature=0.1, similarity="dot"),
        "labels": losses.supcon_loss(z, ids, temperature=0.1),
    }
    for call, found in calls.items():
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, msg=call)


def test_a_copy_of_the_queries_is_refused_where_each_row_would_be_its_own_positive(rng: torch.Generator) -> None:
    z, ids = torch.cat(views(rng)), torch.arange(6).repeat(2)
    with pytest.raises(UserError, match="pass the same tensor for both"):
        losses.info_nce(z, z.clone(), ids, temperature=0.1)
    # Queries that are keys, too, but each one a pair with its copy: no dropout, say.
    assert losses.info_nce(z, z.clone(), temperature=0.1).isfinite()


def test_some_of_the_rows_as_queries_add_up_to_all(rng: torch.Generator) -> None:
    z, ids, number = torch.cat(views(rng)), torch.arange(6).repeat(2), torch.arange(12)
    whole = losses.info_nce(z, z, ids, temperature=0.1, reduction="sum")
    parts = [
        losses.info_nce(z[part], z, ids[part], ids, number[part], number, temperature=0.1, reduction="sum")
        for part in number.split(5)
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)


INCOMPLETE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "no ids for one set of rows": (lambda z: losses.info_nce(z, z, temperature=1), "needs ids"),
    "more keys than queries": (lambda z: losses.info_nce(z[:2], z, temperature=1), "give ids and key_ids"),
    "no ids of the keys": (lambda z: losses.info_nce(z[:2], z, torch.arange(2), temperature=1), r"needs key_ids \[4\]"),
    "no ids of the queries": (lambda z: losses.info_nce(z, z + 1, key_ids=torch.arange(4), temperature=1), "needs ids"),
    "one of the row numbers": (
        lambda z: losses.info_nce(z, z, torch.arange(4), rows=torch.arange(4), temperature=1),
        "key_rows",
    ),
    "no such similarity": (lambda z: losses.info_nce(z, z + 1, temperature=1, similarity="l2"), "'euclidean', not 'l2'"),  # type: ignore[arg-type]
    "prior of distances": (
        lambda z: losses.info_nce(z, z + 1, temperature=1, similarity="euclidean", positive_prior=0.1),
        "needs similarity 'cosine'",
    ),
    "ids without those of the queue": (
        lambda z: losses.moco_loss(z, z, torch.arange(4), queue=z, temperature=1),
        "ids and queue_ids, or neither",
    ),
    "fewer mixtures than none": (lambda z: losses.moco_loss(z, z, queue=z, temperature=1, mixed=-1), "mixed is -1"),
    "half a mixture": (lambda z: losses.MoCoLoss(mixed_with_query=0.5), "mixed_with_query is 0.5"),  # type: ignore[arg-type]
    "one key to be mixed with itself": (lambda z: losses.MoCoLoss(mixed=1, hardest=1), "hardest is 1, .* at least 2"),
    "hardest keys of which nothing is mixed": (
        lambda z: losses.moco_loss(z, z, queue=z, temperature=1, hardest=5),
        "hardest has no effect without mixed",
    ),
    "a temperature below 0": (lambda z: losses.nt_xent(z, z, temperature=-0.1), "temperature is -0.1"),
    "a temperature of 0 in a tensor": (lambda z: losses.nt_xent(z, z, temperature=torch.zeros(1)), "temperature is 0.0"),
    "a margin that is not finite": (lambda z: losses.triplet_loss(z, torch.arange(4), margin=float("nan")), "margin is nan"),
    "a weight that is not finite": (lambda z: losses.vicreg_loss(z, z, variance=float("inf")), "variance is inf"),
    "codes without entropy": (lambda z: losses.swav_loss(z, z, prototypes=z, epsilon=0.0), "epsilon is 0.0"),
    "a module at a temperature of 0": (lambda z: losses.ClipLoss(temperature=0.0), "temperature is 0.0"),
    "no such miner": (lambda z: losses.triplet_loss(z, torch.arange(4), miner="hard"), "miner 'hard' must be all"),  # type: ignore[arg-type]
    "no generator": (lambda z: losses.margin_loss(z, torch.arange(4)), "with a generator"),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_what_is_missing_is_named(rng: torch.Generator, case: str) -> None:
    call, message = INCOMPLETE[case]
    with pytest.raises(ValueError, match=message):
        call(torch.randn(4, 3, generator=rng))


def plain_distances(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(-torch.cdist(query, key).square() / (2 * temperature), torch.arange(len(query)))


@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("tile", [None, (2, 4)])
def test_euclidean_similarity_is_that_of_all_distances(rng: torch.Generator, tile: Any, shift: float) -> None:
    """Far from the origin, too, where scalar products of float32 rows would have no digits left for their distances."""
    query, key = (x.float() + shift for x in views(rng))
    found = losses.info_nce(query, key, temperature=0.5, similarity="euclidean", tile=tile)
    torch.testing.assert_close(found.double(), plain_distances(query.double(), key.double(), 0.5), rtol=1e-5, atol=1e-6)


def test_euclidean_similarity_has_exact_derivatives_and_is_cosine_at_unit_length(rng: torch.Generator) -> None:
    query, key = (x.requires_grad_() for x in views(rng, 4))

    def loss(q: Tensor, k: Tensor) -> Tensor:
        return losses.info_nce(q, k, temperature=0.5, similarity="euclidean")

    grads = [torch.autograd.grad(value, (query, key)) for value in (loss(query, key), plain_distances(query, key, 0.5))]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradgradcheck(loss, (query, key), fast_mode=True)
    unit = [F.normalize(x, dim=1) for x in (query, key)]
    torch.testing.assert_close(loss(*unit), losses.info_nce(query, key, temperature=0.5), rtol=1e-12, atol=0)


def test_swav_takes_small_crops(rng: torch.Generator) -> None:
    a, b = views(rng)
    small, prototypes = views(rng)[0], torch.randn(4, 5, generator=rng, dtype=torch.float64)
    twice = losses.swav_loss(a, b, [b, a], prototypes=prototypes)  # each code is predicted by the other crop, b and a: 3 of 6
    pair = losses.swav_loss(a, b, prototypes=prototypes)
    own = 3 * twice - 2 * pair  # what is left: each crop predicts its own code
    same = [losses.swav_loss(x, x, prototypes=prototypes) for x in (a, b)]
    assert float(own) == pytest.approx(float(sum(same)) / 2)
    with pytest.raises(UserError, match=r"small\[1\]"):
        losses.swav_loss(a, b, [small, small[:2]], prototypes=prototypes)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_docstring_has_all_sections(name: str) -> None:
    parts = ("Args", "Shape", "Requirements", "Relations", "Raises", "Source", "Example")
    doc = inspect.getdoc(losses.LOSSES[name]) or ""
    assert [part for part in parts if f"\n{part}:\n" not in doc] == []
    assert "$$" in doc


def test_the_table_is_what_is_public() -> None:
    functions = {getattr(losses, name) for name in losses.__all__ if inspect.isfunction(getattr(losses, name))}
    assert functions - {losses.gathered, losses.matryoshka} == {losses.LOSSES[name] for name in losses.LOSSES}
    for function in functions:
        assert not [name for name in inspect.signature(function).parameters if name.rpartition("_")[2].isupper()]


def test_public_names_are_there_and_load_no_torch() -> None:
    for name in ("METHODS", "Source", "open_source", "losses"):
        assert hasattr(mmcl, name)
    code = "import sys, mmcl; mmcl.losses.LOSSES, mmcl.METHODS; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
