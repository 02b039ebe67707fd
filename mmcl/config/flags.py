"""Settings given as flags: `--optim.lr 3e-4`. A flag is a dotted path into the schema, and its value is YAML."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import yaml

from mmcl.config.convert import convert
from mmcl.config.describe import all_settings
from mmcl.config.plain_yaml import read_yaml
from mmcl.config.schema import Config
from mmcl.config.setting import hints_of, without_none
from mmcl.errors import UserError

SINGLE_DASH = re.compile(r"-(?!inf\b|nan\b)[A-Za-z][\w.-]*(=.*)?")
"""A flag that lacks a dash, and no negative number."""

_OTHER_NAMES = {
    **dict.fromkeys(("learning_rate", "base_lr", "max_lr"), "optim.lr"),
    **dict.fromkeys(("optimizer", "optim"), "optim.name"),
    **dict.fromkeys(("wd", "decay"), "optim.weight_decay"),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "clip_grad"), "optim.clip"),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "optim.warmup"),
    **dict.fromkeys(("out", "output", "output_dir", "save_dir", "log_dir"), "run_dir"),
    **dict.fromkeys(("data", "dataset", "train_data", "data_path", "images"), "data.train.path"),
    **dict.fromkeys(("num_workers", "n_workers"), "data.workers"),
    **dict.fromkeys(("num_epochs", "max_epochs", "n_epochs"), "train.epochs"),
    **dict.fromkeys(("max_steps", "num_steps", "iterations"), "train.steps"),
    **dict.fromkeys(("bs", "batch", "global_batch_size"), "train.batch_size"),
    **dict.fromkeys(("amp", "fp16", "bf16", "mixed_precision"), "train.precision"),
    **dict.fromkeys(("accum", "gradient_accumulation", "accumulation_steps"), "train.micro_batch"),
    **dict.fromkeys(("loss", "method"), "method.name"),
    **dict.fromkeys(("model", "pretrained", "checkpoint"), "init"),
    **dict.fromkeys(("encoder", "backbone", "arch"), "image.encoder.name"),
    **dict.fromkeys(("wandb", "tracker", "logger"), "train.trackers"),
    "temperature": "method.args.temperature",
    "image_size": "image.encoder.args.image_size",
    "embed_dim": "image.head.args.embed_dim",
    "random_seed": "train.seed",
    "val_split": "data.holdout",
}
"""Usual names of settings in other tools."""

_ELSEWHERE = {
    **dict.fromkeys(
        ("device", "gpu", "cuda", "cpu", "no_cuda"),
        "a run takes the GPU if there is one; the variable CUDA_VISIBLE_DEVICES says which, and is empty for the CPU",
    ),
    **dict.fromkeys(
        ("gpus", "num_gpus", "nproc", "num_processes", "world_size", "devices"),
        "a launcher starts the processes: torchrun --nproc_per_node 2 -m mmcl train",
    ),
}
"""What other tools have as settings, and where it is found here."""


def parse_flags(flags: Sequence[str]) -> dict[str, Any]:
    """["--a.b", "1", "2", "--c"] -> {"a.b": [1, 2], "c": True}; values are YAML."""
    values: dict[str, list[Any]] = {}
    current: list[Any] | None = None
    for word in flags:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            current = values[name.replace("-", "_")] = [parse_value(value)] if equals else []
        elif SINGLE_DASH.fullmatch(word):
            raise UserError(f"{word}: settings begin with two dashes, as in --optim.lr 3e-4")
        elif current is None:
            raise UserError(f"unexpected argument {word!r}: settings are given as --name value, as in --optim.lr 3e-4")
        else:
            current.append(parse_value(word))
    return {key: True if not v else v[0] if len(v) == 1 else v for key, v in values.items()}


def parse_value(word: str) -> Any:
    """Parses one command-line word as YAML; a word that is not valid YAML is a string."""
    try:
        return read_yaml(word)
    except (yaml.YAMLError, ValueError, RecursionError):
        return word


def check_flag(key: str, value: Any) -> None:
    """Raises UserError, which names the flag, for a setting that does not exist or a value of another type."""
    hint: Any = Config
    path = key.split(".")
    for depth, name in enumerate(path):
        hint = without_none(hint)
        origin, args = get_origin(hint), get_args(hint)
        if dataclasses.is_dataclass(hint):
            hints = hints_of(hint)
            if name not in hints:
                raise _unknown_setting(path, depth, list(hints))
            hint = hints[name]
        elif origin is dict:
            hint = args[1]
        elif origin is tuple and name.isdecimal():
            hint = args[0] if args[-1] is ... else args[min(int(name), len(args) - 1)]
        elif hint is not Any:
            raise UserError(f"--{key}: {'.'.join(path[:depth])} is a single value and has no {name!r}")
    convert(hint, value, f"--{key}")


def _unknown_setting(path: Sequence[str], depth: int, siblings: Sequence[str]) -> UserError:
    """Returns the error for a setting that does not exist, with the nearest that does.

    Args:
        path: parts of the flag.
        depth: number of the part that does not exist.
        siblings: what could stand in its place.
    """
    key, last = ".".join(path), path[-1].lower()
    if key.lower() in _ELSEWHERE:
        return UserError(f"--{key}: unknown setting; {_ELSEWHERE[key.lower()]}")
    known = [one.path for one in all_settings() if "NAME" not in one.path and ".0." not in one.path]
    beside = difflib.get_close_matches(path[depth], siblings, n=1, cutoff=0.5)
    is_near = bool(difflib.get_close_matches(path[depth], beside, cutoff=0.7))
    corrected = [".".join([*path[:depth], name, *path[depth + 1 :]]) for name in beside]
    suggested = (
        (corrected if is_near else [])
        or [_OTHER_NAMES[name] for name in (key.lower(), last) if name in _OTHER_NAMES][:1]
        or [one for one in known if one.rpartition(".")[2] == last]
        or _of_similar_name(last, known)
        or (corrected if depth else [])
    )
    hint = f"did you mean {' or '.join(f'--{one}' for one in suggested[:3])}?" if suggested else "see `mmcl train --help_all`"
    return UserError(f"--{key}: unknown setting; {hint}")


def _of_similar_name(last: str, known: Sequence[str]) -> list[str]:
    names: Mapping[str, str] = {path.rpartition(".")[2]: path for path in reversed(known)}
    return [names[name] for name in difflib.get_close_matches(last, names, n=1, cutoff=0.7)]
