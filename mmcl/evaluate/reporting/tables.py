"""Tables of results as text, Markdown and HTML, with untrusted names escaped."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Iterator, Mapping
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

NOTHING: Mapping[str, str] = MappingProxyType({})

Table = tuple[str, list[str], list[list[str]]]
"""Title, header and rows."""


def text(tables: Iterable[Table], notes: Iterable[str], *, opening: Iterable[str] = (), width: int = WIDTH) -> str:
    """Paragraphs, tables for a terminal, see `text_table`, and the notes."""
    paragraphs, remarks = ((wrapped(printable_line(line), width) for line in lines) for lines in (opening, notes))
    return "\n\n".join([*paragraphs, *(text_table(*table, width) for table in tables), *remarks])


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
    parts = [f"# {title}", *map(_markdown, opening)]
    for heading, header, rows in tables:
        lines = [_markdown_row(header), _markdown_row(["---"] * len(header)), *map(_markdown_row, rows)]
        parts += [f"## {_markdown(heading)}", "\n".join(lines)]
    parts += map(_markdown, notes)
    parts += [f"![{_markdown(name)}]({file})" for name, file in figures.items()]
    parts += [f"[{_markdown(name)}]({file})" for name, file in links.items()]
    lines = [f"    {printable_line(command)}" for command in commands]
    parts += ["## Next", "\n".join(lines)] if lines else []
    return "\n\n".join(parts) + "\n"


def page(
    title: str,
    tables: Iterable[Table],
    notes: Iterable[str],
    figures: Mapping[str, bytes],
    foot: Table | None = None,
    links: Mapping[str, str] = NOTHING,
) -> str:
    """A self-contained HTML page.

    Args:
        figures: PNG by name.
        foot: a table in small print, at the end.
        links: titles and files beside the page.
    """
    parts = [f"<h2>{_escape(heading)}</h2>{_html_table(header, rows)}" for heading, header, rows in tables]
    parts += [f"<p>{_escape(note)}</p>" for note in notes]
    parts += [_html_figure(name, png) for name, png in figures.items()]
    parts += [f'<p><a href="{_escape(file)}">{_escape(name.replace("_", " "))}</a></p>' for name, file in links.items()]
    if foot:
        parts += [f"<footer>{_html_table(*foot[1:])}</footer>"]
    return _PAGE.format(title=_escape(title), body="\n".join(parts))


def metric_tables(metrics: Iterable[Metric]) -> Iterator[Table]:
    """One table for each evaluator and dataset."""
    metrics = without_repeats(metrics)
    for evaluator, data in dict.fromkeys((metric.evaluator, metric.data) for metric in metrics):
        own = [metric for metric in metrics if (metric.evaluator, metric.data) == (evaluator, data)]
        models = by_column(metric.model for metric in own)
        cells = {(metric.metric, metric.model): format_metric(metric) for metric in own}
        rows_of = {metric.metric: str(metric.n) for metric in own}
        table = [[name, *(cells.get((name, model), "") for model in models), n] for name, n in rows_of.items()]
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
    return f"| {' | '.join(map(_markdown, cells))} |"


def _markdown(text: str) -> str:
    """Escapes untrusted text to one line, so that a name cannot become a link, an image, a tag or another cell."""
    return re.sub(r"[\\`<|]|(?<=\])[(\[]", r"\\\g<0>", printable(" ".join(text.split())))


def _escape(text: str) -> str:
    return html.escape(printable(text), quote=True)


def _html_table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{_escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_html_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_cell(cell: str) -> str:
    value, bracket, interval = cell.partition(" [")
    return _escape(value) + (f" <small>{_escape('[' + interval)}</small>" if bracket else "")


def _html_figure(name: str, png: bytes) -> str:
    encoded = base64.b64encode(png).decode("ascii")
    title = _escape(name.replace("_", " "))
    return f'<figure><img alt="{title}" src="data:image/png;base64,{encoded}"><figcaption>{title}</figcaption></figure>'


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 62rem; margin: 2.5rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.7rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .9rem; text-align: right; border-bottom: 1px solid #e4e7eb; white-space: nowrap; }}
th {{ border-bottom: 2px solid #9aa5b1; }}
th:first-child, td:first-child {{ text-align: left; }}
td:nth-child(2) {{ font-weight: 600; background: #f0f6ff; }}
small {{ color: #7b8794; font-weight: 400; }}
figure {{ margin: 2rem 0; }} img {{ max-width: 100%; }} figcaption {{ color: #7b8794; }}
footer {{ margin-top: 3rem; font-size: .75rem; color: #7b8794; overflow-x: auto; }}
footer td:nth-child(2) {{ font-weight: 400; background: none; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""
