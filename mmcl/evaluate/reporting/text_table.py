"""Tables in the width of a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from mmcl.terminal import display_width, printable_line, shortened, wrapped

_GAP, _INDENT = 2, 2
_LONG_NAME = 14
_FEWEST = 10
"""Columns of a terminal that a column of text is not made narrower than."""
_ABBREVIATIONS = {"text_to_image": "t2i", "image_to_text": "i2t"}
_NUMBER = re.compile(r"[-+<]?[\d.,]*( \[.*\])?")


def text_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Formats a table so that no line is wider than `width`.

    Only the second column has intervals, and a last column that is the same number in all rows is said in the title. If the
    table is still too wide, then one after the other, until it fits: the names of metrics lose that of the evaluator, which the
    title has; text_to_image becomes t2i and image_to_text i2t; long names in the header become letters, which are explained
    below; names of two words in the header take two lines; texts are cut off with "…", names of metrics continue on the next
    line; and the columns that have no room follow in a second table, after the first column.
    """
    cells = [[printable_line(cell) for cell in row] for row in (header, *rows)]
    cells = [cells[0], *([*row[:2], *(cell.partition(" [")[0] for cell in row[2:])] for row in cells[1:])]
    title, cells = _with_common_number(printable_line(title), cells)
    room = width - _INDENT
    below: list[str] = []
    if _width(cells) > room:
        cells = _without_evaluator(title, cells)
    if _width(cells) > room:
        cells = [[_abbreviated(row[0]), *row[1:]] for row in cells]
    if _width(cells) > room:
        cells[0], below = _lettered(cells[0])
    head, body = cells[:1], cells[1:]
    if _width(cells) > room:
        head = _in_two_lines(cells[0], _widths(body or head))
    cells = _cut(head, body, room) if _width([*head, *body]) > room else [*head, *body]
    blocks = ["\n".join(" " * _INDENT + line for line in _aligned(block)) for block in _blocks(cells, room)]
    notes = [wrapped(f"{' ' * _INDENT}{line}", width, indent=" " * 5) for line in below]
    return "\n".join([shortened(title, width), "\n\n".join(blocks), *notes])


def _with_common_number(title: str, cells: list[list[str]]) -> tuple[str, list[list[str]]]:
    name, last = cells[0][-1], {row[-1] for row in cells[1:]}
    number = "".join(last)
    if len(cells[0]) < 3 or len(last) != 1 or not number.isdecimal():
        return title, cells
    return f"{title} ({name} = {int(number):,})", [row[:-1] for row in cells]


def _without_evaluator(title: str, cells: list[list[str]]) -> list[list[str]]:
    """Without the start that all metrics share with the title: "top1" for "zero_shot_top1" under "zero_shot: photos"."""
    evaluator = title.partition(":")[0] + "_"
    if not all(row[0].startswith(evaluator) for row in cells[1:]):
        return cells
    return [cells[0], *([row[0].removeprefix(evaluator), *row[1:]] for row in cells[1:])]


def _abbreviated(metric: str) -> str:
    for long, short in _ABBREVIATIONS.items():
        metric = metric.replace(long, short)
    return metric


def _lettered(header: list[str]) -> tuple[list[str], list[str]]:
    """The header with letters for long names, and lines that explain them."""
    letters = iter([*ascii_uppercase, *(f"{a}{b}" for a in ascii_uppercase for b in ascii_uppercase)])
    free = (letter for letter in letters if letter not in header)
    short = [next(free, name) if display_width(name) > _LONG_NAME else name for name in header]
    return short, [f"{letter}  {name}" for letter, name in zip(short, header, strict=True) if letter != name]


def _in_two_lines(header: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """The header in two lines, if names that are wider than their columns have a space: "raw" above "pixels"."""
    pairs = [_halves(name) if display_width(name) > width else (name, "") for name, width in zip(header, widths, strict=True)]
    upper, lower = map(list, zip(*pairs, strict=True))
    return [upper, lower] if any(lower) else [upper]


def _halves(name: str) -> tuple[str, str]:
    """The two parts of a name, split at the space that makes the wider one narrowest; the second is empty without a space."""
    words = name.split(" ")
    splits = [(" ".join(words[:n]), " ".join(words[n:])) for n in range(1, len(words))]
    return min([(name, ""), *splits], key=lambda parts: max(map(display_width, parts)))


def _cut(head: list[list[str]], body: list[list[str]], room: int) -> list[list[str]]:
    """Texts, the widest column first, as short as the room demands or as they may be made.

    The first column names the rows: its texts stay different from each other, if the widest other column still fits beside it.
    """
    cells = [*head, *body]
    widths = _widths(cells)
    texts = [column for column in range(len(widths)) if not all(_NUMBER.fullmatch(row[column]) for row in body)]
    beside = max([_FEWEST, *(widths[column] for column in range(1, len(widths)) if column not in texts)])
    names = min(_distinct_width([row[0] for row in cells]), max(_FEWEST, room - _GAP - beside))
    for column in sorted(texts, key=lambda column: -widths[column]):
        excess = _sum(widths) - room
        fewest = _FEWEST if column else names
        widths[column] = min(widths[column], max(fewest, widths[column] - max(0, excess)))
    return [line for row in cells for line in _lines(row, widths)]


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """A row whose texts are cut; or two, if its name has a part that goes to the second line: "top1_worst_" and "template"."""
    name, width = row[0], widths[0]
    end = name.rfind("_", 0, width) + 1
    cut = [shortened(cell, room) for cell, room in zip(row, widths, strict=True)]
    if display_width(name) <= width or not end or display_width(name[end:]) > width - 1:
        return [cut]
    return [[name[:end], *cut[1:]], [f" {name[end:]}", *([""] * len(cut[1:]))]]


def _distinct_width(texts: Sequence[str]) -> int:
    """The width from which on different texts are still different when they are cut."""
    widest = max(map(display_width, texts))
    return next((w for w in range(_FEWEST, widest) if len({shortened(one, w) for one in texts}) == len({*texts})), widest)


def _blocks(cells: list[list[str]], room: int) -> list[list[list[str]]]:
    """The first column with as many of the others as have room, at least one, until there are no more."""
    widths, chosen = _widths(cells), [0]
    blocks: list[list[int]] = []
    for column in range(1, len(widths)):
        if len(chosen) > 1 and _sum([widths[one] for one in (*chosen, column)]) > room:
            blocks, chosen = [*blocks, chosen], [0]
        chosen = [*chosen, column]
    return [[[row[column] for column in block] for row in cells] for block in [*blocks, chosen]]


def _aligned(cells: list[list[str]]) -> list[str]:
    widths, gap = _widths(cells), " " * _GAP
    lines = [[f"{cell}{' ' * (width - display_width(cell))}" for cell, width in zip(row, widths, strict=True)] for row in cells]
    return [gap.join(line).rstrip() for line in lines]


def _widths(cells: list[list[str]]) -> list[int]:
    return [max(map(display_width, column)) for column in zip(*cells, strict=True)]


def _width(cells: list[list[str]]) -> int:
    return _sum(_widths(cells))


def _sum(widths: list[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)
