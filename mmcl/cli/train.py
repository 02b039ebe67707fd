"""`mmcl train`: training from a configuration and flags, with a summary and next steps at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro
from tyro.conf import Positional

from mmcl.cli.exit import PART
from mmcl.cli.output import say, show
from mmcl.config import Config, load_config

if TYPE_CHECKING:
    from mmcl.runs.run import RunResult

_DEFAULT = "clip_emoji"

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
    show(f"\n{result.report.to_text(brief=True)}")
    say(f"model    {result.run_dir}/model")
    say(f"report   {result.run_dir}/report/report.html (all metrics, plots), report.md, metrics.json")
    say(f"log      {result.run_dir}/metrics.jsonl, checkpoints/")
    show("\ntry next")
    for command in _next_commands(result):
        say(f"  {command}")


def _next_commands(result: RunResult) -> tuple[str, ...]:
    evaluators = {metric.evaluator for metric in result.report.metrics}
    if evaluators == {"sts"}:
        return (f"mmcl eval {result.run_dir}",)
    if "retrieval" in evaluators:
        return (
            f'mmcl search {result.run_dir} "a smiling cat"',
            f'mmcl classify IMAGE.png --model {result.run_dir} --labels cat dog --template "a picture of a {{}}"',
        )
    if "classification" in evaluators:
        return f"mmcl classify IMAGE.png --model {result.run_dir}", f"mmcl eval {result.run_dir}"
    return f"mmcl search {result.run_dir} --image IMAGE.png", f"mmcl eval {result.run_dir}"
