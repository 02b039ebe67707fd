"""Outcomes of metrics: every statistic of rows that can be compared includes them, and reports store them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Metric, Report, Task, run
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.outcomes import Statistic, read_outcomes
from mmcl.testing.patterns import NAMES, PatternModel, PatternSource
from tests.evaluate.toys import ARGS
from tests.narrow import present


def a_report(source: PatternSource | None = None) -> Report:
    task = Task("patterns", source or PatternSource(36, seed=0), PatternSource(60, seed=1))
    return run([(name, ARGS.get(name, {})) for name in EVALUATORS], [CachedModel(PatternModel())], [task])


@pytest.fixture(scope="module")
def report() -> Report:
    return a_report()


def test_every_statistic_has_a_metric_that_carries_its_rows(report: Report) -> None:
    carried = [(metric.evaluator, metric.outcomes.statistic) for metric in report.metrics if metric.outcomes is not None]
    assert {evaluator for evaluator, _ in carried} >= {"retrieval", "zero_shot", "knn", "linear_probe", "classification"}
    assert {statistic for _, statistic in carried} == set(get_args(Statistic))


def test_metrics_that_are_not_means_over_rows_have_no_outcomes(report: Report) -> None:
    without = {(metric.metric, metric.model) for metric in report.metrics if metric.outcomes is None}
    assert {("zero_shot_ece", "trained"), ("sts_spearman", "trained"), ("zero_shot_top1", "chance")} <= without
    assert all(metric.outcomes is None for metric in report.metrics if metric.evaluator == "few_label")


def named(rows: range) -> list[str]:
    """Names of images, with their captions."""
    return [f"row {row} ({NAMES[row % len(NAMES)]})" for row in rows]


def test_rows_are_named_after_their_queries(report: Report) -> None:
    names = {metric.metric: list(metric.outcomes.names or ()) for metric in report.metrics if metric.outcomes is not None}
    assert names["text_to_image_R@1"] == NAMES
    assert names["image_to_text_R@1"] == names["knn5_top1"] == named(range(36))


def test_images_without_a_caption_are_not_queries() -> None:
    class Uncaptioned(PatternSource):
        def __init__(self) -> None:
            super().__init__(8, seed=0)
            self._samples[2] = replace(self._samples[2], captions=())

    report = run([("retrieval", {"examples": 0})], [CachedModel(PatternModel())], [Task("patterns", Uncaptioned())])
    (metric,) = (m for m in report.metrics if (m.metric, m.model) == ("image_to_text_R@1", "trained"))
    assert list(present(metric.outcomes).names or ()) == [name for name in named(range(8)) if "row 2" not in name]


def test_a_report_keeps_rows_and_provenance_on_disk(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded == report
    for ours, theirs in zip(report.metrics, loaded.metrics, strict=True):
        assert (ours.outcomes is None) == (theirs.outcomes is None)
        if ours.outcomes is not None:
            rows = present(theirs.outcomes)
            assert rows.values.dtype == np.float32
            np.testing.assert_array_equal(ours.outcomes.values, rows.values)
            assert (ours.outcomes.influence is None) == (rows.influence is None)
            if ours.outcomes.influence is not None:
                own, read = ours.outcomes.influence, present(rows.influence)
                assert (own.value, own.draws) == (read.value, read.draws)
                np.testing.assert_array_equal(own.row_N, read.row_N)
            assert (ours.outcomes.statistic, list(ours.outcomes.names or ())) == (rows.statistic, list(rows.names or ()))


def test_provenance_lists_what_the_numbers_depend_on(report: Report) -> None:
    assert [one.evaluator for one in report.provenance] == list(EVALUATORS)
    one = report.provenance[0]
    assert (one.data, one.model, one.n) == ("patterns", "trained", 36)
    assert (one.data_identity, one.bank_identity) == tuple(PatternSource(36 + 24 * n, seed=n).identity for n in (0, 1))
    assert one.model_fingerprint == "patterns"
    assert set(one.versions) == {"mmcl", "torch", "numpy", "PIL"}
    assert f"<td>{one.data_identity[:12]}</td>" in report.to_html()


def test_rows_of_an_older_report_do_not_stay(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path)
    Report((Metric("knn", "patterns", "knn5_top1", "trained", 0.5, None, None, 36),)).write(tmp_path)
    assert Report.load(tmp_path).metrics[0].outcomes is None


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: b"", lambda data: data[:8] + b"x" + data[9:]])
def test_a_damaged_file_of_rows_is_a_user_error(report: Report, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    report.write(tmp_path)
    file = tmp_path / "rows.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"rows\.safetensors: is damaged"):
        read_outcomes(file)
    with pytest.raises(UserError, match=r"rows\.safetensors is not of the same report"):
        Report.load(tmp_path)


def test_estimates_without_rows_of_their_own() -> None:
    assert statistics.exact(0.1, 5).outcomes is None
    assert statistics.over_runs([0.1, 0.2], 5).outcomes is None
    assert statistics.correlation(0.1, np.zeros(5)).outcomes is None
