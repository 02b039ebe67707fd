"""`mmcl doctor`: sizes of the run that a configuration describes, and warnings about what would silently go wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from tyro.conf import Positional

from mmcl.cli.output import show
from mmcl.cli.parse import one_line


@dataclass(frozen=True)
class Doctor:
    """Look at a configuration before training: mmcl doctor clip_emoji --processes 2 --train.batch_size 512

    Any setting of the configuration may follow as a flag, as in training.

    Attributes:
        config: The YAML file, or the name of a shipped configuration (`mmcl list configs`).
        processes: How many processes will be launched.
        json: Print JSON instead of text.
    """

    config: Positional[str]
    processes: int = 1
    json: bool = False


def doctor(words: Sequence[str]) -> None:
    """Parses the words after the verb, and prints the diagnosis.

    Raises:
        UserError: what training would refuse, too.
    """
    config = (tyro.conf.FlagCreatePairsOff,)
    options, settings = one_line(
        "mmcl doctor", lambda: tyro.cli(Doctor, prog="mmcl doctor", args=words, return_unknown_args=True, config=config)
    )
    from mmcl.config import load_config
    from mmcl.runs.doctor import diagnose

    diagnosis = diagnose(load_config(options.config, settings), options.processes)
    show(json.dumps(dataclasses.asdict(diagnosis), indent=1) if options.json else diagnosis.to_text())
