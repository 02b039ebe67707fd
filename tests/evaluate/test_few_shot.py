"""Few-shot probes against the linear probe on the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmcl.data.derived.subset import label_subset
from mmcl.errors import UserError
from mmcl.evaluate import few_shot, linear_probe
from tests.evaluate.test_linear_probe import data
from tests.evaluate.toys import bounds
from tests.narrow import present


@pytest.mark.parametrize("probe", [{}, {"c": 100.0}, {"solver": "adamw", "epochs": 3}])
def test_is_the_mean_of_probes_on_stratified_draws(probe: dict[str, Any]) -> None:
    (train, label), test = data(300), data(200)
    report = few_shot(train, 10 * label, test[0], 10 * test[1], shots=(4, 1), seeds=3, probe=probe)
    assert [row.metric for row in report.metrics] == ["few_shot_1_top1", "few_shot_4_top1"]
    for row, shot in zip(report.metrics, (1, 4), strict=True):
        draws = [label_subset(label, per_class=shot, seed=seed) for seed in range(3)]
        assert all((np.bincount(label[rows]) == shot).all() for rows in draws)
        values = [present(linear_probe(train[rows], label[rows], *test, **probe)["linear_top1"]) for rows in draws]
        assert row.value == pytest.approx(np.mean(values))
        low, high = bounds(row)
        assert low < present(row.value) < high
    assert present(report["few_shot_4_top1"]) > present(report["few_shot_1_top1"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": (1, 70)}, "class 3 has 50 training rows, 70 are asked for"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"probe": {"max_iters": 5}}, "did you mean 'max_iter'"),
        ({"train_labels": [0, 1]}, r"train_labels must be \[300\]"),
    ],
)
def test_bad_input_is_a_user_error(change: dict[str, Any], message: str) -> None:
    labels = np.repeat([0, 1, 2, 3], [90, 80, 80, 50])
    args = {"train_emb": data(300)[0], "train_labels": labels, "test_emb": data(200)[0], "test_labels": data(200)[1]}
    with pytest.raises(UserError, match=message):
        few_shot(**(args | change))


@pytest.mark.parametrize("rows", [1, 6])
def test_one_class_is_a_user_error(rows: int) -> None:
    with pytest.raises(UserError, match="one class only"):
        few_shot(np.ones((rows, 3)), np.zeros(rows, int), np.ones((2, 3)), [0, 0], shots=(1,))
