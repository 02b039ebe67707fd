"""`mmcl doctor`: sizes of the run that a configuration describes, and warnings about what would silently go wrong."""

from __future__ import annotations

import dataclasses
import json as json_module

from mmcl.cli.options import Json
from mmcl.cli.output import show


def doctor(config: str, /, *settings: str, processes: int = 1, json: Json = False) -> None:
    """Show a run's sizes before training, and what would go wrong.

    Examples:
        mmcl doctor clip_emoji
        mmcl doctor clip_emoji --processes 2 --train.batch_size 1024

    Any setting of the configuration may follow as a flag, as in training.

    Args:
        config: A YAML file, or the name of a shipped configuration. `mmcl list configs` lists them.
        processes: How many processes will be launched.
    """
    from mmcl.config import load_config
    from mmcl.runs.doctor import diagnose

    diagnosis = diagnose(load_config(config, settings), processes)
    show(json_module.dumps(dataclasses.asdict(diagnosis), indent=1) if json else diagnosis.to_text())
