"""Tables of results as text and Markdown, with untrusted names escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from mmcl.evaluate.reporting.metric import Metric, Provenance, by_column, name_parts, without_repeats
from mmcl.evaluate.reporting.text_table import text_table
from mmcl.terminal import WIDTH, printable, printable_line, wrapped

COVERAGE = (
    "Intervals hold the truth in about 93 to 97 % of test sets; in up to 100 % where fewer than about 3 rows are expected to "
    "differ from the rest, such as misses at an accuracy near 1. Where none holds, none is given. Intervals over runs take "
    "their results as normal."
)
BRACKETS = "In brackets: 95 % confidence intervals over the rows of the test set."
INTERVALS = f"{BRACKETS} {COVERAGE}"

NO_VALUE = frozenset({"", "-"})
"""Cells of a metric that a model does not have."""

NOTHING: Mapping[str, str] = MappingProxyType({})

Table = tuple[str, list[str], list[list[str]]]
"""Title, header and rows."""


def text(tables: Iterable[Table], notes: Iterable[str], *, opening: Iterable[str] = (), width: int = WIDTH) -> str:
    """Paragraphs, tables for a terminal, see `text_table`, and the notes."""
    paragraphs, remarks = ((wrapped(printable_line(line), width) for line in lines) for lines in (opening, notes))
    valued = ((title, header, rows_with_values(rows)) for title, header, rows in tables)
    shown = (text_table(title, header, rows, width) for title, header, rows in valued if rows)
    return "\n\n".join([*paragraphs, *shown, *remarks])


def rows_with_values(rows: Iterable[list[str]]) -> list[list[str]]:
    """Without rows that have nothing between their name and their number of samples."""
    return [row for row in rows if len(row) < 3 or not set(row[1:-1]) <= NO_VALUE]


def markdown(
    title: str,
    tables: Iterable[Table],
    notes: Iterable[str],
    figures: Mapping[str, str],
    links: Mapping[str, str] = NOTHING,
    *,
    opening: Iterable[str] = (),
    commands: Iterable[str] = (),
) -> str:
    """A page of markdown.

    Args:
        figures, links: titles and files beside the page.
        opening: paragraphs before the tables.
        commands: what to run next, at the end.
    """
    parts = [f"# {escaped_markdown(title)}", *map(escaped_markdown, opening)]
    for heading, header, rows in tables:
        parts += [f"## {escaped_markdown(heading)}", markdown_table(header, rows)]
    parts += map(escaped_markdown, notes)
    parts += [f"![{escaped_markdown(name)}]({file})" for name, file in figures.items()]
    parts += [f"[{escaped_markdown(name)}]({file})" for name, file in links.items()]
    lines = [f"    {printable_line(command)}" for command in commands]
    parts += ["## Next", "\n".join(lines)] if lines else []
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, with untrusted names escaped."""
    return "\n".join([_markdown_row(header), _markdown_row(["---"] * len(header)), *map(_markdown_row, rows)])


def metric_tables(metrics: Iterable[Metric]) -> Iterator[Table]:
    """One table for each evaluator and dataset; the last column is the number of rows, "200-445" where models differ in it."""
    metrics = without_repeats(metrics)
    for evaluator, data in dict.fromkeys((metric.evaluator, metric.data) for metric in metrics):
        own = [metric for metric in metrics if (metric.evaluator, metric.data) == (evaluator, data)]
        models = by_column(metric.model for metric in own)
        cells = {(metric.metric, metric.model): format_metric(metric) for metric in own}
        rows_of: dict[str, set[int]] = {}
        for metric in own:
            rows_of.setdefault(metric.metric, set()).add(metric.n)
        counts = {name: "-".join(map(str, sorted({min(ns), max(ns)}))) for name, ns in rows_of.items()}
        table = [[name, *(cells.get((name, model), "") for model in models), n] for name, n in counts.items()]
        yield (f"{evaluator}: {data}" if data else evaluator), ["metric", *models, "n"], table


def format_metric(metric: Metric) -> str:
    """The value and its interval: "0.616 [0.594, 0.638]"."""
    if metric.value is None:
        return "-"
    form = "{:.1f}" if "rank" in name_parts(metric.metric) else "{:.3f}"
    interval = f" [{form.format(metric.low)}, {form.format(metric.high)}]" if metric.low is not None else ""
    return form.format(metric.value) + interval


def provenance_table(entries: Iterable[Provenance]) -> Table:
    """Table of the provenance of the results."""
    header = ["evaluator", "data", "model", "samples", "data identity", "bank identity", "model fingerprint"]
    header += ["dtype", "seed", "versions"]
    rows = [
        [
            *(one.evaluator, one.data, one.model, str(one.n)),
            *((digest or "-")[:12] for digest in (one.data_identity, one.bank_identity, one.model_fingerprint)),
            *(one.dtype, str(one.seed)),
            ", ".join(f"{library} {version}" for library, version in one.versions.items()),
        ]
        for one in entries
    ]
    return "provenance", header, rows


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(escaped_markdown, cells))} |"


def escaped_markdown(text: str) -> str:
    """Escapes untrusted text to one line, so that a name cannot become a link, an image, a tag or another cell."""
    return re.sub(r"[\\`<|]|(?<=\])[(\[]", r"\\\g<0>", printable(" ".join(text.split())))
