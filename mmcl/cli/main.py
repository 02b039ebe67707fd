"""`mmcl VERB ...`: errors that a user can mend are one line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import tyro

from mmcl.cli.classify import classify
from mmcl.cli.compare import compare
from mmcl.cli.data import Data, data
from mmcl.cli.doctor import Doctor, doctor
from mmcl.cli.embed import embed
from mmcl.cli.evaluate import evaluate, evaluate_run
from mmcl.cli.list import list_components
from mmcl.cli.search import search
from mmcl.errors import UserError

_VERBS: dict[str, Callable[..., object]] = {
    "classify": classify,
    "search": search,
    "embed": embed,
    "eval": evaluate_run,
    "compare": compare,
    "list": list_components,
    "doctor": Doctor,
    "data": Data,
}

# `doctor` takes any setting of a configuration, `eval` has three forms, `data` has verbs: no one signature says that.
_PARSERS: dict[str, Callable[[Sequence[str]], None]] = {"doctor": doctor, "eval": evaluate, "data": data}

_DESCRIPTION = (
    "Contrastive image-text models: classify images by text prompts, search them, evaluate a run.\n"
    "Train one with `accelerate launch scripts/train.py`; `mmcl VERB --help` explains each verb."
)


def exit_cleanly(command: Callable[[], object]) -> int:
    """Runs a command. Returns its exit code: 0, 2 after a user's error (printed as one line), 130 after Ctrl-C."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The `mmcl` command. Returns the exit code."""

    words = sys.argv[1:] if arguments is None else arguments

    def run() -> None:
        if words and words[0] in _PARSERS:
            _PARSERS[words[0]](words[1:])
            return
        tyro.extras.subcommand_cli_from_dict(
            _VERBS, prog="mmcl", description=_DESCRIPTION, args=words, config=(tyro.conf.FlagCreatePairsOff,)
        )

    return exit_cleanly(run)
