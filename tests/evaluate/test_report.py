"""Files that a report writes, and reading them back."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmcl.errors import UserError
from mmcl.evaluate import Metric, Report
from mmcl.evaluate.measures.outcomes import Outcomes
from mmcl.evaluate.reporting import report as report_module
from mmcl.evaluate.reporting.metric import lower_is_better
from mmcl.files.atomic import write_file
from tests.narrow import present

PNG = b"\x89PNG not really"


def report() -> Report:
    return Report(
        metrics=(
            Metric("knn", "mnist", "knn5_top1", "chance", 0.1, None, None, 10000),
            Metric("knn", "mnist", "knn5_top1", "trained", 0.98765, 0.98, 0.99, 10000),
            Metric("knn", "mnist", "knn20_top1", "trained", None, None, None, 10000),
            Metric("retrieval", "emoji | <b>", "text_to_image_median_rank", "trained", 3.0, 2.0, 4.0, 5),
        ),
        notes=("L-BFGS <converged>.",),
        details={"confusion": {"classes": ["猫"], "counts": [[3]]}},
        figures={"map": PNG},
        pages={"map of a/b": "<p>to explore</p>"},
    )


def test_reads_back_what_it_wrote(tmp_path: Path) -> None:
    report().write(tmp_path / "new" / "report")
    assert Report.load(tmp_path / "new" / "report") == report()
    assert (tmp_path / "new" / "report" / "map.png").read_bytes() == PNG
    assert (tmp_path / "new" / "report" / "map_of_a_b.html").read_text() == "<p>to explore</p>"


def test_reports_link_to_their_pages() -> None:
    assert '<a href="map_of_a_b.html">map of a/b (to explore)</a>' in report().to_html()
    assert "[map of a/b (to explore)](map_of_a_b.html)" in report().to_markdown()
    assert (Report() + report()).pages == report().pages


def test_metrics_json_is_a_list_of_flat_rows(tmp_path: Path) -> None:
    report().write(tmp_path)
    rows = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert all(list(row) == ["evaluator", "data", "metric", "model", "value", "low", "high", "n"] for row in rows)
    assert rows[1]["value"] == 0.98765
    assert rows[2]["value"] is None


def test_no_cell_for_a_spreadsheet_is_a_formula() -> None:
    names = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "digits", "a=b"]
    written = Report(tuple(Metric("knn", name, "knn5_top1", "trained", -0.5, None, None, 5) for name in names)).to_csv()
    rows = list(csv.DictReader(io.StringIO(written)))
    assert [row["data"] for row in rows] == [*(f"'{name}" for name in names[:5]), "digits", "a=b"]
    assert {row["value"] for row in rows} == {"-0.5"}


@pytest.mark.parametrize("metric", ["rank/median_rank", "nll", "retrieval/modality_gap", "zero_shot_fpr95", "uniformity_text"])
def test_less_is_better(metric: str) -> None:
    assert lower_is_better(metric)


@pytest.mark.parametrize("metric", ["loss/knn5_top1", "effective_rank_image", "text_to_image_R@1", "zero_shot_auroc"])
def test_more_is_better(metric: str) -> None:
    assert not lower_is_better(metric)


def test_markdown_has_the_models_side_by_side_with_baselines_last() -> None:
    lines = report().to_markdown().splitlines()
    assert "## knn: mnist" in lines
    assert "| metric | trained | chance | n |" in lines
    assert "| knn5_top1 | 0.988 [0.980, 0.990] | 0.100 | 10000 |" in lines
    assert "| knn20_top1 | - |  | 10000 |" in lines
    assert "| text_to_image_median_rank | 3.0 [2.0, 4.0] | 5 |" in lines
    assert "![map](map.png)" in lines


def test_different_numbers_of_rows_are_a_range() -> None:
    two = (Metric("knn", "x", "knn5_top1", model, 0.5, None, None, n) for model, n in {"a": 445, "b": 200, "c": 300}.items())
    same = (Metric("knn", "x", "knn1_top1", model, 0.5, None, None, 445) for model in "abc")
    rows = [line.split() for line in Report((*two, *same)).to_text(brief=False).splitlines()]
    assert {row[0]: row[-1] for row in rows if row and row[0].startswith("knn")}.items() >= {
        ("knn5_top1", "200-445"),
        ("knn1_top1", "445"),
    }


def test_terminal_text_opens_with_the_verdict_and_has_aligned_columns() -> None:
    verdict, table = report().to_text().split("\n\n")[:2][0], report().to_text().partition("knn: mnist")[2]
    assert " ".join(verdict.split()) == report().verdict()[0]
    header, first = table.splitlines()[1:3]
    assert header.index("chance") == first.index("0.100")


def test_brief_text_has_what_people_quote() -> None:
    quoted, other = ["text_to_image_R@1", "text_to_image_median_rank"], ["text_to_image_nDCG@10", "text_to_image_mAP"]
    metrics = [Metric("retrieval", "emoji", name, "trained", 0.5, None, None, 9) for name in (*quoted, *other)]
    metrics.append(Metric("geometry", "emoji", "alignment", "trained", 0.5, None, None, 9))
    shown = Report(tuple(metrics)).to_text(brief=True)
    assert all(name in shown for name in (*quoted, "alignment"))
    assert not any(name in shown for name in other)
    assert all(name in Report(tuple(metrics)).to_text() for name in (*quoted, *other, "alignment"))


@pytest.mark.parametrize(("recall", "lines"), [(0.5, 0), (0.4, 1)])
def test_recall_is_shown_where_it_is_not_the_hit_rate(recall: float, lines: int) -> None:
    values = {"text_to_image_R@5": 0.5, "text_to_image_recall@5": recall}
    metrics = [Metric("retrieval", "emoji", name, "trained", value, None, None, 9) for name, value in values.items()]
    found = Report(tuple(metrics))
    for shown in (found.to_text(), found.to_markdown()):
        assert shown.count("recall@5") == lines
        assert "R@5" in shown
    assert json.loads(found.to_json())[1]["value"] == recall


def test_a_report_has_its_verdict_and_what_to_run_next(tmp_path: Path) -> None:
    made = replace(report(), next_steps=("mmcl eval 'my run'",))
    made.write(tmp_path)
    assert Report.load(tmp_path) == made
    assert json.loads((tmp_path / "details.json").read_text(encoding="utf-8"))["verdict"] == list(made.verdict())
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert page.index("knn, mnist: ") < page.index("## knn: mnist")
    assert page.endswith("## Next\n\n    mmcl eval 'my run'\n")


def test_html_needs_no_other_file_and_escapes_everything() -> None:
    page = report().to_html()
    assert "retrieval: emoji | &lt;b&gt;" in page
    assert "L-BFGS &lt;converged&gt;." in page
    assert "<b>" not in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_adding_joins_and_the_later_row_stays() -> None:
    later = Report(metrics=(Metric("knn", "mnist", "knn5_top1", "chance", 0.2, None, None, 10000),), notes=report().notes)
    joined = report() + later
    assert len(joined.metrics) == 4
    assert joined.metrics[0].value == 0.2
    assert joined.notes == report().notes
    assert joined.figures == report().figures
    assert Report() + report() == report()


def test_a_value_is_found_by_name_only_where_it_is_unambiguous() -> None:
    assert report()["text_to_image_median_rank"] == 3.0
    with pytest.raises(KeyError, match="2 rows have the metric 'knn5_top1'"):
        report()["knn5_top1"]


def test_a_missing_or_damaged_report_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no report here, details\.json is missing"):
        Report.load(tmp_path)
    report().write(tmp_path)
    for content in ("{", "[]", "null", '{"sha256": 1}', '{"sha256": {}}'):
        (tmp_path / "details.json").write_text(content)
        with pytest.raises(UserError, match=r"damaged|earlier version|same report"):
            Report.load(tmp_path)


def scored(*outcomes: float) -> Report:
    values = np.array(outcomes, np.float32)
    page = {"map": f"<p>{values}</p>"}
    metric = Metric("knn", "digits", "knn1_top1", "trained", float(values.mean()), 0.0, 1.0, len(values), Outcomes(values))
    return Report((metric,), figures={"chart": values.tobytes()}, pages=page)


PARTS = ["metrics.json", "rows.safetensors", "chart.png", "map.html", "details.json"]


@pytest.mark.parametrize("part", PARTS)
def test_a_report_of_parts_of_two_is_refused_by_name(part: str, tmp_path: Path) -> None:
    """A half is A's and a half B's, wherever the line is."""
    a, b = tmp_path / "a", tmp_path / "b"
    scored(0, 1, 0, 1).write(a)
    scored(1, 1, 1, 0).write(b)
    shutil.copy(b / part, a / part)
    with pytest.raises(UserError, match=rf"{re.escape(str(a))}: \S+ is not of the same report"):
        Report.load(a)
    assert Report.load(b) == scored(1, 1, 1, 0)


@pytest.mark.parametrize("writes", range(10))
def test_a_kill_leaves_the_old_report_the_new_one_or_none(writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any number of files; what is not whole is refused, and never read as a mixture."""
    old, new = scored(0, 1, 0, 1), scored(1, 1, 1, 0)
    done: list[Path] = []
    old.write(tmp_path)

    def stopped(path: Path, content: str | bytes) -> None:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(path)
        write_file(path, content)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(report_module, "write_file", stopped)
        new.write(tmp_path)
    found = None
    with suppress(UserError):
        found = Report.load(tmp_path)
    assert found in (old, new, None)
    if found is not None:
        assert float(present(found.metrics[0].outcomes).values.mean()) == found.metrics[0].value
        shown = (tmp_path / "metrics.csv").read_bytes().decode()
        assert found != new or shown == new.to_csv(), "the pages for readers are never older than what is read"
    new.write(tmp_path)
    assert Report.load(tmp_path) == new


def test_a_report_without_its_rows_is_a_report(tmp_path: Path) -> None:
    scored(0, 1).write(tmp_path)
    (tmp_path / "rows.safetensors").unlink()
    assert Report.load(tmp_path).metrics[0].outcomes is None


def test_markdown_keeps_the_markup_of_names_as_text() -> None:
    name = "a | b <img src=x> [c](http://x) `d`"
    page = Report((Metric("knn", name, "knn5_top1", name, 0.5, 0.25, 0.75, 4),), notes=(name,)).to_markdown()
    assert r"a \| b \<img src=x> [c]\(http://x) \`d\`" in page
    assert "0.500 [0.250, 0.750]" in page
    assert not re.search(r"(?<!\\)<img|\]\(http", page)


def test_the_chart_shows_scores_and_leaves_out_ranks() -> None:
    image = Image.open(io.BytesIO(report().plot()))
    alone = Image.open(io.BytesIO(Report((report().metrics[3],)).plot()))
    assert image.height > alone.height  # The only metric there is a rank: an empty chart, and no error.


def test_the_folder_has_the_chart_and_the_pages_show_it(tmp_path: Path) -> None:
    report().write(tmp_path)
    assert (tmp_path / "metrics.png").read_bytes() == report().plot()
    assert "![metrics](metrics.png)" in (tmp_path / "report.md").read_text(encoding="utf-8")
