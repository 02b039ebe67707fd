"""`mmcl finetune`: fine-tuning of a model on one's own pairs, with settings chosen for them and said before it starts."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mmcl.cli.output import say, show
from mmcl.cli.sources import parse_source
from mmcl.cli.train import run_and_print
from mmcl.config import EvaluatorConfig
from mmcl.config.flags import parse_flags
from mmcl.config.shipped import SUFFIXES, shipped_configs
from mmcl.errors import UserError
from mmcl.interop.available import check_available
from mmcl.terminal import terminal_width

Preset = Literal["full", "lora", "last_blocks", "lit", "probe_then_tune", "anchor"]


def finetune(
    data: str,
    /,
    *settings: str,
    init: str,
    preset: Preset = "full",
    keep: tuple[str, ...] = (),
    dry_run: bool = False,
) -> None:
    """Fine-tune a model on your pairs; show what it gained and lost.

    Examples:
        mmcl finetune photos/ --init runs/clip_emoji --dry_run
        mmcl finetune photos/ --init runs/clip_emoji --preset lora

    Batch, learning rate, length, held-out pairs and micro-batch are chosen from the data, the model and the device, and
    printed as a configuration to keep. Any setting may follow as a flag, as in training.

    Args:
        data: Images with captions, or a folder for each class. A path, or the name of a source.
        init: Model to start from: a run, open_clip:ARCH/TAG or hf:ID.
        preset: What is trained. `mmcl list configs finetune` explains them.
        keep: Old data, to see what is forgotten. Paths, sources or suites; by default what the run in --init was evaluated on.
        dry_run: Print the choices and stop.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("mmcl finetune measures with one process: start the configuration that it prints with your launcher")
    given = parse_flags(settings)
    check_available(init)
    from mmcl.runs.finetuning import choose
    from mmcl.runs.forecast import forecast
    from mmcl.runs.resume import refuse_existing_run

    run_dir = Path(str(given.get("run_dir", f"runs/finetune_{preset}")))
    if not given.get("resume") and not dry_run:
        refuse_existing_run(run_dir)
    source = parse_source(data, "{}", flag="--data.train.args")
    choice, facts = forecast(choose(source, init, preset, settings, _old_data(keep)))
    show(facts.to_text(terminal_width(), with_warnings=dry_run))
    show("\nconfiguration, to keep and to change: mmcl train FILE.yaml")
    show("\n".join(f"  {line}" for line in choice.to_yaml().splitlines()))
    if dry_run:
        show("\ntry next")
        old = ["--keep", *keep] if keep else []
        say(f"  {shlex.join(['mmcl', 'finetune', data, '--init', init, '--preset', preset, *old, *settings])}")
        return
    show("")
    run_and_print(choice.config)


def _old_data(names: Sequence[str]) -> list[EvaluatorConfig] | None:
    """Returns the evaluators of old data, given as suites, paths or names of sources; None if nothing is given."""
    found: list[EvaluatorConfig] = []
    for name in names:
        if name in shipped_configs() or Path(name).suffix in SUFFIXES:
            found += _of_suite(name)
        else:
            found.append(_of_data(name))
    return found or None


def _of_suite(name: str) -> list[EvaluatorConfig]:
    from mmcl.runs.suite import load_suite

    suite = load_suite([Path(name)], models=["the result"])
    return [replace(one, keep=True) for one in suite.evaluate if one.name != "embedding_map"]


def _of_data(name: str) -> EvaluatorConfig:
    from mmcl.data.derived.label_captions import has_captions
    from mmcl.runs.build_data import build_source

    data = parse_source(name, "{}", flag="--keep")
    evaluator = "retrieval" if has_captions(build_source(data, None, "--keep")) else "zero_shot"
    return EvaluatorConfig(name=evaluator, label=name.rstrip("/"), data=data, keep=True)
