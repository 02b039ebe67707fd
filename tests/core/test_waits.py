"""A loss waits for the device a fixed number of times, whatever the number of its tiles, and not at all if it has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core.distillation import TeacherRows, distillation_loss
from mmcl.core.info_nce import info_nce, symmetric_info_nce
from mmcl.core.sigmoid import sigmoid_loss
from tests.waits import Waits

Loss = Callable[..., Tensor]


def one_way(a: Tensor, b: Tensor, id_N: Tensor, scale: Tensor, tile: Any, **options: Any) -> Tensor:
    return info_nce(a, b, query_id_N=id_N, key_id_M=id_N, scale=scale, tile=tile, **options)


def against_itself(a: Tensor, b: Tensor, id_N: Tensor, scale: Tensor, tile: Any, **options: Any) -> Tensor:
    row_N = torch.arange(len(a))
    options |= {"query_id_N": id_N, "key_id_M": id_N, "query_row_N": row_N, "key_row_M": row_N}
    return info_nce(a, a, scale=scale, tile=tile, **options)


LOSSES: dict[str, Loss] = {
    "clip": lambda a, b, ids, scale, tile: symmetric_info_nce(a, b, id_N=ids, scale=scale, tile=tile),
    "one way": one_way,
    "own keys": lambda a, b, *rest: one_way(a, b, *rest, own_key_ND=b, own_negative_ND=a),
    "nt_xent": against_itself,
    "supcon inside": lambda *rest: against_itself(*rest, positives="inside"),
    "dcl": lambda *rest: against_itself(*rest, denominator="negatives"),
    "hcl": lambda *rest: against_itself(*rest, hardness=1.0, positive_prior=0.1),
    "distillation": lambda a, b, ids, scale, tile: distillation_loss(
        a, b, teachers=[TeacherRows(b, a, 5.0)], scale=scale, query_row_N=ids, key_row_M=ids, tile=tile
    ),
    "siglip": lambda a, b, ids, scale, tile: sigmoid_loss(
        a, b, image_id_N=ids, text_id_M=ids, scale=scale, bias=torch.tensor(-8.0, requires_grad=True), tile=tile
    ),
}
LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def counted(loss: Loss, rows: int, *, scale: float, tile: tuple[int, int] | None, shared_ids: int = 2) -> Waits:
    rng = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(rows, 8, generator=rng), dim=1).requires_grad_() for _ in range(2))
    id_N, scale_ = torch.arange(rows) // shared_ids, torch.tensor(scale, requires_grad=True)
    with Waits() as counts:
        loss(a, b, id_N, scale_, tile).backward()
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in (a, scale_))
    return counts


@LOSS
@pytest.mark.parametrize("scale", [14.0, 100.0])
def test_a_small_loss_waits_for_nothing(loss: Loss, scale: float) -> None:
    assert counted(loss, 64, scale=scale, tile=None).waits == []


@LOSS
@pytest.mark.parametrize("rows", [64, 160])
def test_a_tiled_loss_reads_what_it_needs_at_once(loss: Loss, rows: int) -> None:
    softmaxes = 2 if loss is LOSSES["distillation"] else 1  # the teacher's and the student's
    assert counted(loss, rows, scale=14.0, tile=(32, 32)).waits == ["tolist"] * softmaxes


@LOSS
@pytest.mark.parametrize("rows", [64, 160])
def test_large_logits_cost_one_look_for_each_sum(loss: Loss, rows: int) -> None:
    """At the largest scale of CLIP; HCL has two sums over its negatives, one of them at twice the scale."""
    assert len(counted(loss, rows, scale=100.0, tile=(32, 32)).waits) <= 3


@LOSS
def test_a_gpu_is_given_few_operations(loss: Loss) -> None:
    """32,768 pairs in 16 tiles, at a 64th of the size; a GPU takes the rows of a tile at once."""
    with mock.patch("mmcl.core.tiled.tiles._STRIP", 2**13):
        counts = counted(loss, 2**15 // 64, scale=14.0, tile=(2**13 // 64, 2**13 // 64))
    assert counts.launches <= 1200
