"""The page of a report: what it says and in which order, that it stays light, and that nothing from the data becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmcl.evaluate import Metric, Provenance, Report
from mmcl.evaluate.reporting.examples import MOST, Examples, Hit, Query
from mmcl.evaluate.reporting.metric import headline
from mmcl.evaluate.reporting.thumbnails import data_uri

HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='alert(1)' {{title}} \u202e"
HARMLESS = "a name as long as the hostile one, since long cells wrap"
NOISE = np.random.default_rng(0).integers(256, size=(300, 200, 3)).astype(np.uint8)


def filled(text: str, image: str, *, queries: int = 1) -> Report:
    """A report with a text from the data wherever one can stand."""
    hit = Hit(rank=1, score=0.5, is_right=False, text=text, image=image)
    query = Query(group="worst", text=text, image=image, hits=(hit,) * 5, answer=replace(hit, rank=1234.5, is_right=True))
    examples = Examples(evaluator=text, data=text, model=text, title=text, candidates=9, sampled=9, queries=(query,) * queries)
    return Report(
        metrics=(
            Metric(text, text, f"{text}R@1", text, 0.5, 0.4, 0.6, 9),
            Metric(text, text, f"{text}R@5", text, None, None, None, 9),
            Metric(text, text, f"{text}R@5", "chance", None, None, None, 9),
        ),
        notes=(text,),
        figures={text: b"png"},
        pages={text: text, f"other {text}": text},
        provenance=(Provenance(text, text, text, 9, text, None, text, text, 0, {text: text}),),
        failures=(text,),
        examples=(examples, replace(examples, data=f"{text} 2")),
        title=text,
        about={text: text},
    )


class Tags(HTMLParser):
    """Elements with the names of their attributes, and all text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_nothing_from_the_data_becomes_markup() -> None:
    """Not an image either, which a report that others wrote brings."""
    page = filled(HOSTILE, HOSTILE).to_html()
    found, harmless = Tags(page), Tags(filled(HARMLESS, "data:").to_html())
    assert found.tags == harmless.tags
    assert found.text.count("<script>alert(1)</script>") > 20
    assert "\u202e" not in page
    assert not any(tag == "script" for tag, _ in found.tags)


def test_the_policy_of_the_page_allows_no_script_and_no_request() -> None:
    page = filled(HARMLESS, "data:").to_html()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_order_is_verdict_scores_examples_map_and_numbers() -> None:
    report = filled("retrieval", data_uri(Image.new("RGB", (9, 9))))
    report = replace(report, figures={"map": b"png", "curve": b"png"}, pages={"map": ""})
    page = report.to_html()
    order = [">Scores<", ">Retrieval: retrieval<", ">Map of the embeddings<", ">Figures<", ">All numbers<", "<table>"]
    places = [page.index(part) for part in ("<h1>", *report.verdict()[:1], *order)]
    assert places == sorted(places)
    assert "NOT EVALUATED: retrieval" in page
    assert page.index('<a href="map.html">') > page.index(">Map of the embeddings<")
    assert page.count("<details>") == 3, "the numbers, the provenance, and the examples of a second dataset"


def test_tables_have_neither_rows_nor_columns_without_values() -> None:
    page = filled("retrieval", "data:").to_html()
    table = page[page.index("<table>") : page.index("</table>")]
    assert "R@1" in table
    assert "R@5" not in table
    assert "chance" not in table
    assert "<td>-</td>" not in page


def test_ranks_and_marks_are_written(tmp_path: Path) -> None:
    text = Tags(filled("a cat", data_uri(Image.fromarray(NOISE))).to_html()).text
    assert "1,234.5" in text
    assert "✗" in text
    assert "✓" in text


def test_long_texts_are_cut() -> None:
    assert len(filled("word " * 5000, "data:").to_html()) < 1_500_000
    assert filled("word " * 5000, "data:").to_html().count("word " * 61) > 0


def test_a_page_with_the_most_examples_stays_light() -> None:
    page = filled("a", data_uri(Image.fromarray(NOISE)), queries=3 * MOST).to_html()
    assert len(page) < 2 * 3 * MOST * 7 * 8_000 * 4 / 3 + 500_000


def test_headlines_take_turns_and_leave_out_what_is_not_a_score() -> None:
    def metric(evaluator: str, data: str, name: str, model: str = "trained", value: float | None = 0.5) -> Metric:
        return Metric(evaluator, data, name, model, value, None, None, 9)

    rows = [
        metric("pairs", "a", "pairs_accuracy"),
        metric("geometry", "a", "effective_rank", value=40.0),
        *(metric("retrieval", "a", f"{way}_R@{k}") for way in ("text_to_image", "image_to_text") for k in (10, 1)),
        metric("retrieval", "a", "text_to_image_median_rank"),
        metric("retrieval", "a", "text_to_image_nDCG@10"),
        metric("retrieval", "b", "text_to_image_R@1", "chance"),
        metric("retrieval", "b", "text_to_image_R@1"),
        metric("zero_shot", "a", "zero_shot_top5", value=None),
        metric("zero_shot", "a", "zero_shot_top1"),
    ]
    found = headline(rows)
    assert [(own[0].evaluator, own[0].data, own[0].metric) for own in found] == [
        ("retrieval", "a", "text_to_image_R@1"),
        ("retrieval", "b", "text_to_image_R@1"),
        ("zero_shot", "a", "zero_shot_top1"),
        ("retrieval", "a", "image_to_text_R@1"),
    ]
    assert [one.model for one in found[1]] == ["trained", "chance"]
    assert headline(rows, most=9)[-1][0].metric == "pairs_accuracy"
    assert headline([]) == []


@pytest.mark.parametrize("value", [-0.7, 0.0, 1.0, 40.0])
def test_bars_stay_in_their_tracks(value: float) -> None:
    metrics = [Metric("sts", "", "sts_spearman", model, v, v - 0.1, v + 0.1, 9) for model, v in (("a", value), ("b", 0.3))]
    page = Report(tuple(metrics)).to_html()
    bars = [tuple(map(float, bar)) for bar in re.findall(r"left:([\d.-]+)%;width:([\d.-]+)%", page)]
    assert len(bars) == 4
    assert all(left >= 0 and width >= 0 and left + width <= 100.02 for left, width in bars)
