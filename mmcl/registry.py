"""Names to factories: one explicit line per entry, imported when first used, so that listing names costs nothing.

The keyword-only parameters of a factory are the `args` that a configuration may give; its positional parameters are given by
mmcl itself (the data root, the seed, ...). That one rule is what lets a configuration be checked before anything is built.
"""

from __future__ import annotations

import importlib
import inspect
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmcl.errors import UserError, first_line, unknown_name
from mmcl.plugins import load_plugins, plugin_being_loaded

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class Registry(Mapping[str, Callable[..., Any]]):
    """A mapping from a name to a factory: `"module:attribute"`, imported on first use, or the callable itself.

    Whoever asks it sees the entries of all plug-ins too (see `mmcl.plugins`).
    """

    def __init__(self, kind: str, entries: Mapping[str, str | Callable[..., Any]]):
        self.kind = kind
        self._table: dict[str, str | Callable[..., Any]] = dict(entries)
        self._plugins: dict[str, str] = {}

    @property
    def _entries(self) -> dict[str, str | Callable[..., Any]]:
        load_plugins()
        return self._table

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
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

    def register(self, name: str, factory: str | Callable[..., Any]) -> None:
        """Adds an entry of your own, as a plug-in does when it is imported.

        Args:
            name: what configurations call it.
            factory: a class or function, or "module:attribute" to import it on first use; its keyword-only parameters are the
                `args` of a configuration.

        Raises:
            UserError: the name is taken; says by whom.
        """
        if name in self._table:
            raise UserError(f"{self.kind} {name!r} is already registered by {self.plugin(name) or 'mmcl'}; choose another name")
        self._table[name] = factory
        own_module = factory.partition(":")[0] if isinstance(factory, str) else factory.__module__
        self._plugins[name] = plugin_being_loaded() or own_module

    def plugin(self, name: str) -> str | None:
        """The module that registered an entry, a plug-in; None for what comes with mmcl."""
        return self._plugins.get(name)

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """The arguments that a configuration may give to this entry, by name."""
        parameters = inspect.signature(self[name]).parameters
        return {key: p for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def check(self, name: str, args: Mapping[str, Any], *, where: str = "") -> None:
        """Raises UserError unless `args` fits the signature of `name`."""
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries, where=where)
        parameters = self.parameters(name)
        for key in args:
            if key not in parameters:
                raise unknown_name(f"argument of {self.kind} {name!r}:", key, parameters, where=where)
        missing = [key for key, p in parameters.items() if p.default is p.empty and key not in args]
        if missing:
            prefix = f"{where}: " if where else ""
            raise UserError(f"{prefix}{self.kind} {name!r} needs the argument {missing[0]!r}; set it under `args`")

    def build(self, name: str, args: Mapping[str, Any], *given: Any) -> Any:
        """Builds the entry from checked `args`; `given` are the positional parameters, which mmcl itself supplies.

        Raises:
            UserError: an argument does not exist, or has a value with which nothing can be built.
        """
        self.check(name, args)
        try:
            return self[name](*given, **args)
        except UserError:
            raise
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if not args:
                raise  # nobody's value is to blame
            shown = ", ".join(f"{key}: {_SHORT.repr(value)}" for key, value in args.items())
            raise UserError(f"{self.kind} {name!r} cannot be built with {shown} ({first_line(error)})") from error
