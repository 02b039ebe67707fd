"""SupCon, and the variants of NT-Xent, against loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmcl.testing.toys import toy_method
from mmcl.types import Batch, Embeddings
from tests.core.loops import info_nce_loop
from tests.methods.toy import random_rows

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def embeddings_of(ids: torch.Tensor) -> tuple[Embeddings, Batch]:
    local = random_rows(("a", "b"), len(ids))
    return Embeddings(local, local, ids, ids), Batch({}, ids, ids)


def loop(ids: torch.Tensor, **options: object) -> float:
    rows = torch.cat(list(random_rows(("a", "b"), len(ids)).values()))
    number = torch.arange(len(rows))
    return info_nce_loop(rows, rows, ids.repeat(2), ids.repeat(2), 10.0, query_row=number, key_row=number, **options)  # type: ignore[arg-type]


def supcon(ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    return toy_method("supcon", **arguments).loss(*embeddings_of(ids)).loss


@pytest.mark.parametrize("mean", ["outside", "inside"])
def test_is_the_loop(mean: str) -> None:
    assert supcon(LABELS, mean=mean).item() == pytest.approx(loop(LABELS, positives=mean), rel=1e-12)


def test_unique_labels_are_nt_xent() -> None:
    ids = torch.arange(7)
    expected = toy_method("simclr").loss(*embeddings_of(ids)).loss
    torch.testing.assert_close(supcon(ids), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(supcon(ids, mean="inside"), expected, rtol=1e-12, atol=0)


def test_inside_is_never_larger_than_outside() -> None:
    assert supcon(LABELS, mean="inside") < supcon(LABELS, mean="outside")


def test_rows_without_label_ask_nothing_and_are_negatives() -> None:
    labels = torch.tensor([0, 1, 0, -1, 1, 0, -1])
    alone = labels.repeat(2)
    alone = torch.where(alone < 0, 100 + torch.arange(14), alone)
    rows = torch.cat(list(random_rows(("a", "b"), 7).values()))
    number = torch.arange(14)
    expected = info_nce_loop(rows, rows, alone, alone, 10.0, query_row=number, key_row=number)
    assert supcon(labels).item() == pytest.approx(expected, rel=1e-12)


def test_no_label_at_all_is_zero_with_a_usable_gradient() -> None:
    method = toy_method("supcon")
    embeddings, batch = embeddings_of(torch.full((3,), -1))
    for row in embeddings.local.values():
        row.requires_grad_()
    loss = method.loss(embeddings, batch).loss
    loss.backward()
    assert loss.item() == 0
    assert all(row.grad is not None and row.grad.isfinite().all() for row in embeddings.local.values())


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ({"decoupled": True}, {"denominator": "negatives"}),
        ({"hardness": 1.0}, {"hardness": 1.0}),
        ({"positive_prior": 0.1}, {"positive_prior": 0.1}),
        ({"hardness": 0.5, "positive_prior": 0.1}, {"hardness": 0.5, "positive_prior": 0.1}),
    ],
    ids=str,
)
def test_variants_of_nt_xent_are_the_loop(arguments: dict[str, Any], options: dict[str, Any]) -> None:
    ids = torch.arange(7)
    loss = toy_method("simclr", **arguments).loss(*embeddings_of(ids)).loss
    assert loss.item() == pytest.approx(loop(ids, **options), rel=1e-12)
