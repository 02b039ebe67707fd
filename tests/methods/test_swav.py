"""Properties of SwAV beyond the contract."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mmcl.core.clustering import sinkhorn
from mmcl.errors import UserError
from mmcl.methods import swav as swav_module
from mmcl.methods.swav import SwAV
from mmcl.testing.toys import embed, toy_batch, toy_method, train_step
from mmcl.types import Batch, Embeddings, RunFacts
from tests.methods.toy import random_rows

FACTS = RunFacts(global_batch=8, total_steps=20, steps_per_epoch=2, samples=16)


def swav(**arguments: Any) -> SwAV:
    method = toy_method("swav", **arguments)
    assert isinstance(method, SwAV)
    method.configure(FACTS)
    return method


def random_embeddings() -> tuple[Embeddings, Batch]:
    local, ids = random_rows(("a", "b", "small_0", "small_1"), 8), torch.arange(8)
    return Embeddings(local, local, ids, ids), Batch({}, ids, ids)


def test_every_crop_predicts_the_codes_of_the_two_large_ones() -> None:
    method, (embeddings, batch) = swav(queue=0), random_embeddings()
    scores = {name: row @ method.prototypes.weight.detach().T for name, row in embeddings.local.items()}
    total = 0.0
    for large in ("a", "b"):
        codes = sinkhorn(scores[large])
        for crop in set(scores) - {large}:
            log_p = (scores[crop] / 0.1).log_softmax(1)
            total -= sum(float(codes[i] @ log_p[i]) for i in range(8)) / 8 / 3
    assert method.loss(embeddings, batch).loss.item() == pytest.approx(total / 2, rel=1e-10)


def test_small_crops_make_no_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    method, (embeddings, batch) = swav(queue=0), random_embeddings()
    clustered: list[torch.Tensor] = []

    def watched(score_NK: torch.Tensor, **options: float) -> torch.Tensor:
        clustered.append(score_NK)
        return sinkhorn(score_NK, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(swav_module, "sinkhorn", watched)
    method.loss(embeddings, batch)
    for score, large in zip(clustered, ("a", "b"), strict=True):
        torch.testing.assert_close(score, method.prototypes(embeddings.local[large]))


def test_crops_of_one_shape_share_a_pass() -> None:
    method = swav()
    batch = toy_batch(method, 4)
    shapes: list[int] = []
    method.tower("a").register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0])))
    method.encode(batch.views)
    assert shapes == [16]
    method.embed(method.towers, {"a": torch.zeros(4, 5).double(), "small_0": torch.zeros(4, 1, 5).double()}, unit=False)
    assert shapes == [16, 4, 4]


def test_the_queue_fills_from_its_epoch_on_and_counts_only_once_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    method = SwAV(toy_method("swav").towers, prototypes=5, small_crops=0, queue=20, queue_from_epoch=2).double()
    method.configure(FACTS)
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-3)
    sizes: list[int] = []

    def watched(score_NK: torch.Tensor, **options: float) -> torch.Tensor:
        sizes.append(len(score_NK))
        return sinkhorn(score_NK, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(swav_module, "sinkhorn", watched)
    for _ in range(8):
        train_step(method, optimizer, toy_batch(method, 8))
    # Epoch 2 begins with the fifth step; three batches fill the queue.
    assert sizes[::2] == sizes[1::2] == [8, 8, 8, 8, 8, 8, 8, 28]


def test_prototypes_stay_in_the_first_epoch_and_are_of_unit_length_ever_after() -> None:
    method = swav()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    before = method.prototypes.weight.detach().clone()
    for step in range(4):
        train_step(method, optimizer, toy_batch(method, 8))
        weight = method.prototypes.weight.detach().clone()
        assert torch.allclose(weight, before, rtol=0, atol=1e-6) == (step < FACTS.steps_per_epoch)
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(5, dtype=torch.float64), rtol=1e-12, atol=0)


def test_rows_without_direction_cost_the_log_of_the_prototypes() -> None:
    """Rows that score all prototypes alike; what `describe` says."""
    method = swav(queue=0)
    with torch.no_grad():
        method.prototypes.weight.copy_(F.one_hot(torch.zeros(5, dtype=torch.int64), 6))
    loss = method.loss(*random_embeddings()).loss
    assert loss.item() == pytest.approx(math.log(5))
    assert method.describe(8).first_loss == pytest.approx(math.log(5))


def test_codes_of_a_share_are_those_of_the_whole() -> None:
    method, (whole, batch) = swav(), random_embeddings()
    shares = []
    for offset, stop in ((0, 3), (3, 8)):
        local = {name: row[offset:stop] for name, row in whole.local.items()}
        shares.append(method.loss(Embeddings(local, whole.all, whole.ids[offset:stop], whole.all_ids, offset), batch).loss)
    torch.testing.assert_close(sum(shares), method.loss(whole, batch).loss, rtol=1e-12, atol=0)
    assert embed(method, toy_batch(method, 3)).share == 1


@pytest.mark.parametrize("method", ["swav", "lejepa"])
def test_a_negative_number_of_crops_is_refused(method: str) -> None:
    with pytest.raises(UserError, match="small_crops is -1: give a number of views, 0 or more"):
        toy_method(method, small_crops=-1)
