"""Line charts of text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LABEL = 12
"""Columns left of the curve, with its largest and smallest value."""
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""Bits of the dots of a Braille character (Unicode, U+2800 to U+28FF), by row and column."""


def line_chart(x: Sequence[float], y: Sequence[float], *, width: int, height: int, encoding: str = "utf-8") -> list[str]:
    """Returns the lines of a chart, which is drawn with the dots of Braille characters, or with stars.

    Args:
        x: rising numbers, at least one.
        y: as many finite numbers.
        width: columns of the chart with its labels.
        height: lines of the curve; one with the ends of `x` follows.
        encoding: of the terminal; stars are drawn if it lacks Braille characters.
    """
    dots = _dots(np.asarray(x, float), np.asarray(y, float), 2 * (width - _LABEL), 4 * height)
    bits = (dots.reshape(height, 4, -1, 2) * _DOTS[:, None]).sum((1, 3))
    rows = [" " * _LABEL + "".join(chr(0x2800 + bit) if bit else " " for bit in line) for line in bits.tolist()]
    for row, value in ((0, max(y)), (-1, min(y))):
        rows[row] = f"{value:>{_LABEL - 1}.4g} {rows[row][_LABEL:]}"
    first, last = f"{x[0]:,.0f}", f"{x[-1]:,.0f}"
    lines = [*rows, f"{'':{_LABEL}}{first}{last:>{width - _LABEL - len(first)}}"]
    return [line.rstrip() if _can_show(encoding) else _with_stars(line).rstrip() for line in lines]


def _dots(x: np.ndarray, y: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """Booleans [rows, columns]: the curve, whose points are joined by vertical strokes."""
    spread = y.max() - y.min()
    at = np.interp(np.linspace(x[0], x[-1], columns), x, y)
    share = (y.max() - at) / spread if spread > 0 else np.full(columns, 0.5)
    level = np.rint(share * (rows - 1)).astype(int)
    before = np.concatenate([level[:1], level[:-1]])
    row = np.arange(rows)[:, None]
    drawn: np.ndarray = (row >= np.minimum(level, before)) & (row <= np.maximum(level, before))
    return drawn


def _can_show(encoding: str) -> bool:
    try:
        "\u28ff".encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _with_stars(line: str) -> str:
    return "".join("*" if "\u2800" < character <= "\u28ff" else character for character in line)
