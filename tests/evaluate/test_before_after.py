"""What a fine-tuning gained and lost agrees with the paired tests, and is said first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.evaluate import Metric, Report
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.paired_tests import paired_test
from mmcl.evaluate.reporting.before_after import before_and_after
from mmcl.evaluate.reporting.metric import metric_rows

N = 200


def rows(model: str, right: np.ndarray, *, data: str = "new", metric: str = "text_to_image_R@1") -> tuple[Metric, ...]:
    return metric_rows("retrieval", data, model, {metric: statistics.mean(right.astype(float))})


def moved(won: int, lost: int, **names: str) -> tuple[Metric, ...]:
    """100 of 200 hits before, of which `lost` are lost, and `won` others after."""
    before = np.arange(N) < 100
    after = before.copy()
    after[:lost], after[N - won :] = False, True
    return (*rows("trained", after, **names), *rows("before", before, **names))


@given(won=st.integers(0, 60), lost=st.integers(0, 60))
def test_the_words_are_those_of_the_paired_test(won: int, lost: int) -> None:
    metrics = moved(won, lost)
    after, before = (metric.outcomes for metric in metrics)
    assert after is not None
    assert before is not None
    difference, p = paired_test(before, after)
    found = before_and_after(metrics, [])
    expected = "changed no score of the" if p >= 0.05 else "gained on the" if won > lost else "lost on the"
    assert found.startswith(f"Fine-tuning {expected} new data")
    assert ("(not significant)" in found) == (p >= 0.05)
    assert f"text → image R@1 {100 * (won - lost) / N:+.1f} points [" in found
    assert difference.value == pytest.approx((won - lost) / N)


def test_new_and_old_data_are_told_apart() -> None:
    found = before_and_after([*moved(30, 5), *moved(3, 4, data="old"), *moved(0, 40, data="older")], {"old", "older"})
    assert found.startswith("Fine-tuning gained on the new data, and lost on the old data. New, new: text → image")
    assert "Old, old: text → image R@1 -0.5 points [" in found
    assert "] (not significant). Old, older: text → image R@1 -20.0 points [" in found
    assert "not known" not in found


def test_both_directions_and_what_is_missing() -> None:
    found = before_and_after([*moved(30, 0), *moved(0, 30, metric="image_to_text_R@1")])
    assert found.startswith("Fine-tuning gained and lost on the new data. New, new: text → image R@1 +15.0 points")
    assert ", image → text R@1 -15.0 points" in found
    assert found.endswith("(mmcl finetune --keep DATA, or keep: true for an evaluator).")


@pytest.mark.parametrize(
    "metrics",
    [
        (),
        rows("trained", np.arange(N) < 5),
        (*rows("trained", np.arange(N) < 5), *rows("untrained", np.arange(N) < 5)),
        (*rows("trained", np.arange(N) < 5, data="a"), *rows("before", np.arange(N) < 5, data="b")),
        tuple(Metric("pairs", "a", "x", model, value, None, None, 3) for model, value in (("trained", None), ("before", 1.0))),
        tuple(
            Metric("geometry", "a", "x", model, value, None, None, 3) for model, value in (("trained", 0.0), ("before", 1.0))
        ),
    ],
)
def test_without_both_models_nothing_is_said(metrics: tuple[Metric, ...]) -> None:
    assert before_and_after(metrics) == ""


def test_a_rank_that_falls_is_a_gain() -> None:
    ranks = [rows(model, values, metric="text_to_image_mean_rank") for model, values in zip(*RANKS, strict=True)]
    found = before_and_after([*ranks[0], *ranks[1]])
    assert found.startswith("Fine-tuning gained on the new data. New, new: text → image mean rank +2.0 [")


RANKS = (("trained", "before"), (np.arange(N) % 7 + 1, np.arange(N) % 7 + 3 - 0.1 * (np.arange(N) % 2) + 0.05))


def test_it_opens_the_verdict_and_is_kept(tmp_path: Path) -> None:
    metrics = moved(30, 5)
    report = Report(metrics=metrics, opening=(before_and_after(metrics),)) + Report(notes=("a note",))
    report.write(tmp_path)
    assert report.verdict()[0] == report.opening[0]
    assert Report.load(tmp_path) == report
    for name in ("report.md", "report.html"):
        assert "Fine-tuning gained on the new data" in (tmp_path / name).read_text(encoding="utf-8")
    assert report.to_text().startswith("Fine-tuning gained")
