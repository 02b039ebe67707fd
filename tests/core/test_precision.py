"""The core computes in float32 for all inputs: low-precision rows under autocast give the result of their float32 copies."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mmcl.core
from mmcl.core import (
    clustering,
    decorrelation,
    distillation,
    geometry,
    global_contrast,
    info_nce,
    nearest,
    negative_mixing,
    precision,
    prefixes,
    regression,
    sigmoid,
    sigreg,
)
from mmcl.core import metric_learning as metric
from mmcl.evaluate.measures import rank_counts
from mmcl.methods.byol import predict
from tests.narrow import of_type

ID = torch.arange(6) // 2
TEACHER = partial(distillation.TeacherRows, scale=4.0, bias=-2.0)
LOW = [torch.bfloat16, torch.float16]


def drawn(miner: str) -> Callable[..., Tensor]:
    return lambda a, b, s: metric.triplet_loss(a, ID, miner=miner, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "info_nce": lambda a, b, s: info_nce.info_nce(
        a, b, query_id_N=ID, key_id_M=ID, scale=s, own_key_ND=a, own_negative_ND=b, query_weight_N=a[:, 0].abs()
    ),
    "symmetric_info_nce": lambda a, b, s: info_nce.symmetric_info_nce(a, b, id_N=ID, scale=s),
    "mixed_log_sum_exp": lambda a, b, s: negative_mixing.mixed_log_sum_exp(
        a, b, query_id_N=ID, key_id_M=ID, scale=s, hardest=3, pairs=4, with_query=2, seed=5
    ),
    "mixed_negatives": lambda a, b, s: info_nce.info_nce(
        *(a, b),
        query_id_N=ID,
        key_id_M=ID,
        scale=s,
        own_key_ND=b,
        **negative_mixing.mixed_negatives(a, b, query_id_N=ID, key_id_M=ID, scale=s, hardest=3, pairs=4, with_query=2, seed=5),
    ),
    "log_mean_negative": lambda a, b, s: global_contrast.log_mean_negative(a, b, query_id_N=ID, key_id_M=ID, scale=s),
    "sigmoid_loss": lambda a, b, s: sigmoid.sigmoid_loss(a, b, image_id_N=ID, text_id_M=ID, scale=s, bias=-s),
    "distillation_loss": lambda a, b, s: distillation.distillation_loss(a, b, teachers=[TEACHER(b, a)], scale=s),
    "sigmoid_distillation_loss": lambda a, b, s: distillation.sigmoid_distillation_loss(
        a, b, teachers=[TEACHER(b, a)], scale=s, bias=-s
    ),
    "barlow_twins_loss": lambda a, b, s: decorrelation.barlow_twins_loss(a, b),
    "cross_correlation": lambda a, b, s: decorrelation.cross_correlation(a, b),
    "vicreg_loss": lambda a, b, s: decorrelation.vicreg_loss(a, b),
    "sigreg": lambda a, b, s: sigreg.sigreg(a[None], b[:5].T),
    "lejepa_loss": lambda a, b, s: sigreg.lejepa_loss(a[None], b[:5].T, large=1),
    "cosine_regression": lambda a, b, s: regression.cosine_regression(a, b),
    "triplet_loss": drawn("semi_hard"),
    "draw_negatives": drawn("distance_weighted"),
    "contrastive_pair_loss": lambda a, b, s: metric.contrastive_pair_loss(a, ID),
    "margin_loss": lambda a, b, s: metric.margin_loss(a, ID, beta=s, negatives="all"),
    "sinkhorn": lambda a, b, s: clustering.sinkhorn(a),
    "Prototypes": lambda a, b, s: prototypes(a),
    "unit_rows": lambda a, b, s: precision.unit_rows(a),
    "unit_prefix": lambda a, b, s: prefixes.unit_prefix(a, 2),
    "nearest": lambda a, b, s: nearest.nearest(a, b, 3)[0],
    "cosine_rank_counts": lambda a, b, s: rank_counts.cosine_rank_counts(a, b, ID, ID)[0].score,
    "alignment": lambda a, b, s: geometry.alignment(a, b),
    "uniformity": lambda a, b, s: geometry.uniformity(a),
    "effective_rank": lambda a, b, s: geometry.effective_rank(a),
    "feature_std": lambda a, b, s: geometry.feature_std(a),
    "pair_similarities": lambda a, b, s: torch.stack(geometry.pair_similarities(a, b, ID)),
    "modality_gap": lambda a, b, s: geometry.modality_gap(a, b),
}
WITHOUT_ARITHMETIC = {"is_collapsed", "check_rows", "recomputed_tiles", "equal_rows"}
"""Those that look at shapes alone, or call one of the others."""
OF_ONE_TYPE = {"contrast_of", "pair_log_sum_exp", "positive_dot_sum", "scaled_products", "near_pairs"}
"""Parts of a loss, which casts for them, and the pairs of an index, which are of float32 and decided in float64."""


def prototypes(rows: Tensor) -> Tensor:
    torch.manual_seed(0)
    return of_type(Tensor, clustering.Prototypes(5, 4).to(rows.dtype)(rows))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_low_precision_rows_give_what_their_float32_copies_give(rng: torch.Generator, name: str, dtype: torch.dtype) -> None:
    a, b = (F.normalize(torch.randn(6, 4, generator=rng), dim=1).to(dtype) for _ in range(2))
    scale = torch.tensor(3.0, dtype=dtype)
    expected = FUNCTIONS[name](a.float(), b.float(), scale.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = FUNCTIONS[name](a, b, scale)
        assert torch.equal(FUNCTIONS[name](a.float(), b.float(), scale.float()), expected)
    assert found.dtype == expected.dtype
    # A prototype is rounded by its own type, before it is multiplied.
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if name != "Prototypes" else torch.finfo(dtype).eps)


def test_every_function_of_rows_is_among_them() -> None:
    found = set()
    for module in pkgutil.walk_packages(mmcl.core.__path__, "mmcl.core."):
        for name, function in vars(importlib.import_module(module.name)).items():
            if inspect.isfunction(function) and function.__module__ == module.name and name[0] != "_":
                parameters = inspect.signature(function).parameters
                found |= {name} if any(p.endswith(("_ND", "_MD", "_BD", "_NK")) for p in parameters) else set()
    assert found <= FUNCTIONS.keys() | WITHOUT_ARITHMETIC | OF_ONE_TYPE


@pytest.mark.parametrize("loss", [regression.cosine_regression, decorrelation.barlow_twins_loss, decorrelation.vicreg_loss])
def test_many_equal_rows_do_not_overflow_fp16(loss: Callable[..., Tensor]) -> None:
    rows = torch.full((40_000, 4), 0.5, dtype=torch.float16)
    assert loss(rows, rows).isfinite()
    if loss is regression.cosine_regression:
        assert loss(rows, rows).item() == 0


def test_predictions_are_of_unit_length_under_autocast(rng: torch.Generator) -> None:
    views = {view: torch.randn(50, 64, generator=rng) for view in "ab"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = predict(nn.Linear(64, 64), views)
    for row in rows.values():
        assert row.dtype == torch.float32
        torch.testing.assert_close(row.norm(dim=1), torch.ones(50), rtol=0, atol=1e-6)
