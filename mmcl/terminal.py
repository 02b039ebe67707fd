"""Everything that is printed, made safe for a terminal first: names and captions come from data that others made.

Written raw, a file name or a caption could move the cursor, fill the clipboard (OSC 52) or show a text in another order than it
has. What does that is replaced by its code, such as \\u202e, as JSON writes it, so that printed JSON keeps its meaning. Emoji
sequences, accents and text from right to left stay as they are.
"""

from __future__ import annotations

import re
import sys

_CONTROLS = "\0-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1
_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_SEPARATORS = "\u2028\u2029"
_SURROGATES = "\ud800-\udfff"  # of file names that are not UTF-8; they cannot be encoded
_UNSAFE = re.compile(f"[{_CONTROLS}{_BIDIRECTIONAL}{_SEPARATORS}{_SURROGATES}]")


def printable(text: str) -> str:
    """A text without control characters but tabs and line breaks, or others that a terminal obeys; each is its code instead."""
    return _UNSAFE.sub(_code, text)


def printable_line(text: str) -> str:
    """The same on one line, as wide as it is long: tabs and line breaks are codes too."""
    return re.sub("[\t\n]", _code, printable(text))


def counted(number: int, unit: str) -> str:
    """A number of things, as in "1,234 findings" and "1 finding".

    Args:
        number: how many.
        unit: what is counted, in the singular.
    """
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def say(line: str, *, error: bool = False) -> None:
    """Prints one line, whatever is in it: a name with a line break cannot fake a second one.

    Args:
        line: what is said.
        error: on standard error instead of standard output.
    """
    show(printable_line(line), error=error)


def show(text: str, *, error: bool = False) -> None:
    """Prints text of several lines, such as a table or JSON.

    Args:
        text: what is shown; names in it that may have line breaks must be `printable_line` already.
        error: on standard error instead of standard output.
    """
    stream = sys.stderr if error else sys.stdout
    safe = printable(text.removesuffix("\n"))
    print(_encodable(safe, getattr(stream, "encoding", None) or "utf-8"), file=stream, flush=True)


def _encodable(text: str, encoding: str) -> str:
    """With codes for all but ASCII where the terminal's encoding lacks something in it."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return re.sub(r"[^\0-\x7f]", _code, text)
    return text


def _code(match: re.Match[str]) -> str:
    """Of one character: \\u and four digits, twice for those beyond U+FFFF."""
    units = match[0].encode("utf-16-be", "surrogatepass").hex(" ", 2)
    return "".join(f"\\u{unit}" for unit in units.split())
