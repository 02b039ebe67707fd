"""Registries: explicit mappings from names to factories, which are imported on first use.

The keyword-only parameters of a factory are the `args` that a configuration may give; mmcl itself passes its positional
parameters (the data root, the seed, ...). This rule makes it possible to check a configuration before anything is built.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from mmcl.errors import UserError, first_line, unknown_name
from mmcl.plugins import load_plugins, plugin_being_loaded

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


_KINDS = {"float": "a number", "int": "a whole number", "bool": "true or false"}
_LISTS = ("Sequence[", "tuple[", "list[")


def _expected(annotation: Any, value: Any) -> str | None:
    """What a value must be, if it cannot be what a parameter is annotated with: a number, a switch or a list.

    Other annotations are left to the factory.
    """
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    named = text.split(" | ")
    kinds = [kind for kind in named if kind != "None"]
    if kinds and all(kind in _KINDS for kind in kinds) and not _is_one_of(named, value):
        return " or ".join(_KINDS[kind] for kind in kinds)
    is_list = len(kinds) == 1 and kinds[0].startswith(_LISTS)
    is_single = isinstance(value, str | bool | int | float | dict)
    return f"a list, such as [{_SHORT.repr(value)}]" if is_list and is_single else None


def _is_one_of(kinds: Sequence[str], value: Any) -> bool:
    """Whether a value is of one of the kinds "float", "int", "bool" and "None"; 4e3 is a whole number, too."""
    if value is None or isinstance(value, bool):
        return type(value).__name__.removesuffix("Type") in kinds
    if "float" in kinds:
        return isinstance(value, Real)
    return "int" in kinds and (isinstance(value, Integral) or (isinstance(value, float) and value.is_integer()))


def _docstring(module: str, name: str) -> str | None:
    """Returns the docstring of a class or function in the source of a module that need not be imported."""
    if module in sys.modules:
        return inspect.getdoc(getattr(sys.modules[module], name))
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    definitions = ast.parse(Path(spec.origin).read_bytes()).body
    named = (one for one in definitions if isinstance(one, ast.ClassDef | ast.FunctionDef) and one.name == name)
    return next((ast.get_docstring(one) for one in named), None)


class Registry(Mapping[str, Callable[..., Any]]):
    """A mapping from a name to a factory: `"module:attribute"`, imported on first use, or the callable itself.

    It includes the entries of all plug-ins (see `mmcl.plugins`).

    Args:
        kind: what the entries are, such as "encoder".
        entries: by name.
        suggest: what an unknown name means, as in "'affine' with args {rotation: 10}"; None if it is not known either.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, str | Callable[..., Any]],
        *,
        suggest: Callable[[str], str | None] = lambda name: None,
    ):
        self.kind = kind
        self._suggest = suggest
        self._table: dict[str, str | Callable[..., Any]] = dict(entries)
        self._plugins: dict[str, str] = {}

    @property
    def _entries(self) -> dict[str, str | Callable[..., Any]]:
        load_plugins()
        return self._table

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._entries:
            raise self._unknown(name)
        entry = self._entries[name]
        if isinstance(entry, str):
            module, attribute = entry.split(":")
            entry = self._entries[name] = getattr(importlib.import_module(module), attribute)
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _unknown(self, name: str, where: str = "") -> UserError:
        return unknown_name(self.kind, name, self._entries, where=where, suggestion=self._suggest(name))

    def register(self, name: str, factory: str | Callable[..., Any]) -> None:
        """Adds an entry; a plug-in calls this when it is imported.

        Args:
            name: name of the entry in configurations.
            factory: a class or function, or "module:attribute" to import it on first use; its keyword-only parameters are the
                `args` of a configuration.

        Raises:
            UserError: the name is already registered; says by which module.
        """
        if name in self._table:
            raise UserError(f"{self.kind} {name!r} is already registered by {self.plugin(name) or 'mmcl'}; choose another name")
        self._table[name] = factory
        own_module = factory.partition(":")[0] if isinstance(factory, str) else factory.__module__
        self._plugins[name] = plugin_being_loaded() or own_module

    def plugin(self, name: str) -> str | None:
        """Returns the plug-in module that registered an entry; None for the entries of mmcl itself."""
        return self._plugins.get(name)

    def summary(self, name: str) -> str:
        """Returns the first sentence of an entry's docstring; the source is read, so that nothing large is imported for it."""
        entry = self._entries[name]
        text = _docstring(*entry.split(":")) if isinstance(entry, str) else inspect.getdoc(entry)
        first, *_ = (text or "").split("\n\n")
        return re.split(r"(?<=\.)\s+(?=[A-Z`])", " ".join(first.split()))[0].rstrip(".")

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """Returns the arguments that a configuration may give to this entry, by name."""
        parameters = inspect.signature(self[name]).parameters
        return {key: p for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def check(self, name: str, args: Mapping[str, Any], *, where: str = "") -> None:
        """Raises UserError unless `args` fits the signature of `name`."""
        if name not in self._entries:
            raise self._unknown(name, where)
        parameters = self.parameters(name)
        for key in args:
            if key not in parameters:
                raise unknown_name(f"argument of {self.kind} {name!r}:", key, parameters, where=where)
        for key, value in args.items():
            if expected := _expected(parameters[key].annotation, value):
                prefix = f"{where}: " if where else ""
                raise UserError(f"{prefix}{key} of {self.kind} {name!r} must be {expected}, not {_SHORT.repr(value)}")
        missing = [key for key, p in parameters.items() if p.default is p.empty and key not in args]
        if missing:
            prefix = f"{where}: " if where else ""
            raise UserError(f"{prefix}{self.kind} {name!r} needs the argument {missing[0]!r}; set it under `args`")

    def build(self, name: str, args: Mapping[str, Any], *given: Any) -> Any:
        """Builds the entry from checked `args`; `given` are the positional parameters, which mmcl itself supplies.

        Raises:
            UserError: an argument does not exist or has an invalid value.
        """
        self.check(name, args)
        try:
            return self[name](*given, **args)
        except UserError:
            raise
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if not args:
                raise  # not caused by a value from the configuration
            shown = ", ".join(f"{key}: {_SHORT.repr(value)}" for key, value in args.items())
            raise UserError(f"{self.kind} {name!r} cannot be built with {shown} ({first_line(error)})") from error
