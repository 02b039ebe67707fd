"""Composed methods: with the addition switched off, they equal the method that they extend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.encoders.heads import LinearHead
from mmcl.errors import UserError
from mmcl.methods.distillation import Distillation
from mmcl.methods.method import Method
from mmcl.testing.toys import embed, toy_batch, toy_method, toy_tower, train_step
from mmcl.types import Batch, Embeddings, RunFacts
from tests.methods.toy import random_rows
from tests.narrow import of_type, present


def loss_of(method: Method, rows: dict[str, Tensor], ids: Tensor) -> Tensor:
    return method.loss(Embeddings(rows, rows, ids, ids), Batch({}, ids, ids)).loss


def push(method: Any, rows: Tensor, ids: Tensor) -> None:
    for queue in method.queues.values():
        queue.push(rows, ids)


class TestSLIP:
    ROWS = random_rows(("image", "text", "a", "b"), 9)
    IDS = torch.arange(9)

    def test_without_its_ssl_loss_it_is_clip(self) -> None:
        slip = loss_of(toy_method("slip", ssl_scale=0.0), self.ROWS, self.IDS)
        torch.testing.assert_close(slip, loss_of(toy_method("clip"), self.ROWS, self.IDS), rtol=0, atol=0)

    def test_is_the_weighted_sum_of_clip_and_simclr(self) -> None:
        clip = loss_of(toy_method("clip"), self.ROWS, self.IDS)
        simclr = loss_of(toy_method("simclr", temperature=0.3), self.ROWS, self.IDS)
        slip = loss_of(toy_method("slip", ssl_scale=0.7, ssl_temperature=0.3), self.ROWS, self.IDS)
        torch.testing.assert_close(slip, clip + 0.7 * simclr, rtol=1e-12, atol=0)

    def test_both_losses_move_the_encoder_and_each_its_own_head(self) -> None:
        method = toy_method("slip", ssl_scale=1.0)
        output = method.loss(embed(method, toy_batch(method, 6)), toy_batch(method, 6))
        assert output.metrics.keys() == {"clip_loss", "ssl_loss"}
        torch.testing.assert_close(output.loss, output.metrics["clip_loss"] + output.metrics["ssl_loss"])
        only_clip = toy_method("slip", ssl_scale=0.0)
        batch = toy_batch(only_clip, 6)
        only_clip.loss(embed(only_clip, batch), batch).loss.backward()
        assert not any(present(p.grad).any() for p in only_clip.get_submodule("ssl_head").parameters())


class TestMomentumCLIP:
    ROWS = random_rows(("image", "text", "teacher_image", "teacher_text"), 8)
    IDS = torch.arange(8)

    def by_hand(self, method: Method, queue: Tensor | None = None) -> Tensor:
        """Cross-entropy of the queries with the teacher's keys and those of the queue."""
        total, scale = torch.zeros((), dtype=torch.float64), present(method.logit_scale)
        for query, key in (("image", "teacher_text"), ("text", "teacher_image")):
            keys = self.ROWS[key] if queue is None else torch.cat([self.ROWS[key], queue])
            total = total + F.cross_entropy(scale * self.ROWS[query] @ keys.T, self.IDS) / 2
        return total

    @pytest.mark.parametrize("args", [{"queue": 0}, {"queue": 20, "queue_start": 0.5}])
    def test_without_a_queue_or_before_its_start_it_is_clip_against_the_teachers_keys(self, args: dict[str, Any]) -> None:
        method = toy_method("momentum_clip", **args)
        method.configure(RunFacts(global_batch=8, total_steps=10, steps_per_epoch=5, samples=40))
        torch.testing.assert_close(loss_of(method, self.ROWS, self.IDS), self.by_hand(method), rtol=1e-12, atol=0)

    def test_from_its_start_on_the_queue_adds_negatives(self) -> None:
        method: Any = toy_method("momentum_clip", queue=5, queue_start=0.5)
        method.configure(RunFacts(global_batch=8, total_steps=10, steps_per_epoch=5, samples=40))
        queue = random_rows(("queue",), 5)["queue"].flip(1)
        push(method, queue, torch.arange(100, 105))
        method.teacher.step.fill_(4)
        torch.testing.assert_close(loss_of(method, self.ROWS, self.IDS), self.by_hand(method), rtol=1e-12, atol=0)
        method.teacher.step.fill_(5)
        torch.testing.assert_close(loss_of(method, self.ROWS, self.IDS), self.by_hand(method, queue), rtol=1e-12, atol=0)

    def test_stale_rows_of_a_querys_id_are_neither_positive_nor_negative(self) -> None:
        method: Any = toy_method("momentum_clip", queue=8, queue_start=0.0)
        stale = random_rows(("stale",), 8)["stale"].flip(0)
        push(method, stale, torch.full((8,), 3))
        total = 0.0
        for query, key in (("image", "teacher_text"), ("text", "teacher_image")):
            for row in range(8):
                keys = self.ROWS[key] if row == 3 else torch.cat([self.ROWS[key], stale])
                logits = method.logit_scale * keys @ self.ROWS[query][row]
                total += float(F.cross_entropy(logits[None], torch.tensor([row])).detach()) / 16
        assert loss_of(method, self.ROWS, self.IDS).item() == pytest.approx(total, rel=1e-10)

    def test_queues_hold_the_teachers_keys_of_each_kind(self) -> None:
        method: Any = toy_method("momentum_clip", queue=20)
        batch = toy_batch(method, 8)
        embeddings = embed(method, batch)
        method.commit(embeddings, batch)
        for view, queue in method.queues.items():
            assert torch.equal(queue.keys[:8], embeddings.all[f"teacher_{view}"])
            assert torch.equal(queue.ids[:8], batch.ids)

    def test_no_gradient_reaches_teacher_or_keys(self) -> None:
        method: Any = toy_method("momentum_clip")
        batch = toy_batch(method, 8)
        rows = method.encode(batch.views)
        assert not rows["teacher_image"].requires_grad
        assert not rows["teacher_text"].requires_grad
        assert not any(p.requires_grad for p in method.teacher.parameters())


class TestSupervisedAndDistillation:
    def test_supervised_is_the_mean_cross_entropy_of_the_labeled_rows(self) -> None:
        method = toy_method("supervised")
        logits = 5 * random_rows(("image",), 7)["image"]
        labels = torch.tensor([0, 5, -1, 2, 2, -1, 1])
        output = method.loss(Embeddings({"image": logits}, {"image": logits}, labels, labels), Batch({}, labels, labels))
        kept = labels >= 0
        torch.testing.assert_close(output.loss, F.cross_entropy(logits[kept], labels[kept]), rtol=1e-12, atol=0)
        assert float(output.metrics["batch_top1"]) == pytest.approx(
            (logits[kept].argmax(1) == labels[kept]).double().mean().item()
        )

    def test_a_batch_without_labels_has_no_loss_and_a_usable_gradient(self) -> None:
        method = toy_method("supervised")
        logits = torch.ones(3, 6, dtype=torch.float64, requires_grad=True)
        labels = torch.full((3,), -1)
        loss = method.loss(Embeddings({"image": logits}, {"image": logits}, labels, labels), Batch({}, labels, labels)).loss
        loss.backward()
        assert loss == 0
        assert not present(logits.grad).any()

    def test_distillation_is_equation_2(self) -> None:
        method = toy_method("distillation", tau=2.0)
        rows = {name: 4 * row for name, row in random_rows(("image", "teacher"), 5).items()}
        expected = 0.0
        for student, teacher in zip(rows["image"], rows["teacher"], strict=True):
            target = (teacher / 2).exp() / (teacher / 2).exp().sum()
            log_share = student / 2 - (student / 2).exp().sum().log()
            expected -= float((target * log_share).sum()) / 5
        assert float(loss_of(method, rows, torch.arange(5))) == pytest.approx(expected, rel=1e-12)

    def test_a_student_that_equals_its_teacher_has_no_gradient(self) -> None:
        method: Any = toy_method("distillation", tau=0.7)
        method.teacher.load_state_dict(method.tower("image").state_dict())
        batch = toy_batch(method, 6)
        method.loss(embed(method, batch), batch).loss.backward()
        for parameter in method.towers.parameters():
            torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), rtol=0, atol=1e-14)

    def test_the_teacher_stays_as_it_is(self) -> None:
        method: Any = toy_method("distillation")
        before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
        method.train()
        assert not method.teacher.training
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
        train_step(method, optimizer, toy_batch(method, 6))
        assert all(torch.equal(before[key], value) for key, value in method.teacher.state_dict().items())

    def test_a_teacher_that_is_missing_or_does_not_fit_is_named(self) -> None:
        towers = toy_method("supervised").towers
        with pytest.raises(UserError, match="set `teacher`"):
            Distillation(towers)
        teacher = toy_tower()
        of_type(LinearHead, teacher.head).embed_dim = 3
        with pytest.raises(UserError, match=r"set image\.head\.args\.embed_dim to 3"):
            Distillation(towers, teacher)
