"""Untrusted text files: detection of their encoding, and their lines."""

from __future__ import annotations

import codecs
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from mmcl.errors import UserError

UTF8 = "utf-8-sig"
"""UTF-8 with or without a byte order mark."""
LINE_END = rb"(?:\r\n|\r|\n)"
"""Only CR and LF end a line: other Unicode line breaks may occur within a caption."""
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BLOCK = 2**20


def find_encoding(path: Path, given: str | None) -> str:
    """Returns the encoding of a file: the given one, else that of its byte order mark, else UTF-8.

    Raises:
        UserError: Python does not have this text encoding.
    """
    if given is None:
        with path.open("rb") as file:
            start = file.read(4)
        return next((encoding for mark, encoding in _MARKS.items() if start.startswith(mark)), UTF8)
    try:
        name = codecs.lookup(given).name
        "".encode(name)
    except LookupError:
        raise UserError(f"{path}: unknown encoding {given!r}; give one that Python supports, such as cp1252 or gbk") from None
    return UTF8 if name == "utf-8" else name


def read_utf8(path: Path, encoding: str) -> memoryview:
    """Reads a text file as UTF-8 without byte order mark; memory-mapped if it is UTF-8 already, else held in memory.

    Raises:
        UserError: the file is in another encoding or contains NUL characters; names the line.
    """
    if encoding != UTF8:
        try:
            with path.open(encoding=encoding, newline="") as file:
                return _without_nul(path, memoryview(file.read().removeprefix("\ufeff").encode()))
        except UnicodeError:
            raise undecodable(path, encoding) from None
    if path.stat().st_size == 0:
        return memoryview(b"")  # an empty file cannot be mapped
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    text = memoryview(mapped)[3 if mapped[:3] == codecs.BOM_UTF8 else 0 :]
    if not _is_utf8(text):
        raise undecodable(path, encoding)
    return _without_nul(path, text)


def _is_utf8(text: memoryview) -> bool:
    """Checks at memory speed and without a copy: Arrow validates the whole file as one string."""
    ends = pa.array([0, len(text)], pa.int64()).buffers()[1]
    try:
        pa.Array.from_buffers(pa.large_string(), 1, [None, ends, pa.py_buffer(text)]).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _without_nul(path: Path, text: memoryview) -> memoryview:
    if nul := re.search(rb"\0", text):
        raise _holds_nul(path, line_at(text, nul.start()))
    return text


def text_lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file without line ends, with line numbers from 1.

    Raises:
        UserError: a line is in another encoding or contains NUL characters; names it.
    """
    try:
        with path.open(encoding=encoding) as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise _holds_nul(path, number)
                yield number, (line.removeprefix("\ufeff") if number == 1 else line).removesuffix("\n")
    except UnicodeDecodeError:
        raise undecodable(path, encoding) from None


def line_at(text: memoryview, position: int) -> int:
    """Returns the line number, from 1, of a byte position."""
    return 1 + sum(1 for _ in re.finditer(LINE_END, text[:position]))


def undecodable(path: Path, encoding: str) -> UserError:
    """Returns the error for a file that cannot be decoded; finds and names the first such line."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line, name = 1, "UTF-8" if encoding == UTF8 else encoding
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeError as error:
                line += error.object[: error.start].count(b"\n") if isinstance(error, UnicodeDecodeError) else 0
                break
            if not block:
                break
    return UserError(
        f"{path}, line {line}: is not {name}; set `encoding` to the file's own, such as cp1252, gbk or utf-16, "
        "or save the file as UTF-8"
    )


def _holds_nul(path: Path, line: int) -> UserError:
    return UserError(f"{path}, line {line}: holds NUL characters: set `encoding` to utf-16 if it is that, else it is damaged")
