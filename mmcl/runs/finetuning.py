"""Settings of a fine-tuning, chosen from the size of the data, of the model and of the device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcl.config import Config, EvaluatorConfig, SourceConfig, load_config, to_dict
from mmcl.config.flags import check_flag, parse_flags
from mmcl.config.plain_yaml import write_yaml
from mmcl.data.captions import caption_key
from mmcl.data.derived.label_captions import has_captions
from mmcl.data.source import Source
from mmcl.encoders.parameter_roles import parameter_roles
from mmcl.errors import UserError
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.logging import get_logger
from mmcl.runs.build_data import build_source
from mmcl.runs.evaluation import read_config
from mmcl.runs.warnings import MOST_FOR_RELEASED

logger = get_logger(__name__)

HELD_OUT = "held_out"
"""Label of the held-out pairs in the report."""
FEWEST = 4
"""Pairs with different captions below which nothing can be held out."""
_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of the {}.", "{}")
_PRESET_SIZE = 1e8
"""Weights in matrices of a model for which the rates of the presets are meant."""
_LARGEST_FACTOR = 30.0
_COUNTED = 10_000
"""Captions that are looked at to count the different ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A fine-tuning with all its settings.

    Attributes:
        preset: name of the configuration that it is based on.
        config: complete, but for what is chosen by the memory.
        pairs: number of samples.
        model: the model to start from.
    """

    preset: str
    config: Config
    pairs: int
    model: Model

    def with_micro_batch(self, size: int | None) -> Choice:
        """Return the choice with a number of pairs that are encoded at a time."""
        train = dataclasses.replace(self.config.train, micro_batch=size)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, train=train))

    def to_yaml(self) -> str:
        """The configuration, based on the preset, with what differs from it."""
        name = f"finetune/{self.preset}"
        base = to_dict(load_config(name))
        return write_yaml({"base": name, **_difference(to_dict(self.config), base)}, compact=True)


def choose(
    data: SourceConfig, init: str, preset: str, flags: Sequence[str], keep: Sequence[EvaluatorConfig] | None = None
) -> Choice:
    """Choose the settings that the flags leave open.

    Args:
        data: the pairs, or images in a folder for each class.
        init: the model to start from.
        preset: name of a configuration in `configs/finetune/`.
        flags: settings, as on a command line.
        keep: evaluators of old data; None for those of the run that `init` is, if it is one.

    Raises:
        UserError: the data or the model cannot be used, or a setting is wrong.
    """
    given = parse_flags(flags)
    for key, value in given.items():
        check_flag(key, value)
    model = _start(init)
    arguments = {key.removeprefix("data.train.args."): value for key, value in given.items() if ".train.args." in key}
    data = dataclasses.replace(data, args={**data.args, **arguments})
    source = build_source(data, given.get("data.root"), "data")
    count = _checked_size(source)
    captioned = has_captions(source)
    chosen: dict[str, Any] = {
        "init": init,
        "init_missing": "error",
        "method.name": "clip" if model.logit_bias is None else "siglip",
        "data.train": dataclasses.asdict(data),
        "data.holdout": holdout_share(count),
        "run_dir": f"runs/finetune_{preset}",
    }
    if not captioned:
        chosen["data.templates"] = list(_TEMPLATES)
    held = round(float(given.get("data.holdout", chosen["data.holdout"])) * count)
    batch = int(given.get("train.batch_size", batch_size(count - held)))
    chosen |= {"train.batch_size": batch, "train.epochs": epochs(count - held)}
    chosen["optim.lr"] = _rate(preset, init, model)
    if "evaluate" not in given:
        old = _old_data(init, given.get("data.root")) if keep is None else keep
        chosen["evaluate"] = [_evaluator(captioned), *map(to_dict, old)]
    elif keep:
        raise UserError("--keep and --evaluate exclude each other: give the old data with `keep: true` in --evaluate")
    settings = {key: value for key, value in chosen.items() if key not in given}
    config = load_config(f"finetune/{preset}", flags, settings)
    return Choice(preset=preset, config=config, pairs=count, model=model)


def holdout_share(count: int) -> float:
    """Share of the pairs to hold out: a fifth of few, a tenth of many; at least 2 pairs and at most 5,000."""
    held = min(max(2, count // 10, min(50, count // 5)), 5_000)
    return float(f"{held / count:.3g}")


def batch_size(count: int) -> int:
    """Pairs in a step: all of few; 256, and 512 or 1,024 of ten or a hundred thousand pairs."""
    largest = 256 if count < 10_000 else 512 if count < 100_000 else 1024
    return min(largest, count // 8 * 8 or 1 << max(count.bit_length() - 1, 0))


def epochs(count: int) -> int:
    """Length of the run: 60 epochs of up to 200 pairs, fewer of more, with the inverse root of their number; at least 2."""
    return max(2, min(60, round(60 * math.sqrt(200 / max(1, count)))))


def rate_factor(weights: int) -> float:
    """Factor of a preset's learning rate for a model with this number of weights in its matrices.

    Small networks bear, and need, higher rates: 30 times as high with a million weights as with a hundred million.
    """
    exponent = math.log(_LARGEST_FACTOR) / math.log(100)
    return min(_LARGEST_FACTOR, max(1.0, math.pow(_PRESET_SIZE / max(1, weights), exponent)))


def _rate(preset: str, init: str, model: Model) -> float:
    """Return the preset's rate for a model of this size; for the weights of a released one, what such models bear at most."""
    config = load_config(f"finetune/{preset}")
    weights = sum(p.numel() for _, p, role in parameter_roles(model.towers) if role == "matrix")
    rate = config.optim.lr * rate_factor(weights)
    has_adapters = config.image is not None and config.image.adapt is not None
    return float(f"{rate if has_adapters or ':' not in init else min(rate, MOST_FOR_RELEASED):.1g}")


def _start(init: str) -> Model:
    """Load the model to start from. Raises UserError if it cannot be fine-tuned on pairs."""
    if init.startswith("onnx:"):
        raise UserError(f"--init {init}: a graph has no weights to train; give the model that it was exported from")
    model = load_model(init, device="cpu")
    for name in ("image", "text"):
        if name not in model.towers:
            fix = "give a CLIP-like model, such as open_clip:ViT-B-32/laion2b_s34b_b79k"
            more = ", or train a text tower for it: mmcl train lit_emoji --help" if name == "text" else ""
            raise UserError(f"--init {init}: the model has no {name} tower, and pairs need both; {fix}{more}")
    return model


def _checked_size(source: Source) -> int:
    """Return the number of samples. Raises UserError for too few, or without captions and classes."""
    captioned = has_captions(source)
    if not captioned and source.labels is None:
        raise UserError(
            f"no captions ({source[0].name} has none), and no classes: put captions.csv with the columns image, caption beside "
            "the images, or give a folder for each class"
        )
    rows = range(min(len(source), _COUNTED))
    names = source.class_names or ()
    texts = (source[row].captions[:1] or (names[source[row].label or 0],) for row in rows)
    if not captioned:
        if len({text for (text,) in texts}) < 2:
            raise UserError("the images are of a single class, so there is nothing to tell apart: give a folder for each class")
        return _enough(len(source), "images")
    if len(source) == len(rows):
        _enough(len({caption_key(text) for (text,) in texts}), "different captions")
    return len(source)


def _enough(count: int, what: str) -> int:
    if count < FEWEST:
        raise UserError(f"there are {count} {what}: fine-tuning needs {FEWEST} or more, as some are held out for the report")
    return count


def _evaluator(captioned: bool) -> dict[str, Any]:
    return {"name": "retrieval" if captioned else "zero_shot", "label": HELD_OUT}


def _old_data(init: str, root: str | None) -> list[EvaluatorConfig]:
    """Return the evaluators of the run that `init` is, on data of their own that are still there."""
    if not (Path(init) / "config.yaml").is_file():
        return []
    found = []
    for one in read_config(Path(init)).evaluate:
        if one.data is None or one.name == "embedding_map":
            continue
        try:
            build_source(one.data, root, f"{init}: {one.label}")
        except UserError as error:
            logger.warning(f"old data of {init} are not evaluated: {error}")
            continue
        found.append(dataclasses.replace(one, keep=True, every=None))
    return found


def _difference(tree: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration that differ from those of its base, as a configuration that extends it."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and value.get("name") == below.get("name"):
            found |= {key: inner} if (inner := _difference(value, below)) else {}
        elif value != below:
            found[key] = _without_defaults(value)
    return found


def _without_defaults(value: Any) -> Any:
    """Leave out what is null, false or empty, but for the arguments of components, whose defaults are others."""
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if item is not False and item not in (None, {}, [])}
    return {key: item if key == "args" else _without_defaults(item) for key, item in kept.items()}
