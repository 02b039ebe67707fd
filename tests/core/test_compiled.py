"""torch.compile accepts every loss in one graph, with any ids, at sizes that are computed in one piece and in tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core.clustering import sinkhorn
from mmcl.core.decorrelation import barlow_twins_loss, vicreg_loss
from mmcl.core.distillation import TeacherRows, distillation_loss, sigmoid_distillation_loss
from mmcl.core.info_nce import info_nce, symmetric_info_nce
from mmcl.core.metric_learning import contrastive_pair_loss, margin_loss, triplet_loss
from mmcl.core.negative_mixing import mixed_log_sum_exp
from mmcl.core.regression import cosine_regression
from mmcl.core.sigmoid import sigmoid_loss
from mmcl.core.sigreg import lejepa_loss

pytestmark = pytest.mark.slow

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def two_views(a: Tensor, b: Tensor, i: Tensor, s: Tensor, **options: Any) -> Tensor:
    row = torch.arange(len(a))
    return info_nce(a, a, query_id_N=i, key_id_M=i, query_row_N=row, key_row_M=row, scale=s, **options)


LOSSES: dict[str, Loss] = {
    "one way": lambda a, b, i, s: info_nce(a, b, query_id_N=i, key_id_M=i, scale=s),
    "two views": two_views,
    "every option": lambda a, b, i, s: two_views(
        a, b, i, s, positives="inside", denominator="negatives", hardness=0.5, positive_prior=0.1, query_weight_N=b[:, 0].abs()
    ),
    "own keys": lambda a, b, i, s: info_nce(
        a, b, query_id_N=i, key_id_M=i + len(a), scale=5, own_key_ND=b, own_negative_ND=a, own_negative_log_weight=0.5
    ),
    "mixed negatives": lambda a, b, i, s: mixed_log_sum_exp(
        a, b, query_id_N=i, key_id_M=i, scale=s, hardest=5, pairs=6, with_query=3, seed=7
    ).sum(),
    "symmetric": lambda a, b, i, s: symmetric_info_nce(a, b, id_N=i, scale=s),
    "sigmoid": lambda a, b, i, s: sigmoid_loss(a, b, image_id_N=i, text_id_M=i, scale=s, bias=-s),
    "taught": lambda a, b, i, s: distillation_loss(
        a, b, teachers=[TeacherRows(b, a, 4.0)], scale=s, query_row_N=i, key_row_M=i + 1
    ),
    "taught sigmoids": lambda a, b, i, s: sigmoid_distillation_loss(a, b, teachers=[TeacherRows(b, a, 4.0)], scale=s, bias=-s),
    "Barlow Twins": lambda a, b, i, s: barlow_twins_loss(a, b),
    "VICReg": lambda a, b, i, s: vicreg_loss(a, b),
    "LeJEPA": lambda a, b, i, s: lejepa_loss(torch.stack([a, b]), b[:5].T, large=2),
    "cosine regression": lambda a, b, i, s: cosine_regression(a, b),
    "triplet": lambda a, b, i, s: triplet_loss(a, i),
    "batch-hard triplet": lambda a, b, i, s: triplet_loss(a, i, miner="batch_hard"),
    "pair": lambda a, b, i, s: contrastive_pair_loss(a, i),
    "margin": lambda a, b, i, s: margin_loss(a, i, negatives="all", beta=s),
    "SwAV": lambda a, b, i, s: F.cross_entropy(s * a, sinkhorn(b)),
}
QUICK = {("two views", 8), ("symmetric", 8), ("sigmoid", 8)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        pytest.param(name, rows, marks=() if (name, rows) in QUICK else pytest.mark.long)
        for name in LOSSES
        for rows in (8, 1100)
    ],
)
def test_a_compiled_loss_is_the_loss(rng: torch.Generator, name: str, rows: int) -> None:
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    for ids in (torch.arange(rows), torch.arange(rows) // 3):
        a, b = (F.normalize(torch.randn(rows, 8, generator=rng, dtype=torch.float64), dim=1) for _ in range(2))
        inputs = (a.requires_grad_(), b.requires_grad_(), ids, torch.tensor(3.0, dtype=torch.float64, requires_grad=True))
        found, expected = compiled(*inputs), LOSSES[name](*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        leaves = (inputs[0], inputs[1], inputs[3])
        grads = [torch.autograd.grad(loss, leaves, allow_unused=True) for loss in (found, expected)]
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-13)
