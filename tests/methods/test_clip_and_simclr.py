"""Properties of CLIP and SimCLR beyond the contract."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmcl.encoders.heads import LinearHead
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.methods.clip import CLIP
from mmcl.methods.simclr import SimCLR
from mmcl.testing.toys import toy_method
from mmcl.types import Batch, Embeddings
from tests.core.loops import info_nce_loop
from tests.methods.toy import random_rows
from tests.narrow import of_type, present


def random_embeddings(views: tuple[str, str], rows: int, ids: torch.Tensor | None = None) -> Embeddings:
    rng = torch.Generator().manual_seed(5)
    local = {view: F.normalize(torch.randn(rows, 6, generator=rng, dtype=torch.float64), dim=1) for view in views}
    ids = torch.arange(rows) if ids is None else ids
    return Embeddings(local, local, ids, ids)


def batch_of(embeddings: Embeddings) -> Batch:
    return Batch({}, embeddings.ids, embeddings.ids)


def test_clip_is_the_mean_of_two_cross_entropies() -> None:
    method, embeddings = toy_method("clip"), random_embeddings(("image", "text"), 10)
    logits = present(method.logit_scale) * embeddings.all["image"] @ embeddings.all["text"].T
    target = torch.arange(10)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(method.loss(embeddings, batch_of(embeddings)).loss, expected, rtol=1e-12, atol=0)


def test_images_with_equal_ids_are_pulled_together_by_supcon() -> None:
    ids = torch.tensor([4, 0, 4, 1, 2, 0, 4, 3])
    embeddings = random_embeddings(("image", "text"), 8, ids)
    plain, method = toy_method("clip"), toy_method("clip", image_weight=0.7, image_temperature=0.2)
    images = embeddings.all["image"]
    numbers = torch.arange(8)
    between = info_nce_loop(images, images, ids, ids, 5.0, query_row=numbers, key_row=numbers, reduction="sum") / 8
    found = method.loss(embeddings, batch_of(embeddings))
    expected = plain.loss(embeddings, batch_of(embeddings)).loss + 0.7 * between
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)


def test_without_equal_ids_only_clip_is_left() -> None:
    embeddings = random_embeddings(("image", "text"), 8)
    plain, method = toy_method("clip"), toy_method("clip", image_weight=2.0)
    batch = batch_of(embeddings)
    torch.testing.assert_close(method.loss(embeddings, batch).loss, plain.loss(embeddings, batch).loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("image_weight", -1.0, "from 0"), ("image_temperature", 0.0, "above 0"), ("temperature", 0, "above 0")],
)
def test_a_weight_and_temperatures_out_of_range_are_named(name: str, value: float, said: str) -> None:
    args: dict[str, Any] = {name: value}
    with pytest.raises(UserError, match=f"^{name} is {value:g}: give a number {said}$"):
        toy_method("clip", **args)


def test_a_temperature_that_is_not_learned_stays_and_all_else_learns_the_same() -> None:
    embeddings = random_embeddings(("image", "text"), 6)
    learned, fixed = toy_method("clip"), toy_method("clip", learn_temperature=False)
    found = []
    for method in (learned, fixed):
        rows = {view: row.detach().requires_grad_() for view, row in embeddings.all.items()}
        method.loss(Embeddings(rows, rows, embeddings.ids, embeddings.all_ids), batch_of(embeddings)).loss.backward()
        found.append([row.grad for row in rows.values()])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert learned.log_scale.grad is not None
    assert fixed.log_scale.grad is None
    assert not fixed.log_scale.requires_grad
    assert present(fixed.logit_scale).item() == pytest.approx(1 / 0.07)


def test_clip_starts_at_the_published_scale_and_is_clamped_after_every_step() -> None:
    method, embeddings = toy_method("clip"), random_embeddings(("image", "text"), 2)
    assert present(method.logit_scale).item() == pytest.approx(1 / 0.07)
    for value, expected in ((9.0, 100.0), (-3.0, 1.0), (2.0, math.exp(2.0))):
        with torch.no_grad():
            method.get_parameter("log_scale").fill_(value)
        method.commit(embeddings, batch_of(embeddings))
        assert present(method.logit_scale).item() == pytest.approx(expected)


def nt_xent_by_hand(a: torch.Tensor, b: torch.Tensor, temperature: float) -> float:
    """Equation 1 of the SimCLR paper, one pair at a time."""
    z = torch.cat([a, b])
    n, total = len(a), 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        numerator = math.exp(float(z[i] @ z[j]) / temperature)
        denominator = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(numerator / denominator)
    return total / (2 * n)


def test_simclr_is_equation_1() -> None:
    method, embeddings = toy_method("simclr"), random_embeddings(("a", "b"), 7)
    expected = nt_xent_by_hand(embeddings.all["a"], embeddings.all["b"], 0.1)
    assert method.loss(embeddings, batch_of(embeddings)).loss.item() == pytest.approx(expected, rel=1e-12)


def test_simclr_runs_both_views_through_one_pass_of_the_tower() -> None:
    method = toy_method("simclr")
    calls: list[int] = []
    method.tower("a").register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    rows = method.encode({"a": torch.zeros(3, 5, dtype=torch.float64), "b": torch.ones(3, 5, dtype=torch.float64)})
    assert calls == [6]
    assert not torch.equal(rows["a"], rows["b"])


def test_towers_that_do_not_fit_are_named() -> None:
    towers = toy_method("clip").towers
    with pytest.raises(UserError, match="CLIP needs the text tower"):
        CLIP(nn.ModuleDict({"image": towers["image"]}))
    with pytest.raises(UserError, match="SimCLR does not use the text tower"):
        SimCLR(towers)
    of_type(LinearHead, of_type(Tower, towers["text"]).head).embed_dim = 4
    with pytest.raises(UserError, match="differ in width"):
        CLIP(towers)


def test_clip_with_hard_negatives_gives_every_image_more_keys_and_every_text_none() -> None:
    method = CLIP(toy_method("clip").towers, hard_negatives=True).double()
    assert method.views == {"image": "image", "text": "text", "negative": "text"}
    rows, ids = random_rows(("image", "text", "negative"), 8), torch.arange(8)
    embeddings = Embeddings(rows, rows, ids, ids)
    logits = method.logit_scale * rows["image"] @ rows["text"].T
    more = torch.cat([logits, method.logit_scale * rows["image"] @ rows["negative"].T], dim=1)
    expected = (F.cross_entropy(more, ids) + F.cross_entropy(logits.T, ids)) / 2
    torch.testing.assert_close(method.loss(embeddings, batch_of(embeddings)).loss, expected, rtol=1e-12, atol=0)


def test_a_hard_negative_that_is_a_caption_of_the_batch_is_that_caption() -> None:
    """(A, "x y"), (B, "y x"), each with the other's caption as its hard negative, which is not a negative of its own image."""
    method = CLIP(toy_method("clip").towers, hard_negatives=True, temperature=0.01).double()
    one = torch.eye(2, dtype=torch.float64)
    rows, ids, texts = (
        {"image": one, "text": one, "negative": one[[1, 0]]},
        torch.tensor([7, 9]),
        torch.tensor([[7, 9], [9, 7]]),
    )
    embeddings = Embeddings(rows, rows, ids, ids, all_text_ids=texts)
    assert method.loss(embeddings, Batch({}, ids, ids)).loss.item() == pytest.approx(0, abs=1e-12)
    other = Embeddings(rows, rows, ids, ids, all_text_ids=torch.tensor([[7, 1], [9, 2]]))
    assert method.loss(other, Batch({}, ids, ids)).loss.item() == pytest.approx(math.log(2) / 2)


def test_hard_negatives_that_are_partly_captions_count_each_text_once() -> None:
    """Two images share a caption's id, one negative is a caption, one is not: against a loop over the distinct keys."""
    method = CLIP(toy_method("clip").towers, hard_negatives=True, temperature=0.2).double()
    rows, ids = random_rows(("image", "text", "negative"), 3), torch.tensor([4, 4, 5])
    texts = torch.tensor([[4, 5], [4, 8], [5, 4]])
    loss = method.loss(Embeddings(rows, rows, ids, ids, all_text_ids=texts), Batch({}, ids, ids)).loss
    keys, key_ids = torch.cat([rows["text"], rows["negative"][[1]]]), torch.tensor([4, 4, 5, -1])
    expected = info_nce_loop(rows["image"], keys, ids, key_ids, 5.0) + info_nce_loop(rows["text"], rows["image"], ids, ids, 5.0)
    assert loss.item() == pytest.approx(expected / 2, rel=1e-6)


def test_clip_with_hard_negatives_that_nothing_is_near_to_is_clip() -> None:
    """A width of their own, opposite to every image: they leave the softmax as exp(-2 scale)."""
    plain, hard = toy_method("clip"), CLIP(toy_method("clip").towers, hard_negatives=True, temperature=1e-2).double()
    with torch.no_grad():
        plain.log_scale.copy_(hard.log_scale)  # type: ignore[operator]
    rows, ids = random_rows(("image", "text"), 8), torch.arange(8)
    one = torch.zeros(8, 1, dtype=torch.float64)
    rows = {view: F.normalize(torch.cat([row, one + 1], dim=1), dim=1) for view, row in rows.items()}
    rows["negative"] = torch.cat([torch.zeros(8, 6, dtype=torch.float64), one - 1], dim=1)
    embeddings = Embeddings(rows, rows, ids, ids)
    expected = plain.loss(embeddings, batch_of(embeddings)).loss
    torch.testing.assert_close(hard.loss(embeddings, batch_of(embeddings)).loss, expected, rtol=1e-12, atol=0)
