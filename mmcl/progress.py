"""Progress bars: drawn in a notebook, or on standard error if it is a terminal; what is logged meanwhile appears above them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import tqdm.std
from tqdm.auto import tqdm as tqdm_of_this_place

from mmcl.logging import keep_below_log

_IN_NOTEBOOK = tqdm_of_this_place.display is not tqdm.std.tqdm.display


def progress_bar(
    items: Iterable[Any] | None = None, *, total: int, shown: bool = True, unit: str = "row", **options: Any
) -> Any:
    """Returns a `tqdm` over the items, or one to `update`; it disappears at its end unless `leave` is set.

    Args:
        items: what is iterated over, if anything.
        total: number of items.
        shown: whether it is drawn at all, if there is something to draw on.
        unit: one item in a word, in the singular.
        options: further arguments of `tqdm`.
    """
    shape = f"{{l_bar}}{{bar}}| {{n_fmt}} of {{total_fmt}} {unit}s, {{remaining}} left{{postfix}}"
    look = {"leave": False, "dynamic_ncols": True, "unit": unit, "bar_format": shape}
    bar = tqdm_of_this_place(items, total=total, disable=not (shown and can_be_drawn()), **{**look, **options})
    keep_below_log(bar)
    return bar


def can_be_drawn() -> bool:
    """Returns True in a notebook, or if standard error is a terminal."""
    return _IN_NOTEBOOK or (sys.stderr is not None and sys.stderr.isatty())
