"""Paired comparison of two reports: differences with intervals and p-values, and the queries that changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.errors import UserError
from mmcl.evaluate.measures.outcomes import Outcomes
from mmcl.evaluate.measures.paired_tests import SWAPS, paired_test
from mmcl.evaluate.measures.statistics import SEED
from mmcl.evaluate.reporting import page, tables
from mmcl.evaluate.reporting.contrasts import LEVEL, headlines
from mmcl.evaluate.reporting.examples import Changes
from mmcl.evaluate.reporting.metric import Metric, Provenance, lower_is_better, quoted, topic
from mmcl.evaluate.reporting.phrases import wording
from mmcl.evaluate.reporting.report import Report, file_name
from mmcl.evaluate.reporting.verdict import FEW_RESULTS, sentences
from mmcl.files.atomic import write_file
from mmcl.rng import permutation
from mmcl.terminal import WIDTH, counted, printable_line, short_paths

NOTES = (
    "Difference: B - A on the same queries, with its 95 % interval: of 0/1 outcomes Tango's score interval, of medians none, "
    "of AUROC, average precision, precision, recall and F1 by the influence of each query (DeLong). "
    "Intervals and p-values hold for each metric by itself, not for all of them at once.",
    "p: below 0.05 exactly where the interval leaves out 0; of 0/1 outcomes McNemar's test. Without an interval, a sign-flip "
    f"permutation test (median: outcomes swapped) of {SWAPS} draws.",
    tables.COVERAGE,
)
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of one metric between two models on the same queries.

    Attributes:
        evaluator, data, metric: as in `Metric`.
        a, b: the two values.
        difference, low, high: b - a with its 95 % interval; None if it does not exist.
        p: two-sided p-value, see `paired_test`.
        n: number of queries.
        won, lost: names of the queries on which B is better or worse, largest change first, and equal ones at random with a
            fixed seed; row numbers from 0 if the report does not name its rows.

    Example:
        >>> from mmcl import evaluate
        >>> a, b = (evaluate.groups(right, by=[0, 0, 1, 1]) for right in ([1, 0, 1, 0], [1, 1, 1, 0]))
        >>> difference = evaluate.compare(a, b)["accuracy_of_0"]
        >>> difference.a, difference.b, difference.difference, difference.n
        (0.5, 1.0, 0.5, 2)
    """

    evaluator: str
    data: str
    metric: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p: float
    n: int
    won: tuple[str, ...] = field(repr=False)
    lost: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        a, b: names of the two models; sentences shorten long paths to the ends in which they differ.
        differences: one for each metric with per-row outcomes in both reports.
        notes: how to read the numbers, and which metrics could not be compared.
        has_equal_weights: whether the two are the same model; False if a report does not say.
        changes: by dataset, texts on which the two differ, with what A and what B finds for each; see `mmcl compare`.

    Example:
        >>> from mmcl import evaluate
        >>> a, b = (evaluate.groups(right, by=[0, 0, 1, 1]) for right in ([1, 0, 1, 0], [1, 1, 1, 0]))
        >>> [difference.metric for difference in evaluate.compare(a, b).differences]
        ['accuracy_of_0', 'accuracy_of_1']
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = NOTES
    has_equal_weights: bool = False
    changes: Mapping[str, Changes] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> Difference:
        """Returns the difference of a metric by name. Raises KeyError unless exactly one metric has this name."""
        found = [one for one in self.differences if one.metric == metric]
        if len(found) != 1:
            raise KeyError(f"{len(found)} differences have the metric {metric!r}; look in .differences")
        return found[0]

    @property
    def _short(self) -> tuple[str, str]:
        a, b = short_paths((self.a, self.b))
        return a, b

    @property
    def _legend(self) -> list[str]:
        """What A and B are, in a line each."""
        return [] if (self.a, self.b) == ("A", "B") else [f"A  {self.a}", f"B  {self.b}"]

    @property
    def is_equal(self) -> bool:
        """Whether no query has another outcome, in any metric."""
        return not any(one.won or one.lost for one in self.differences)

    def verdict(self) -> tuple[str, ...]:
        """Which of the two is better, by how much, and how many queries changed: plain text, see `verdict`."""
        if self.is_equal:
            return (self._equality(),)
        places = dict.fromkeys((one.evaluator, one.data) for one in self.differences)
        own = {place: headlines(d for d in self.differences if (d.evaluator, d.data) == place) for place in places}
        opening = (self._summary([one for found in own.values() for one in found]),) if len(own) > FEW_RESULTS else ()
        return (*opening, *(sentences(place, self._sentences(found)) for place, found in own.items()))

    def _equality(self) -> str:
        a, b = self._short
        if self.has_equal_weights:
            return f"No difference: {a} and {b} are the same model, with equal weights."
        metrics = counted(len(self.differences), "metric")
        return f"No difference: {a} and {b} have the same outcome for every query, in {metrics}."

    def _summary(self, differences: Sequence[Difference]) -> str:
        """How often each of the two is better."""
        winners = [self._better(one) if one.p < LEVEL else "" for one in differences]
        a, b = self._short
        size = f"{counted(len(differences), 'score')} on {counted(len({one.data for one in differences}), 'dataset')}"
        wins = f"{b} is better in {winners.count(b)}, {a} in {winners.count(a)}"
        return f"{size}: {wins}, and there is no significant difference in {winners.count('')}."

    def _better(self, one: Difference) -> str:
        a, b = self._short
        return b if (one.difference > 0) != lower_is_better(one.metric) else a

    def _sentences(self, found: Sequence[Difference]) -> list[str]:
        """On each metric, who is better, unless the sentence before says it, and the values."""
        sentences, before = [], ""
        for one in found:
            who, values = self._who(one), self._values(one)
            contrast = "but " if before and one.p < LEVEL else ""
            sentences.append(values if who == before else f"{contrast}{who}: {values}")
            before = who
        return sentences

    def _who(self, one: Difference) -> str:
        a, b = self._short
        better = self._better(one)
        return (
            f"{better} is better than {a if better == b else b}"
            if one.p < LEVEL
            else f"no significant difference of {b} from {a}"
        )

    def _values(self, one: Difference) -> str:
        """Both values, the difference with its interval and p-value, and the number of queries that changed."""
        name_a, name_b = self._short
        b, a = (wording(Metric(one.evaluator, one.data, one.metric, "", value, None, None, one.n)) for value in (one.b, one.a))
        interval = "" if one.low is None or one.high is None else f" [{b.bare(one.low)}, {b.bare(one.high)}]"
        test = f"{b.bare(one.difference, sign='+')}{' points' if b.is_share else ''}{interval}, p {_p_value(one.p)}"
        changed = f"{len(one.won):,} of {counted(one.n, b.row)} better, {len(one.lost):,} worse"
        return f"with {name_b} {b.clause}, with {name_a} {a.value} ({test}; {changed})."

    def to_json(self) -> str:
        """Names of the models, the verdict, differences and notes."""
        content: dict[str, Any] = {"a": self.a, "b": self.b, "verdict": self.verdict()}
        content |= {"differences": [asdict(one) for one in self.differences], "notes": self.notes}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_text(self, *, brief: bool = False, width: int = WIDTH) -> str:
        """What A and B are, the verdict, tables for a terminal, and the notes; if the two are equal, neither tables nor notes.

        Args:
            brief: shows only the commonly quoted metrics of evaluators that have many.
            width: columns of the terminal.
        """
        shown = quoted(self.differences) if brief else self.differences
        below = ((), ()) if self.is_equal else (self._tables(shown), [note for note in self.notes if note != tables.COVERAGE])
        legend = "\n".join(map(printable_line, self._legend))  # paths, which are not broken
        return f"{legend}\n\n{tables.text(*below, opening=self.verdict(), width=width)}".lstrip()

    def to_markdown(self) -> str:
        """What A and B are, the verdict, tables and notes, with links to the figures in the same folder."""
        figures = {_title(data): _figure(data) for data in self.changes}
        shown = self._tables(self.differences)
        return tables.markdown("Comparison", shown, self.notes, figures, opening=(*self._legend, *self.verdict()))

    def to_html(self) -> str:
        """A self-contained page: the verdict, what changed, with images, and the tables."""
        parts = [
            page.facts({"A": self.a, "B": self.b}),
            page.paragraphs(self.verdict()),
            page.LEGEND if self.changes else "",
            *(page.changes(_title(data), self._short, pairs) for data, pairs in self.changes.items()),
            "<h2>All numbers</h2>",
            *(page.folded(table, is_open=number == 0) for number, table in enumerate(self._tables(self.differences))),
            page.paragraphs(self.notes),
        ]
        return page.page("Comparison", parts)

    def write(self, directory: str | Path) -> None:
        """Writes comparison.json, comparison.md, comparison.html and the figures."""
        from mmcl.evaluate.reporting.figures import change_figure

        directory = Path(directory)
        for suffix, text in {"md": self.to_markdown(), "json": self.to_json(), "html": self.to_html()}.items():
            write_file(directory / f"comparison.{suffix}", text)
        for data, pairs in self.changes.items():
            write_file(directory / _figure(data), change_figure(_title(data), self._short, pairs))

    def _tables(self, differences: Sequence[Difference]) -> list[tables.Table]:
        """Tables of the differences and of some changed queries, for each evaluator and dataset."""
        found = []
        for evaluator, data in dict.fromkeys((one.evaluator, one.data) for one in differences):
            own = [one for one in differences if (one.evaluator, one.data) == (evaluator, data)]
            title = f"{evaluator}: {data}" if data else evaluator
            found.append((title, ["metric", "B - A", "A", "B", "p", "won", "lost", "n"], [_row(one) for one in own]))
            # Of one metric of its kind: those of R@1 and R@5 are much the same.
            first = {topic(one.metric): one for one in reversed(own)}
            changes = [[one.metric, kind, name] for one in reversed(first.values()) for kind, name in _some_changes(one)]
            if changes:
                found.append((f"{title}: what changed", ["metric", "B is", "query"], changes))
        return found


def _title(data: str) -> str:
    return f"What changed: {data}"


def _figure(data: str) -> str:
    return f"{file_name('what changed', data)}.png"


def compare(
    a: Report, b: Report, *, names: tuple[str, str] = ("A", "B"), models: tuple[str, str] = ("trained", "trained")
) -> Comparison:
    """Compares two reports on the same queries.

    Args:
        a, b: reports with per-row outcomes, from `run` or loaded from a folder written by `Report.write`.
        names: names of the two in the comparison.
        models: the column of each report to compare. To compare a model with its baseline, pass one report and two columns.

    Returns:
        Differences b - a. Metrics that are in only one report or have no per-row outcomes (a calibration error, a correlation)
        are left out with a note; shares of ties are left out because they are not scores.

    Raises:
        UserError: a report has no such model, the reports share no metric with rows, or the queries differ.

    Example:
        >>> from mmcl import evaluate
        >>> rows, ids = np.eye(3), {"image_ids": [0, 1, 2], "text_image_ids": [0, 1, 2]}
        >>> a, b = (evaluate.retrieval(rows, text, **ids) for text in (rows[[0, 1, 0]], rows))
        >>> difference = compare(a, b)["text_to_image_R@1"]
        >>> round(difference.difference, 4), round(difference.p, 4)
        (0.3333, 0.3173)
    """
    columns = list(zip((a, b), models, strict=True))
    ours, theirs = (_of_model(report, model, name) for (report, model), name in zip(columns, names, strict=True))
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise UserError(
            f"{names[0]} and {names[1]} have no metric in common: evaluate both on the same data, under the same label"
        )
    paired = [key for key in shared if ours[key].outcomes is not None and theirs[key].outcomes is not None]
    if not paired:
        raise UserError(
            f"{names[0]} and {names[1]} cannot be paired: at least one has no rows.safetensors beside its metrics.json; "
            "evaluate it again with `mmcl eval`"
        )
    asked_otherwise = [key for key in paired if _asks_otherwise(ours[key].outcomes, theirs[key].outcomes)]
    paired = [key for key in paired if key not in asked_otherwise]
    tested = dict.fromkeys(key[:2] for key in paired)
    are_same = {what: _are_same_data(a, b, *what, names) for what in tested}
    differences = tuple(_difference(ours[key], theirs[key], names, are_same[key[:2]]) for key in paired)
    left = sorted(
        {" ".join(key) for key in ours.keys() ^ theirs.keys()} | {" ".join(key) for key in shared if key not in paired}
    )
    skipped = [f"Not compared, because they are not known for each query of both: {', '.join(left)}."] if left else []
    if asked_otherwise:
        named = ", ".join(" ".join(key) for key in asked_otherwise)
        skipped.append(f"Not compared, because they are of other classes or images in {names[1]} than in {names[0]}: {named}.")
    banks = tuple(note for what in tested for note in _about_banks(a, b, *what, names))
    weights = [{one.model_fingerprint for what in tested for one in _made(report, *what, model)} for report, model in columns]
    has_equal_weights = len(weights[0]) == 1 and weights[0] == weights[1]
    return Comparison(*names, differences, (*NOTES, *banks, *skipped), has_equal_weights=has_equal_weights)


def _asks_otherwise(a: Outcomes | None, b: Outcomes | None) -> bool:
    """Whether two statistics of yes/no questions are of different ones, such as those that have a threshold with each model."""
    return (
        a is not None
        and b is not None
        and a.influence is not None
        and b.influence is not None
        and not np.array_equal(a.labels, b.labels)  # type: ignore[arg-type]
    )


def _of_model(report: Report, model: str, name: str) -> dict[tuple[str, str, str], Metric]:
    own = [metric for metric in report.metrics if metric.model == model]
    if not own:
        known = ", ".join(dict.fromkeys(metric.model for metric in report.metrics)) or "none"
        raise UserError(f"{name}: has no model {model!r}; it has {known}")
    return {(metric.evaluator, metric.data, metric.metric): metric for metric in own if not metric.metric.endswith("_tied")}


def _are_same_data(a: Report, b: Report, evaluator: str, data: str, names: tuple[str, str]) -> bool:
    """True if both reports state the same data; False if one does not state it. Raises UserError if the data differ."""
    found = [{one.data_identity for one in _made(report, evaluator, data)} for report in (a, b)]
    if not all(found):
        return False
    if not found[0] & found[1]:
        made = " and ".join(f"{next(iter(own))[:12]} ({name})" for own, name in zip(found, names, strict=True))
        raise UserError(f"{data}: the two reports were made on different data, {made}; evaluate both on the same data")
    return True


def _about_banks(a: Report, b: Report, evaluator: str, data: str, names: tuple[str, str]) -> list[str]:
    """Note if the two models did not get the same training samples, as in two runs on different data."""
    found = [{one.bank_identity for one in _made(report, evaluator, data)} for report in (a, b)]
    if not all(found) or found[0] & found[1]:
        return []
    return [f"{evaluator}, {data}: {names[0]} and {names[1]} were given different training samples (`bank`)."]


def _made(report: Report, evaluator: str, data: str, model: str | None = None) -> list[Provenance]:
    """How results came about: of all models, or of one."""
    own = [one for one in report.provenance if (one.evaluator, one.data) == (evaluator, data)]
    return [one for one in own if model in (None, one.model)]


def _difference(a: Metric, b: Metric, names: tuple[str, str], are_same_data: bool) -> Difference:
    assert a.outcomes is not None
    assert b.outcomes is not None
    place = ", ".join(filter(None, a.key[:3]))
    # The same data may be stored in another place under other names.
    named = not are_same_data and a.outcomes.names is not None and b.outcomes.names is not None
    if named and tuple(a.outcomes.names or ()) != tuple(b.outcomes.names or ()):
        raise UserError(f"{place}: {names[0]} and {names[1]} have different queries; evaluate both on the same data")
    try:
        estimate, p = paired_test(a.outcomes, b.outcomes)
    except ValueError:
        made = f"{a.n} in {names[0]}, {b.n} in {names[1]}"
        raise UserError(
            f"{place}: the queries or their classes are not the same ({made}); evaluate both on the same data"
        ) from None
    won, lost = _changes(a.outcomes, b.outcomes, lower_is_better=lower_is_better(a.metric))
    assert estimate.value is not None
    assert a.value is not None
    assert b.value is not None
    change = estimate.value, estimate.low, estimate.high
    return Difference(a.evaluator, a.data, a.metric, a.value, b.value, *change, p, a.n, won, lost)


def _changes(a: Outcomes, b: Outcomes, *, lower_is_better: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    gain = (a.values - b.values) if lower_is_better else (b.values - a.values)
    names = [str(row) for row in range(len(a))] if a.names is None else a.names
    # Data are often sorted by kind, and most changes are of one size: the first rows would be all of one kind.
    shuffled = permutation(len(gain), SEED)
    order = shuffled[np.argsort(-np.abs(gain[shuffled]), kind="stable")]
    return tuple(names[row] for row in order if gain[row] > 0), tuple(names[row] for row in order if gain[row] < 0)


def _some_changes(one: Difference) -> list[tuple[str, str]]:
    return [("better", name) for name in one.won[:_SHOWN]] + [("worse", name) for name in one.lost[:_SHOWN]]


def _row(one: Difference) -> list[str]:
    form = "{:.1f}" if one.metric.endswith("rank") else "{:.3f}"
    a, b = form.format(one.a), form.format(one.b)
    signed = form.replace(":", ":+")
    interval = f" [{signed.format(one.low)}, {signed.format(one.high)}]" if one.low is not None else ""
    difference = f"{signed.format(one.difference)}{interval}"
    p = _p_value(one.p).removeprefix("= ").replace(" ", "")
    return [one.metric, difference, a, b, p, str(len(one.won)), str(len(one.lost)), str(one.n)]


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
