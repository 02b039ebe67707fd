"""What an evaluation found: rows that anything can read, and the same as a table with the baselines side by side."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmcl.errors import UserError
from mmcl.evaluate.statistics import Estimate

COLUMNS = ("trained", "before", "untrained", "raw pixels", "PCA-50", "majority", "chance")
"""Order of the well-known models in a table; others come first."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number.

    Attributes:
        evaluator: e.g. "retrieval".
        data: what it was measured on, e.g. "emoji/unseen_style".
        metric: name as in the literature, e.g. "text_to_image_R@1".
        model: "trained", "untrained", "chance", "raw pixels", ...
        value: None where the metric does not exist, such as the top-5 accuracy of three classes.
        low, high: 95 % interval; None for exact numbers.
        n: rows that it was computed from.
    """

    evaluator: str
    data: str
    metric: str
    model: str
    value: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.evaluator, self.data, self.metric, self.model


@dataclass(frozen=True)
class Report:
    """Metrics, and what belongs to them.

    Attributes:
        metrics: no two with the same evaluator, data, metric and model: when reports are added, the later one stays.
        notes: sentences printed below the tables, such as how a solver ended.
        details: JSON values by name that are too large for a table, such as a confusion matrix.
        figures: PNG files by name, without ".png".
    """

    metrics: tuple[Metric, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)

    def __add__(self, other: Report) -> Report:
        metrics = {metric.key: metric for metric in (*self.metrics, *other.metrics)}
        notes = dict.fromkeys((*self.notes, *other.notes))
        details, figures = {**self.details, **other.details}, {**self.figures, **other.figures}
        return Report(tuple(metrics.values()), tuple(notes), details, figures)

    def __getitem__(self, metric: str) -> float | None:
        """The value of a metric whose name is in the report once. Raises KeyError for none, or for several rows."""
        found = [row.value for row in self.metrics if row.metric == metric]
        if len(found) != 1:
            raise KeyError(f"{len(found)} rows have the metric {metric!r}; look in .metrics")
        return found[0]

    def to_json(self) -> str:
        """The metrics: a list of objects with the fields of `Metric`."""
        return _json([asdict(metric) for metric in self.metrics])

    def to_text(self) -> str:
        """The tables for a terminal, and the notes. To fit its width, only the first model keeps its intervals."""
        parts = []
        for title, header, full_rows in self._tables():
            rows = [[*row[:2], *(cell.partition(" [")[0] for cell in row[2:])] for row in full_rows]
            widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
            lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
            parts.append("\n".join([title, *(f"  {line}".rstrip() for line in lines)]))
        return "\n\n".join([*parts, *self.notes])

    def to_markdown(self) -> str:
        parts = ["# Evaluation"]
        for title, header, rows in self._tables():
            lines = [_markdown_row(header), _markdown_row(["---"] * len(header)), *map(_markdown_row, rows)]
            parts += [f"## {title}", "\n".join(lines)]
        parts += ["In brackets: 95 % confidence intervals over the rows of the test set.", *self.notes]
        parts += [f"![{name}]({file_name(name)}.png)" for name in self.figures]
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """One page that needs no other file."""
        parts = [f"<h2>{_escape(title)}</h2>{_html_table(header, rows)}" for title, header, rows in self._tables()]
        parts += ["<p>In brackets: 95 % confidence intervals over the rows of the test set.</p>"]
        parts += [f"<p>{_escape(note)}</p>" for note in self.notes]
        parts += [_html_figure(name, png) for name, png in self.figures.items()]
        return _PAGE.format(body="\n".join(parts))

    def write(self, directory: str | Path) -> None:
        """Writes metrics.json, details.json (notes and details), report.md, report.html and the figures."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, png in self.figures.items():
            (directory / f"{file_name(name)}.png").write_bytes(png)
        texts = {
            "metrics.json": self.to_json(),
            "details.json": _json({"notes": self.notes, "details": self.details, "figures": list(self.figures)}),
            "report.md": self.to_markdown(),
            "report.html": self.to_html(),
        }
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> Report:
        """Reads what `write` wrote. Raises UserError when there is no report, or a file is not what it should be."""
        directory = Path(directory)
        try:
            metrics = tuple(Metric(**row) for row in json.loads((directory / "metrics.json").read_text(encoding="utf-8")))
            more = json.loads((directory / "details.json").read_text(encoding="utf-8"))
            figures = {name: (directory / f"{file_name(name)}.png").read_bytes() for name in more["figures"]}
            return cls(metrics, tuple(more["notes"]), more["details"], figures)
        except FileNotFoundError as error:
            raise UserError(f"{directory}: no report here, {Path(error.filename).name} is missing") from None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{directory}: metrics.json or details.json is damaged ({error}); evaluate again") from None

    def _tables(self) -> Iterable[tuple[str, list[str], list[list[str]]]]:
        """Title, header and rows of one table for each evaluator and data set."""
        for evaluator, data in dict.fromkeys((metric.evaluator, metric.data) for metric in self.metrics):
            own = [metric for metric in self.metrics if (metric.evaluator, metric.data) == (evaluator, data)]
            models = sorted(
                dict.fromkeys(m.model for m in own), key=lambda name: COLUMNS.index(name) if name in COLUMNS else -1
            )
            cells = {(metric.metric, metric.model): _cell(metric) for metric in own}
            names = dict.fromkeys(metric.metric for metric in own)
            rows_of = {metric.metric: str(metric.n) for metric in own}
            table = [[name, *(cells.get((name, model), "") for model in models), rows_of[name]] for name in names]
            yield (f"{evaluator}: {data}" if data else evaluator), ["metric", *models, "n"], table


def metric_rows(evaluator: str, data: str, model: str, estimates: Mapping[str, Estimate]) -> tuple[Metric, ...]:
    """Rows from estimates by metric name."""
    return tuple(Metric(evaluator, data, name, model, *estimate) for name, estimate in estimates.items())


def file_name(*parts: str) -> str:
    """A file name without extension for a figure: "retrieval", "emoji/unseen" -> "retrieval_emoji_unseen"."""
    return re.sub(r"[^\w-]+", "_", "_".join(part for part in parts if part)).strip("_")


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _cell(metric: Metric) -> str:
    if metric.value is None:
        return "-"
    form = "{:.1f}" if metric.metric.endswith("rank") else "{:.3f}"
    interval = f" [{form.format(metric.low)}, {form.format(metric.high)}]" if metric.low is not None else ""
    return form.format(metric.value) + interval


def _markdown_row(cells: Iterable[str]) -> str:
    escaped = (cell.replace("|", r"\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


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
<title>Evaluation</title>
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
</style>
<h1>Evaluation</h1>
{body}
</html>
"""
