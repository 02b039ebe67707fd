"""Data arguments of the command line: a path or the name of a source, and the source's arguments as YAML."""

from __future__ import annotations

import difflib
from pathlib import Path

from mmcl.config import SourceConfig, parse_value
from mmcl.errors import UserError


def parse_source(name_or_path: str, args: str, *, flag: str, with_answers: bool = False) -> SourceConfig:
    """Returns the source of that name, or the one at that path; an existing file takes precedence.

    Args:
        name_or_path: the source.
        args: its arguments, as YAML.
        flag: what gives them, for messages.
        with_answers: whether the command reads more of the data than images, captions, labels and groups; otherwise, columns
            of more are refused.

    Raises:
        UserError: the arguments are not a mapping, or the name is nearly that of a source.
    """
    source = _source(name_or_path, parse_mapping(flag, args))
    if source.args and not with_answers:
        from mmcl.runs.read_columns import refuse_columns

        refuse_columns(source, flag)
    return source


def _source(name_or_path: str, options: dict[str, object]) -> SourceConfig:
    from mmcl.data import SOURCES

    if name_or_path in SOURCES and not Path(name_or_path).exists():
        return SourceConfig(name=name_or_path, args=options)
    nearest = difflib.get_close_matches(name_or_path, SOURCES, n=1, cutoff=0.7)
    if nearest and not Path(name_or_path).exists():
        raise UserError(f"{name_or_path}: neither a file or folder nor a source; did you mean the source {nearest[0]!r}?")
    return SourceConfig(path=name_or_path, args=options)


def parse_mapping(flag: str, text: str) -> dict[str, object]:
    """Parses the value of a flag as a mapping. Raises UserError if it is not a mapping."""
    value = parse_value(text)
    if not isinstance(value, dict):
        raise UserError(f'{flag} must be a mapping such as "{{fold: test}}", not {text!r}')
    return value
