"""Distillation of all pairs of a batch against loops in float64, the published formula, and PyTorch's own divergences."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core.distillation import TeacherRows, distillation_loss, sigmoid_distillation_loss
from mmcl.core.info_nce import info_nce
from mmcl.core.sigmoid import sigmoid_loss
from mmcl.core.tiled.pairs import TileShape
from tests.core.test_log_sum_exp import Largest

TILES: list[TileShape | None] = [None, (1, 1), (2, 3), (4, 5), (3, 100)]
TILE = pytest.mark.parametrize("tile", TILES, ids=str)
COUNT = pytest.mark.parametrize("count", [1, 3])
QUERY_ROW, KEY_ROW = torch.tensor([0, 3, 4, 9, 2]), torch.tensor([3, 3, 0, 1, 2, 8, 7, 6])


def unit(rng: torch.Generator, rows: int, dim: int = 4) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=rng, dtype=torch.float64), dim=1)


def teachers_of(rng: torch.Generator, count: int, queries: int = 5, keys: int = 8) -> list[TeacherRows]:
    """Of several widths, temperatures and biases."""
    return [
        TeacherRows(unit(rng, queries, 3 + number), unit(rng, keys, 3 + number), 5.0 * (number + 1), -2.0 * number)
        for number in range(count)
    ]


def logits_of(query: Tensor, key: Tensor, scale: float, bias: float = 0.0) -> list[list[float]]:
    return [[scale * sum(x * y for x, y in zip(q, k, strict=True)) + bias for k in key.tolist()] for q in query.tolist()]


def softmax_loop(query: Tensor, key: Tensor, teachers: list[TeacherRows], scale: float, *, rows: bool) -> float:
    total, student = 0.0, logits_of(query, key, scale)
    for i in range(len(query)):
        kept = [j for j in range(len(key)) if not rows or QUERY_ROW[i] != KEY_ROW[j]]
        target = dict.fromkeys(kept, 0.0)
        for one in teachers:
            logits = logits_of(one.query_NE, one.key_ME, one.scale)[i]
            below = sum(math.exp(logits[j]) for j in kept)
            for j in kept:
                target[j] += math.exp(logits[j]) / below / len(teachers)
        below = sum(math.exp(student[i][j]) for j in kept)
        total += sum(target[j] * (math.log(target[j]) - math.log(math.exp(student[i][j]) / below)) for j in kept)
    return total


def sigmoid_loop(image: Tensor, text: Tensor, teachers: list[TeacherRows], scale: float, bias: float) -> float:
    total, student = 0.0, logits_of(image, text, scale, bias)
    of_teachers = [logits_of(one.query_NE, one.key_ME, one.scale, one.bias) for one in teachers]
    for i in range(len(image)):
        for j in range(len(text)):
            target = sum(1 / (1 + math.exp(-logits[i][j])) for logits in of_teachers) / len(teachers)
            matching = 1 / (1 + math.exp(-student[i][j]))
            total -= target * math.log(matching) + (1 - target) * math.log(1 - matching)
    return total


@TILE
@COUNT
@pytest.mark.parametrize("rows", [False, True], ids=["all pairs", "without equal rows"])
def test_a_softmax_equals_the_loop(rng: torch.Generator, tile: TileShape | None, count: int, rows: bool) -> None:
    query, key, teachers = unit(rng, 5), unit(rng, 8), teachers_of(rng, count)
    expected = softmax_loop(query, key, teachers, 4.0, rows=rows)
    given: dict[str, Any] = {"teachers": teachers, "scale": 4.0, "tile": tile}
    given |= {"query_row_N": QUERY_ROW, "key_row_M": KEY_ROW} if rows else {}
    assert float(distillation_loss(query, key, **given, reduction="sum")) == pytest.approx(expected, rel=1e-11)
    assert float(distillation_loss(query, key, **given)) == pytest.approx(expected / 5, rel=1e-11)


@TILE
@COUNT
def test_sigmoids_equal_the_loop(rng: torch.Generator, tile: TileShape | None, count: int) -> None:
    image, text, teachers = unit(rng, 5), unit(rng, 8), teachers_of(rng, count)
    expected = sigmoid_loop(image, text, teachers, 4.0, -3.0)
    given: dict[str, Any] = {"teachers": teachers, "scale": 4.0, "bias": -3.0, "tile": tile}
    assert float(sigmoid_distillation_loss(image, text, **given, reduction="sum")) == pytest.approx(expected, rel=1e-11)
    assert float(sigmoid_distillation_loss(image, text, **given)) == pytest.approx(expected / 5, rel=1e-11)


@TILE
def test_gradients_pass_the_numerical_check(rng: torch.Generator, tile: TileShape | None) -> None:
    teachers = teachers_of(rng, 2)
    scalars = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (5.0, -2.0)]
    leaves = (unit(rng, 5).requires_grad_(), unit(rng, 8).requires_grad_())
    rows: dict[str, Any] = {"query_row_N": QUERY_ROW, "key_row_M": KEY_ROW}

    def softmax(query: Tensor, key: Tensor, scale: Tensor) -> Tensor:
        return distillation_loss(query, key, teachers=teachers, scale=scale, tile=tile, **rows).square()

    def sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return sigmoid_distillation_loss(image, text, teachers=teachers, scale=scale, bias=bias, tile=tile).square()

    # The whole at every coordinate, tiles in one direction.
    assert torch.autograd.gradcheck(softmax, (*leaves, scalars[0]), fast_mode=tile is not None)
    assert torch.autograd.gradcheck(sigmoid, (*leaves, *scalars), fast_mode=tile is not None)


def test_both_directions_are_the_published_loss(rng: torch.Generator) -> None:
    """With each teacher's divergence taken by itself, the mean over teachers has the gradient of ours."""
    image, text, teachers = unit(rng, 7).requires_grad_(), unit(rng, 7).requires_grad_(), teachers_of(rng, 3, 7, 7)
    swapped = [TeacherRows(one.key_ME, one.query_NE, one.scale) for one in teachers]
    ours = (
        distillation_loss(image, text, teachers=teachers, scale=6.0)
        + distillation_loss(text, image, teachers=swapped, scale=6.0)
    ) / 2
    student, published = 6.0 * image @ text.T, torch.zeros((), dtype=torch.float64)
    for one in teachers:
        logits = one.scale * one.query_NE @ one.key_ME.T
        for of_student, of_teacher in ((student, logits), (student.T, logits.T)):
            divergence = F.kl_div(of_student.log_softmax(1), of_teacher.log_softmax(1), log_target=True, reduction="batchmean")
            published = published + divergence / (2 * len(teachers))
    for mine, theirs in zip(*(torch.autograd.grad(loss, (image, text)) for loss in (ours, published)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)
    assert ours < published


@TILE
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(rng: torch.Generator, tile: TileShape | None) -> None:
    query, key = unit(rng, 5).requires_grad_(), unit(rng, 8).requires_grad_()
    teacher = TeacherRows(query, key, 9.0, -4.0)
    loss = distillation_loss(query, key, teachers=[teacher], scale=9.0, tile=tile)
    assert abs(loss.item()) < 1e-14
    both = loss, sigmoid_distillation_loss(query, key, teachers=[teacher], scale=9.0, bias=-4.0, tile=tile)
    for one in both:
        for grad in torch.autograd.grad(one, (query, key)):
            assert grad.abs().max() < 1e-13


def test_a_teacher_that_is_sure_gives_the_losses_of_ids(rng: torch.Generator) -> None:
    query, key, id_N = unit(rng, 6), unit(rng, 6), torch.arange(6)
    sure = TeacherRows(torch.eye(6).double(), torch.eye(6).double(), 2000.0, -1000.0)
    found = distillation_loss(query, key, teachers=[sure], scale=5.0)
    torch.testing.assert_close(found, info_nce(query, key, query_id_N=id_N, key_id_M=id_N, scale=5.0))
    found = sigmoid_distillation_loss(query, key, teachers=[sure], scale=5.0, bias=-3.0)
    torch.testing.assert_close(found, sigmoid_loss(query, key, image_id_N=id_N, text_id_M=id_N, scale=5.0, bias=-3.0))


def test_queries_without_keys_count_as_nothing(rng: torch.Generator) -> None:
    query, number = unit(rng, 3).requires_grad_(), torch.tensor([0, 0, 1])
    for keys in (0, 2):
        key, teachers = unit(rng, keys), teachers_of(rng, 2, 3, keys)
        rows = {"query_row_N": number, "key_row_M": torch.zeros(keys, dtype=torch.int64)}
        for tile in (None, (2, 1)):
            loss = distillation_loss(query, key, teachers=teachers, scale=3.0, reduction="sum", tile=tile, **rows)
            (grad,) = torch.autograd.grad(loss, query)
            assert grad.isfinite().all()
            assert not grad[:2].any()
            assert (loss > 0) == grad[2].any() == (keys > 0)


@pytest.mark.parametrize("scale", [14.0, 100.0])
def test_float32_tiles_are_close_to_float64(rng: torch.Generator, scale: float) -> None:
    wide = [unit(rng, 60, 16).requires_grad_(), unit(rng, 70, 16).requires_grad_()]
    teachers = [one._replace(scale=scale) for one in teachers_of(rng, 2, 60, 70)]
    narrow = [x.detach().float().requires_grad_() for x in wide]
    losses: list[Callable[..., Tensor]] = [distillation_loss, partial(sigmoid_distillation_loss, bias=-8.0)]
    for loss in losses:
        expected = loss(*wide, teachers=teachers, scale=scale)
        found = loss(*narrow, teachers=teachers, scale=scale, tile=(17, 19))
        grads = torch.autograd.grad(expected, wide)
        for mine, true in zip((found, *torch.autograd.grad(found, narrow)), (expected, *grads), strict=True):
            assert (mine.double() - true).norm() <= 1e-5 * true.norm()


def test_no_tensor_of_all_pairs_exists(rng: torch.Generator) -> None:
    rows, tile = 300, (20, 30)
    query, key, teachers = unit(rng, rows).requires_grad_(), unit(rng, rows).requires_grad_(), teachers_of(rng, 2, rows, rows)
    number, losses = torch.arange(rows), list[Callable[..., Tensor]]()
    losses += [distillation_loss, partial(distillation_loss, query_row_N=number, key_row_M=number)]
    losses += [partial(sigmoid_distillation_loss, bias=-5.0)]
    for loss in losses:
        with Largest() as largest:  # type: ignore[no-untyped-call]
            loss(query, key, teachers=teachers, scale=5.0, tile=tile).backward()
        assert largest.elements <= 8 * rows


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no teacher": ({"teachers": []}, "give at least one teacher"),
    "too few rows": (
        {"queries": 4},
        r"rows of a teacher \(4, 3\) and \(8, 3\) must be \[N, E\] and \[M, E\] with N = 5 and M = 8",
    ),
    "one side of the row numbers": ({"query_row_N": QUERY_ROW}, "give the row numbers of queries and keys, or of neither"),
    "a scale of zero": ({"scale": 0.0}, "scale is 0.0, and must be a finite number above 0"),
    "a teacher's scale": ({"teacher_scale": -1.0}, "scale of a teacher is -1.0, and must be a finite number above 0"),
    "another reduction": ({"reduction": "max"}, "reduction must be 'mean' or 'sum', not 'max'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_do_not_fit_are_refused(rng: torch.Generator, case: str) -> None:
    given, message = REFUSED[case]
    [teacher] = teachers_of(rng, 1, given.get("queries", 5))
    options: dict[str, Any] = {"teachers": [teacher._replace(scale=given.get("teacher_scale", 5.0))], "scale": 4.0}
    options |= {key: value for key, value in given.items() if key not in ("queries", "teacher_scale")}
    with pytest.raises(ValueError, match=message):
        distillation_loss(unit(rng, 5), unit(rng, 8), **options)


def test_the_gradient_is_that_of_open_clip(rng: torch.Generator) -> None:
    """Its loss is the cross-entropy with one teacher, which is larger by the entropy of the targets."""
    theirs_of = pytest.importorskip("open_clip.loss").DistillClipLoss()
    image, text = unit(rng, 9).requires_grad_(), unit(rng, 9).requires_grad_()
    teacher = TeacherRows(unit(rng, 9, 6), unit(rng, 9, 6), 8.0)
    swapped = TeacherRows(teacher.key_ME, teacher.query_NE, 8.0)
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    _, theirs = theirs_of(image, text, scale, teacher.query_NE, teacher.key_ME, torch.tensor(8.0).double())
    ours = distillation_loss(image, text, teachers=[teacher], scale=scale)
    ours = (ours + distillation_loss(text, image, teachers=[swapped], scale=scale)) / 2
    leaves = (image, text, scale)
    expected = torch.autograd.grad(theirs, leaves)
    for mine, other in zip(torch.autograd.grad(ours, leaves), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-14)
