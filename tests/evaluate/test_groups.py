"""Robustness, subgroups and geometry against hand-computed values, and the coverage of their intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mmcl.errors import UserError
from mmcl.evaluate import Report, effective_robustness, geometry, groups, robustness
from mmcl.evaluate.measures import statistics
from tests.evaluate.toys import bounds, unit
from tests.narrow import present


def by_data(report: Report, metric: str) -> dict[str, float | None]:
    return {row.data: row.value for row in report.metrics if row.metric == metric}


def test_gap_is_the_difference_of_the_accuracies() -> None:
    report = robustness({"photos": [1, 1, 1, 0], "sketches": [1, 0], "night": [0, 0, 1]}, reference="photos")
    assert by_data(report, "accuracy") == pytest.approx({"photos": 0.75, "sketches": 0.5, "night": 1 / 3})
    assert by_data(report, "accuracy_gap") == pytest.approx({"sketches": 0.25, "night": 0.75 - 1 / 3})


def test_a_gap_has_the_interval_of_a_difference() -> None:
    a, b = np.arange(150) % 5 > 0, np.arange(90) % 3 > 0
    (gap,) = (row for row in robustness({"a": a, "b": b}, reference="a").metrics if row.metric == "accuracy_gap")
    expected = statistics.difference(a, b)
    assert (gap.value, gap.low, gap.high) == (expected.value, expected.low, expected.high)
    low, high = bounds(gap)
    assert low < present(gap.value) < high


def test_effective_robustness_is_zero_on_the_line_and_positive_above_it() -> None:
    def shifted(accuracy: float) -> float:
        odds = accuracy / (1 - accuracy)
        return float(1 / (1 + np.exp(0.5) / odds**0.7))

    baselines = [(accuracy, shifted(accuracy)) for accuracy in (0.3, 0.6, 0.8, 0.9)]
    assert effective_robustness(0.7, shifted(0.7), baselines) == pytest.approx(0)
    assert effective_robustness(0.7, shifted(0.7) + 0.1, baselines) == pytest.approx(0.1)


def test_groups_by_hand() -> None:
    report = groups([1, 1, 0, 1, 0, 0], ["x", "x", "x", "y", "z", "z"], metric="top1")
    assert {row.metric: row.value for row in report.metrics} == pytest.approx(
        {"top1_of_x": 2 / 3, "top1_of_y": 1, "top1_of_z": 0, "top1_worst_group": 0, "top1_largest_gap": 1}
    )
    assert {row.metric: row.n for row in report.metrics}["top1_of_x"] == 3
    for row in report.metrics:
        if "_of_" in row.metric:
            low, high = bounds(row)
            assert low <= present(row.value) <= high
        else:
            assert row.low is row.high is None


def test_geometry_is_that_of_the_core_on_unit_rows() -> None:
    image = unit((40, 7), 0)
    text = image + 0.1 * unit((40, 7), 1)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    report = geometry(5 * image, text)
    assert report["alignment"] == pytest.approx(((image - text) ** 2).sum(1).mean(), rel=1e-5)
    assert report["modality_gap"] == pytest.approx(np.linalg.norm(image.mean(0) - text.mean(0)), rel=1e-4)
    distance = ((image[:, None] - image[None]) ** 2).sum(-1)[~np.eye(40, dtype=bool)]
    assert report["uniformity"] == pytest.approx(np.log(np.exp(-2 * distance).mean()), rel=1e-5)
    assert present(report["effective_rank"]) > 5
    moved = np.random.default_rng(0).permutation(40)
    assert present(geometry(image, text[moved])["alignment"]) > 2 * present(report["alignment"])
    pairs = np.stack([moved, np.arange(40)], axis=1)
    assert geometry(image, text[moved], pairs=pairs)["alignment"] == pytest.approx(report["alignment"])
    assert geometry(np.ones((5, 3)))["effective_rank"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: robustness({"a": [1]}, reference="b"), "reference 'b' is not among the datasets: a"),
        (lambda: robustness({"a": [1], "b": []}, reference="a"), "outcomes of b"),
        (lambda: robustness({"a": [np.nan]}, reference="a"), "outcomes of a"),
        (lambda: effective_robustness(1.0, 0.5, [(0.5, 0.4), (0.6, 0.5)]), "above 0 and below 1"),
        (lambda: effective_robustness(0.9, 0.5, [(0.5, 0.4)]), "two or more baselines"),
        (lambda: groups([1, 0], ["a"]), "must be 1 finite numbers"),
        (lambda: groups([1, 0], ["a", "a"]), "one group"),
        (lambda: geometry(np.ones((1, 3))), "image_emb has one row"),
        (lambda: geometry(np.ones((2, 3)), np.ones((3, 3))), "which rows belong together"),
        (lambda: geometry(np.ones((2, 3)), np.ones((3, 3)), pairs=[(0, 3)]), "a row that does not exist"),
    ],
)
def test_bad_input_is_a_user_error(function: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        function()


@pytest.mark.parametrize(("rows", "message"), [(np.zeros((5, 3)), "5 rows of zeros"), (np.full((5, 3), np.nan), "not finite")])
def test_geometry_of_rows_without_a_direction_is_a_user_error(rows: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=f"image_emb has .*{message}"):
        geometry(rows)
