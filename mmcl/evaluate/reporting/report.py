"""Evaluation reports: metrics, per-row outcomes, figures and pages, in memory and on disk."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmcl.config import from_dict
from mmcl.errors import UserError
from mmcl.evaluate.measures.outcomes import outcomes_file, read_outcomes
from mmcl.evaluate.reporting import page, tables
from mmcl.evaluate.reporting.examples import Examples
from mmcl.evaluate.reporting.metric import Metric, Provenance, quoted
from mmcl.evaluate.reporting.verdict import verdict
from mmcl.files.atomic import write_file
from mmcl.files.spreadsheet import spreadsheet_cell
from mmcl.files.untrusted import parse_json, read_json
from mmcl.terminal import WIDTH

_METRICS, _DETAILS, _OUTCOMES = "metrics.json", "details.json", "rows.safetensors"
_CHART = "metrics"
_MAX_JSON_BYTES = 2**30


@dataclass(frozen=True)
class Report:
    """Results of an evaluation.

    Attributes:
        metrics: unique by evaluator, data, metric and model; when reports are added, the later metric replaces the earlier.
        notes: sentences printed below the tables, such as how a solver ended.
        details: JSON values by name that are too large for a table, such as a confusion matrix.
        figures: PNG files by name, without ".png".
        pages: HTML files by name, without ".html"; each needs no other file.
        failures: one line for each evaluator that could not run, see `run`.
        provenance: unique by evaluator, data and model.
        next_steps: commands to run next, printed at the end.
        examples: queries with what was found for them; unique by evaluator, data, model and title.
        title: heading of the page.
        about: what the page says below its heading, such as the method and the date.
        heads: what evaluators have learned: name -> content of the file `head_NAME.safetensors`, which `Head.load` reads.
        opening: paragraphs that open the verdict, such as what a fine-tuning gained and lost.

    Example:
        >>> from mmcl import evaluate
        >>> report = evaluate.groups([1, 1, 1, 0], by=["day", "day", "night", "night"])
        >>> report["accuracy_of_night"], len(report.metrics)
        (0.5, 4)
        >>> report.write("report")
        >>> Report.load("report") == report
        True
    """

    metrics: tuple[Metric, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    provenance: tuple[Provenance, ...] = ()
    pages: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()
    examples: tuple[Examples, ...] = ()
    title: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    opening: tuple[str, ...] = ()
    heads: Mapping[str, bytes] = field(default_factory=dict)

    def __add__(self, other: Report) -> Report:
        metrics = {metric.key: metric for metric in (*self.metrics, *other.metrics)}
        notes = dict.fromkeys((*self.notes, *other.notes))
        details, figures = {**self.details, **other.details}, {**self.figures, **other.figures}
        provenance = {(one.evaluator, one.data, one.model): one for one in (*self.provenance, *other.provenance)}
        pages = {**self.pages, **other.pages}
        failures = tuple(dict.fromkeys((*self.failures, *other.failures)))
        examples = {(one.evaluator, one.data, one.model, one.title): one for one in (*self.examples, *other.examples)}
        title, about = other.title or self.title, {**self.about, **other.about}
        return Report(
            tuple(metrics.values()),
            tuple(notes),
            details,
            figures,
            tuple(provenance.values()),
            pages,
            failures,
            other.next_steps or self.next_steps,
            tuple(examples.values()),
            title,
            about,
            tuple(dict.fromkeys((*self.opening, *other.opening))),
            {**self.heads, **other.heads},
        )

    def __getitem__(self, metric: str) -> float | None:
        """Returns the value of a metric by name. Raises KeyError unless the report has exactly one metric of this name."""
        found = [row.value for row in self.metrics if row.metric == metric]
        if len(found) != 1:
            raise KeyError(f"{len(found)} rows have the metric {metric!r}; look in .metrics")
        return found[0]

    def with_names(self, names: Callable[[str], Sequence[str] | None]) -> Report:
        """Returns a copy with names for the rows of its metrics.

        Args:
            names: maps a metric's name to the names of its rows, which are used if their number matches.
        """

        def named(metric: Metric) -> Metric:
            if metric.outcomes is None or (found := names(metric.metric)) is None or len(found) != len(metric.outcomes):
                return metric
            return replace(metric, outcomes=replace(metric.outcomes, names=found))

        return replace(self, metrics=tuple(map(named, self.metrics)))

    def verdict(self) -> tuple[str, ...]:
        """What the metrics say, in sentences: plain text, a paragraph for each evaluator and dataset, see `verdict`.

        The paragraphs of `opening` come first.
        """
        return (*self.opening, *verdict(self.metrics))

    def to_json(self) -> str:
        """Metrics as a list of objects with all fields of `Metric` except `outcomes`."""
        return _json([metric.to_dict() for metric in self.metrics])

    def to_csv(self) -> str:
        """Metrics as a table for spreadsheets. A missing number is an empty cell; text that looks like a formula is escaped."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [name for name in Metric.__slots__ if name != "outcomes"])
        writer.writeheader()
        writer.writerows({key: spreadsheet_cell(value) for key, value in one.to_dict().items()} for one in self.metrics)
        return text.getvalue()

    def to_text(self, *, brief: bool = False, width: int = WIDTH) -> str:
        """The verdict, tables for a terminal, and the notes; no line is wider than `width`, see `text_table`.

        Args:
            brief: shows only the commonly quoted metrics of evaluators that have many.
            width: columns of the terminal.
        """
        shown = tables.metric_tables(quoted(self.metrics) if brief else self.metrics)
        brackets = [tables.BRACKETS] if any(metric.low is not None for metric in self.metrics) else []
        return tables.text(shown, [*brackets, *self._remarks()], opening=self.verdict(), width=width)

    def to_markdown(self) -> str:
        """The verdict, tables and notes, links to the figures and pages in the same folder, and what to run next."""
        names = (*([_CHART] if self.metrics else []), *self._examples_by_figure(), *self.figures)
        return tables.markdown(
            self._title(),
            tables.metric_tables(self.metrics),
            (tables.INTERVALS, *self._remarks()),
            {name: f"{file_name(name)}.png" for name in names},
            {f"{name} (to explore)": f"{file_name(name)}.html" for name in self.pages},
            opening=self.verdict(),
            commands=self.next_steps,
        )

    def to_html(self) -> str:
        """A self-contained page: what was found in words, scores, examples, figures and tables; with links to `pages`."""
        maps, others = ([name for name in self.figures if (name in self.pages) == is_map] for is_map in (True, False))
        links = {name: f"{file_name(name)}.html" for name in self.pages}
        parts = [
            page.facts(self.about),
            page.paragraphs(self.verdict()),
            page.paragraphs((f"NOT EVALUATED: {line}" for line in self.failures), flagged=True),
            page.scores(self.metrics),
            page.examples(self.examples),
            *(["<h2>Map of the embeddings</h2>"] if maps else []),
            *(page.figure(name, self.figures[name], links[name]) for name in maps),
            *(page.linked(name, file) for name, file in links.items() if name not in self.figures),
            *(["<h2>Figures</h2>"] if others else []),
            *(page.figure(name, self.figures[name]) for name in others),
            "<h2>All numbers</h2>",
            *(page.folded(table) for table in tables.metric_tables(self.metrics)),
            page.folded(tables.provenance_table(self.provenance)) if self.provenance else "",
            page.paragraphs((tables.INTERVALS, *self.notes)),
        ]
        return page.page(self._title(), parts)

    def _title(self) -> str:
        return self.title or "Evaluation"

    def _remarks(self) -> tuple[str, ...]:
        return (*self.notes, *(f"NOT EVALUATED: {line}" for line in self.failures))

    def plot(self) -> bytes:
        """PNG chart of at most four scores, those that are quoted first, with intervals and baselines."""
        from mmcl.evaluate.reporting.figures import score_chart

        return score_chart(self.metrics)

    def draw_examples(self) -> dict[str, bytes]:
        """Figures of the examples, PNG files by name: one for each evaluator, dataset and model."""
        from mmcl.evaluate.reporting.figures import example_figure

        return {name: example_figure(own) for name, own in self._examples_by_figure().items()}

    def _examples_by_figure(self) -> dict[str, list[Examples]]:
        found: dict[str, list[Examples]] = {}
        for one in self.examples:
            found.setdefault(file_name(one.evaluator, one.data, one.model), []).append(one)
        return found

    def write(self, directory: str | Path) -> None:
        """Writes the files of `save`, report.html, report.md, metrics.csv, a chart of scores and figures of the examples."""
        drawn = {**({_CHART: self.plot()} if self.metrics else {}), **self.draw_examples()}
        texts = {"report.md": self.to_markdown(), "report.html": self.to_html(), "metrics.csv": self.to_csv()}
        files = {name: text.encode() for name, text in texts.items()}
        self._put(Path(directory), files | {f"{name}.png": png for name, png in drawn.items()})

    def save(self, directory: str | Path) -> None:
        """Writes the files that `load` reads: metrics.json, rows.safetensors, figures, pages, details.json (notes, provenance).

        Every file is written atomically, details.json last. It holds the digests of the others, so that a mixture of two
        reports, left by an interruption or by copying only some files, is detected.
        """
        self._put(Path(directory), {})

    def _put(self, directory: Path, for_readers: Mapping[str, bytes]) -> None:
        files = {
            _METRICS: self.to_json().encode(),
            _OUTCOMES: outcomes_file({metric.key: metric.outcomes for metric in self.metrics if metric.outcomes is not None}),
            **{f"{file_name(name)}.png": png for name, png in self.figures.items()},
            **{f"{file_name(name)}.html": page.encode() for name, page in self.pages.items()},
            **{head_file(name): content for name, content in self.heads.items()},
        }
        more = {
            "verdict": self.verdict(),
            "notes": self.notes,
            "failures": self.failures,
            "details": self.details,
            "figures": list(self.figures),
            "pages": list(self.pages),
            "heads": list(self.heads),
            "provenance": [asdict(one) for one in self.provenance],
            "next_steps": self.next_steps,
            "examples": [asdict(one) for one in self.examples],
            "title": self.title,
            "about": self.about,
            "opening": self.opening,
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
        for name, content in {**for_readers, **files, _DETAILS: _json(more).encode()}.items():
            write_file(directory / name, content)

    @classmethod
    def load(cls, directory: str | Path) -> Report:
        """Loads a report written by `save` or `write`.

        Raises:
            UserError: there is no report, a file is damaged, or a file belongs to another report.
        """
        directory = Path(directory)
        if not (directory / _DETAILS).is_file():
            raise UserError(f"{directory}: no report here, {_DETAILS} is missing")
        try:
            content = read_json(directory / _DETAILS, max_bytes=_MAX_JSON_BYTES)
            if "sha256" not in content:
                raise UserError(f"{directory}: an earlier version of mmcl wrote this report; evaluate again")
            more = from_dict(_Details, content, _DETAILS)
            read = _Tied(directory, more.sha256)
            metrics = [from_dict(Metric, row, _METRICS) for row in parse_json(read(_METRICS), _METRICS)]
            if any((metric.low is None) != (metric.high is None) for metric in metrics):
                raise UserError(f"{_METRICS}: an interval has one end")
            if (directory / _OUTCOMES).exists():  # without rows, reports cannot be compared, but remain valid
                read(_OUTCOMES)
            figures = {name: read(f"{file_name(name)}.png") for name in more.figures}
            pages = {name: read(f"{file_name(name)}.html").decode() for name in more.pages}
            heads = {name: read(head_file(name)) for name in more.heads}
        except FileNotFoundError as error:
            raise UserError(f"{directory}: no report here, {Path(error.filename).name} is missing") from None
        except UserError as error:
            raise (
                error if str(error).startswith(str(directory)) else UserError(f"{directory}: {error}; evaluate again")
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
            raise UserError(f"{directory}: metrics.json or details.json is damaged ({error}); evaluate again") from None
        outcomes = read_outcomes(directory / _OUTCOMES)
        metrics = [metric if metric.value is None else replace(metric, outcomes=outcomes.get(metric.key)) for metric in metrics]
        return cls(
            tuple(metrics),
            more.notes,
            more.details,
            figures,
            more.provenance,
            pages,
            more.failures,
            more.next_steps,
            more.examples,
            more.title,
            more.about,
            more.opening,
            heads,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Details:
    """The schema of details.json, see `Report`."""

    notes: tuple[str, ...]
    failures: tuple[str, ...]
    details: dict[str, Any]
    figures: tuple[str, ...]
    pages: tuple[str, ...]
    provenance: tuple[Provenance, ...]
    examples: tuple[Examples, ...] = ()
    title: str = ""
    about: dict[str, str] = field(default_factory=dict)
    opening: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    sha256: dict[str, str]
    verdict: tuple[str, ...] = ()
    """For readers; a report has it of its metrics."""
    next_steps: tuple[str, ...] = ()


class _Tied:
    """Reads files of a folder and verifies their digests."""

    def __init__(self, directory: Path, sha256: Mapping[str, str]):
        self.directory, self.sha256 = directory, sha256

    def __call__(self, name: str) -> bytes:
        """Reads a file. Raises UserError if its digest differs from that of the file that was written."""
        content = (self.directory / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256.get(name):
            raise UserError(
                f"{self.directory}: {name} is not of the same report as {_DETAILS}: writing it was interrupted, or one of the "
                "files was replaced; evaluate again"
            )
        return content


def file_name(*parts: str) -> str:
    """A file name without extension for a figure: "retrieval", "emoji/unseen" -> "retrieval_emoji_unseen"."""
    return re.sub(r"[^\w-]+", "_", "_".join(part for part in parts if part)).strip("_")


def head_file(name: str) -> str:
    """The file of a head in the folder of a report."""
    return f"head_{file_name(name)}.safetensors"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
