"""An interactive map: a self-contained HTML page with points, captions and images, which works offline.

Captions and names come from data and are not trusted. In the page's text they are escaped; in its JSON no "<" is left, so that
none of them can end the script element; and the page itself writes them as text, never as markup.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from mmcl.errors import UserError
from mmcl.evaluate.reporting.figures import point_groups
from mmcl.terminal import printable

SIZES = ((96, 75), (64, 75), (48, 75), (32, 75), (32, 40), (16, 40))
"""Side of an image on the page, in pixels, and its quality: the first for up to `FEW` points, later ones for more, to fit."""
FEW = 300
"""Maps of fewer points than this begin with images, if they have no classes to color."""
MAX_BYTES = 4_000_000
"""Of all images of a page together, before their base64 encoding, which adds a third."""
_CAPTION = 300
_LARGEST_WEBP = 16_383


def map_page(
    points_N2: np.ndarray,
    labels: np.ndarray | None,
    names: Sequence[str] | None,
    captions: Sequence[str] | None,
    images: Sequence[Image.Image] | None,
    nearest: tuple[np.ndarray, np.ndarray],
    *,
    title: str,
    note: str,
) -> str:
    """The page.

    Args:
        points_N2: finite, float [N, 2].
        labels: int64 [N], or None for one color.
        names: of the labels; None shows their numbers.
        captions: N texts to show and to search; the first 300 characters of each are kept.
        images: N square images of one size, see `thumbnail_side`.
        nearest: nearest neighbors of each point in the embedding: their numbers, int64 [N, k], and cosines, float [N, k].
        title, note: above and below the map.
    """
    x, y = _in_unit_square(points_N2)
    groups = list(point_groups(labels, names, len(points_N2)))
    group_of = np.zeros(len(points_N2), np.int64)
    for number, (_, _, member) in enumerate(groups):
        group_of[member] = number
    classes, label = (None, None) if labels is None else np.unique(labels, return_inverse=True)
    data = {
        "x": x,
        "y": y,
        "captions": [printable(caption[:_CAPTION]) for caption in captions] if captions else [""] * len(points_N2),
        "group": group_of.tolist(),
        "groups": [{"name": printable(name), "color": color, "count": int(member.sum())} for name, color, member in groups],
        "label": None if label is None else label.tolist(),
        "classes": None if classes is None else [str(c) if names is None else printable(names[c]) for c in classes.tolist()],
        "sheet": _sheet(images) if images else None,
        "nearest": nearest[0].tolist(),
        "cosine": nearest[1].astype(np.float64).round(3).tolist(),
        "asImages": labels is None and len(points_N2) < FEW,
    }
    values = {"title": html.escape(printable(title)), "note": html.escape(printable(note)), "data": _json(data)}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _template())


@cache
def _template() -> str:
    return (files("mmcl.evaluate.reporting") / "map_page.html").read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON in ASCII without "<", which alone could end a script element or open a comment in it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _in_unit_square(points_N2: np.ndarray) -> tuple[list[float], list[float]]:
    """Columns in [0, 1], x to the right and y down, at the same scale."""
    low, high = points_N2.min(axis=0), points_N2.max(axis=0)
    unit = (points_N2 - (low + high) / 2) / max(float((high - low).max()), 1e-12) * [1, -1] + 0.5
    x, y = unit.round(4).T.tolist()
    return x, y


def thumbnail_side(count: int) -> int:
    """Side in pixels of the images of a map with this number of points."""
    return SIZES[0 if count <= FEW else 1][0]


def _sheet(images: Sequence[Image.Image]) -> dict[str, Any]:
    """All images in one, row by row, as a data URI; smaller ones where they would take more than `MAX_BYTES`."""
    columns = math.ceil(math.sqrt(len(images)))
    for side, quality in ((side, quality) for side, quality in SIZES if side <= images[0].width):
        sheet = Image.new("RGB", (columns * side, math.ceil(len(images) / columns) * side), "white")
        for number, image in enumerate(images):
            small = image if image.width == side else image.resize((side, side))
            sheet.paste(small, (number % columns * side, number // columns * side))
        buffer = io.BytesIO()
        if max(sheet.size) <= _LARGEST_WEBP:
            sheet.save(buffer, "WEBP", quality=quality)
        if 0 < buffer.tell() <= MAX_BYTES:
            break
    else:
        raise UserError(
            f"a page has no room for the images of {len(images):,} points; lower max_points, or leave out the images"
        )
    return {"columns": columns, "side": side, "image": f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"}
