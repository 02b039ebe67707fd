"""Docstrings are Markdown with Google's sections; what reStructuredText writes otherwise is translated before autodoc reads it.

Translated are formulas (`$...$`, `$$...$$`) and tables; single backticks are code by Sphinx's `default_role`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

_CODE = re.compile(r"(`[^`]*`)")
_FORMULA = re.compile(r"(?<!\$)\$([^$]+)\$(?!\$)")
_DISPLAYED = re.compile(r"^( *)\$\$(.+?)\$\$", re.MULTILINE | re.DOTALL)


def translate(app: object, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """A handler of `autodoc-process-docstring`: changes `lines` in place."""
    text = _DISPLAYED.sub(_displayed, "\n".join(lines))
    lines[:] = []
    for is_table, group in groupby(text.split("\n"), lambda line: line.lstrip().startswith("|")):
        block = list(group)
        lines += _table(block) if is_table else [_line(line) for line in block]


def _displayed(formula: re.Match[str]) -> str:
    return f"{formula[1]}.. math:: {' '.join(formula[2].split())}"


def _line(line: str) -> str:
    if re.match(r"\s*(>>>|\.\.\. |\.\. math::)", line):
        return line
    return _prose(line)


def _prose(text: str) -> str:
    """Formulas as the role that they are, and no `|substitution|`; code stays as it is."""
    return "".join(part if number % 2 else _words(part) for number, part in enumerate(_CODE.split(text)))


def _words(text: str) -> str:
    parts = _FORMULA.split(text)
    return "".join(f":math:`{part}`" if number % 2 else part.replace("|", r"\|") for number, part in enumerate(parts))


def _table(rows: list[str]) -> Iterator[str]:
    """A table of Markdown as a `list-table`; its second row is the rule below the header."""
    indent = rows[0][: len(rows[0]) - len(rows[0].lstrip())]
    yield from (f"{indent}.. list-table::", f"{indent}   :header-rows: 1", "")
    for row in [rows[0], *rows[2:]]:
        cells = [cell.strip() for cell in row.strip().strip("|").split("|")]
        for number, cell in enumerate(cells):
            yield f"{indent}   {'*' if number == 0 else ' '} - {_prose(cell)}"
    yield ""
