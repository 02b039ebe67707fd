"""All forms of an argument give the same result on both sides of each size at which the algorithm changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core import nearest as nearest_module
from mmcl.core.geometry import alignment, effective_rank, feature_std, modality_gap, uniformity
from mmcl.core.info_nce import info_nce, symmetric_info_nce
from mmcl.core.nearest import nearest
from mmcl.core.sigmoid import sigmoid_loss
from mmcl.core.tiled import positive_logits
from mmcl.core.tiled.pairs import Pairs, choose_tile
from mmcl.core.tiled.positive_logits import positive_dot_sum
from mmcl.evaluate.measures import rank_counts

LOSSES: dict[str, Callable[..., Tensor]] = {
    "info_nce": lambda a, b, scale, bias: info_nce(
        a, b, query_id_N=torch.arange(len(a)), key_id_M=torch.arange(len(b)), scale=scale
    ),
    "symmetric_info_nce": lambda a, b, scale, bias: symmetric_info_nce(a, b, id_N=torch.arange(len(a)), scale=scale),
    "sigmoid_loss": lambda a, b, scale, bias: sigmoid_loss(
        a, b, image_id_N=torch.arange(len(a)), text_id_M=torch.arange(len(b)), scale=scale, bias=bias
    ),
}
LOSS = pytest.mark.parametrize("name", LOSSES)
SIZES = pytest.mark.parametrize("rows", [1024, 1025])  # 2^20 pairs, and the first square that is done in tiles

FORMS: dict[str, Callable[[float], Any]] = {
    "integer": int,
    "NumPy number": np.float64,
    "no dimensions": torch.tensor,
    "[1]": lambda x: torch.tensor([x]),
    "[1, 1]": lambda x: torch.tensor([[x]]),
    "float64": lambda x: torch.tensor(x, dtype=torch.float64),
    "bfloat16": lambda x: torch.tensor([x], dtype=torch.bfloat16),
    "int64": lambda x: torch.tensor(int(x)),
    "learned": lambda x: torch.nn.Parameter(torch.tensor([x])),
}


def rows_of(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 4, generator=generator), dim=1).requires_grad_()


def test_the_sizes_are_on_both_sides_of_the_threshold() -> None:
    assert choose_tile(1024, 1024) is None
    assert choose_tile(1025, 1025) is not None


@LOSS
@SIZES
def test_every_form_of_scale_and_bias(name: str, rows: int) -> None:
    a, b = rows_of(rows, 0), rows_of(rows, 1)
    expected = LOSSES[name](a, b, 8.0, -4.0)
    for form in FORMS.values():
        scale, bias = form(8.0), form(-4.0)
        loss = LOSSES[name](a, b, scale, bias)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        assert loss.shape == ()
        if isinstance(scale, torch.nn.Parameter):
            loss.backward()
            assert scale.grad is not None
            assert scale.grad.shape == (1,)


@LOSS
@SIZES
def test_a_scale_of_zero_has_a_gradient(name: str, rows: int) -> None:
    a, b = rows_of(rows, 0), rows_of(rows, 1)
    scale, wide = torch.tensor([0.0], requires_grad=True), torch.tensor(1e-9, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(LOSSES[name](a, b, scale, -4.0), (a, b, scale))
    assert not found[0].any()
    near = torch.autograd.grad(LOSSES[name](a.double(), b.double(), wide, -4.0), wide)[0]
    assert found[2].item() == pytest.approx(near.item(), rel=1e-2)


@LOSS
@SIZES
@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, -math.inf, math.nan])
def test_an_invalid_scale_is_named(name: str, rows: int, scale: float) -> None:
    with pytest.raises(ValueError, match=r"scale is .*, and must be a finite number above 0"):
        LOSSES[name](rows_of(rows, 0), rows_of(rows, 1), scale, 0.0)


@LOSS
@SIZES
def test_scalars_of_several_elements_are_named(name: str, rows: int) -> None:
    with pytest.raises(ValueError, match=r"scale has the shape \(2,\)"):
        LOSSES[name](rows_of(rows, 0), rows_of(rows, 1), torch.ones(2), 0.0)


def test_an_invalid_bias_is_named() -> None:
    for bias, said in ((math.nan, "bias is nan"), (torch.ones(3), r"bias has the shape \(3,\)")):
        with pytest.raises(ValueError, match=said):
            LOSSES["sigmoid_loss"](rows_of(4, 0), rows_of(4, 1), 1.0, bias)


@LOSS
@SIZES
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "half"])
def test_every_layout_of_the_rows(name: str, rows: int, layout: str) -> None:
    a, b = rows_of(rows, 0).detach(), rows_of(rows, 1).detach()
    given = {
        "transposed": a.T.contiguous().T,
        "strided": torch.stack([a, a], dim=1).flatten(1)[:, :4].clone().repeat(1, 2)[:, :4],
        "expanded": a[:1].expand(rows, -1),
        "half": a.half(),
    }[layout].requires_grad_()
    plain = given.detach().float().contiguous().clone().requires_grad_()
    grads = [torch.autograd.grad(LOSSES[name](x, b, 8.0, -4.0), x)[0].float() for x in (given, plain)]
    assert (grads[0] - grads[1]).norm() <= (1e-3 if layout == "half" else 1e-6) * grads[1].norm()


@pytest.mark.parametrize(("rows", "columns"), [(1, 2**20), (1, 2**20 + 1), (2**20, 1), (2**20 + 1, 1), (3, 400_000)])
def test_shapes_that_are_nearly_a_line(rows: int, columns: int) -> None:
    a, b = rows_of(rows, 0), rows_of(columns, 1)
    loss = info_nce(a, b, query_id_N=torch.arange(rows), key_id_M=torch.arange(columns), scale=8.0)
    paired = min(rows, columns)
    with torch.no_grad():
        logits = 8 * a[:paired].double() @ b.double().T
        expected = (logits.logsumexp(1) - logits.diagonal()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert torch.autograd.grad(loss, a)[0].isfinite().all()


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 64, 65])
def test_positives_are_summed_over_any_number_of_columns(monkeypatch: pytest.MonkeyPatch, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(7, dim, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    ids = torch.tensor([0, 1, 0, 2, 1, 0, 3])
    mask = (ids[:, None] == ids).double()
    expected = (mask * (query @ key.T)).sum(1)
    monkeypatch.setattr(positive_logits, "_NUMBERS", 1)  # 32 columns at once, the least
    found = positive_dot_sum(query, key, Pairs(ids, ids))
    torch.testing.assert_close(found, expected)
    weight = torch.arange(7.0, dtype=torch.float64)
    grads = [torch.autograd.grad(x, (query, key), weight) for x in (found, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("keys", [1, 17, 63, 64, 65, 2 * 32 * 17, 2 * 32 * 17 + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_neighbors_are_found_among_any_number_of_keys(monkeypatch: pytest.MonkeyPatch, keys: int, dtype: torch.dtype) -> None:
    """Few keys are sorted as they are, many in groups; blocks of queries may be of one row."""
    query, key = rows_of(5, 0).detach().to(dtype), rows_of(keys, 1).detach().to(dtype)
    expected = (query.double() @ key.double().T).float().sort(dim=1, descending=True, stable=True)
    for block in (1, 2**24):
        monkeypatch.setattr(nearest_module, "_BLOCK", block)
        score, row = nearest(query, key, 1)
        assert torch.equal(row, expected.indices[:, :1])
        torch.testing.assert_close(score, expected.values[:, :1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("constant", ["_TILE", "_BLOCK", "_PAIRS", "_PASS", "_DENSE"])
def test_ranks_do_not_depend_on_a_size(monkeypatch: pytest.MonkeyPatch, constant: str) -> None:
    a, b = rows_of(40, 0).detach(), rows_of(30, 1).detach()
    ids, other = torch.arange(40) % 7, torch.arange(30) % 9
    expected = [
        rank_counts.cosine_rank_counts(a, b, ids, other)[0].above,
        rank_counts.score_rank_counts(lambda s: (a @ b.T)[s], ids, other).above,
    ]
    for size in (1, 3, 2**30):
        monkeypatch.setattr(rank_counts, constant, size)
        found = [
            rank_counts.cosine_rank_counts(a, b, ids, other)[0].above,
            rank_counts.score_rank_counts(lambda s: (a @ b.T)[s], ids, other).above,
        ]
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("measure", [alignment, modality_gap, uniformity, effective_rank, feature_std])
def test_no_rows_have_no_geometry(measure: Callable[..., Tensor]) -> None:
    none = torch.zeros(0, 3)
    with pytest.raises(ValueError, match=r"needs at least \d rows, got 0"):
        measure(none, none) if measure in (alignment, modality_gap) else measure(none)


def test_the_rank_of_zeros_and_of_non_finite_rows() -> None:
    assert effective_rank(torch.zeros(4, 3)).item() == 0
    assert effective_rank(1e-200 * torch.eye(3, dtype=torch.float64)[:2]).item() >= 0
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="effective_rank must be finite"):
            effective_rank(torch.tensor([[1.0, value], [0.0, 1.0]]))
