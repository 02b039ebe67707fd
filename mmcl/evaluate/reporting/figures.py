"""Figures of results, as PNG bytes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmcl.drawing import (
    INK,
    PALE,
    PALETTE,
    RIGHT,
    WRONG,
    new_figure,
    new_sheet,
    png_bytes,
    show_image,
    text_style,
    write_text,
)
from mmcl.evaluate.reporting.examples import Changes, Examples, Hit, Query
from mmcl.evaluate.reporting.metric import Metric, headline, label
from mmcl.evaluate.reporting.thumbnails import from_data_uri
from mmcl.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _MARGIN, _HEADING, _ROW, _COLUMN = 9.6, 0.25, 0.6, 1.5, 1.25
"""Of figures of examples, in inches."""
_IMAGE = (1.15, 1.05)
"""Width and height of the place of an image in them."""


def example_figure(found: Sequence[Examples]) -> bytes:
    """Draws queries with their hits: images below each other, texts in two columns.

    Right hits are in a solid green frame or have a check mark, wrong ones are in a dashed red frame or have a cross.
    """
    rows = [-(-len(one.queries) // _columns(one)) for one in found]
    figure = new_figure(_WIDTH, sum(_HEADING + _ROW * count for count in rows) + _MARGIN)
    sheet = new_sheet(figure)
    if found:
        key = "green, solid: right    red, dashed: wrong    below: rank and score"
        write_text(sheet, _WIDTH - _MARGIN, 0.55 * _HEADING, key, width=99, color=PALE, fontsize=8, ha="right")
    top = 0.0
    for one, count in zip(found, rows, strict=True):
        heading = f"{one.title[:1].upper()}{one.title[1:]}: {', '.join(filter(None, (one.data, one.model)))}"
        write_text(sheet, _MARGIN, top + 0.55 * _HEADING, heading, width=60, lines=1, fontsize=13)
        width = (_WIDTH - 2 * _MARGIN) / _columns(one)
        for number, query in enumerate(one.queries):
            row, column = divmod(number, _columns(one))
            _draw_query(sheet, query, _MARGIN + column * width, top + _HEADING + row * _ROW)
        top += _HEADING + count * _ROW
    return png_bytes(figure)


def change_figure(title: str, names: tuple[str, str], pairs: Changes) -> bytes:
    """Draws queries with the hits of two models, whose names are above them."""
    first = 1.75
    second = first + 3 * _COLUMN + 0.15
    figure = new_figure(_WIDTH, 1.0 + _ROW * len(pairs) + _MARGIN, title)
    sheet = new_sheet(figure)
    for letter, left, name in zip("AB", (first, second), names, strict=True):
        write_text(sheet, left, 0.8, f"{letter}: {name}", width=40, lines=1, fontsize=11)
    for row, pair in enumerate(pairs):
        top = 1.0 + row * _ROW
        _draw_asked(sheet, pair[0], _MARGIN, top)
        for left, query in zip((first, second), pair, strict=True):
            for column, hit in enumerate(query.hits[:3]):
                _draw_image(sheet, hit, left + column * _COLUMN, top)
    return png_bytes(figure)


def _columns(one: Examples) -> int:
    return 1 if any(hit.image for query in one.queries for hit in query.hits) else 2


def _draw_query(sheet: Axes, query: Query, left: float, top: float) -> None:
    _draw_asked(sheet, query, left, top)
    if any(hit.image for hit in query.hits):
        for column, hit in enumerate(query.hits):
            _draw_image(sheet, hit, left + 1.5 + column * _COLUMN, top)
        if query.answer:
            _draw_image(sheet, query.answer, left + 1.5 + 5 * _COLUMN + 0.1, top)
        return
    left += 1.35
    answer = () if query.answer is None else (query.answer,)
    for line, hit in enumerate((*query.hits, *answer)):
        mark, color = ("\u2713", RIGHT) if hit.is_right else ("\u2717", WRONG)
        y = top + 0.09 + 0.24 * line
        write_text(sheet, left, y, mark, color=color, fontsize=9.5)
        write_text(sheet, left + 0.19, y, f"{_rank(hit)}  {hit.score:.2f}", color=PALE, fontsize=8.5)
        write_text(sheet, left + 1.0, y, hit.text, width=27, lines=1, fontsize=9.5)


def _draw_asked(sheet: Axes, query: Query, left: float, top: float) -> None:
    """The query, and why it is shown."""
    if query.image:
        show_image(sheet, from_data_uri(query.image), PALE, (left, top, *_IMAGE))
        _write_below(sheet, left, top, 0, query.text, width=20, fontsize=7.5)
        _write_below(sheet, left, top, 1, query.group, color=PALE, fontsize=7.5)
        return
    write_text(sheet, left, top + 0.46, query.text, width=16, fontsize=10, weight="bold")
    write_text(sheet, left, top + 1.02, query.group, color=PALE, fontsize=8)


def _draw_image(sheet: Axes, hit: Hit, left: float, top: float) -> None:
    if hit.image:
        color = RIGHT if hit.is_right else WRONG
        show_image(sheet, from_data_uri(hit.image), color, (left, top, *_IMAGE), dashed=not hit.is_right)
    _write_below(sheet, left, top, 0, f"{_rank(hit)}   {hit.score:.2f}", color=PALE, fontsize=8)
    _write_below(sheet, left, top, 1, hit.text, width=22, fontsize=7.5)


def _write_below(sheet: Axes, left: float, top: float, line: int, text: str, **style: Any) -> None:
    """Writes one of two lines below the image of a place."""
    write_text(sheet, left + _IMAGE[0] / 2, top + 1.19 + 0.17 * line, text, lines=1, ha="center", **style)


def _rank(hit: Hit) -> str:
    return f"{hit.rank:,.1f}".removesuffix(".0")


def score_chart(metrics: Sequence[Metric]) -> bytes:
    """At most four scores, those that are quoted first, with the values of all models and their intervals."""
    shown = headline(metrics)
    if not shown:
        figure = new_figure(9, 1.0)
        write_text(new_sheet(figure), 0.3, 0.5, "This report has no score between 0 and 1.", fontsize=10)
        return png_bytes(figure)
    lines = [len(own) for own in shown]
    figure = new_figure(9, 0.8 + 0.75 * len(lines) + 0.3 * sum(lines), "Scores, with 95 % intervals")
    height = figure.get_figheight()
    margins = {
        "left": 0.2,
        "right": 0.76,
        "bottom": 0.35 / height,
        "top": 1 - 0.95 / height,
        "hspace": 1.0 * len(lines) / sum(lines) + 0.35,
    }
    grid = figure.subplots(len(lines), 1, squeeze=False, height_ratios=lines, gridspec_kw=margins)[:, 0]
    for axes, own in zip(grid, shown, strict=True):
        _draw_score(axes, own)
    return png_bytes(figure)


def _draw_score(axes: Axes, metrics: Sequence[Metric]) -> None:
    for y, metric in enumerate(metrics):
        assert metric.value is not None
        axes.barh(y, metric.value, height=0.66, color="#2f6fb3" if y == 0 else "#a3afbb")
        interval = ""
        if metric.low is not None and metric.high is not None:
            error = [[max(metric.value - metric.low, 0.0)], [max(metric.high - metric.value, 0.0)]]
            axes.errorbar(metric.value, y, xerr=error, color=INK, capsize=3, lw=1.2)
            interval = f"  [{metric.low:.3f}, {metric.high:.3f}]"
        axes.text(
            1.02, y, f"{metric.value:.3f}{interval}", transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=INK
        )
    names = [textwrap.shorten(printable(metric.model), 26, placeholder=" \u2026") for metric in metrics]
    axes.set_yticks(range(len(names)), names, fontsize=9, **text_style())
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(min(0.0, axes.get_xlim()[0]), max(1.0, axes.get_xlim()[1])))
    where = ", ".join(filter(None, (metrics[0].evaluator, metrics[0].data)))
    axes.set_title(printable(f"{label(metrics[0].metric)}   ({where})"), loc="left", fontsize=10, color=INK, **text_style())
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#e4e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def loss_curve(
    rows: Sequence[Mapping[str, Any]], *, keys: Sequence[str] = ("loss", "logit_scale", "lr"), title: str = ""
) -> bytes:
    """Draws the logged values of a run, with one panel per key in `keys` that occurs.

    Args:
        rows: lines of metrics.jsonl, such as {"step": 10, "loss": 4.1, "lr": 1e-3}; a panel skips rows without its key, or
            with null.
    """
    shown = [key for key in keys if any(row.get(key) is not None for row in rows)]
    figure = new_figure(9, 2.1 * max(1, len(shown)) + 0.7, title)
    grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False) if shown else np.empty((0, 1))
    for number, (key, axes) in enumerate(zip(shown, grid[:, 0], strict=True)):
        own = [row for row in rows if row.get(key) is not None]
        marker = "o" if len(own) == 1 else None
        axes.plot([row["step"] for row in own], [row[key] for row in own], color=PALETTE[number], lw=1.8, marker=marker)
        axes.set_ylabel(key.replace("_", " "))
        axes.grid(color="#e4e7eb", lw=0.8)
        axes.ticklabel_format(useOffset=False)
        axes.spines[["top", "right"]].set_visible(False)
    if shown:
        grid[-1, 0].set_xlabel("step")
        grid[-1, 0].xaxis.get_major_locator().set_params(integer=True)
        figure.align_ylabels()
    return png_bytes(figure)


def scatter(
    points: np.ndarray,
    labels: np.ndarray | None,
    names: Sequence[str] | None,
    images: Sequence[Image.Image] | None = None,
    *,
    title: str = "",
) -> bytes:
    """Draws points, float [N, 2], colored by class; the most common classes have their own colors, all others are gray.

    Args:
        labels: int64 [N], or None for a single color.
        names: names of the classes; None shows their numbers.
        images: N images to draw in place of the points.
    """
    figure = new_figure(9, 6.6, title)
    axes = figure.add_axes((0.03, 0.03, 0.94 if labels is None else 0.68, 0.88))
    for name, color, member in point_groups(labels, names, len(points)):
        axes.scatter(points[member, 0], points[member, 1], s=14, c=color, alpha=0.8, linewidths=0, label=name)
    for point, image in zip(points, images or (), strict=False):
        _draw_at(axes, point, image, side=min(64.0, 250 / len(points) ** 0.5))
    axes.set(xticks=[], yticks=[])
    axes.margins(0.05)
    axes.spines[:].set_color("#e4e7eb")
    if labels is not None:
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, markerscale=2, fontsize=9)
        for text in legend.get_texts():
            text.set(**text_style())
    return png_bytes(figure)


def _draw_at(axes: Axes, point: np.ndarray, image: Image.Image, side: float) -> None:
    """Draws an image at a point, with a side in typographic points."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    content = OffsetImage(np.asarray(image), zoom=side / image.width)
    axes.add_artist(AnnotationBbox(content, tuple(point), pad=0.05, bboxprops={"edgecolor": PALETTE[0], "lw": 0.8}))


def point_groups(labels: np.ndarray | None, names: Sequence[str] | None, count: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Name, color and members, bool [N], of each class, and at last of all classes for which no color is left."""
    if labels is None:
        yield "", PALETTE[0], np.full(count, True)
        return
    present, counts = np.unique(labels, return_counts=True)
    colored = np.sort(present[np.argsort(-counts, kind="stable")][: len(PALETTE)])
    rest = ~np.isin(labels, colored)
    if rest.any():
        yield "other classes", "#d5dae0", rest
    for own, color in zip(colored, PALETTE, strict=False):
        name = names[own] if names is not None else str(own)
        yield textwrap.shorten(printable(name), 32, placeholder=" \u2026"), color, labels == own


def merge_curve(shares: Sequence[float], scores: Sequence[Sequence[Metric]], chosen: float) -> bytes:
    """Scores of means of two models, over the share of the second, with 95 % intervals.

    Args:
        shares: of the second model.
        scores: for each score its values, as many as shares.
        chosen: share of the chosen mean, which a line marks.
    """
    figure = new_figure(9, 4.5, "Between two models")
    axes = figure.add_axes((0.08, 0.13, 0.56, 0.7))
    order = np.argsort(np.asarray(shares))
    x = np.asarray(shares, float)[order]
    for number, own in enumerate(scores):
        color = PALETTE[number % len(PALETTE)]
        values = np.array([np.nan if one.value is None else one.value for one in own])[order]
        low, high = (np.array([np.nan if end is None else end for end in ends])[order] for ends in _intervals(own))
        axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
        name = printable(f"{label(own[0].metric)}\n{own[0].evaluator}, {own[0].data}")
        axes.plot(x, values, "o-", color=color, lw=1.6, ms=4, label=name)
    axes.axvline(chosen, color=INK, lw=1, ls=":")
    axes.set_xlabel(f"share of the second model (chosen: {chosen:g})", fontsize=9, color=INK)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e4e7eb", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=8, labelspacing=1.2)
    return png_bytes(figure)


def _intervals(metrics: Sequence[Metric]) -> tuple[list[float | None], list[float | None]]:
    return [one.low for one in metrics], [one.high for one in metrics]
