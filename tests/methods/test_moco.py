"""Properties of MoCo beyond the contract."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmcl.core.negative_mixing import mixed_log_sum_exp
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.methods.moco import MoCo
from mmcl.rng import sample_seed
from mmcl.testing.toys import embed, toy_batch, toy_method
from mmcl.types import Batch, Embeddings, RunFacts
from tests.methods.toy import random_rows
from tests.narrow import of_type

PLAIN = {"mixed": 0, "mixed_with_query": 0, "hardest": None, "mix_start": None}


def moco(**arguments: Any) -> MoCo:
    method = toy_method("moco", **{**PLAIN, **arguments})
    assert isinstance(method, MoCo)
    return method


def random_embeddings(*names: str, rows: int = 5) -> tuple[Embeddings, Batch]:
    local, ids = random_rows(names, rows), torch.arange(rows)
    return Embeddings(local, local, ids, ids), Batch({}, ids, ids)


def test_is_equation_1_as_a_cross_entropy() -> None:
    method = moco()
    embeddings, batch = random_embeddings("a", "teacher_b")
    q, k = embeddings.local["a"], embeddings.local["teacher_b"]
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue.keys.T], 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(method.loss(embeddings, batch).loss, expected, rtol=1e-12, atol=0)


def test_keys_of_the_same_batch_are_not_negatives() -> None:
    """Five images that look the same: against each other the loss could not fall below ln 5."""
    method = moco()
    with torch.no_grad():
        method.queue.key_KD.copy_(F.normalize(torch.tensor([[0.0, 1, 0, 0, 0, 0]]), dim=1).expand(20, -1))
    rows = {name: F.one_hot(torch.zeros(5, dtype=torch.int64), 6).double() for name in ("a", "teacher_b")}
    ids = torch.arange(5)
    loss = method.loss(Embeddings(rows, rows, ids, ids), Batch({}, ids, ids)).loss
    torch.testing.assert_close(loss.item(), math.log1p(20 * math.exp(-5)), rtol=1e-12, atol=0)
    assert loss < math.log(2)


def test_an_empty_queue_costs_nothing() -> None:
    method = moco(queue=0)
    loss = method.loss(*random_embeddings("a", "teacher_b")).loss
    assert abs(loss.item()) < 1e-12


def test_a_stale_key_of_the_same_image_counts_for_nothing() -> None:
    method, (embeddings, batch) = moco(), random_embeddings("a", "teacher_b")
    method.queue.push(embeddings.all["teacher_b"], embeddings.all_ids)
    with_stale = method.loss(embeddings, batch).loss
    logits = torch.cat([embeddings.local["teacher_b"], method.queue.keys]) / 0.2
    total = 0.0
    for row, query in enumerate(embeddings.local["a"]):
        kept = [(query @ key).item() for key, i in zip(logits[5:], method.queue.ids.tolist(), strict=True) if i != row]
        own = (query @ logits[row]).item()
        total += math.log(sum(math.exp(s) for s in [own, *kept])) - own
    torch.testing.assert_close(with_stale.item(), total / 5, rtol=1e-10, atol=0)


def test_both_directions_see_the_same_queue_which_then_takes_both_keys() -> None:
    names = ("a", "b", "teacher_a", "teacher_b")
    embeddings, batch = random_embeddings(*names)
    both, one = moco(symmetric=True), moco()
    other_way = {"a": embeddings.local["b"], "teacher_b": embeddings.local["teacher_a"]}
    halves = (
        one.loss(embeddings, batch).loss
        + one.loss(Embeddings(other_way, other_way, embeddings.ids, embeddings.all_ids), batch).loss
    )
    torch.testing.assert_close(both.loss(embeddings, batch).loss, halves, rtol=1e-12, atol=0)
    both.commit(embeddings, batch)
    assert torch.equal(both.queue.keys[:10], torch.cat([embeddings.all["teacher_a"], embeddings.all["teacher_b"]]))
    assert int(both.queue.pushed) == 30


def test_the_queue_takes_this_step_only_after_the_loss() -> None:
    method = moco()
    batch = toy_batch(method, 6)
    embeddings = embed(method, batch)
    before = method.queue.keys.clone()
    method.loss(embeddings, batch)
    assert torch.equal(method.queue.keys, before)
    method.commit(embeddings, batch)
    assert torch.equal(method.queue.keys[:6], embeddings.all["teacher_b"])
    assert torch.equal(method.queue.keys[6:], before[6:])


def test_the_teacher_is_the_student_where_the_momentum_is_zero() -> None:
    method = moco(momentum=0.0)
    with torch.no_grad():
        for p in method.towers.parameters():
            p.add_(1)
    batch = toy_batch(method, 4)
    method.commit(embed(method, batch), batch)
    pairs = zip(method.teacher.net.parameters(), method.towers.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_keys_are_encoded_in_shuffled_groups_and_come_back_in_order() -> None:
    method = moco(bn_groups=3)
    batch = toy_batch(method, 8)
    seen: list[torch.Tensor] = []
    method.teacher.net["image"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[index]
    keys = embed(method, batch).local["teacher_b"]
    assert [len(group) for group in seen] == [3, 3, 2]
    assert not torch.equal(torch.cat(seen), of_type(torch.Tensor, batch.views["b"]))
    torch.testing.assert_close(keys, method.embed(method.teacher.net, {"b": batch.views["b"]})["b"], rtol=1e-12, atol=0)  # type: ignore[arg-type]


def test_batch_norm_of_the_keys_is_that_of_a_group() -> None:
    method = moco(bn_groups=8)
    of_type(Tower, method.teacher.net.get_submodule("image")).head = nn.Sequential(nn.BatchNorm1d(8).double())
    assert all(key.isfinite().all() for key in embed(method, toy_batch(method, 5)).local.values())


@pytest.mark.parametrize("symmetric", [False, True])
def test_mixed_negatives_join_the_denominator_after_a_share_of_the_run(symmetric: bool) -> None:
    counts = {"mixed": 9, "mixed_with_query": 4, "hardest": 8}
    method, plain = moco(symmetric=symmetric, **counts, mix_start=0.1), moco(symmetric=symmetric)
    method.configure(RunFacts(global_batch=5, total_steps=10, steps_per_epoch=2, samples=5))
    names = ("a", "b", "teacher_a", "teacher_b") if symmetric else ("a", "teacher_b")
    embeddings, batch = random_embeddings(*names)
    assert torch.equal(method.loss(embeddings, batch).loss, plain.loss(embeddings, batch).loss)
    method.commit(embeddings, batch)

    ids, queue = embeddings.ids, method.queue
    expected = torch.zeros((), dtype=torch.float64)
    for query, key in method.key_of.items():
        q, k = embeddings.local[query], embeddings.local[f"teacher_{key}"]
        mixed = mixed_log_sum_exp(
            q, queue.keys, query_id_N=ids, key_id_M=queue.ids, scale=5.0, hardest=8, pairs=9, with_query=4,
            seed=sample_seed(1, ord(query)),
        )  # fmt: skip
        stale = (q @ queue.keys.T * 5).masked_fill(ids[:, None] == queue.ids, -torch.inf)
        logits = torch.cat([(q * k).sum(1, keepdim=True) * 5, stale, mixed[:, None]], 1)
        expected += F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(method.loss(embeddings, batch).loss, expected, rtol=1e-12, atol=0)


def test_the_draws_differ_between_steps_and_directions() -> None:
    method = moco(symmetric=True, mixed=9, momentum=1.0, mix_start=0.0)
    rows = random_rows(("a", "teacher_a"), 5)
    rows |= {"b": rows["a"], "teacher_b": rows["teacher_a"]}
    ids = torch.arange(5)
    embeddings = Embeddings(rows, rows, ids, ids)
    found = set()
    for _ in range(3):
        found |= {round(float(method._direction(embeddings, query, "teacher_a")), 9) for query in "ab"}
        method.teacher.update(method.towers)
    assert len(found) == 6


def test_an_empty_queue_has_nothing_to_mix() -> None:
    method = moco(mixed=3, mixed_with_query=2)
    method.queue.pushed.zero_()
    embeddings, batch = random_embeddings("a", "teacher_b")
    loss = method.loss(embeddings, batch).loss
    assert abs(loss.item()) < 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixed": -1}, "mixed is -1: give a whole number from 0"),
        ({"mixed_with_query": -2}, "mixed_with_query is -2: give a whole number from 0"),
        ({"hardest": 5}, "hardest has no effect without mixed or mixed_with_query: set one of them, or leave it out"),
        ({"mix_start": 0.0}, "mix_start has no effect without mixed or mixed_with_query: set one of them, or leave it out"),
        ({"mixed": 3, "hardest": 0}, "hardest is 0: give a whole number from 2 to the size of the queue, 20"),
        ({"mixed": 3, "hardest": 1}, "hardest is 1: give a whole number from 2 to the size of the queue, 20"),
        ({"mixed_with_query": 3, "hardest": 21}, "hardest is 21: give a whole number from 1 to the size of the queue, 20"),
        ({"mixed": 3, "queue": 1}, "queue is 1: give at least 2 keys, from which negatives are mixed"),
        ({"mixed": 3, "mix_start": 1.0}, "mix_start is 1: give a share of the run, from 0 and below 1"),
        ({"mixed": 3, "mix_start": math.nan}, "mix_start is nan: give a share of the run, from 0 and below 1"),
    ],
)
def test_numbers_of_mixing_that_are_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        moco(**arguments)
    assert str(refused.value) == message
