"""Training from the command line: a configuration, flags on top, and at the end what was learned and what to try next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from mmcl.cli.exit import PART
from mmcl.config import Config, load_config
from mmcl.terminal import say, show

if TYPE_CHECKING:
    from mmcl.engine.run import RunResult

_USAGE = """Train a model: accelerate launch scripts/train.py [CONFIG.yaml] [--name value ...]

Every setting below is a flag; the defaults shown are those of {config}. Values are YAML: --optim.lr 3e-4,
--image.encoder.args.width 64, --data.train.path photos/, --optim.betas 0.9 0.98, --resume."""


def main(arguments: Sequence[str], default: Path) -> None:
    """Reads the configuration, trains, prints what came out.

    Args:
        arguments: the words of the command line; a first word without dashes is the configuration.
        default: the configuration when none is named.

    Raises:
        UserError: anything that the user can mend.
    """
    words = list(arguments)
    path = Path(words.pop(0)) if words and not words[0].startswith("-") else default
    if "--help" in words or "-h" in words:
        _print_help(path)
        return
    config = load_config(path, words)
    from mmcl.engine.run import train

    result = train(config)
    if result.report.metrics:
        _print_result(result)
    if result.report.failures:  # listed below the tables
        sys.exit(PART)


def _print_help(path: Path) -> None:
    tyro.cli(
        tyro.conf.AvoidSubcommands[Config],
        default=load_config(path),
        args=["--help"],
        prog="scripts/train.py",
        description=_USAGE.format(config=path),
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
            f'mmcl classify PICTURE.png --model {result.run_dir} --labels cat dog --template "a picture of a {{}}"',
        )
    if "classification" in evaluators:
        return f"mmcl classify PICTURE.png --model {result.run_dir}", f"mmcl eval {result.run_dir}"
    return f"mmcl search {result.run_dir} --image PICTURE.png", f"mmcl eval {result.run_dir}"
