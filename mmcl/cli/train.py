"""`mmcl train`: training from a configuration and flags, with a summary and next steps at the end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcl.cli.arguments import argument_texts, form_of
from mmcl.cli.exit import PART
from mmcl.cli.help import entries, wrapped
from mmcl.cli.output import say, show
from mmcl.cli.parse import HELP, HELP_ALL, asks_for_help, parse_call
from mmcl.cli.reports import show_report
from mmcl.config import Config, flat_settings, load_config
from mmcl.config.describe import Setting, as_flag, default_of, sections, settings_in
from mmcl.interop.available import check_available

if TYPE_CHECKING:
    from mmcl.runs.run import RunResult

_DEFAULT = "clip_emoji"
_RELEASED = "open_clip:ViT-B-32/laion2b_s34b_b79k"
_PROG = "mmcl train"
_MAIN = {
    "data": {
        "data.train.name": "kind of source; auto detects it from the path",
        "data.train.path": "folder, table or shards of images",
        "data.holdout": "share that is held out for evaluation",
        "data.workers": "processes that load; 0 for cached images",
    },
    "model": {
        "method.name": "views and loss: mmcl list methods",
        "image.encoder.name": "mmcl list encoders",
        "text.encoder.name": "mmcl list encoders",
        "init": "model to start from: a run, open_clip:ARCH/TAG or hf:ID",
    },
    "optimizer": {
        "optim.lr": "peak learning rate, for this batch size",
        "optim.weight_decay": "of matrices and token embeddings",
        "train.batch_size": "pairs per step, over all processes",
        "train.micro_batch": "pairs encoded at a time, to save memory",
        "train.epochs": "length of the run",
        "train.steps": "length of the run, in place of epochs",
    },
    "run": {
        "run_dir": "where everything is written",
        "resume": "continue this run from its last checkpoint",
        "train.seed": "of weights, order and augmentation",
        "train.precision": "auto, fp32, bf16 or fp16",
        "train.trackers": "tensorboard, wandb, trackio",
    },
}
"""Settings of the short help, and what each is."""


def train(config: str = _DEFAULT, /, *settings: str) -> None:
    """Train a model, evaluate it next to its baselines, and report.

    Examples:
        mmcl train
        mmcl train clip_emoji --optim.lr 3e-4 --run_dir runs/slower
        mmcl train clip_finetune --data.train.path photos/
        torchrun --nproc_per_node 2 -m mmcl train siglip_emoji

    Args:
        config: A YAML file, or the name of a shipped configuration. `mmcl list configs` lists them.
    """
    loaded = load_config(config, settings)
    for model in filter(None, (loaded.init, loaded.teacher)):
        check_available(model)
    run_and_print(loaded)


def run_and_print(config: Config) -> None:
    """Trains, and prints the report and what to run next. Exits with 1 if an evaluator failed."""
    from mmcl.runs.run import train as run_training

    result = run_training(config)
    if result.report.metrics:
        _print_result(result)
    if result.report.failures:  # listed below the tables
        sys.exit(PART)


def train_or_help(words: Sequence[str]) -> None:
    """Parses the words after `mmcl train`, whose help has the values of the configuration.

    Raises:
        UserError: anything that the user can fix.
    """
    if asks_for_help(words):
        others = [word for word in words if word not in (*HELP, HELP_ALL)]
        name = others.pop(0) if others and not others[0].startswith("-") else _DEFAULT
        _print_help(name, load_config(name, others), complete=HELP_ALL in words)
    else:
        parse_call(train, words, prog=_PROG)()


def _print_help(name: str, config: Config, *, complete: bool) -> None:
    form = form_of(train)
    lines = [f"usage: {_PROG} [CONFIG] [--setting value ...]", "", form.summary, *(f"  {one}" for one in form.examples), ""]
    lines += wrapped(
        "CONFIG: a YAML file or a shipped name (mmcl list configs). Values are YAML, as in --optim.betas 0.9 0.98; those of "
        f"{name} are in brackets."
    )
    for title, rows in (_all_settings(config) if complete else _main_settings(config)).items():
        lines += ["", title, *entries(rows)]
    show("\n".join(lines if complete else [*lines, "", f"{_PROG} {name} --help_all explains every setting"]))


_Rows = dict[str, list[tuple[str, str]]]
"""By section, the flags and their descriptions."""


def _main_settings(config: Config) -> _Rows:
    values = flat_settings(config)
    return {
        title: [(f"--{path}", _with_value(text, values[path])) for path, text in texts.items() if path in values]
        for title, texts in _MAIN.items()
    }


def _with_value(text: str, value: Any) -> str:
    return text if value in (None, []) else f"{text} [{as_flag(value)}]"


def _all_settings(config: Config) -> _Rows:
    values = flat_settings(config)
    rows = {}
    for path, schema in sections():
        leaves = [one for one in settings_in(schema, path) if one.is_leaf]
        rows[path or "the run as a whole"] = [(f"--{one.path}", _explained(one, values)) for one in leaves]
    return rows | _component_arguments(config)


def _explained(setting: Setting, values: Mapping[str, Any]) -> str:
    value = as_flag(values[setting.path]) if setting.path in values else default_of(setting.field)
    return f"{setting.text} {setting.kind[:1].upper()}{setting.kind[1:]}. [{value}]".replace("`", "")


def _component_arguments(config: Config) -> _Rows:
    """Returns the arguments of the components that the configuration names."""
    from mmcl.encoders import ADAPTERS, HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
    from mmcl.methods import METHODS

    chosen = [("method", METHODS, config.method)]
    for tower, encoders in (("image", IMAGE_ENCODERS), ("text", TEXT_ENCODERS)):
        part = getattr(config, tower)
        if part is not None:
            chosen += [
                (f"{tower}.encoder", encoders, part.encoder),
                (f"{tower}.head", HEADS, part.head),
                (f"{tower}.adapt", ADAPTERS, part.adapt),
            ]
    rows = {}
    for path, registry, component in chosen:
        if component is None:
            continue
        texts = argument_texts(registry[component.name])
        given = {name: p.default for name, p in registry.parameters(component.name).items() if p.default is not p.empty}
        values = given | component.args
        rows[f"{path}.args of {component.name}"] = [
            (f"--{path}.args.{name}", f"{texts.get(name, '')} [{as_flag(values.get(name, 'required'))}]".strip())
            for name in registry.parameters(component.name)
        ]
    return {title: own for title, own in rows.items() if own}


def _print_result(result: RunResult) -> None:
    show("")
    show_report(result.report, everything=False, again=shlex.join(["mmcl", "eval", str(result.run_dir)]))
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
        return [f"mmcl search {run} --image IMAGE{images}", f"mmcl serve {run}{images}", f"mmcl eval {run}"]
    if not knows_emoji:
        query = shlex.quote(next(iter(evaluated_source(result.run_dir)[0].captions), "a cat"))
        page = f"mmcl serve {run}{images}"
        return [f"mmcl search {run} {query}{images}", page, f"mmcl classify IMAGE --model {run} --labels LABEL LABEL"]
    return [
        f'mmcl search {run} "a crying face"',
        f"mmcl serve {run}",
        "mmcl example photos/",
        f"mmcl classify photos/cat.png --model {run} --labels cat dog car",
        "",
        "This model knows emoji drawings, not photos. For photos, take a released",
        "model, which is downloaded once:",
        f'mmcl search {_RELEASED} "a cat" --images FOLDER',
    ]
