"""Loggers of the library: children of the logger "mmcl", one per module.

The library never prints. From Python, warnings appear on standard error and information does not, as with any library; to see
both, `logging.basicConfig(level=logging.INFO)`; to see neither, `logging.getLogger("mmcl").setLevel(logging.CRITICAL)`. The
command line prints all of it (`mmcl.cli.output`).
"""

from __future__ import annotations

import logging
import os
import traceback

from mmcl.terminal import printable, printable_line


def get_logger(name: str) -> logging.Logger:
    """Returns the logger of a module; its records hold no terminal sequences, whichever handler writes them.

    Information, and notes, of all processes of a launch but the first are dropped: they would say the same.

    Args:
        name: the module's `__name__`.
    """
    logger = logging.getLogger(name)
    logger.addFilter(_prepare)  # the same function is added once
    return logger


def note(logger: logging.Logger, line: str) -> None:
    """Logs, as a warning, a decision that was made for the user; the command line prints `note: ...`."""
    logger.warning(line, extra={"label": "note"})


def label(record: logging.LogRecord) -> str:
    """Returns what the command line puts before a record: "note", "warning" or "error"; "" for information."""
    return getattr(record, "label", "" if record.levelno < logging.WARNING else record.levelname.lower())


def _prepare(record: logging.LogRecord) -> bool:
    """Escapes what a terminal would obey: file names and captions come from others. False for a record to be dropped."""
    record.msg, record.args = printable_line(record.getMessage()), ()
    if record.exc_info and record.exc_info[0] is not None:
        record.exc_text = printable("".join(traceback.format_exception(*record.exc_info))).rstrip("\n")
    return label(record) not in ("", "note") or os.environ.get("RANK", "0") == "0"
