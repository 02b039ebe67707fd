"""Figures of results, as PNG bytes. Only matplotlib's objects are used, never pyplot, which keeps global state."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmcl.evaluate.reporting.metric import Metric, by_column, lower_is_better, name_parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG, INK, PALE = "#1a9850", "#d73027", "#1f2933", "#9aa5b1"
PALETTE = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#999933", "#882255",
    "#332288", "#dd77cc", "#117733", "#88ccee", "#cc6677", "#777777", "#bbcc33", "#6699cc", "#994455",
)  # fmt: skip
"""Nineteen colours that most colour-blind readers can distinguish; all further classes are grey."""

_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Arial Unicode MS",
)

Hits = Sequence[tuple[Any, bool]]


def retrieval_examples(
    texts: Sequence[tuple[str, Hits]], images: Sequence[tuple[Image.Image, Hits]], *, title: str = ""
) -> bytes:
    """Draws texts with their retrieved images, and images with their retrieved texts; correct hits green, wrong ones red.

    Args:
        texts: queries, each with its hits, best first: (PIL image, whether it is correct).
        images: queries, each with its hits, best first: (text, whether it is correct).
    """
    rows = len(texts) + len(images)
    figure = new_figure(9, 1.35 * rows + 0.8, title)
    grid = figure.add_gridspec(rows, 6, left=0.03, right=0.98, bottom=0.02, top=1 - 0.65 / (1.35 * rows + 0.8), hspace=0.25)
    for row, (text, hits) in enumerate(texts):
        _write(_empty(figure.add_subplot(grid[row, 0])), 0.5, 0.5, text, width=16, ha="center", fontsize=11, weight="bold")
        for column, (image, right) in enumerate(hits[:5], 1):
            _show(figure.add_subplot(grid[row, column]), image, RIGHT if right else WRONG)
    for row, (image, hits) in enumerate(images, len(texts)):
        _show(figure.add_subplot(grid[row, 0]), image, PALE)
        axes = _empty(figure.add_subplot(grid[row, 1:]))
        for line, (text, right) in enumerate(hits[:5]):
            mark, colour = ("\u2713", RIGHT) if right else ("\u2717", WRONG)
            shown = textwrap.shorten(text, 70, placeholder=" \u2026")
            _write(axes, 0.03, 0.9 - 0.2 * line, f"{mark}  {shown}", color=colour, fontsize=10.5)
    return png_bytes(figure)


def retrieval_changes(rows: Sequence[tuple[str, Hits, Hits]], *, names: tuple[str, str], title: str = "") -> bytes:
    """Draws texts with the images retrieved by two models; correct hits green, wrong ones red.

    Args:
        rows: texts, each with up to three hits of either model: (PIL image, whether it is correct).
        names: names of the models, drawn above their columns.
    """
    height = 1.35 * len(rows) + 1.2
    figure = new_figure(9, height, title)
    grid = figure.add_gridspec(len(rows), 8, left=0.03, right=0.98, bottom=0.02, top=1 - 1.05 / height, hspace=0.2)
    for column, name in zip((1, 5), names, strict=True):
        place = grid[0, column].get_position(figure)
        figure.text(place.x0, 1 - 0.8 / height, name, color=INK, fontsize=11, parse_math=False, fontfamily=font_families())
    for row, (text, *found) in enumerate(rows):
        _write(_empty(figure.add_subplot(grid[row, 0])), 0.5, 0.5, text, width=14, ha="center", fontsize=10, weight="bold")
        for first, hits in zip((1, 5), found, strict=True):
            for column, (image, right) in enumerate(hits[:3], first):
                _show(figure.add_subplot(grid[row, column]), image, RIGHT if right else WRONG)
    return png_bytes(figure)


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
        axes.spines[["top", "right"]].set_visible(False)
    if shown:
        grid[-1, 0].set_xlabel("step")
        figure.align_ylabels()
    return png_bytes(figure)


def metric_chart(metrics: Sequence[Metric]) -> bytes:
    """Draws values with their intervals on one axis, with one panel per evaluator and dataset and one line per metric.

    Only scores are shown: no metrics for which lower is better, no ranks, no shares of ties, and no metrics without a value.
    """
    scores = [m for m in metrics if not lower_is_better(m.metric) and not name_parts(m.metric) & {"rank", "tied"}]
    shown = [metric for metric in scores if metric.value is not None]
    models = by_column(metric.model for metric in shown)
    panels: dict[tuple[str, str], list[Metric]] = {}
    for metric in shown:
        panels.setdefault((metric.evaluator, metric.data), []).append(metric)
    lines = [len({metric.metric for metric in own}) for own in panels.values()]
    figure = new_figure(9, 1.1 + 0.9 * max(1, len(lines)) + 0.36 * sum(lines), "Metrics, with 95 % intervals")
    height, gap = figure.get_figheight(), 1.5 * len(lines) / max(1, sum(lines))
    margins = {"left": 0.3, "right": 0.8, "bottom": 0.5 / height, "top": 1 - 0.95 / height, "hspace": gap}
    grid = figure.subplots(max(1, len(lines)), 1, sharex=True, squeeze=False, height_ratios=lines or [1], gridspec_kw=margins)
    for axes, (title, own) in zip(grid[:, 0], panels.items(), strict=False):
        _metric_panel(axes, own, models)
        axes.set_title(": ".join(filter(None, title)), loc="left", fontsize=10, parse_math=False, fontfamily=font_families())
    handles = {label: handle for axes in grid[:, 0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    ordered = [model for model in models if model in handles]
    legend = grid[0, 0].legend(
        [handles[m] for m in ordered], ordered, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False
    )
    for text in legend.get_texts():
        text.set(parse_math=False, fontfamily=font_families())
    return png_bytes(figure)


def _metric_panel(axes: Axes, metrics: Sequence[Metric], models: Sequence[str]) -> None:
    names = list(dict.fromkeys(metric.metric for metric in metrics))
    for metric in metrics:
        number = models.index(metric.model)
        # Models are offset vertically, so that their intervals do not overlap.
        y = names.index(metric.metric) + 0.5 * ((number + 0.5) / len(models) - 0.5)
        value, low, high = (metric.value if edge is None else edge for edge in (metric.value, metric.low, metric.high))
        error = [[max(value - low, 0.0)], [max(high - value, 0.0)]]  # type: ignore[operator]
        style = {"color": PALETTE[number % len(PALETTE)], "marker": "o", "ms": 5, "capsize": 2, "ls": ""}
        axes.errorbar(value, y, xerr=error, label=metric.model, **style)  # type: ignore[arg-type]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(min(0.0, axes.get_xlim()[0]), max(1.0, axes.get_xlim()[1])))
    axes.grid(axis="x", color="#e4e7eb", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def scatter(points: np.ndarray, labels: np.ndarray | None, names: Sequence[str] | None, *, title: str = "") -> bytes:
    """Draws points, float [N, 2], coloured by class; the most common classes have their own colours, all others are grey.

    Args:
        labels: int64 [N], or None for a single colour.
        names: names of the classes; None shows their numbers.
    """
    figure = new_figure(9, 6.6, title)
    axes = figure.add_axes((0.03, 0.03, 0.68, 0.88))
    for name, colour, member in point_groups(labels, names, len(points)):
        axes.scatter(points[member, 0], points[member, 1], s=14, c=colour, alpha=0.8, linewidths=0, label=name)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#e4e7eb")
    if labels is not None:
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, markerscale=2, fontsize=9)
        for text in legend.get_texts():
            text.set(parse_math=False, fontfamily=font_families())
    return png_bytes(figure)


def point_groups(labels: np.ndarray | None, names: Sequence[str] | None, count: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields name, colour and members, bool [N], of each class; classes beyond the palette share one grey group, the first."""
    if labels is None:
        yield "", PALETTE[0], np.full(count, True)
        return
    present, counts = np.unique(labels, return_counts=True)
    coloured = np.sort(present[np.argsort(-counts, kind="stable")][: len(PALETTE)])
    rest = ~np.isin(labels, coloured)
    if rest.any():
        yield "other classes", "#d5dae0", rest
    for label, colour in zip(coloured, PALETTE, strict=False):
        name = names[label] if names is not None else str(label)
        yield textwrap.shorten(name, 32, placeholder=" \u2026"), colour, labels == label


def new_figure(width: float, height: float, title: str) -> Figure:
    """Creates an empty figure of the given size in inches, with a title unless it is empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.text(
            0.03, 1 - 0.3 / height, title, va="center", color=INK, fontsize=14, parse_math=False, fontfamily=font_families()
        )
    return figure


def png_bytes(figure: Figure) -> bytes:
    """Renders the figure as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Characters without an installed font are drawn as boxes; this must neither fail nor fill the log.
        warnings.filterwarnings("ignore", message="(Glyph|Matplotlib currently does not support)")
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def font_families() -> list[str]:
    """Returns the installed fonts in order of preference; each is used for characters missing from those before it."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [font for font in _FONTS if font in installed]


def _write(axes: Axes, x: float, y: float, text: str, *, width: int = 80, color: str = INK, **style: Any) -> None:
    """Writes wrapped text in the units of the axes; dollar signs are not parsed as formulas."""
    lines = textwrap.wrap(text, width, max_lines=4, placeholder=" \u2026")
    axes.text(x, y, "\n".join(lines), color=color, va="center", parse_math=False, fontfamily=font_families(), **style)


def _empty(axes: Axes) -> Axes:
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_axis_off()
    return axes


def _show(axes: Axes, image: Image.Image, frame: str) -> None:
    axes.imshow(np.asarray(image), cmap="gray" if image.mode == "L" else None)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=frame, linewidth=2.5)
