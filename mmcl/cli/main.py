"""Entry point `mmcl VERB ...`; errors that a user can fix are reported in one line with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import mmcl
from mmcl.cli.arguments import form_of
from mmcl.cli.card import card
from mmcl.cli.classify import classify
from mmcl.cli.compare import compare
from mmcl.cli.completion import completion
from mmcl.cli.config import print_config
from mmcl.cli.data import data, look
from mmcl.cli.dedup import dedup
from mmcl.cli.doctor import doctor
from mmcl.cli.embed import embed
from mmcl.cli.evaluate import evaluate, evaluate_run
from mmcl.cli.example import example
from mmcl.cli.exit import exit_cleanly, without_debug, without_plugins
from mmcl.cli.export import export
from mmcl.cli.finetune import finetune
from mmcl.cli.help import entries
from mmcl.cli.index import index, keep_up
from mmcl.cli.list import list_components
from mmcl.cli.merge import merge
from mmcl.cli.mine import mine
from mmcl.cli.output import say, show
from mmcl.cli.parse import HELP, HELP_ALL, parse_call, with_underscores
from mmcl.cli.push import push
from mmcl.cli.search import search
from mmcl.cli.serve import serve
from mmcl.cli.train import train, train_or_help
from mmcl.cli.watch import watch
from mmcl.errors import UserError, unknown_name
from mmcl.plugins import add_plugins

VERBS: dict[str, Callable[..., object]] = {
    "train": train,
    "classify": classify,
    "search": search,
    "index": keep_up,
    "dedup": dedup,
    "serve": serve,
    "embed": embed,
    "mine": mine,
    "eval": evaluate_run,
    "compare": compare,
    "finetune": finetune,
    "merge": merge,
    "export": export,
    "card": card,
    "push": push,
    "list": list_components,
    "config": print_config,
    "doctor": doctor,
    "data": look,
    "example": example,
    "watch": watch,
    "completion": completion,
}

# The help of `train` depends on the configuration, `eval` has three forms, `data` and `index` have verbs: no signature says so.
_PARSERS: dict[str, Callable[[Sequence[str]], None]] = {"train": train_or_help, "eval": evaluate, "data": data, "index": index}

_ONCE = ("completion",)
"""Verbs that one needs once, if at all, and the short overview has no line for."""
_MORE = "start with mmcl train; mmcl VERB --help explains a verb, mmcl --help_all flags"
_SHARED = {
    "--help, --help_all": "the arguments of a verb, in short or in full",
    "--plugins MODULE": "import methods, sources, ... of yours (or MMCL_PLUGINS)",
    "--debug, --version": "show the traceback of an error; print the version",
}
_CODES = "exit codes: 0 done, 1 in part, 2 to fix, 3 nothing found, 4 damaged, 70 a bug"


def main(arguments: Sequence[str] | None = None) -> int:
    """The `mmcl` command. Returns the exit code; see `mmcl.cli.exit`."""
    given, debug = without_debug(sys.argv[1:] if arguments is None else arguments)

    def run() -> None:
        words, plugins = without_plugins(with_underscores(given))
        add_plugins(plugins)
        _run(words)

    return exit_cleanly(run, debug=debug)


def _run(words: Sequence[str]) -> None:
    verb, *rest = words or ["--help"]
    if verb in ("help", *HELP, HELP_ALL) and rest:  # before the verb or after it
        verb, rest = rest[0], [*rest[1:], HELP_ALL if verb == HELP_ALL else "--help"]
    if verb in (*HELP, HELP_ALL, "help"):
        _print_overview(complete=verb == HELP_ALL)
    elif verb in ("--version", "version"):
        say(f"mmcl {mmcl.__version__}")
    elif verb in _PARSERS:
        _PARSERS[verb](rest)
    elif verb in VERBS:
        parse_call(VERBS[verb], rest, prog=f"mmcl {verb}")()
    elif verb.startswith("-"):
        raise UserError(f"the verb comes first: mmcl VERB {verb} ...; the verbs are {', '.join(VERBS)}; see mmcl --help")
    else:
        raise unknown_name("verb", verb, VERBS, where="mmcl")


def _print_overview(*, complete: bool) -> None:
    verbs = [(name, form_of(verb).summary.rstrip(".")) for name, verb in VERBS.items() if complete or name not in _ONCE]
    shared = ["", "flags of every verb", *entries(list(_SHARED.items())), _CODES] if complete else [_MORE]
    show("\n".join(["mmcl: contrastive learning of embeddings for images and texts", *entries(verbs), *shared]))
