"""Losses and gradients of methods against lightly and pytorch-metric-learning, where those are correct."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core.sigreg import random_directions
from mmcl.testing.toys import toy_method
from mmcl.types import Batch, Embeddings
from tests.methods.toy import random_rows

ROWS = 12


def of_mmcl(name: str, rows: dict[str, Tensor], labels: Tensor | None = None, **args: Any) -> Tensor:
    ids = torch.arange(len(rows["a"]))
    embeddings = Embeddings(rows, rows, ids if labels is None else labels, ids if labels is None else labels)
    return toy_method(name, **args).loss(embeddings, Batch({}, ids, ids, labels=labels)).loss


def assert_same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *names: str, tolerance: float = 1e-10) -> None:
    """Of the values and of the gradients of the rows before they get unit length, which some toolkits give them again."""
    found = []
    for loss in (ours, theirs):
        rows = {name: row.clone().requires_grad_() for name, row in random_rows(names, ROWS).items()}
        value = loss({name: F.normalize(row, dim=1) for name, row in rows.items()})
        found.append([value.reshape(()), *torch.autograd.grad(value.sum(), list(rows.values()), materialize_grads=True)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def lightly() -> Any:
    return pytest.importorskip("lightly.loss")


@pytest.fixture(scope="module")
def metric_learning() -> Any:
    return pytest.importorskip("pytorch_metric_learning.losses")


def test_simclr(lightly: Any, metric_learning: Any) -> None:
    def by_pairs(rows: dict[str, Tensor]) -> Tensor:
        pair = torch.arange(ROWS).repeat(2)
        value: Tensor = metric_learning.NTXentLoss(temperature=0.3)(torch.cat([rows["a"], rows["b"]]), pair)
        return value

    ours = lambda rows: of_mmcl("simclr", rows, temperature=0.3)  # noqa: E731
    assert_same(ours, lambda rows: lightly.NTXentLoss(temperature=0.3)(rows["a"], rows["b"]), "a", "b")
    assert_same(ours, by_pairs, "a", "b")


def test_decoupled_simclr(lightly: Any) -> None:
    ours = lambda rows: of_mmcl("simclr", rows, temperature=0.3, decoupled=True)  # noqa: E731
    assert_same(ours, lambda rows: lightly.DCLLoss(temperature=0.3)(rows["a"], rows["b"]), "a", "b")


def test_supcon(metric_learning: Any) -> None:
    labels = torch.arange(ROWS) % 4

    def theirs(rows: dict[str, Tensor]) -> Tensor:
        value: Tensor = metric_learning.SupConLoss(temperature=0.3)(torch.cat([rows["a"], rows["b"]]), labels.repeat(2))
        return value

    assert_same(lambda rows: of_mmcl("supcon", rows, labels, temperature=0.3), theirs, "a", "b")


def test_barlow_twins(lightly: Any) -> None:
    """It weighs the off-diagonal by 0.005 and has no scale; its batch norm is float32."""
    ours = lambda rows: of_mmcl("barlow_twins", rows, off_diagonal=0.005, scale=1.0)  # noqa: E731
    assert_same(ours, lambda rows: lightly.BarlowTwinsLoss(lambda_param=0.005)(rows["a"], rows["b"]), "a", "b", tolerance=1e-6)


def test_vicreg(lightly: Any) -> None:
    ours = lambda rows: of_mmcl("vicreg", rows)  # noqa: E731
    assert_same(ours, lambda rows: lightly.VICRegLoss()(rows["a"], rows["b"]), "a", "b")


def test_lejepa(lightly: Any) -> None:
    """On the same directions; its knots and weights are float32."""

    def theirs(rows: dict[str, Tensor]) -> Tensor:
        loss = lightly.LeJEPALoss(lambda_param=0.3, sigreg_num_vectors=6)
        loss.sigreg._generate_unit_vectors = lambda device, dtype, num_features: random_directions(num_features, 6, 0).to(dtype)
        large, small = torch.stack([rows["a"], rows["b"]]), rows["small_0"][None]
        value: Tensor = loss(global_proj=large, local_proj=small)
        return value

    assert_same(lambda rows: of_mmcl("lejepa", rows, weight=0.3), theirs, "a", "b", "small_0", tolerance=1e-6)


@pytest.mark.parametrize(
    ("name", "target", "factor", "shift"), [("simsiam", "target", 0.5, 1.0), ("byol", "teacher", 2.0, 4.0)]
)
def test_regression(name: str, target: str, factor: float, shift: float, lightly: Any) -> None:
    """The squared error of unit vectors is 2 minus twice their cosine; nothing flows into the targets."""

    def theirs(rows: dict[str, Tensor]) -> Tensor:
        cosine, targets = lightly.NegativeCosineSimilarity(), {view: rows[f"{target}_{view}"].detach() for view in "ab"}
        both: Tensor = cosine(rows["a"], targets["b"]) + cosine(rows["b"], targets["a"])
        return factor * both + shift

    assert_same(lambda rows: of_mmcl(name, rows), theirs, "a", "b", f"{target}_a", f"{target}_b")


def test_swav(lightly: Any) -> None:
    views = ("a", "b", "small_0", "small_1")
    method = toy_method("swav", queue=0)
    weight = method.get_parameter("prototypes.weight")

    def theirs(rows: dict[str, Tensor]) -> Tensor:
        scores = [rows[view] @ weight.T for view in views]
        value: Tensor = lightly.SwaVLoss(temperature=0.1)(scores[:2], scores[2:])
        return value

    assert_same(lambda rows: of_mmcl("swav", rows, queue=0), theirs, *views, tolerance=1e-6)  # its codes are float32
