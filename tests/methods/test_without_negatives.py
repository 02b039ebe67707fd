"""Properties of BYOL, MoCo v3 and SimSiam beyond the contract."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmcl.core.ema import cosine_momentum
from mmcl.core.geometry import is_collapsed
from mmcl.methods.byol import BYOL
from mmcl.methods.method import Method
from mmcl.testing.toys import WIDTH, embed, toy_batch, toy_method, train_step
from mmcl.types import Batch, Embeddings, RunFacts
from tests.methods.toy import random_rows
from tests.narrow import of_type


def random_embeddings(*names: str) -> tuple[Embeddings, Batch]:
    local, ids = random_rows(names, 5), torch.arange(5)
    return Embeddings(local, local, ids, ids), Batch({}, ids, ids)


def test_byol_is_the_squared_error_of_unit_vectors_both_ways() -> None:
    embeddings, batch = random_embeddings("a", "b", "teacher_a", "teacher_b")
    rows = embeddings.local
    one = (rows["a"] - rows["teacher_b"]).square().sum(1).mean()
    other = (rows["b"] - rows["teacher_a"]).square().sum(1).mean()
    torch.testing.assert_close(toy_method("byol").loss(embeddings, batch).loss, one + other, rtol=1e-12, atol=0)


def test_simsiam_is_algorithm_1_plus_one() -> None:
    embeddings, batch = random_embeddings("a", "b", "target_a", "target_b")
    rows = embeddings.local
    d = [-F.cosine_similarity(rows[p], rows[z]).mean() for p, z in (("a", "target_b"), ("b", "target_a"))]
    torch.testing.assert_close(toy_method("simsiam").loss(embeddings, batch).loss, d[0] / 2 + d[1] / 2 + 1, rtol=1e-12, atol=0)


def test_moco_v3_is_algorithm_1() -> None:
    embeddings, batch = random_embeddings("a", "b", "teacher_a", "teacher_b")
    rows, t = embeddings.local, 0.2
    expected = sum(
        2 * t * F.cross_entropy(rows[q] @ rows[k].T / t, torch.arange(5)) for q, k in (("a", "teacher_b"), ("b", "teacher_a"))
    )
    torch.testing.assert_close(toy_method("moco_v3").loss(embeddings, batch).loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["byol", "moco_v3"])
def test_the_momentum_rises_from_its_start_to_one_over_the_run(name: str) -> None:
    method = toy_method(name)
    assert isinstance(method, BYOL)
    method.configure(RunFacts(global_batch=4, total_steps=10, steps_per_epoch=2, samples=8))
    batch = toy_batch(method, 4)
    for step in range(10):
        assert method.teacher.momentum == cosine_momentum(step, 10, 0.9)
        method.commit(embed(method, batch), batch)
    assert method.teacher.momentum == 1


@pytest.mark.parametrize("name", ["byol", "moco_v3", "simsiam"])
def test_no_gradient_reaches_a_target(name: str) -> None:
    method = toy_method(name)
    rows = method.encode(toy_batch(method, 4).views)
    assert {key for key, row in rows.items() if not row.requires_grad} == rows.keys() - {"a", "b"}


def pairs_of_noisy_points(step: int) -> Batch:
    rng = torch.Generator().manual_seed(step)
    x = torch.randn(64, WIDTH, generator=rng, dtype=torch.float64)
    noise = torch.randn(2, 64, WIDTH, generator=rng, dtype=torch.float64)
    return Batch({"a": x + noise[0], "b": x + noise[1]}, torch.arange(64), torch.arange(64))


def trained(method: Method) -> torch.Tensor:
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    for step in range(150):
        train_step(method, optimizer, pairs_of_noisy_points(step))
    return of_type(torch.Tensor, method.tower("a")(pairs_of_noisy_points(1000).views["a"]))


def test_without_its_predictor_byol_collapses_and_is_called_collapsed() -> None:
    """The control run has negatives; of a collapse nothing is seen in the loss."""
    degenerate = toy_method("byol", momentum=0.0)
    degenerate.predictor = nn.Identity()
    assert is_collapsed(trained(degenerate))
    assert not is_collapsed(trained(toy_method("simclr")))
