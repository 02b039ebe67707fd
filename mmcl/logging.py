"""Loggers of the library: children of the logger "mmcl", one per module.

The library never prints. In Python, warnings appear on standard error and messages at level INFO do not, as with any library.
`logging.basicConfig(level=logging.INFO)` shows both; `logging.getLogger("mmcl").setLevel(logging.CRITICAL)` hides both. The
command line prints all messages (`mmcl.cli.output`).
"""

from __future__ import annotations

import logging
import os
import traceback
from typing import Protocol
from weakref import WeakSet

from mmcl.terminal import printable, printable_line


class Clearable(Protocol):
    """A progress bar."""

    def clear(self) -> None:
        """Clear the line that it is drawn on."""


_bars: WeakSet[Clearable] = WeakSet()


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module. Terminal sequences in its records are escaped for every handler.

    INFO messages and notes are kept only from the first process of a launch, because the others would repeat them.

    Args:
        name: the module's `__name__`.
    """
    logger = logging.getLogger(name)
    logger.addFilter(_prepare)  # the same filter is added only once
    return logger


def note(logger: logging.Logger, line: str) -> None:
    """Log a decision that was made for the user, as a warning; the command line prints `note: ...`."""
    logger.warning(line, extra={"label": "note"})


def keep_below_log(bar: Clearable) -> None:
    """Clear a progress bar before each message, so that the message does not follow the bar on its line."""
    _bars.add(bar)


def label(record: logging.LogRecord) -> str:
    """Return the prefix of a record on the command line: "note", "warning" or "error"; "" for level INFO."""
    return getattr(record, "label", "" if record.levelno < logging.WARNING else record.levelname.lower())


def _prepare(record: logging.LogRecord) -> bool:
    """Escape terminal sequences, because file names and captions are untrusted, and clear progress bars for the record.

    Returns False to drop the record.
    """
    record.msg, record.args = printable_line(record.getMessage()), ()
    if record.exc_info and record.exc_info[0] is not None:
        record.exc_text = printable("".join(traceback.format_exception(*record.exc_info))).rstrip("\n")
    is_kept = label(record) not in ("", "note") or os.environ.get("RANK", "0") == "0"
    for bar in tuple(_bars) if is_kept else ():
        bar.clear()
    return is_kept
