"""Properties of SimCSE beyond the contract."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmcl.core.cached_backward import cached_backward, split_views
from mmcl.core.gather import gather_embeddings
from mmcl.encoders.heads import TanhHead
from mmcl.encoders.small_text import SmallText
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.methods.simcse import SimCSE
from mmcl.testing.toys import toy_method
from mmcl.types import Batch, Embeddings, Tokens
from tests.methods.toy import random_rows
from tests.narrow import of_type, present

TRIPLET = ("text", "positive", "negative")
SENTENCES = ["a dog runs", "two men sit on a bench", "it rains", "the cat, which sleeps, is gray", "a dog runs fast"]


def simcse(dropout: float) -> SimCSE:
    torch.manual_seed(0)
    encoder = SmallText(width=16, heads=2, layers=2, context_length=16, dropout=dropout)
    return SimCSE(nn.ModuleDict({"text": Tower(encoder, TanhHead(16))})).train()


def tokens_of(method: SimCSE) -> Tokens:
    return of_type(SmallText, method.tower("text").encoder).tokenizer(SENTENCES)


def equation_5(query: Tensor, positive: Tensor, negative: Tensor, alpha: float, temperature: float) -> float:
    """The mean loss, one sentence at a time; alpha weighs a sentence's own hard negative."""
    total = 0.0
    for i, row in enumerate(query):
        e, hard = ([math.exp(float(row @ key) / temperature) for key in keys] for keys in (positive, negative))
        below = sum(e[j] + (alpha if i == j else 1) * hard[j] for j in range(len(query)))
        total -= math.log(e[i] / below)
    return total / len(query)


def loss_of(method: SimCSE, rows: dict[str, Tensor]) -> float:
    ids = torch.arange(len(rows["text"]))
    return float(method.loss(Embeddings(rows, rows, ids, ids), Batch({}, ids, ids)).loss)


@pytest.mark.parametrize("log_weight", [0.0, 1.5, -math.inf])
def test_supervised_is_equation_5_with_weighted_hard_negatives(log_weight: float) -> None:
    towers = toy_method("simcse").towers
    method = SimCSE(towers, supervision="hard_negatives", hard_negative_log_weight=log_weight)
    rows = random_rows(TRIPLET, 7)
    expected = equation_5(rows["text"], rows["positive"], rows["negative"], math.exp(log_weight), 0.05)
    assert loss_of(method, rows) == pytest.approx(expected, rel=1e-10)


def test_removed_hard_negatives_get_no_gradient_from_their_own_sentence() -> None:
    method = SimCSE(toy_method("simcse").towers, supervision="hard_negatives", hard_negative_log_weight=-math.inf)
    rows = {view: row[:1].clone().requires_grad_() for view, row in random_rows(TRIPLET, 2).items()}
    ids = torch.zeros(1, dtype=torch.int64)
    loss = method.loss(Embeddings(rows, rows, ids, ids), Batch({}, ids, ids)).loss
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert not present(rows["negative"].grad).any()


def test_hard_negatives_that_are_texts_of_the_batch_are_not_negatives() -> None:
    """The first is another sentence, the second the sentence's own positive, the third a text of its own."""
    method = SimCSE(toy_method("simcse").towers, supervision="hard_negatives", hard_negative_log_weight=0.7)
    rows, ids = random_rows(TRIPLET, 3), torch.arange(3)
    texts = torch.tensor([[10, 20, 11], [11, 21, 21], [12, 22, 30]])
    loss = method.loss(Embeddings(rows, rows, ids, ids, all_text_ids=texts), Batch({}, ids, ids)).loss
    own = math.exp(0.7)
    # For each sentence, its weights of the three hard negatives.
    weights = torch.tensor([[own, 0, 1], [0, 0, 1], [0, 0, own]], dtype=torch.float64)
    logits, hard = 20 * rows["text"] @ rows["positive"].T, 20 * rows["text"] @ rows["negative"].T
    below = logits.exp().sum(1) + (weights * hard.exp()).sum(1)
    torch.testing.assert_close(loss, (below.log() - logits.diagonal()).mean(), rtol=1e-10, atol=0)


def test_supervision_says_which_views_are_read() -> None:
    towers = toy_method("simcse").towers
    assert list(SimCSE(towers, supervision="positives").views) == ["text", "positive"]
    assert list(SimCSE(towers, supervision="hard_negatives").views) == list(TRIPLET)
    with pytest.raises(UserError, match="did you mean 'positives'"):
        SimCSE(towers, supervision="positive")  # type: ignore[arg-type]


def test_the_two_masks_differ_and_without_dropout_the_rows_do_not() -> None:
    for dropout, equal in ((0.0, True), (0.1, False)):
        method = simcse(dropout)
        torch.manual_seed(3)
        rows = method.encode({"text": tokens_of(method)})
        same = [torch.equal(a, b) for a, b in zip(rows["text"], rows["positive"], strict=True)]
        assert same == [equal] * len(SENTENCES)


def test_micro_batches_draw_two_masks_each_and_replay_them() -> None:
    """The gradient of pieces is that of autograd through all pieces at once, under the same masks."""
    method, ids = simcse(0.2), torch.arange(len(SENTENCES))
    pieces = split_views({"text": tokens_of(method)}, 2)
    batch = Batch({}, ids, ids)

    def loss(rows: Mapping[str, Tensor]) -> Tensor:
        assert not torch.isclose(rows["text"], rows["positive"]).all(1).any()
        return method.loss(gather_embeddings(rows, ids), batch).loss

    cached = cached_backward(method, pieces, loss=loss, backward=Tensor.backward, seed=torch.manual_seed)
    found = {name: present(p.grad).clone() for name, p in method.named_parameters()}
    method.zero_grad()
    parts = []
    for number, piece in enumerate(pieces):
        torch.manual_seed(number)
        parts.append(method.encode(piece))
    whole = loss({view: torch.cat([part[view] for part in parts]) for view in parts[0]})
    whole.backward()
    torch.testing.assert_close(cached, whole)
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_the_head_is_for_training_alone() -> None:
    assert SimCSE.embedding == "features"
    head = TanhHead(4)
    assert head.embed_dim == 4
    assert head(torch.full((1, 4), 1e6)).abs().max() == 1


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("simcse", {"supervision": "hard_negatives", "hard_negative_log_weight": 0.4}),
        ("clip", {"hard_negatives": True}),
        ("clip", {"image_weight": 0.6}),
        ("clip", {"learn_temperature": False}),
    ],
)
def test_options_over_two_processes_are_those_of_one_batch(name: str, args: dict[str, Any]) -> None:
    method, ids = toy_method(name, **args), torch.tensor([0, 1, 2, 0, 4, 5, 6])
    rows = random_rows(tuple(method.views), 7)
    shares = [
        Embeddings({view: row[part] for view, row in rows.items()}, rows, ids[part], ids, offset=part.start)
        for part in (slice(0, 3), slice(3, 7))
    ]
    whole = method.loss(Embeddings(rows, rows, ids, ids), Batch({}, ids, ids)).loss
    split = sum(method.loss(share, Batch({}, share.ids, share.ids)).loss for share in shares)
    torch.testing.assert_close(split, whole, rtol=1e-12, atol=0)
