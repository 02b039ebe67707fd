"""The schema of a configuration: its sections together, checked against each other when it is built."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from mmcl.config.data_sections import DataConfig
from mmcl.config.sections import (
    ComponentConfig,
    EvaluatorConfig,
    OptimConfig,
    SourceConfig,
    TowerConfig,
    TrainConfig,
    refuse_equal_labels,
)
from mmcl.config.setting import check_ranges, facts_of, format_value, setting
from mmcl.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Configuration of one run.

    Example:
        >>> from mmcl.config import load_config
        >>> load_config("clip_emoji").method.name
        'clip'
    """

    method: ComponentConfig
    """Method: its views and its loss."""
    init: str | None = None
    """Model to start from instead of random weights: a run directory, open_clip:ARCH/PRETRAINED or hf:ID."""
    teacher: str | None = None
    """Trained classifier for a distillation method: a run directory."""
    init_missing: Literal["error", "random"] = "error"
    """Reaction to an `init` path that does not exist: stop with an error, or report it and start from random weights."""
    image: TowerConfig | None = None
    """Image tower."""
    text: TowerConfig | None = None
    """Text tower."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training data, views and augmentation."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and learning-rate schedule."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Run length, batch size, precision and checkpointing."""
    evaluate: tuple[EvaluatorConfig, ...] = setting((), decides=False)
    """Evaluators to run at the end, next to their baselines."""
    run_dir: str | None = setting(None, decides=False)
    """Output directory; default: runs/<name of the configuration>."""
    resume: bool = setting(False, decides=False)
    """Continue the run in `run_dir` from its last checkpoint."""
    verify_data: bool = setting(False, decides=False)
    """Read every training image before the first step, so that a resume with this flag can tell whether any has changed.
    Without it, a resume compares the number, order, texts and labels of the samples; the file sizes of folders; the names,
    sizes and times of members of tar shards; and the images of up to 1,000 samples spread over the data. This covers a small
    dataset completely; in a large one it detects that the images were replaced, but may miss a change to a few of them.
    Images are read again only if a file's path, size or time has changed."""
    allow_change: tuple[str, ...] = setting((), decides=False)
    """Settings that may change on resume although they affect what is learned, e.g. optim.lr; "data.train" allows different
    training data."""

    @property
    def training_parts(self) -> dict[str, SourceConfig]:
        """Training data, by the dotted key under which the configuration names them."""
        if self.data.mix is None:
            return {"data.train": self.data.train}
        return {f"data.mix.{name}": part for name, part in self.data.mix.items()}

    def __post_init__(self) -> None:
        check_ranges(self)
        _require(self.train.steps is not None or self.train.epochs is not None, "train.steps", None, "set it, or train.epochs")
        self._check_optim()
        self._check_data()
        self._check_mix()
        self._check_views()
        self._check_towers()
        self._check_evaluation()

    def _check_evaluation(self) -> None:
        train = self.train
        refuse_equal_labels(self.evaluate)
        for number, evaluator in enumerate(self.evaluate):
            if evaluator.data is None and self.data.holdout == 0:
                raise UserError(f"evaluate.{number}.data is missing: name the data, or set data.holdout to a share above 0")
            if evaluator.keep and (evaluator.data is None or self.init is None):
                fix = "name them in its `data`" if evaluator.data is None else "set init, the model that knows them"
                raise UserError(f"evaluate.{number}.keep is true, for old data: {fix}, or remove it")
        if train.keep_best is None:
            for name, value in (("best_is", train.best_is), ("patience", train.patience)):
                _require(value is None, f"train.{name}", value, "it needs train.keep_best, the score to follow")
            _require(train.export == "last", "train.export", train.export, "it needs train.keep_best, the score to follow")
        elif not self.monitored_evaluators:
            labels = sorted({evaluator.label for evaluator in self.evaluate if evaluator.every})
            known = f"labels with one: {', '.join(labels)}" if labels else "no evaluator has one"
            raise UserError(f"train.keep_best is {train.keep_best}: give LABEL/METRIC of an evaluator with `every` ({known})")

    @property
    def monitored_evaluators(self) -> tuple[EvaluatorConfig, ...]:
        """Evaluators run during training that may give the score of `train.keep_best`."""
        best = self.train.keep_best or ""
        return tuple(one for one in self.evaluate if one.every and best.startswith(f"{one.label}/"))

    def _check_optim(self) -> None:
        optim = self.optim
        for one in dataclasses.fields(optim):
            used_by, value = facts_of(one).used_by, getattr(optim, one.name)
            is_used = not used_by or optim.name in used_by
            _require(is_used or value == one.default, f"optim.{one.name}", value, f"optim.name {optim.name} does not use it")
        rising = sorted(optim.milestones) == list(optim.milestones)
        _require(rising, "optim.milestones", optim.milestones, "give rising shares of the run")
        no_cosine = not optim.milestones or optim.final_lr == 0
        _require(no_cosine, "optim.final_lr", optim.final_lr, "it is not used with optim.milestones")
        decay = optim.weight_decay
        fix = f"{optim.name} adds it to the gradient; give a smaller one, such as 1e-4"
        _require(optim.name == "adamw" or decay < 0.2, "optim.weight_decay", decay, fix)

    def _check_data(self) -> None:
        labels, weights = self.data.labels, self.data.caption_weights
        is_amount = labels is None or 0 < labels < 1 or (labels >= 1 and labels == int(labels))
        _require(is_amount, "data.labels", labels, "give a share above 0 and below 1, or a whole number")
        some = weights is None or sum(weights) > 0
        _require(some, "data.caption_weights", weights, "one of them must be above 0")
        if self.data.hard_batches is not None and self.data.samples_per_class is not None:
            raise UserError("data.hard_batches and data.samples_per_class exclude each other: set one of them to null")

    def _check_mix(self) -> None:
        data = self.data
        if data.mix is None:
            return
        _require(bool(data.mix), "data.mix", data.mix, "name at least one dataset")
        given = {name: getattr(data, name) for name in ("labels", "samples_per_class", "hard_batches")}
        given["train"] = data.train != SourceConfig()
        for key in (key for key, value in given.items() if value):
            raise UserError(f"data.mix and data.{key} exclude each other: set one of them to null")
        weighted = [part.weight is not None for part in data.mix.values()]
        for name, part in data.mix.items():
            _require(name.isidentifier(), "a name in data.mix", name, "use letters, digits and underscores")
            if any(weighted) and (part.weight is None or part.epochs is not None):
                raise UserError(f"data.mix.{name}: give every part a weight and none of them epochs, or none a weight")

    def _check_views(self) -> None:
        data = self.data
        crops = {"data.crop": data.crop, **{f"data.views.{name}.crop": view.crop for name, view in data.views.items()}}
        for name, crop in crops.items():
            if data.cache is True and crop is not None:
                raise UserError(
                    f"data.cache and {name} exclude each other: set one of them to null, or take the augmentation `crop`"
                )
        for name, view in data.views.items():
            where = f"data.views.{name}.size"
            if view.size is not None and (view.crop or data.crop) is None:
                raise UserError(f"{where} needs a crop at decoding: set data.crop, or take the augmentation `crop` with a size")

    def _check_towers(self) -> None:
        towers = {name: tower for name, tower in (("image", self.image), ("text", self.text)) if tower is not None}
        if self.init is None and not towers:
            raise UserError("there is nothing to train: give an image or a text tower, or `init`")
        for name, tower in towers.items():
            if tower.encoder is None and (self.init is None or self.init_missing == "random"):
                raise UserError(f"{name}.encoder is missing: name an encoder (`mmcl list encoders`), or set init")
            blocks = tower.freeze
            fix = "give true, false, or a number of blocks: 2 freezes the lowest two, -2 all but the highest two"
            _require(isinstance(blocks, bool) or blocks != 0, f"{name}.freeze", blocks, fix)
            if tower.adapt is not None and tower.freeze:
                raise UserError(f"{name}.adapt and {name}.freeze exclude each other: the first trains what the second locks")
            keeps = tower.init_head_layers
            new_head = self.init is not None and tower.encoder is None and tower.head is not None
            _require(keeps == 0 or new_head, f"{name}.init_head_layers", keeps, f"set init and {name}.head, without an encoder")
        if self.init is not None and self.init_missing == "error" and towers and all(t.encoder for t in towers.values()):
            names = " and ".join(f"{name}.encoder" for name in towers)
            raise UserError(f"{names} and init exclude each other: the towers of {self.init} would replace them")


def _require(holds: bool, name: str, value: object, fix: str) -> None:
    if not holds:
        raise UserError(f"{name} is {format_value(value)}: {fix}")
