"""Arrays are accepted in any memory layout: reversed, read-only, strided, of another byte order or column-major."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mmcl import evaluate
from mmcl.errors import UserError
from mmcl.evaluate import Report

ROWS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
OTHERS = np.random.default_rng(1).normal(size=(12, 5)).astype(np.float32)
LABELS = np.arange(12) % 3
CLASSES = ROWS[:3].copy()


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.setflags(write=False)
    return array


FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "reversed": lambda array: array[::-1].copy()[::-1],
    "read-only": read_only,
    "strided": lambda array: np.repeat(array, 2, axis=0)[::2],
    "other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "in columns": np.asfortranarray,
}
CALLS: dict[str, Callable[[Callable[[np.ndarray], np.ndarray]], Report]] = {
    "retrieval": lambda f: evaluate.retrieval(f(ROWS), f(OTHERS), image_ids=f(LABELS), text_image_ids=f(LABELS)),
    "retrieval_from_scores": lambda f: evaluate.retrieval_from_scores(
        {"text_to_image": lambda rows: f(ROWS @ OTHERS.T)[rows]}, image_ids=f(LABELS), text_image_ids=f(LABELS)
    ),
    "zero_shot": lambda f: evaluate.zero_shot(f(ROWS), f(LABELS), f(CLASSES)),
    "zero_shot_multilabel": lambda f: evaluate.zero_shot_multilabel(f(ROWS), f(np.eye(3, dtype=int)[LABELS]), f(CLASSES)),
    "zero_shot_reject": lambda f: evaluate.zero_shot_reject(f(ROWS), f(OTHERS), f(CLASSES)),
    "knn": lambda f: evaluate.knn(f(ROWS), f(LABELS), f(OTHERS), f(LABELS), ks=[1, 3]),
    "linear_probe": lambda f: evaluate.linear_probe(f(ROWS), f(LABELS), f(OTHERS), f(LABELS)),
    "few_shot": lambda f: evaluate.few_shot(f(ROWS), f(LABELS), f(OTHERS), f(LABELS), shots=[1], seeds=2),
    "pairs": lambda f: evaluate.pairs(f(ROWS), f(OTHERS), f(OTHERS[::-1]), clusters=f(LABELS)),
    "winoground": lambda f: evaluate.winoground(f(ROWS[:10].reshape(5, 2, 5)), f(OTHERS[:10].reshape(5, 2, 5))),
    "geometry": lambda f: evaluate.geometry(f(ROWS), f(OTHERS), pairs=f(np.arange(24).reshape(12, 2) % 12)),
    "sts": lambda f: evaluate.sts(f(ROWS), f(OTHERS), f(np.arange(12.0))),
    "groups": lambda f: evaluate.groups(f((LABELS == 1).astype(float)), by=f(LABELS % 2)),
    "embedding_map": lambda f: evaluate.embedding_map(f(ROWS), f(LABELS), method="pca", neighbors=3),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("call", CALLS)
def test_the_memory_of_an_array_changes_nothing(call: str, form: str) -> None:
    found, expected = (CALLS[call](how).metrics for how in (FORMS[form], np.array))
    assert [metric.key for metric in found] == [metric.key for metric in expected]
    # Sums of float32 rows run in the order of the memory.
    for name in ("value", "low", "high"):
        values = [[getattr(metric, name) for metric in metrics] for metrics in (found, expected)]
        assert np.array(values[0], float) == pytest.approx(np.array(values[1], float), rel=1e-5, abs=1e-6, nan_ok=True)


def test_every_form_differs_from_a_plain_array() -> None:
    plain = [
        (array.flags.c_contiguous, array.flags.writeable, array.dtype.isnative)
        for array in (form(ROWS) for form in FORMS.values())
    ]
    assert (True, True, True) not in plain


def test_the_given_array_is_left_alone() -> None:
    given = ROWS.copy()
    evaluate.knn(given, LABELS, given, LABELS, ks=[1])
    assert np.array_equal(given, ROWS)


@pytest.mark.parametrize("rows", [np.array([["a", "b"]]), np.array([[None]]), np.array([[object()]]), "ab", {"a": 1}])
def test_anything_but_an_array_of_numbers_is_a_one_line_error(rows: Any) -> None:
    with pytest.raises(UserError, match="image_emb must be"):
        evaluate.geometry(rows)


def test_scores_may_be_arrays_or_tensors() -> None:
    scores = ROWS @ OTHERS.T
    array, tensor = (
        evaluate.retrieval_from_scores({"text_to_image": kind.__getitem__}, image_ids=LABELS, text_image_ids=LABELS)
        for kind in (scores, torch.from_numpy(scores))
    )
    assert array.metrics == tensor.metrics
