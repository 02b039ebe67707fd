"""Output of the command line, and the handler that prints the log."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmcl.logging import label
from mmcl.terminal import escaped, printable, printable_line, terminal_width, wrapped


def say(line: str, *, error: bool = False) -> None:
    """Prints one line; a name with a line break in it cannot fake a second one.

    Args:
        line: the text.
        error: print to standard error instead of standard output.
    """
    show(printable_line(line), error=error)


def show(text: str, *, error: bool = False) -> None:
    """Prints text of several lines, such as a table or JSON.

    Args:
        text: names in it that may have line breaks must be `printable_line` already.
        error: print to standard error instead of standard output.
    """
    stream = sys.stderr if error else sys.stdout
    safe = printable(text.removesuffix("\n"))
    print(_encodable(safe, getattr(stream, "encoding", None) or "utf-8"), file=stream, flush=True)


def redraw(lines: Sequence[str], *, over: int) -> int:
    """Prints lines to standard output in place of those printed before. Returns their number.

    Args:
        lines: `printable_line`, each shorter than the terminal is wide.
        over: number of lines that are overwritten; 0 prints below what is there.
    """
    if over:
        sys.stdout.write(f"\x1b[{over}F\x1b[J")  # to the start of the first, and clear from there
    for line in lines:
        say(line)
    return len(lines)


class LogPrinter(logging.Handler):
    """Prints information as plain lines to standard output, the rest as `warning: ...` or `note: ...` to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record. An error of the stream, such as a closed pipe, ends the command (`mmcl.cli.exit`)."""
        prefix = label(record)
        line = printable_line(f"{prefix}: {record.getMessage()}" if prefix else record.getMessage())
        if prefix and sys.stderr is not None and sys.stderr.isatty():
            line = wrapped(line, terminal_width(), indent="  ")
        show(line, error=bool(prefix))
        if record.exc_text:
            show(record.exc_text, error=True)


@contextmanager
def printed_log() -> Iterator[None]:
    """Prints what the library logs."""
    logger, handler = logging.getLogger("mmcl"), LogPrinter()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _encodable(text: str, encoding: str) -> str:
    """Escapes all but ASCII where the terminal's encoding lacks a character."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return re.sub(r"[^\0-\x7f]", escaped, text)
    return text
