"""Tables fit the terminal, and what they leave out or abbreviate follows their rules."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mmcl.evaluate import EVALUATORS, CachedModel, Metric, Report, Task, compare, run
from mmcl.evaluate.reporting.text_table import text_table
from mmcl.testing.patterns import PatternModel, PatternSource
from tests.evaluate.toys import ARGS

COLUMNS = ("trained", "before", "untrained", "raw pixels", "PCA-50", "majority", "chance")


def widest(text: str) -> int:
    return max(map(cell_len, text.splitlines()))


@pytest.mark.parametrize("name", EVALUATORS)
def test_reports_and_comparisons_of_every_evaluator_fit(name: str) -> None:
    task = Task("a/data set/with a long name/" + "x" * 60, PatternSource(36, seed=0), PatternSource(60, seed=1))
    models = [
        CachedModel(PatternModel(), one) for one in ("trained", "open_clip:ViT-B-32/laion2b_s34b_b79k", "runs/ablation/三")
    ]
    report = run([(name, ARGS[name])], models, [task])
    for width in (40, 80, 120):
        for brief in (True, False):
            assert widest(report.to_text(brief=brief, width=width)) <= width
    paired = {metric.model for metric in report.metrics if metric.outcomes is not None}
    for other in sorted(paired - {"trained"}) if "trained" in paired else ():
        assert widest(compare(report, report, models=("trained", other)).to_text()) <= 80


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cf", "Mn", "Me", "Mc")), min_size=1, max_size=50)


@given(st.lists(names, min_size=1, max_size=9, unique=True), st.lists(names, min_size=1, max_size=4), st.integers(40, 130))
def test_any_names_fit_and_no_number_is_lost(models: list[str], metrics: list[str], width: int) -> None:
    numbers = [[f"0.{row}{column}7" for column in range(len(models))] for row in range(len(metrics))]
    rows = [[name, *values, "9"] for name, values in zip(metrics, numbers, strict=True)]
    shown = text_table("retrieval: emoji", ["metric", *models, "n"], rows, width)
    assert max(map(cell_len, shown.splitlines())) <= width
    assert all(number in shown for values in numbers for number in values)
    assert "(n = 9)" in shown


def test_the_rules_one_after_the_other() -> None:
    def table(models: tuple[str, ...], metric: str = "text_to_image_R@1", width: int = 80, n: str = "1906") -> str:
        cells = ["0.611 [0.589, 0.633]"] + ["0.187 [0.170, 0.205]"] * (len(models) - 1)
        return text_table("retrieval: x", ["metric", *models, "n"], [[metric, *cells, n], [metric, *cells, "1906"]], width)

    assert table(COLUMNS[:3]).splitlines()[0] == "retrieval: x (n = 1,906)"
    assert table(COLUMNS[:3], n="9").splitlines()[1].endswith("  n")
    assert table(COLUMNS[:3]).count("[") == 2  # of the first model, in both rows
    assert "text_to_image" in table(COLUMNS[:3])
    assert "t2i_R@1" in table(COLUMNS)
    long = table(("runs/a_very_long_name", *COLUMNS))
    assert re.search(r"\n  metric +A +trained", long)
    assert long.endswith("\n  A  runs/a_very_long_name")
    assert "PCA-50" in long
    assert "an_uncommonly_l…" in table(COLUMNS[:1], "an_uncommonly_long_name_of_a_metric", 40)
    narrow = table(COLUMNS, width=50)
    assert narrow.count("metric") == 2, "what has no room follows"
    assert all(word in narrow for column in COLUMNS for word in column.split())


def test_metrics_of_one_evaluator_stay_apart() -> None:
    names = ["zero_shot_top1", "zero_shot_top5", "zero_shot_top1_worst_template"]
    rows = [[name, "0.588 [0.540, 0.635]", "0.001", "0.359", "0.002", "0.002"] for name in names]
    header = ["metric", "trained", "untrained", "labeled pixels", "majority", "chance"]
    title, upper, lower, *lines = text_table("zero_shot: emoji", header, rows, 80).splitlines()
    assert title == "zero_shot: emoji"
    assert upper.split() == ["metric", "trained", "untrained", "labeled", "majority", "chance"]
    assert lower.split() == ["pixels"]
    assert [line.split()[0] for line in lines[:3]] == ["top1", "top5", "top1_worst_"]
    assert lines[3:] == ["   template"], "the rest of the name"


def test_names_of_two_words_take_two_lines_before_a_table_is_split() -> None:
    values = ["0.987 [0.972, 0.995]", "0.971", "0.989", "0.989", "0.101", "0.100", "445"]
    header = ["metric", "trained", "untrained", "raw pixels", "PCA-50", "majority", "chance", "n"]
    text = text_table("knn: digits", header, [["knn20_top1", *values]], 80)
    _, upper, lower, _ = text.splitlines()
    assert widest(text) <= 80
    assert upper.split() == ["metric", "trained", "untrained", "raw", "PCA-50", "majority", "chance"]
    assert lower.index("pixels") == upper.index("raw ")
    assert "raw pixels" in text_table("knn: digits", header, [["knn20_top1", *values]], 100), "there is room"


def test_rows_without_a_value_are_left_out() -> None:
    def metric(name: str, value: float | None) -> Metric:
        return Metric("retrieval", "photos", name, "trained", value, None, None, 6)

    text = Report((metric("text_to_image_R@1", 0.5), metric("text_to_image_R@10", None))).to_text()
    assert "R@1 " in text
    assert "R@10" not in text
    assert Report((metric("text_to_image_R@10", None),)).to_text() == "", "nor a table without rows"


def test_names_that_differ_at_their_end_are_not_cut_to_the_same() -> None:
    names = [f"linear_top1@{count}_per_class" for count in (1, 10, 100)]
    rows = [[name, "0.588 [0.540, 0.635]", "0.001", "0.359", "0.002", "0.002"] for name in names]
    header = ["metric", "trained", "untrained", "labeled pixels", "majority", "chance"]
    text = text_table("few_label: emoji", header, rows, 80)
    assert widest(text) <= 80
    assert len({line.split()[0] for line in text.splitlines()[2:5]}) == 3


def test_nothing_is_abbreviated_where_there_is_room() -> None:
    models = ("open_clip:ViT-B-32/laion2b_s34b_b79k", "runs/clip_emoji_with_another_temperature")
    metrics = [Metric("retrieval", "x", "text_to_image_R@1", model, 0.5, 0.4, 0.6, 9) for model in models]
    shown = Report(tuple(metrics)).to_text(width=200)
    assert all(model in shown for model in models)
    assert "text_to_image_R@1" in shown


def test_long_words_of_notes_are_broken_and_texts_keep_their_words() -> None:
    note = "the file " + "/long" * 30 + " is of " + "猫" * 50
    shown = Report(notes=(note,)).to_text()
    assert widest(shown) <= 80
    assert "".join(shown.split()) == "".join(note.split())
