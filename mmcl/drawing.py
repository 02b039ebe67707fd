"""Primitives of figures: colors, fonts, text, images. Only matplotlib's objects are used, not pyplot with its global state."""

from __future__ import annotations

import io
import textwrap
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmcl.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG, INK, PALE = "#1a7f44", "#c62828", "#1f2933", "#616e7c"
PALETTE = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#999933", "#882255",
    "#332288", "#dd77cc", "#117733", "#88ccee", "#cc6677", "#777777", "#bbcc33", "#6699cc", "#994455",
)  # fmt: skip
"""Nineteen colors that stay apart, also for most color-blind readers; more classes than that share gray."""

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


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of the given size in inches, with a title where it is not ""."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.text(0.03, 1 - 0.3 / height, printable(title), va="center", color=INK, fontsize=14, **text_style())
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A script without an installed font is drawn as boxes; this must neither fail nor fill the log.
        warnings.filterwarnings("ignore", message="(Glyph|Matplotlib currently does not support)")
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def text_style() -> dict[str, Any]:
    """Options of matplotlib's texts for text from data: no formulas between dollar signs, and fonts that replace each other."""
    return {"parse_math": False, "fontfamily": font_families()}


def font_families() -> list[str]:
    """Installed fonts in the order of preference: the first, and for its missing letters the others."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [font for font in _FONTS if font in installed]


def write_text(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    width: int = 80,
    lines: int = 4,
    color: str = INK,
    va: str = "center",
    **style: Any,
) -> None:
    """Writes text at a point of the axes, wrapped into at most `lines` lines of `width` letters; wide letters count twice."""
    axes.text(x, y, wrapped(text, width, lines), color=color, va=va, **text_style(), **style)


def wrapped(text: str, width: int, lines: int) -> str:
    """Printable text in at most `lines` lines of `width` letters, with an ellipsis where some is left out.

    Example:
        >>> print(wrapped("a cat on a mat", 8, 2))
        a cat on
        a mat
    """
    # Letters of Chinese, Japanese and Korean are about twice as wide as Latin ones, and have no spaces to break at.
    text = printable(text)
    wide = sum(ord(letter) > 0x2E7F for letter in text)
    fitting = max(2, round(width * len(text) / (len(text) + wide))) if text else width
    found = textwrap.wrap(text, fitting)
    if len(found) > lines:
        found = [*found[: lines - 1], f"{found[lines - 1][: fitting - 1]}…"]
    return "\n".join(found)


def contained(image: Image.Image, side: int, *, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """The image with its longer side of that many pixels, and the other of at least one, which Pillow 12 leaves without any."""
    scale = side / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    return image.resize((width, height), resample=resample)


def new_sheet(figure: Figure) -> Axes:
    """Axes over the whole figure in inches from its top left, for all texts and images: axes for each take far longer."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return axes


def show_image(
    sheet: Axes,
    image: Image.Image,
    frame: str,
    place: tuple[float, float, float, float],
    *,
    dashed: bool = False,
    line_width: float = 2.5,
) -> None:
    """Shows an image in a colored frame, as large as its proportions allow in the middle of a place of the sheet.

    Args:
        place: left, top, width and height in inches.
    """
    from matplotlib.patches import Rectangle

    left, top, width, height = place
    scale = min(width / image.width, height / image.height)
    wide, high = scale * image.width, scale * image.height
    left, top = left + (width - wide) / 2, top + (height - high) / 2
    sheet.imshow(np.asarray(image.convert("RGB")), extent=(left, left + wide, top + high, top), aspect="auto", zorder=1)
    style = (0, (2, 1.5)) if dashed else "solid"
    sheet.add_patch(Rectangle((left, top), wide, high, fill=False, edgecolor=frame, linewidth=line_width, linestyle=style))
