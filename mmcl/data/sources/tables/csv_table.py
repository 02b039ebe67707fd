"""Tables of delimited text: which separator, which columns, and no row lost to a quote that opens and never closes."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from mmcl.data.sources.tables.column_names import USUAL_NAMES
from mmcl.data.sources.tables.image_urls import how_to_download, is_url_of_image
from mmcl.errors import UserError, first_line
from mmcl.files.text_file import LINE_END, line_at, read_utf8
from mmcl.terminal import counted

PROBLEMS = "\0problem"
"""The column that says why a row cannot be used; no text file may hold a NUL, so that none has a column of this name."""
SEPARATORS = (",", "\t", ";", "|")
LONGEST_ROW = 2**24
"""Bytes. Arrow reads blocks of this size."""

_LINE = re.compile(rb"([^\r\n]*+)(?:%b|\Z)" % LINE_END)
_EXCEL = re.compile(rb"sep=(.)", re.IGNORECASE)
_DATA = re.compile(r"://|\.(jpe?g|png|webp|gif|bmp|tiff?)(#\d+)?$", re.IGNORECASE)
"""What a cell of images looks like, and the name of a column does not."""


@dataclass(frozen=True)
class Dialect:
    """How a file is written.

    Attributes:
        separator: of its columns.
        names: of its columns; two may be the same.
        start: offset of the first row, in bytes.
        padded: whether a space follows every separator.
    """

    separator: str
    names: tuple[str, ...]
    start: int
    padded: bool

    @property
    def quoted(self) -> bytes:
        """A quoted field, as a regular expression: text between quotes at the start of a field, quotes within it doubled.

        What follows the closing quote belongs to the field, as Arrow reads it, but only where the quotes are on one line: there
        it hides no row.
        """
        separator = re.escape(self.separator).encode()
        start, end = rb"(?<![^%b\r\n])" % separator, rb"(?![^%b\r\n])" % separator
        return rb'%b"(?:[^"]*+(?:""[^"]*+)*+"%b|[^"\r\n]*+(?:""[^"\r\n]*+)*+")' % (start, end)

    @property
    def escaped_quote(self) -> re.Pattern[bytes]:
        """A field in quotes up to a quote that follows a backslash and does not end the field."""
        separator = re.escape(self.separator).encode()
        return re.compile(rb'(?<![^%b\r\n])"[^"\r\n]*+(?<=\\)"(?!["%b\r\n]|\Z)' % (separator, separator))

    def run_of(self, characters: bytes) -> re.Pattern[bytes]:
        """Fields, quoted or of some characters, which may have a quote within."""
        within = rb'(?<=[^%b\r\n])"' % re.escape(self.separator).encode()
        return re.compile(rb"(?:%b++|%b|%b)*+" % (characters, self.quoted, within))


def csv_batches(path: Path, encoding: str, header: Sequence[str] | None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The rows of a file, all cells as texts: a caption "12" is no number and "NA" is not missing.

    Args:
        path: the file.
        encoding: see `find_encoding`.
        header: names of the columns of a file whose first line is a row.

    Raises:
        UserError: names the line; some are found with the batches.
    """
    text = read_utf8(path, encoding)
    dialect = find_dialect(path, text, header)
    _check_quotes(path, text, dialect)
    schema = pa.schema([(name, pa.string()) for name in (*dialect.names, PROBLEMS)])
    return schema, _batches(path, text, dialect, schema)


def _batches(path: Path, text: memoryview, dialect: Dialect, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """All rows; one with too few or too many fields, which costs no other, is null but for what is wrong with it.

    Raises:
        UserError: most rows are such: the separator or the header is not what it seems.
    """
    rows = text[dialect.start :]
    if not re.search(rb"[^\r\n]", rows):
        return
    aside = _SetAside(dialect)
    try:
        reader = pa.csv.open_csv(
            pa.BufferReader(pa.py_buffer(rows)),
            # One thread: several know no numbers of rows.
            read_options=pa.csv.ReadOptions(column_names=dialect.names, block_size=LONGEST_ROW, use_threads=False),
            parse_options=pa.csv.ParseOptions(
                delimiter=dialect.separator, newlines_in_values=True, invalid_row_handler=aside.add
            ),
            convert_options=pa.csv.ConvertOptions(column_types=schema, strings_can_be_null=False),
        )
        done = 0
        for batch in reader:
            columns = [pc.utf8_ltrim_whitespace(column) if dialect.padded else column for column in batch.columns]
            piece = aside.put_back(columns, done, schema)
            done += len(piece)
            yield piece
        rest = aside.put_back([pa.array([], pa.string())] * len(dialect.names), done, schema, last=True)
        if 2 * aside.count > done + len(rest) and (wrong := _wrong_row(path, text, dialect)):
            raise wrong
        yield rest
    except pa.ArrowException as error:
        raise _wrong_row(path, text, dialect) or UserError(f"{path}: cannot be read as csv: {first_line(error)}") from None


class _SetAside:
    """The rows of a file that have too few or too many fields, while it is read."""

    def __init__(self, dialect: Dialect):
        self._dialect = dialect
        self._waiting: dict[int, str] = {}
        self.count = 0

    def add(self, row: pa.csv.InvalidRow) -> str:
        """Takes a row from Arrow, whose numbers begin with 1 and leave out empty lines."""
        self._waiting[row.number - 1] = _misfit(row.actual_columns, row.expected_columns, self._dialect.separator)
        self.count += 1
        return "skip"

    def put_back(self, columns: list[pa.Array], done: int, schema: pa.Schema, *, last: bool = False) -> pa.RecordBatch:
        """The next rows, with those that were set aside before each in its place.

        Args:
            columns: of rows that are whole.
            done: rows before them, of both kinds.
            schema: of the table.
            last: whether no row follows.
        """
        size = len(columns[0])
        places: list[int] = []
        for number in sorted(self._waiting):
            if number >= done + size + len(places) and not last:
                break
            places.append(number)
        reasons = [self._waiting.pop(number) for number in places]
        source = np.insert(np.arange(size), [number - done - before for before, number in enumerate(places)], -1)
        absent = source < 0
        problems = np.full(len(source), None, object)
        problems[absent] = reasons
        taken = [column.take(pa.array(source, mask=absent)) for column in columns] if places else columns
        return pa.record_batch([*taken, pa.array(problems.tolist(), pa.string())], schema=schema)


def _misfit(count: int, expected: int, separator: str) -> str:
    fix = f"put a field that holds {separator!r} in quotes" if count > expected else "complete the row"
    return f"has {counted(count, 'field')}, and the header {expected}; {fix}"


def find_dialect(path: Path, text: memoryview, header: Sequence[str] | None = None) -> Dialect:
    """How a file is written, by its first line: the separator that gives most known names of columns, then most columns.

    Raises:
        UserError: there is no line, it is a row and not names, or it has not as many fields as the header given.
    """
    line = next(line for line in _LINE.finditer(text) if line[1].strip() or line.end() == len(text))
    own = "\t" if path.suffix.lower() == ".tsv" else ","
    separators: Sequence[str] = (own, *(separator for separator in SEPARATORS if separator != own))
    if excel := _EXCEL.fullmatch(line[1]):
        separators, line = [excel[1].decode()], _LINE.match(text, line.end()) or line
    first = line[1].decode()
    if not first.strip():
        raise UserError(f"{path}: is empty; its first line must name the columns")
    fields = {separator: next(csv.reader([first], delimiter=separator)) for separator in separators}
    if header is not None:
        fields = {separator: row for separator, row in fields.items() if len(row) == len(header)}
        if not fields:
            raise UserError(
                f"{path}: `header` names {counted(len(header), 'column')}, and the first line has others: {first[:100]!r}"
            )
    separator = max(fields, key=lambda separator: (_known(fields[separator]), len(fields[separator])))
    names = [name.strip() for name in header or fields[separator]]
    if header is None and not _known(names) and any(map(_DATA.search, names)):
        fix = "set `header` to their names, such as [image, caption]"
        if any(map(is_url_of_image, names)):
            command = how_to_download(str(path), "url", "caption")
            fix = f"write a first line that does, such as caption and url, and download the images: {command}"
        raise UserError(f"{path}: its first line is a row, and does not name the columns: {first[:100]!r}; {fix}")
    padded = len(names) > 1 and all(field.startswith(" ") for field in fields[separator][1:])
    return Dialect(separator, tuple(names), line.start() if header else line.end(), padded)


def is_delimited(path: Path, encoding: str) -> bool:
    """True if a .txt file is a table: its first line names a column of images and one of captions."""
    try:
        names = {name.lower() for name in find_dialect(path, read_utf8(path, encoding)).names}
    except UserError:
        return False
    return bool(names & {*USUAL_NAMES["image"]} and names & {*USUAL_NAMES["caption"]})


def _known(names: Sequence[str]) -> int:
    usual = {name for names in USUAL_NAMES.values() for name in names}
    return sum(name.strip().lower() in usual for name in names)


def _check_quotes(path: Path, text: memoryview, dialect: Dialect) -> None:
    """Raises UserError for a quote that opens and does not close, or closes lines later within a field: rows would vanish.

    Also for one that only a backslash keeps from closing: its field would be garbled.
    """
    match = dialect.run_of(rb'[^"]').match(text)
    assert match  # It matches the empty text too.
    if match.end() < len(text):
        closing = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"').match(text, match.end())
        where = f"only closes on line {line_at(text, closing.end())}, within a field" if closing else "never closes"
        raise UserError(
            f'{path}, line {line_at(text, match.end())}: a quote (") opens a field here and {where}; close it at the end of '
            'the field, or put the field in quotes and write each quote in it twice ("")'
        )
    if escaped := dialect.escaped_quote.search(text):
        raise UserError(
            f'{path}, line {line_at(text, escaped.end())}: a quote within a field is written \\" here; write it twice ("")'
        )


def _wrong_row(path: Path, text: memoryview, dialect: Dialect) -> UserError | None:
    """The error for the first row that has too many or too few fields, or is too long; None where there is no such row."""
    fields, quoted = dialect.run_of(rb'[^"\r\n]'), re.compile(dialect.quoted)
    position = dialect.start
    while position < len(text):
        match = fields.match(text, position)
        assert match
        row, position = match[0], match.end() + len(_LINE.match(text, match.end())[0])  # type: ignore[index]
        count, expected = quoted.sub(b"", row).count(dialect.separator.encode()) + 1, len(dialect.names)
        if row and count != expected:
            problem = _misfit(count, expected, dialect.separator)
        elif len(row) > LONGEST_ROW:
            problem = f"the row has {len(row)} bytes, more than the limit of {LONGEST_ROW}"
        else:
            continue
        return UserError(f"{path}, line {line_at(text, match.start())}: {problem}")
    return None
