"""Entry point `mmcl VERB ...`; errors that a user can fix are reported in one line with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import mmcl
from mmcl.cli.classify import classify
from mmcl.cli.compare import compare
from mmcl.cli.config import print_config
from mmcl.cli.data import Data, data
from mmcl.cli.doctor import Doctor, doctor
from mmcl.cli.embed import embed
from mmcl.cli.evaluate import evaluate, evaluate_run
from mmcl.cli.example import example
from mmcl.cli.exit import exit_cleanly, without_debug, without_plugins
from mmcl.cli.list import list_components
from mmcl.cli.output import say
from mmcl.cli.parse import parse_call
from mmcl.cli.search import search
from mmcl.cli.train import Train, train
from mmcl.cli.watch import watch
from mmcl.plugins import add_plugins

_VERBS: dict[str, Callable[..., object]] = {
    "train": Train,
    "classify": classify,
    "search": search,
    "embed": embed,
    "eval": evaluate_run,
    "compare": compare,
    "list": list_components,
    "config": print_config,
    "doctor": Doctor,
    "data": Data,
    "example": example,
    "watch": watch,
}

# `train` and `doctor` take any setting of a configuration, `eval` has three forms, `data` has verbs: no signature says that.
_PARSERS: dict[str, Callable[[Sequence[str]], None]] = {"train": train, "doctor": doctor, "eval": evaluate, "data": data}

_DESCRIPTION = (
    "Contrastive image-text models: train one, classify images by text prompts, search them, evaluate a run.\n"
    "`mmcl VERB --help` explains each verb; `mmcl --version` prints the version.\n"
    "--plugins MODULE (or MMCL_PLUGINS) imports a module that registers methods, sources, encoders, ... of yours.\n"
    "Exit codes: 0 done, 1 in part (the rest is listed), 2 an error to fix, 70 a bug (--debug shows its traceback)."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The `mmcl` command. Returns the exit code; see `mmcl.cli.exit`."""
    given, debug = without_debug(sys.argv[1:] if arguments is None else arguments)

    def run() -> None:
        words, plugins = without_plugins(given)
        add_plugins(plugins)
        if words == ["--version"]:
            say(f"mmcl {mmcl.__version__}")
        elif words and words[0] in _PARSERS:
            _PARSERS[words[0]](words[1:])
        else:
            parse_call(_VERBS, words, prog="mmcl", description=_DESCRIPTION)()

    return exit_cleanly(run, debug=debug)
