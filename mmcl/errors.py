"""The error for everything that a user can fix: one line that names the thing and the fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from mmcl.terminal import printable_line


class UserError(ValueError):
    """Bad input. The message is one line that names the thing and the fix; the command line prints it and exits with 2.

    Example:
        >>> str(UserError("no file a.png:" + chr(10) + "check the path"))
        'no file a.png: check the path'
    """

    def __init__(self, message: str):
        # What it quotes may have line breaks, and a file name any character.
        super().__init__(printable_line(" ".join(re.split("\r?\n", message.strip()))))


def unknown_name(kind: str, name: object, known: Iterable[str], *, where: str = "") -> UserError:
    """Returns the error for a name that does not exist: it suggests the nearest one, else lists them all.

    Args:
        kind: what the name should have named, e.g. "encoder" or "key".
        name: what was given; of files, perhaps no text.
        known: every name that would have been right.
        where: where it was given, e.g. "configs/a.yaml: optim"; put in front of the message.
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(names) or 'none'}"
    prefix = f"{where}: " if where else ""
    return UserError(f"{prefix}unknown {kind} {name!r}; {hint}")


def first_line(error: BaseException) -> str:
    """What another library's error says, for a message of one line: its first line, or its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
