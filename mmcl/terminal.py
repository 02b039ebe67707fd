"""Escaping of untrusted text, such as file names and captions, for output on a terminal.

Printed unescaped, a file name or caption could move the cursor, write to the clipboard (OSC 52) or reorder the displayed text.
Such characters are replaced by their JSON escape, such as \\u202e, so printed JSON keeps its meaning. Emoji sequences, accents
and right-to-left text are unchanged.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

import wcwidth

WIDTH = 80
"""Columns of a terminal that does not say how many it has; nothing but paths and commands is wider."""
_NARROWEST = 40
_LONG_PATH = 24
"""Columns up to which a path can be read in the middle of a sentence."""

_CONTROLS = "\0-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1
_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_SEPARATORS = "\u2028\u2029"
_SURROGATES = "\ud800-\udfff"  # of file names that are not UTF-8; they cannot be encoded
_UNSAFE = re.compile(f"[{_CONTROLS}{_BIDIRECTIONAL}{_SEPARATORS}{_SURROGATES}]")


def printable(text: str) -> str:
    """Escape characters that a terminal interprets, such as control characters, except tabs and line breaks."""
    return _UNSAFE.sub(escaped, text)


def printable_line(text: str) -> str:
    """Escape tabs and line breaks too, so that the text is one line."""
    return re.sub("[\t\n]", escaped, printable(text))


def terminal_width() -> int:
    """Columns of the terminal, as the variable COLUMNS or the terminal says; 80 if neither does."""
    return max(_NARROWEST, shutil.get_terminal_size((WIDTH, 24)).columns)


def display_width(text: str) -> int:
    """Columns that a line takes: two for a wide character, such as an emoji, and none for a combining one."""
    return wcwidth.width(text)


def shortened(text: str, width: int) -> str:
    """Cuts a line to a number of columns; if something is cut off, "…" is its last character."""
    return text if display_width(text) <= width else f"{wcwidth.clip(text, 0, width - 1).rstrip()}…"


def wrapped(text: str, width: int, *, indent: str = "") -> str:
    """Breaks a line at spaces into lines of a number of columns; within a word only if it is longer.

    Args:
        text: the line.
        width: columns.
        indent: of all lines but the first.
    """
    whole = text.replace(" %", "\N{NO-BREAK SPACE}%")  # a number stays on the line of its percent sign
    lines = wcwidth.wrap(whole, width, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}%", " %")


def short_paths(paths: Sequence[str]) -> list[str]:
    """Returns of each long path as many of its last parts as tell it from all others.

    A path of at most 24 columns stays whole, and so do the same path twice and a name with a colon, such as "hf:openai/clip".

    Example:
        >>> short_paths(["/scratch/ann/spring/runs/a", "/scratch/ann/spring/runs/b", "/scratch/ann/autumn/runs/a", "runs/a"])
        ['spring/runs/a', 'b', 'autumn/runs/a', 'runs/a']
    """
    parts = [path.split("/") for path in paths]

    def end(own: list[str]) -> str:
        others = [other for other in parts if other != own]
        size = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        return "/".join(own[-size:])

    def is_whole(path: str, own: list[str]) -> bool:
        return display_width(path) <= _LONG_PATH or parts.count(own) > 1 or ":" in path

    return [path if is_whole(path, own) else end(own) for path, own in zip(paths, parts, strict=True)]


def listed(items: Sequence[str]) -> str:
    """Formats names for a sentence: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def counted(number: int, unit: str) -> str:
    """Format a count with its unit, as in "1,234 findings" and "1 finding".

    Args:
        number: the count.
        unit: the unit in the singular.
    """
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def escaped(match: re.Match[str]) -> str:
    """Return the escape of a matched character: \\u and four digits, twice for characters beyond U+FFFF."""
    units = match[0].encode("utf-16-be", "surrogatepass").hex(" ", 2)
    return "".join(f"\\u{unit}" for unit in units.split())
