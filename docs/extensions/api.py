"""The public names of a module, each with its docstring."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any

from sphinx.pycode import ModuleAnalyzer

import mmcl
from mmcl.registry import Registry


def public_names(module: str) -> str:
    """reStructuredText for autodoc, one directive for each name in `__all__`.

    Registries and modules have their own pages, as do names of a module that `mmcl` itself offers too.
    """
    package = importlib.import_module(module)
    named = {name: getattr(package, name) for name in package.__all__}
    own = {
        name: value
        for name, value in named.items()
        if not isinstance(value, (Registry, ModuleType)) and (package is mmcl or name not in mmcl.__all__)
    }
    lines = ["```{eval-rst}"]
    for name, value in sorted(own.items(), key=lambda item: (inspect.isclass(item[1]), item[0].lower())):
        lines += _entry(f"{module}.{name}", value)
    return "\n".join([*lines, "```", ""])


def _entry(path: str, value: Any) -> list[str]:
    if inspect.isclass(value):
        return [f".. {'autoexception' if issubclass(value, BaseException) else 'autoclass'}:: {path}", "   :members:", ""]
    if callable(value):
        return [f".. autofunction:: {path}", ""]
    return [f".. py:data:: {path}", "", *(f"   {line}" for line in _comment(path, value)), ""]


def _comment(path: str, value: Any) -> list[str]:
    """The docstring below a constant, which is in the module that defines it."""
    package, _, name = path.rpartition(".")
    for module, content in sorted(sys.modules.items()):
        is_there = module.startswith(package) and vars(content).get(name) is value
        if is_there and (lines := ModuleAnalyzer.for_module(module).find_attr_docs().get(("", name))):
            return lines
    raise LookupError(f"{path} has no docstring")
