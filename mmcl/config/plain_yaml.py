"""YAML of plain data, in which 5e-4 is a number, as in YAML 1.2 and JSON; PyYAML follows YAML 1.1, for which it is a text."""

from __future__ import annotations

import re
from typing import Any

import yaml

_FLOAT = "tag:yaml.org,2002:float"
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    """Reads plain data alone."""


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes that would be read as a number."""


for _either in (_Loader, _Dumper):
    _either.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """Reads YAML.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is not valid.

    Example:
        >>> read_yaml("{lr: 5e-4, name: a}")
        {'lr': 0.0005, 'name': 'a'}
    """
    return yaml.load(text, _Loader)


def write_yaml(tree: Any, *, compact: bool = False) -> str:
    """Writes plain data as YAML that `read_yaml` reads back.

    Args:
        tree: mappings, lists, texts, numbers, switches and None.
        compact: write mappings and lists without mappings or lists in them in one line.

    Example:
        >>> write_yaml({"lr": 5e-4, "name": "5e-4"})
        "lr: 0.0005\\nname: '5e-4'\\n"
    """
    return yaml.dump(
        tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None if compact else False
    )
