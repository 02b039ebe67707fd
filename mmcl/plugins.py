"""Plug-ins: modules of other packages that register their own methods, encoders, sources, losses, augmentations,
evaluators and export targets.

A plug-in is a module that calls `register` on the registries when it is imported:

    from mmcl.methods import METHODS
    METHODS.register("mine", Mine)

An installed package declares it in the entry-point group `mmcl.plugins` in its pyproject.toml:

    [project.entry-points."mmcl.plugins"]
    mine = "my_package.plugin"

Alternatively, the user names it: `mmcl --plugins my_package.plugin ...`, or the environment variable MMCL_PLUGINS, with commas
between several. All plug-ins are imported once, before the first lookup in a registry. For security, neither a configuration
nor a model file can name modules to import.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import traceback
from collections.abc import Sequence

from mmcl.errors import UserError, first_line

GROUP, VARIABLE = "mmcl.plugins", "MMCL_PLUGINS"


class _Plugins:
    """State of the plug-in imports: done and in progress."""

    def __init__(self) -> None:
        self.begun = False
        self.current: str | None = None
        self.failure: UserError | None = None

    def load(self) -> None:
        if not self.begun:
            self.begun, self.failure = True, None  # before the imports, since a plug-in may look up names in a registry
            try:
                for module in plugin_modules():
                    self._import(module)
            except UserError as error:
                self.failure = error
        if self.failure is not None and self.current is None:
            raise self.failure

    def _import(self, module: str) -> None:
        self.current = module
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise _refused(module, error) from error
            raise UserError(f"plug-in {module} is not found: install it, or put its folder on PYTHONPATH") from error
        except (Exception, SystemExit) as error:  # third-party code may raise anything
            raise _refused(module, error) from error
        finally:
            self.current = None


def _refused(module: str, error: BaseException) -> UserError:
    if isinstance(error, UserError):
        return UserError(f"plug-in {module}: {error}")
    frames = traceback.extract_tb(error.__traceback__)
    what = f"{type(error).__name__}: {first_line(error)}, {frames[-1].filename}:{frames[-1].lineno}"
    return UserError(f"plug-in {module} cannot be imported ({what}); fix it, or remove it from {VARIABLE} and the environment")


_PLUGINS = _Plugins()


def load_plugins() -> None:
    """Imports all plug-ins, once per process. Raises UserError on every call if one cannot be imported; names it."""
    _PLUGINS.load()


def plugin_being_loaded() -> str | None:
    """Returns the plug-in that is being imported; None outside `load_plugins`."""
    return _PLUGINS.current


def plugin_modules() -> list[str]:
    """Returns the modules of all plug-ins: those of installed packages, sorted by name, then those named by the user."""
    installed = sorted(entry.module for entry in importlib.metadata.entry_points(group=GROUP))
    named = (word.strip() for word in os.environ.get(VARIABLE, "").split(","))
    return list(dict.fromkeys([*installed, *filter(None, named)]))


def add_plugins(modules: Sequence[str]) -> None:
    """Adds plug-ins for this process and its children. Raises UserError if one cannot be imported."""
    if modules:
        os.environ[VARIABLE] = ",".join(filter(None, [os.environ.get(VARIABLE), *modules]))
        _PLUGINS.begun = False
        load_plugins()
