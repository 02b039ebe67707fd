"""Open-set rejection against scikit-learn's ROC curve; multi-label precision against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from mmcl.errors import UserError
from mmcl.evaluate import zero_shot_multilabel, zero_shot_reject
from mmcl.evaluate.evaluators.rejection import auroc, false_positive_rate
from tests.evaluate.toys import bounds, unit
from tests.narrow import present


@pytest.mark.parametrize("decimals", [0, 1, 8])
@pytest.mark.parametrize(("known", "unknown"), [(40, 70), (1, 9), (21, 1)])
def test_auroc_and_fpr_equal_scikit_learn_ties_included(decimals: int, known: int, unknown: int) -> None:
    rng = np.random.default_rng(known)
    a, b = rng.normal(1, 1, known).round(decimals), rng.normal(0, 1, unknown).round(decimals)
    target, score = np.repeat([1, 0], [known, unknown]), np.concatenate([a, b])
    assert auroc(a, b).value == pytest.approx(roc_auc_score(target, score))
    fpr, tpr, _ = roc_curve(target, score, drop_intermediate=False)
    assert false_positive_rate(a, b).value == pytest.approx(fpr[tpr >= 0.95][0])


@pytest.mark.parametrize("bias", [None, -4.0])
def test_scores_are_those_of_a_loop(bias: float | None) -> None:
    classes, background = unit((5, 12), 0), unit((2, 12), 1)
    known, unknown = classes[np.arange(50) % 5] + 0.3 * unit((50, 12), 2) * 3, unit((30, 12), 3)
    report = zero_shot_reject(known, unknown, classes, background_emb=background, logit_scale=10.0, logit_bias=bias, data="toy")
    image = np.concatenate([known, unknown]).astype(np.float64)
    cosine = image @ classes.T / np.linalg.norm(image, axis=1, keepdims=True)
    logits = 10.0 * cosine
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    probability = softmax if bias is None else 1 / (1 + np.exp(-logits - bias))
    away = (image @ background.T / np.linalg.norm(image, axis=1, keepdims=True)).max(1)
    scores = {"max_cosine": cosine.max(1), "max_probability": probability.max(1), "background": cosine.max(1) - away}
    for name, score in scores.items():
        expected = roc_auc_score(np.repeat([1, 0], [50, 30]), score)
        assert report[f"reject_{name}_auroc"] == pytest.approx(expected), name
        assert 0.6 < expected < 1
    for row in report.metrics:
        assert row.n == 80
        if row.metric.endswith("auroc"):
            low, high = bounds(row)
            assert low < present(row.value) < high
        else:
            assert row.low is row.high is None, "50 known images are too few"


def test_a_collapsed_model_rejects_by_chance() -> None:
    report = zero_shot_reject(np.ones((20, 3)), np.ones((30, 3)), np.ones((4, 3)), logit_scale=10.0)
    assert report["reject_max_cosine_auroc"] == report["reject_max_probability_auroc"] == 0.5
    assert report["reject_max_cosine_fpr95"] == 1


def test_multi_label_equals_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(0)
    classes, image = unit((6, 4), 0), np.repeat(unit((25, 4), 1), 2, axis=0)
    target = (rng.random((50, 6)) < 0.3).astype(int)
    target[:, 4] = 0
    report = zero_shot_multilabel(image, target, classes, class_names=list("abcdef"))
    score = (image.astype(np.float64) @ classes.T.astype(np.float64)).astype(np.float32)
    expected = [average_precision_score(target[:, c], score[:, c]) if c != 4 else None for c in range(6)]
    assert report["zero_shot_mAP"] == pytest.approx(np.mean([value for value in expected if value is not None]))
    assert report.metrics[0].n == 5
    assert "5 of 6 classes have images" in report.notes[0]
    (table,) = report.details.values()
    assert table["average_precision"] == pytest.approx(expected)
    assert table["n"] == target.sum(0).tolist()
    collapsed = zero_shot_multilabel(np.ones((50, 4)), target, classes)
    assert collapsed["zero_shot_mAP"] == pytest.approx(np.delete(target.mean(0), 4).mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_NC": np.zeros((3, 2))}, "no image shows a class"),
        ({"target_NC": np.full((3, 2), 2)}, "must be 3 x 2 of 0 and 1"),
        ({"target_NC": np.ones((2, 3))}, "must be 3 x 2"),
        ({"class_names": ["a"]}, "1 class_names"),
        ({"image_emb": np.full((3, 4), np.nan)}, "not finite"),
    ],
)
def test_bad_multi_label_input_is_a_user_error(change: dict[str, Any], message: str) -> None:
    args: dict[str, Any] = {"image_emb": unit((3, 4), 0), "target_NC": np.eye(3, 2, dtype=int), "class_emb": unit((2, 4), 1)}
    with pytest.raises(UserError, match=message):
        zero_shot_multilabel(**(args | change))
