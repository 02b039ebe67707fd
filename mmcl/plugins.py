"""Plug-ins: modules of other packages that register methods, encoders, sources, losses, augmentations and evaluators of theirs.

A plug-in is a module that calls `register` of the registries when it is imported, such as

    from mmcl.methods import METHODS
    METHODS.register("mine", Mine)

It is found by the entry-point group `mmcl.plugins` of an installed package, as by this in its pyproject.toml,

    [project.entry-points."mmcl.plugins"]
    mine = "my_package.plugin"

or named by the user: `mmcl --plugins my_package.plugin ...`, or the environment variable MMCL_PLUGINS, several separated by
commas. All are imported once, before a registry is first asked. No file says what is imported, neither a configuration nor a
model.
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
    """What has been imported, and what is being imported now."""

    def __init__(self) -> None:
        self.begun = False
        self.current: str | None = None
        self.failure: UserError | None = None

    def load(self) -> None:
        if not self.begun:
            self.begun, self.failure = True, None  # before the imports: a plug-in may ask a registry, too
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
        except (Exception, SystemExit) as error:  # whatever the code of others raises
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
    """Imports all plug-ins, once in a process. Raises UserError, each time, when one cannot be imported; names it."""
    _PLUGINS.load()


def plugin_being_loaded() -> str | None:
    """The plug-in whose import is going on; None outside of `load_plugins`."""
    return _PLUGINS.current


def plugin_modules() -> list[str]:
    """The modules of all plug-ins: those of installed packages by name, then those that the user names."""
    installed = sorted(entry.module for entry in importlib.metadata.entry_points(group=GROUP))
    named = (word.strip() for word in os.environ.get(VARIABLE, "").split(","))
    return list(dict.fromkeys([*installed, *filter(None, named)]))


def add_plugins(modules: Sequence[str]) -> None:
    """Names further plug-ins, for this process and its children. Raises UserError when one cannot be imported."""
    if modules:
        os.environ[VARIABLE] = ",".join(filter(None, [os.environ.get(VARIABLE), *modules]))
        _PLUGINS.begun = False
        load_plugins()
