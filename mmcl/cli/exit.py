"""Exit codes and one-line error messages of all commands.

0: success; 1: partial failure, with a list of what failed; 2: an error that the user can fix; 3: nothing was found; 4: an index
is damaged; 70: a bug in mmcl; 130: Ctrl-C; 141: the reader of the output has closed it (as in `mmcl list | head -1`).
"""

from __future__ import annotations

import errno
import os
import select
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from mmcl.cli.output import printed_log, say, show
from mmcl.errors import DamagedIndexError, UserError
from mmcl.terminal import printable, printable_line

if TYPE_CHECKING:
    from mmcl.types import BadSample

PART, USER_ERROR, NOTHING, DAMAGED, BUG, INTERRUPTED, NO_READER = 1, 2, 3, 4, 70, 130, 141

_DEBUG, _PLUGINS = "--debug", "--plugins"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHOWN = 300
"""Largest number of characters of another library's error message."""
_PRECEDENCE_SECONDS = 3.0


def exit_cleanly(command: Callable[[], object], *, debug: bool = False) -> int:
    """Runs a command. Returns its exit code; see the module.

    Args:
        command: what is run.
        debug: print the traceback of an error too.
    """
    try:
        try:
            with printed_log():
                command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except Exception as error:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
        if isinstance(error, BrokenPipeError) and unread:
            for stream in unread:
                _forget(stream)
            return NO_READER
        if debug:
            show(traceback.format_exc(), error=True)
        return _say(*_line_and_code(error))
    return 0


def without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """Removes `--debug` from the words of a command line. Returns the others, and whether it was given."""
    return [word for word in words if word != _DEBUG], _DEBUG in words


def without_plugins(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Removes `--plugins MODULE` from the words of a command line. Returns the others and the modules."""
    others: list[str] = []
    modules: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != _PLUGINS:
            others.append(word)
            continue
        module = value if equals else next(rest, "")
        if not module or module.startswith("-"):
            raise UserError(f"{_PLUGINS} needs the name of a module, such as {_PLUGINS} my_package.plugin")
        modules.append(module)
    return others, modules


def end_partly(bad: Sequence[BadSample], *, code: int = 0) -> None:
    """Lists the samples that were left out, and ends the command with another exit code or, if there are some, with 1."""
    for one in bad:
        name = printable_line(one.name)  # as in an error
        say(f"left out: {one.reason if name in one.reason else f'{name}: {one.reason}'}", error=True)
    if bad or code:
        sys.exit(code or PART)


def refuse_all_bad(bad: Sequence[BadSample], total: int) -> None:
    """Raises UserError if none of the images can be read."""
    if bad and len(bad) == total:
        raise UserError(bad[0].reason if total == 1 else f"none of {total:,} images can be read; the first: {bad[0].reason}")


def _line_and_code(error: Exception) -> tuple[str, int]:
    if isinstance(error, UserError):
        return f"error: {error}", DAMAGED if isinstance(error, DamagedIndexError) else USER_ERROR
    if isinstance(error, OSError) and error.errno in _FULL:
        _forget(sys.stdout)  # it may be what lies on the full disk
        return f"error: {error.strerror}: {error.filename or 'the output'}; make room", USER_ERROR
    what = _shortened(traceback.format_exception_only(error)[-1])
    if _is_out_of_memory(error):
        return f"error: out of memory ({what}); give smaller batches, images or data, or a larger machine", USER_ERROR
    return f"error: this is a bug in mmcl ({what}); please report it with the traceback {_kept_traceback(error)}", BUG


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."


def _kept_traceback(error: Exception) -> str:
    """Saves the traceback to a file and returns its location; prints it if no file can be written."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="mmcl-", suffix=".log", delete=False, encoding="utf-8") as file:
            file.write(f"{printable_line(' '.join(sys.argv))}\n{printable(text)}")
    except OSError:
        show(text, error=True)
        return f"above ({_DEBUG} shows it always)"
    return f"in {file.name} ({_DEBUG} shows it)"


def _say(line: str, code: int) -> int:
    """Prints the line. An error of all processes of a launch is printed by the first; the launcher ends the others."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
        time.sleep(_PRECEDENCE_SECONDS)
    try:
        say(line, error=True)
    except OSError:
        _forget(sys.stderr)
    return code


def _is_unread(stream: IO[str] | None) -> bool:
    """True if the reader of an output stream has closed it; other broken pipes are those of workers or servers."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):  # closed, or not a real file, as in a test
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _forget(stream: IO[str]) -> None:
    """Discards buffered output that cannot be written, for which Python would exit with an error of its own."""
    with suppress(OSError, ValueError):  # not a real file, as in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
