"""Delimited text tables: detection of separator and columns, and checks for unclosed quotes, which would swallow rows."""

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
"""Column with the reasons why rows cannot be used. Text files must not contain NUL, so no file has a column of this name."""
SEPARATORS = (",", "\t", ";", "|")
LONGEST_ROW = 2**24
"""Largest row in bytes, and the block size with which Arrow reads."""

_LINE = re.compile(rb"([^\r\n]*+)(?:%b|\Z)" % LINE_END)
_EXCEL = re.compile(rb"sep=(.)", re.IGNORECASE)
_DATA = re.compile(r"://|\.(jpe?g|png|webp|gif|bmp|tiff?)(#\d+)?$", re.IGNORECASE)
"""Pattern of image cells, which column names do not match."""


@dataclass(frozen=True)
class Dialect:
    """Format of a delimited text file.

    Attributes:
        separator: separator of the columns.
        names: names of the columns; may contain duplicates.
        start: offset of the first row, in bytes.
        padded: whether a space follows every separator.
    """

    separator: str
    names: tuple[str, ...]
    start: int
    padded: bool

    @property
    def quoted(self) -> bytes:
        """Regular expression of a quoted field: text between quotes at the start of a field, with quotes inside doubled.

        As in Arrow, text after the closing quote belongs to the field, but only if both quotes are on one line, where it cannot
        hide a row.
        """
        separator = re.escape(self.separator).encode()
        start, end = rb"(?<![^%b\r\n])" % separator, rb"(?![^%b\r\n])" % separator
        return rb'%b"(?:[^"]*+(?:""[^"]*+)*+"%b|[^"\r\n]*+(?:""[^"\r\n]*+)*+")' % (start, end)

    @property
    def escaped_quote(self) -> re.Pattern[bytes]:
        """Pattern of a quoted field up to a backslash-escaped quote that does not end the field."""
        separator = re.escape(self.separator).encode()
        return re.compile(rb'(?<![^%b\r\n])"[^"\r\n]*+(?<=\\)"(?!["%b\r\n]|\Z)' % (separator, separator))

    def run_of(self, characters: bytes) -> re.Pattern[bytes]:
        """Pattern of fields that are quoted or consist of given characters, with quotes allowed inside; see `_end_of_run`."""
        within = rb'(?<=[^%b\r\n])"' % re.escape(self.separator).encode()
        return re.compile(rb"(?:%b++|%b|%b){1,1000}" % (characters, self.quoted, within))


def csv_batches(path: Path, encoding: str, header: Sequence[str] | None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Reads the rows of a file with all cells as texts: a caption "12" is not a number and "NA" is not missing.

    Args:
        path: the file.
        encoding: see `find_encoding`.
        header: column names of a file without a header line.

    Raises:
        UserError: the file is invalid; names the line. May also be raised while the batches are read.
    """
    text = read_utf8(path, encoding)
    dialect = find_dialect(path, text, header)
    _check_quotes(path, text, dialect)
    schema = pa.schema([(name, pa.string()) for name in (*dialect.names, PROBLEMS)])
    return schema, _batches(path, text, dialect, schema)


def _batches(path: Path, text: memoryview, dialect: Dialect, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields all rows; a row with too few or too many fields is null except for its problem, and does not affect others.

    Raises:
        UserError: most rows are invalid, so the separator or the header was misdetected.
    """
    rows = text[dialect.start :]
    if not re.search(rb"[^\r\n]", rows):
        return
    aside = _SetAside(dialect)
    try:
        reader = pa.csv.open_csv(
            pa.BufferReader(pa.py_buffer(rows)),
            # Single-threaded, because Arrow reports row numbers only then.
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
    """Collects the rows with too few or too many fields while a file is read."""

    def __init__(self, dialect: Dialect):
        self._dialect = dialect
        self._waiting: dict[int, str] = {}
        self.count = 0

    def add(self, row: pa.csv.InvalidRow) -> str:
        """Adds an invalid row reported by Arrow, which numbers rows from 1 and skips empty lines."""
        self._waiting[row.number - 1] = _misfit(row.actual_columns, row.expected_columns, self._dialect.separator)
        self.count += 1
        return "skip"

    def put_back(self, columns: list[pa.Array], done: int, schema: pa.Schema, *, last: bool = False) -> pa.RecordBatch:
        """Returns the next rows, with the invalid rows inserted at their original positions.

        Args:
            columns: columns of the valid rows.
            done: number of rows before them, valid and invalid.
            schema: schema of the table.
            last: whether these are the last rows.
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
    """Detects the format from the first line: the separator that gives most known column names, then most columns.

    Raises:
        UserError: the file is empty, its first line is not a header, or the number of fields differs from the given header.
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
    """True if a .txt file is a table: its first line names an image column and a caption column."""
    try:
        names = {name.lower() for name in find_dialect(path, read_utf8(path, encoding)).names}
    except UserError:
        return False
    return bool(names & {*USUAL_NAMES["image"]} and names & {*USUAL_NAMES["caption"]})


def _known(names: Sequence[str]) -> int:
    usual = {name for names in USUAL_NAMES.values() for name in names}
    return sum(name.strip().lower() in usual for name in names)


def _end_of_run(run: re.Pattern[bytes], text: memoryview, start: int) -> int:
    """Returns the offset at which the repetitions of a pattern of `Dialect.run_of` end.

    The pattern stops after 1,000 parts, so that what it remembers of each takes no memory. A possessive group would remember
    nothing, but before Python 3.11.5 and 3.12 it may lose its last byte (https://github.com/python/cpython/issues/106052).
    """
    while match := run.match(text, start):
        start = match.end()
    return start


def _check_quotes(path: Path, text: memoryview, dialect: Dialect) -> None:
    """Raises UserError for a quote that is not closed, or is closed lines later within a field, since rows would be lost.

    Also raises for a quote escaped only by a backslash, since its field would be garbled.
    """
    end = _end_of_run(dialect.run_of(rb'[^"]'), text, 0)
    if end < len(text):
        closing = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"').match(text, end)
        where = f"only closes on line {line_at(text, closing.end())}, within a field" if closing else "never closes"
        raise UserError(
            f'{path}, line {line_at(text, end)}: a quote (") opens a field here and {where}; close it at the end of '
            'the field, or put the field in quotes and write each quote in it twice ("")'
        )
    if escaped := dialect.escaped_quote.search(text):
        raise UserError(
            f'{path}, line {line_at(text, escaped.end())}: a quote within a field is written \\" here; write it twice ("")'
        )


def _wrong_row(path: Path, text: memoryview, dialect: Dialect) -> UserError | None:
    """Returns the error for the first row with too many or too few fields, or of excessive length; None if there is none."""
    fields, quoted = dialect.run_of(rb'[^"\r\n]'), re.compile(dialect.quoted)
    position = dialect.start
    while position < len(text):
        start, end = position, _end_of_run(fields, text, position)
        row, position = bytes(text[start:end]), end + len(_LINE.match(text, end)[0])  # type: ignore[index]
        count, expected = quoted.sub(b"", row).count(dialect.separator.encode()) + 1, len(dialect.names)
        if row and count != expected:
            problem = _misfit(count, expected, dialect.separator)
        elif len(row) > LONGEST_ROW:
            problem = f"the row has {len(row)} bytes, more than the limit of {LONGEST_ROW}"
        else:
            continue
        return UserError(f"{path}, line {line_at(text, start)}: {problem}")
    return None
