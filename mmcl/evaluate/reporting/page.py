"""The pages of an evaluation and of a comparison: self-contained HTML without scripts, with untrusted names escaped.

Everything from data is text: it is escaped here, and the page's policy allows neither scripts nor requests.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files

from mmcl.evaluate.reporting.examples import GROUPS, Changes, Examples, Hit, Query
from mmcl.evaluate.reporting.metric import Metric, headline, label
from mmcl.evaluate.reporting.tables import NO_VALUE, Table, format_metric, rows_with_values
from mmcl.evaluate.reporting.verdict import FLAG
from mmcl.terminal import printable

_GROUPS = {
    "best": "The best",
    "median": "The median",
    "worst": "The worst",
    "better": "B is better",
    "worse": "B is worse",
}
_TEXT = 300
LEGEND = (
    '<p class="legend"><span class="right"><span class="mark">✓</span> and a solid green frame</span>: right, it belongs to '
    'the query. <span class="wrong"><span class="mark">✗</span> and a dashed red frame</span>: wrong. '
    "Beside the mark, the rank and the score (cosine with the query).</p>"
)


def page(title: str, parts: Iterable[str]) -> str:
    """A page of parts, which are HTML."""
    values = {"title": escape(title), "body": "\n".join(part for part in parts if part)}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _template())


@cache
def _template() -> str:
    return (files("mmcl.evaluate.reporting") / "page.html").read_text(encoding="utf-8")


def escape(text: str) -> str:
    """Text from data as HTML."""
    return html.escape(printable(text), quote=True)


def facts(about: Mapping[str, str]) -> str:
    """What was evaluated, in a line: names and values."""
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in about.items())
    return f'<dl class="facts">{pairs}</dl>' if pairs else ""


def paragraphs(lines: Iterable[str], *, flagged: bool = False) -> str:
    """Paragraphs; those that begin with `FLAG` are painted, or with `flagged` all."""
    return "\n".join(f"<p{' class=flag' if flagged or line.startswith(FLAG) else ''}>{prose(line)}</p>" for line in lines)


def prose(text: str) -> str:
    """A sentence as HTML, in which no line begins with "%"."""
    return escape(text).replace(" %", "&nbsp;%")


def scores(metrics: Iterable[Metric]) -> str:
    """At most four scores as bars, with intervals and baselines."""
    charts = "\n".join(map(_score, headline(metrics)))
    if not charts:
        return ""
    note = "Bars begin at 0 and the tracks end at 1, unless a value is beyond; the bracket across a bar is the 95 % interval."
    return f'<h2>Scores</h2>\n<div class="scores">\n{charts}\n</div>\n<p class="pale">{prose(note)}</p>'


def _score(metrics: Sequence[Metric]) -> str:
    first = metrics[0]
    ends = [edge for metric in metrics for edge in (metric.value, metric.low, metric.high) if edge is not None]
    low, high = min(0.0, *ends), max(1.0, *ends)

    def span(tag: str, start: float, stop: float) -> str:
        left, width = 100 * (start - low) / (high - low), 100 * (stop - start) / (high - low)
        return f'<{tag} style="left:{left:.2f}%;width:{width:.2f}%"></{tag}>'

    rows = []
    for metric in metrics:
        assert metric.value is not None
        bar = span("i", min(0.0, metric.value), max(0.0, metric.value))
        if metric.low is not None and metric.high is not None:
            bar += span("b", metric.low, metric.high)
        rows.append(
            f'<li{" class=first" if metric is first else ""}><span class="name">{escape(metric.model)}</span>'
            f'<span class="track">{bar}</span><span class="value">{_cell(format_metric(metric))}</span></li>'
        )
    where = escape(", ".join(filter(None, (first.evaluator, first.data, f"n = {first.n:,}"))))
    return (
        f'<section class="score"><h3>{escape(label(first.metric))} <small>{where}</small></h3>'
        f'<ul class="bars">{"".join(rows)}</ul></section>'
    )


def examples(found: Sequence[Examples]) -> str:
    """Queries with their hits, for each kind of query; those of further datasets are folded."""
    if not found:
        return ""
    parts = [LEGEND]
    for one in found:
        if one.data == found[0].data:
            parts.append(f"<section><h2>{_title(one)}</h2>{_examples(one)}</section>")
        else:
            parts.append(f"<details><summary>{_title(one)}</summary>{_examples(one)}</details>")
    return "\n".join(parts)


def _title(one: Examples) -> str:
    return escape(f"{one.title[:1].upper()}{one.title[1:]}{': ' if one.data else ''}{one.data}")


def _examples(one: Examples) -> str:
    how = (
        f"{one.sampled:,} queries, {one.candidates:,} candidates each. Chosen by rule, not by hand: all queries are ordered by "
        "the rank of the first right candidate, and equal ranks at random with a fixed seed."
    )
    parts = [f'<p class="pale">{how}</p>']
    for group in GROUPS:
        if own := [query for query in one.queries if query.group == group]:
            shown = "".join(_query(query, _hits(query)) for query in own)
            kind = "queries" if any(_has_images(query) for query in own) else "queries paired"
            parts.append(f'<h3>{_GROUPS[group]}</h3><div class="{kind}">{shown}</div>')
    return "\n".join(parts)


def changes(title: str, names: tuple[str, str], pairs: Changes) -> str:
    """What two models find for the same queries, side by side."""
    parts = [f"<section><h2>{escape(title)}</h2>"]
    for group in ("better", "worse"):
        if own := [pair for pair in pairs if pair[0].group == group]:
            parts.append(f"<h3>{_GROUPS[group]}</h3>")
            parts += [_query(a, _sides(names, a, b)) for a, b in own]
    return "\n".join([*parts, "</section>"])


def _sides(names: tuple[str, str], a: Query, b: Query) -> str:
    sides = (
        f"<div><h4>{letter}: {escape(name)}</h4>{_hits(one)}</div>"
        for letter, name, one in zip("AB", names, (a, b), strict=True)
    )
    return f'<div class="sides">{"".join(sides)}</div>'


def _query(query: Query, found: str) -> str:
    image = f'<img src="{escape(query.image)}" alt="">' if query.image else ""
    return f'<article class="query"><div class="asked">{image}{_text(query.text)}</div>{found}</article>'


def _has_images(query: Query) -> bool:
    return any(hit.image for hit in query.hits)


def _hits(query: Query) -> str:
    answer = () if query.answer is None else (query.answer,)
    kind = "hits" if _has_images(query) else "hits lines"
    items = [_hit(hit, "right" if hit.is_right else "wrong") for hit in query.hits] + [
        _hit(hit, "right answer") for hit in answer
    ]
    return f'<ol class="{kind}">{"".join(items)}</ol>'


def _hit(hit: Hit, kind: str) -> str:
    mark, word = ("✓", "right") if hit.is_right else ("✗", "wrong")
    rank = f"{hit.rank:,.1f}".removesuffix(".0")
    line = f'<span class="mark" role="img" aria-label="{word}">{mark}</span> {rank} <span class="pale">{hit.score:.3f}</span>'
    # The caption beside it says what the image shows.
    image = f'<div class="frame"><img src="{escape(hit.image)}" alt=""></div>' if hit.image else ""
    return f'<li class="{kind}">{image}<div class="rank">{line}</div>{_text(hit.text, tag="div")}</li>'


def _text(text: str, tag: str = "p") -> str:
    """A text from data in its own direction, of bounded length."""
    shown = text if len(text) <= _TEXT else f"{text[:_TEXT]}…"
    return f'<{tag} class="text" dir="auto">{escape(shown)}</{tag}>' if text else ""


def linked(name: str, file: str) -> str:
    """A link to a page beside this one."""
    return f'<p><a href="{escape(file)}">{escape(name.replace("_", " "))} (to explore)</a></p>'


def figure(name: str, png: bytes, link: str | None = None) -> str:
    """A PNG, which leads to a page where there is a link."""
    title = escape(name.replace("_", " "))
    image = f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'
    if link is None:
        return f"<figure>{image}<figcaption>{title}</figcaption></figure>"
    return f"<figure>{image}<figcaption>{linked(name, link)}</figcaption></figure>"


def folded(table: Table, *, is_open: bool = False) -> str:
    """A table that a click unfolds. Rows and columns without a value are left out."""
    header, rows = _with_values(*table[1:])
    name = escape(table[0])
    scroll = f'<div class="scroll" role="region" tabindex="0" aria-label="{name}">{_table(header, rows)}</div>'
    return f"<details{' open' if is_open else ''}><summary>{name} <small>({len(rows)})</small></summary>{scroll}</details>"


def _with_values(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Without rows and columns that have nothing."""
    kept = rows_with_values(rows)
    columns = [n for n in range(len(header)) if any(row[n] not in NO_VALUE for row in kept)]
    return [header[n] for n in columns], [["" if row[n] == "-" else row[n] for n in columns] for row in kept]


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(_td(cell) for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _td(cell: str) -> str:
    return f"<td{' class=long' if len(cell) > 40 else ''}>{_cell(cell)}</td>"


def _cell(cell: str) -> str:
    value, bracket, interval = cell.partition(" [")
    return escape(value) + (f" <small>{escape('[' + interval)}</small>" if bracket else "")
