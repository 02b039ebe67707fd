"""The exception for errors that the user can fix."""

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
        # Quoted values may contain line breaks, and file names any character.
        super().__init__(printable_line(" ".join(re.split("\r?\n", message.strip()))))


class DamagedIndexError(UserError):
    """An index on disk that is damaged: only a rebuild or an older version helps. The command line exits with 4."""


def unknown_name(kind: str, name: object, known: Iterable[str], *, where: str = "", suggestion: str | None = None) -> UserError:
    """Returns the error for a name that does not exist: it suggests the nearest one, else lists them all.

    Args:
        kind: kind of thing that the name refers to, e.g. "encoder" or "key".
        name: the given name; if read from a file, it may not be a string.
        known: all valid names.
        where: where the name was given, e.g. "configs/a.yaml: optim"; prefix of the message.
        suggestion: what is meant, if it has another name here.
    """
    names = {one.lower(): one for one in sorted(known)}
    nearest = [names[one] for one in difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)]
    every = ", ".join(names.values()) or "none"
    hint = f"did you mean {suggestion or repr(nearest[0])}?" if suggestion or nearest else f"known: {every}"
    prefix = f"{where}: " if where else ""
    return UserError(f"{prefix}unknown {kind} {name!r}; {hint}")


def how_to_install(extra: str) -> str:
    """Returns the commands that install an extra of mmcl, from a package index and in a clone."""
    return f"pip install 'mmcl[{extra}]', or in a clone pip install -e '.[{extra}]'"


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]
