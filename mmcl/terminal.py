"""Text made safe for a terminal: names and captions come from data that others made.

Written raw, a file name or a caption could move the cursor, fill the clipboard (OSC 52) or show a text in another order than it
has. Such characters are replaced by their code, such as \\u202e, as JSON writes it, so that printed JSON keeps its meaning.
Emoji sequences, accents and text from right to left stay as they are.
"""

from __future__ import annotations

import re

_CONTROLS = "\0-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1
_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_SEPARATORS = "\u2028\u2029"
_SURROGATES = "\ud800-\udfff"  # of file names that are not UTF-8; they cannot be encoded
_UNSAFE = re.compile(f"[{_CONTROLS}{_BIDIRECTIONAL}{_SEPARATORS}{_SURROGATES}]")


def printable(text: str) -> str:
    """Escapes the characters that a terminal obeys, such as control characters; tabs and line breaks stay."""
    return _UNSAFE.sub(escaped, text)


def printable_line(text: str) -> str:
    """Escapes tabs and line breaks too, so that the text is one line."""
    return re.sub("[\t\n]", escaped, printable(text))


def counted(number: int, unit: str) -> str:
    """Formats a count with its unit, as in "1,234 findings" and "1 finding".

    Args:
        number: the count.
        unit: the unit in the singular.
    """
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def escaped(match: re.Match[str]) -> str:
    """Returns the code of a matched character: \\u and four digits, twice for those beyond U+FFFF."""
    units = match[0].encode("utf-16-be", "surrogatepass").hex(" ", 2)
    return "".join(f"\\u{unit}" for unit in units.split())
