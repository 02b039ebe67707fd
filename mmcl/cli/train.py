"""`mmcl train`: training from a configuration and flags, with a summary and next steps at the end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from tyro.conf import Positional

from mmcl.cli.exit import PART
from mmcl.cli.output import say, show
from mmcl.cli.reports import show_report
from mmcl.config import Config, load_config

if TYPE_CHECKING:
    from mmcl.runs.run import RunResult

_DEFAULT = "clip_emoji"
_RELEASED = "open_clip:ViT-B-32/laion2b_s34b_b79k"

_USAGE = """Train a model: mmcl train [CONFIG] [--name value ...]

CONFIG is a YAML file or the name of a shipped configuration (`mmcl list configs`). Every setting below is a flag; the defaults
shown are those of {config}. Values are YAML: --optim.lr 3e-4, --image.encoder.args.width 64, --data.train.path photos/,
--optim.betas 0.9 0.98, --resume. Several processes: torchrun --nproc_per_node N -m mmcl train ..., or accelerate launch -m mmcl
train ..."""


@dataclass(frozen=True)
class Train:
    """Train a model, evaluate it next to its baselines, report: mmcl train clip_emoji --optim.lr 3e-4

    Any setting of the configuration may follow as a flag; `mmcl train CONFIG --help` explains them all.

    Attributes:
        config: A YAML file, or the name of a shipped configuration (`mmcl list configs`).
    """

    config: Positional[str] = _DEFAULT


def train(words: Sequence[str]) -> None:
    """Reads the configuration, trains, prints what came out.

    Args:
        words: of the command line after the verb; a first one without dashes is the configuration.

    Raises:
        UserError: anything that the user can fix.
    """
    settings = list(words)
    name = settings.pop(0) if settings and not settings[0].startswith("-") else _DEFAULT
    if "--help" in settings or "-h" in settings:
        _print_help(name)
        return
    config = load_config(name, settings)
    from mmcl.runs.run import train as run_training

    result = run_training(config)
    if result.report.metrics:
        _print_result(result)
    if result.report.failures:  # listed below the tables
        sys.exit(PART)


def _print_help(name: str) -> None:
    tyro.cli(
        tyro.conf.AvoidSubcommands[Config],
        default=load_config(name),
        args=["--help"],
        prog="mmcl train",
        description=_USAGE.format(config=name),
        config=(tyro.conf.FlagConversionOff,),
    )


def _print_result(result: RunResult) -> None:
    show("")
    show_report(result.report, everything=False)
    show("")
    say(f"model    {result.run_dir}/model")
    say(f"report   {result.run_dir}/report/report.html")
    say(f"log      {result.run_dir}/metrics.jsonl, checkpoints/")
    show("\ntry next")
    for line in _next_lines(result):
        say(f"  {line}".rstrip())


def _next_lines(result: RunResult) -> list[str]:
    """Commands that use the model, on its own data where they are files, and what the model cannot do."""
    from mmcl.runs.evaluation import evaluated_source, read_config

    run, config = shlex.quote(str(result.run_dir)), read_config(result.run_dir)
    evaluators = {metric.evaluator for metric in result.report.metrics}
    knows_emoji = all(part.name == "emoji" for part in config.training_parts.values()) and config.init is None
    path = next(iter(config.training_parts.values())).path
    images = f" --images {shlex.quote(path)}" if path is not None and Path(path).exists() else ""
    if evaluators == {"sts"}:
        return [f"mmcl eval {run}"]
    if "classification" in evaluators:
        return [f"mmcl classify IMAGE --model {run}", f"mmcl eval {run}"]
    if "retrieval" not in evaluators:
        return [f"mmcl search {run} --image IMAGE{images}", f"mmcl eval {run}"]
    if not knows_emoji:
        query = shlex.quote(next(iter(evaluated_source(result.run_dir)[0].captions), "a cat"))
        return [f"mmcl search {run} {query}{images}", f"mmcl classify IMAGE --model {run} --labels LABEL LABEL"]
    return [
        f'mmcl search {run} "a smiling cat"',
        "mmcl example photos/",
        f"mmcl classify photos/cat.png --model {run} --labels cat dog car",
        "",
        "This model knows emoji drawings, not photos. For photos, take a released",
        "model, which is downloaded once:",
        f'mmcl search {_RELEASED} "a cat" --images FOLDER',
    ]
