"""The schema of a configuration: frozen dataclasses, checked when they are built."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmcl.config.setting import check_ranges, facts_of, setting, shown
from mmcl.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentConfig:
    """A registered component, by name."""

    name: str
    """Its name; `mmcl list` shows what there is."""
    args: dict[str, Any] = field(default_factory=dict)
    """The keyword arguments of its factory, checked against the signature before anything is built."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerConfig:
    """Encoder and projection head of one modality."""

    encoder: ComponentConfig | None = None
    """The encoder: pixels or tokens to features; null takes the tower of `init`, head included."""
    head: ComponentConfig | None = None
    """The projection head: features to the embedding that the loss compares. Null takes a linear one, or that of `init`; given
    without an encoder, it is a new head on the encoder of `init`."""
    init_head_layers: int = setting(0, at_least=0)
    """How many of its first layers a new head takes from the head of `init`, as for fine-tuning in SimCLRv2."""
    preprocess: dict[str, Any] = field(default_factory=dict)
    """How images are shown, where it is to be otherwise than the encoder asks for; the fields of mmcl.preprocess.Preprocess,
    such as {intensity: [0, 4095]} for 12 bits in files of 16, or {intensity: {percentiles: [1, 99]}} for the range of each
    image. It is saved with the model."""
    freeze: bool = False
    """Keep the encoder as it is, in evaluation mode; the head still learns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """A dataset."""

    name: str = "auto"
    """The kind of source; "auto" goes by what lies at `path`."""
    path: str | None = setting(None, decides=False)
    """File or folder, for sources that read one."""
    args: dict[str, Any] = field(default_factory=dict)
    """The source's own arguments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartConfig(SourceConfig):
    """A dataset among others."""

    weight: float | None = setting(None, above=0)
    """Its share of the rows, relative to those of the others; an epoch then has as many rows as there are samples."""
    epochs: float | None = setting(None, above=0)
    """How often an epoch of the mixture shows each of its samples; 1 where no part has a weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """Random-resized crop, drawn per image and view."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Share of the image's area, from and to."""
    ratio: tuple[float, float] = (0.75, 1.3333)
    """Aspect ratio, from and to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig:
    """What one image view shows otherwise than the others."""

    crop: CropConfig | None = None
    """Random-resized crop at decoding; null is that of `data.crop`."""
    augment: tuple[ComponentConfig, ...] | None = None
    """Augmentations in place of all those of `data.augment`; null is those."""
    size: int | None = setting(None, at_least=1)
    """Height and width in pixels to which the crop is resized; null is the encoder's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is trained on, and how it is shown."""

    root: str | None = setting(None, decides=False)
    """Folder with downloaded datasets; default: the environment variable MMCL_DATA_ROOT, else ~/.cache/mmcl."""
    train: SourceConfig = field(default_factory=SourceConfig)
    """The training data."""
    mix: dict[str, PartConfig] | None = None
    """Several training datasets by names of your own, in place of `train`, each with a weight or a number of epochs."""
    templates: tuple[str, ...] | None = None
    """Sentences with one "{}" each, such as "a photo of a {}.": captions for labelled training data that have none."""
    caption_weights: tuple[float, ...] | None = setting(None, at_least=0)
    """How often each of a sample's captions is shown, in their order and relative to its others: [3, 1] shows the first three
    times as often as the second. Null shows all equally often."""
    holdout: float = setting(0.0, at_least=0, below=1)
    """Share of the training data that is set aside for the evaluators that name no data of their own."""
    labels: float | None = None
    """Train on a stratified part alone, as for learning from few labels: below 1 a share of every class (0.01), from 1 a
    number of samples of every class. `train.seed` draws it, and a smaller part lies within a larger one."""
    samples_per_class: int | None = setting(None, at_least=1)
    """Samples per class in every batch (P x K sampling), from train.batch_size / samples_per_class classes, as supervised
    contrastive and metric learning want it; null takes samples in random order, whatever their class."""
    cache: Literal["auto"] | bool = setting("auto", decides=False)
    """Keep the decoded images in memory; "auto" does so below 1 GB and without a crop."""
    crop: CropConfig | None = None
    """Random-resized crop at decoding; null shows the whole image."""
    augment: tuple[ComponentConfig, ...] = ()
    """Augmentations, in order, each drawn per image and view."""
    views: dict[str, ViewConfig] = field(default_factory=dict)
    """Image views that are shown otherwise, by name, as in BYOL and SwAV; `small` stands for small_0, small_1, ..."""
    workers: int = setting(0, at_least=0, decides=False)
    """Loader processes per training process; 0 loads in the training process, which is best for cached images."""
    max_pixels: int | None = setting(None, at_least=1, decides=False)
    """Width x height of the largest image; larger ones are unusable. Null: the environment variable MMCL_MAX_PIXELS, else 64
    million."""
    max_bad_fraction: float = setting(0.01, at_least=0, at_most=1, decides=False)
    """Stop when more than this share of the samples read so far was unusable; unusable ones are replaced and listed."""
    max_bad_consecutive: int = setting(100, at_least=0, decides=False)
    """Stop when more samples than this, one after the other in the order of the run, were unusable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimiser, with linear warm-up and cosine decay; weight decay on matrices and tables of tokens only."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    """AdamW, with Muon on request; SGD with momentum; or LARS, which is that with a rate of its own for every matrix."""
    lr: float = setting(1e-3, above=0)
    """Peak learning rate. It is not scaled with the batch: give that of the batch that you use."""
    bias_lr: float | None = setting(None, above=0)
    """Peak learning rate of what has no weight decay (biases, norms, the temperature), as in Barlow Twins; null is `lr`."""
    muon_lr: float | None = setting(None, above=0, used_by=("adamw",))
    """Peak learning rate of the hidden matrices (linear layers, convolutions) under Muon; null leaves them to AdamW."""
    betas: tuple[float, float] = setting((0.9, 0.98), at_least=0, below=1, used_by=("adamw",))
    """Decay rates of AdamW's first and second moment."""
    eps: float = setting(1e-6, above=0, used_by=("adamw",))
    """Added to the root of AdamW's second moment."""
    momentum: float = setting(0.9, at_least=0, below=1, used_by=("sgd", "lars"))
    """Of SGD and LARS."""
    weight_decay: float = setting(0.2, at_least=0)
    """Weight decay, none on biases, norms, scales, temperatures, nor on embeddings of positions, classes and registers. AdamW
    and Muon decouple it from the gradient; SGD and LARS add it to the gradient and want another one, such as 1e-4 and 1e-6."""
    warmup: float = setting(0.05, at_least=0, below=1)
    """Share of all steps in which the learning rate rises from 0."""
    final_lr: float = setting(0.0, at_least=0)
    """Learning rate at the end of the cosine, as a share of the peak."""
    milestones: tuple[float, ...] = setting((), above=0, below=1)
    """Shares of the run at which the learning rate falls tenfold, in place of the cosine: 0.6 0.8 in MoCo v1."""
    clip: float | None = setting(1.0, above=0)
    """Largest norm of the gradient; null does not clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long, how large, how exact."""

    batch_size: int = setting(256, at_least=1)
    """Pairs in one step over all processes; the loss sees them all."""
    micro_batch: int | None = setting(None, at_least=1, decides=False)
    """Pairs that a process encodes at a time, to save memory; the loss still sees the whole batch, so that the gradient is the
    same (batch norm excepted), for one more forward pass. Texts of like lengths come together, so that they are padded less.
    Null encodes its share of the batch at once."""
    epochs: float | None = setting(None, above=0)
    """Length of the run in passes over the data; give this or `steps`."""
    steps: int | None = setting(None, at_least=1)
    """Length of the run in steps; overrides `epochs`."""
    seed: int = 0
    """Decides initial weights, order, augmentation and dropout."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the encoders; the loss is always float32."""
    fsdp: bool = setting(False, decides=False)
    """Spread the towers' weights, gradients and moments over the processes (FSDP), for towers that are too large for one
    device; the result is the same. Launch with torchrun or `accelerate launch --multi_gpu`."""
    threads: int | None = setting(None, at_least=1, decides=False)
    """CPU threads per process; default: cores / local processes."""
    log_every: int = setting(10, at_least=1, decides=False)
    """Steps between two lines of metrics.jsonl."""
    save_every: int | None = setting(None, at_least=1, decides=False)
    """Steps between two checkpoints; the last step is always saved."""
    save_minutes: float | None = setting(15.0, above=0, decides=False)
    """Minutes between two checkpoints, besides those of `save_every`; null saves by steps alone."""
    keep_checkpoints: int = setting(2, at_least=1, decides=False)
    """How many of the newest checkpoints stay on disk."""
    keep_best: str | None = setting(None, decides=False)
    """Keep the checkpoint with the best score too: an evaluator's label and a metric, "emoji/unseen_style/text_to_image_R@1".
    That evaluator needs a cadence, `every`."""
    best_is: Literal["max", "min"] | None = setting(None, decides=False)
    """Which score is the best; null goes by the metric's name: the lowest rank, loss, error or gap, the highest of all else."""
    patience: int | None = setting(None, at_least=1, decides=False)
    """Stop after this number of evaluations without an improvement of `keep_best`; null never stops."""
    export: Literal["last", "best"] = setting("last", decides=False)
    """The weights that become `model/`: of the last step, or of the best score of `keep_best`."""
    on_nonfinite: Literal["stop", "skip"] = setting("stop", decides=False)
    """Reaction to a non-finite loss or gradient: stop before the update, or skip the step."""
    max_skipped: int = setting(10, at_least=0, decides=False)
    """Stop when more steps than this were left out."""
    timeout_seconds: float = setting(600.0, above=0, decides=False)
    """How long a process waits in a step for the others; one that died or hangs ends the run."""
    trackers: tuple[str, ...] = setting((), decides=False)
    """Where the metrics go besides metrics.jsonl: tensorboard, wandb, trackio."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatorConfig:
    """One evaluation: at the end of the run next to its baselines, and while it trains where it has a cadence."""

    name: str
    """The evaluator."""
    label: str
    """What the data are called in the report."""
    every: int | None = setting(None, at_least=1)
    """Steps between two evaluations while training, the last step included; all processes share the encoding. Null evaluates
    at the end alone."""
    data: SourceConfig | None = None
    """The data to evaluate on; null takes the share that `data.holdout` sets aside."""
    bank: SourceConfig | None = None
    """The labelled data that k-NN and probes learn from; default: the training data."""
    args: dict[str, Any] = field(default_factory=dict)
    """The evaluator's own arguments."""


def refuse_equal_labels(evaluators: Sequence[EvaluatorConfig], where: str = "evaluate") -> None:
    """Raises UserError for an evaluator that is there twice under one label, or under two that give files of one name: its
    results would replace each other."""
    first: dict[tuple[str, str], int] = {}
    for number, one in enumerate(evaluators):
        other = first.setdefault((one.name, re.sub(r"[^\w-]+", "_", one.label).strip("_")), number)
        if other != number:
            raise UserError(
                f"{where}.{number} and {where}.{other} are both {one.name}, of {one.label!r} and {evaluators[other].label!r}, "
                "and would replace each other: give one of them another label"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One run.

    Example:
        >>> from mmcl.config import load_config
        >>> load_config("clip_emoji").method.name
        'clip'
    """

    method: ComponentConfig
    """The method: its views and its loss."""
    init: str | None = None
    """The model to start from, instead of random weights: a run directory, open_clip:ARCH/PRETRAINED or hf:ID."""
    teacher: str | None = None
    """The trained classifier of a method that distils one: a run directory."""
    init_missing: Literal["error", "random"] = "error"
    """What to do when `init` is a path at which there is nothing: stop, or say so and start from random weights."""
    image: TowerConfig | None = None
    """The image tower."""
    text: TowerConfig | None = None
    """The text tower."""
    data: DataConfig = field(default_factory=DataConfig)
    """The training data and its augmentation."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The run."""
    evaluate: tuple[EvaluatorConfig, ...] = setting((), decides=False)
    """Evaluators run at the end, next to their baselines."""
    run_dir: str | None = setting(None, decides=False)
    """Where everything is written; default: runs/<name of the configuration>."""
    resume: bool = setting(False, decides=False)
    """Continue the run in `run_dir` from its last checkpoint."""
    verify_data: bool = setting(False, decides=False)
    """Read every training image before the first step, so that a resume with this flag can tell whether any has changed.
    Without it a resume compares the samples' number, order, texts and labels, in folders the sizes of the files, and of tar
    shards the members' names, sizes and times; and the images of up to 1,000 samples spread over the data. That is all of a
    small dataset; of a large one it shows that the images were replaced, but not that a few of them were. Images are read
    again only where a file's path, size or time is new."""
    allow_change: tuple[str, ...] = setting((), decides=False)
    """Settings in which a resumed run may differ although they change what is learned, e.g. optim.lr; "data.train" allows other
    training data."""

    @property
    def training_parts(self) -> dict[str, SourceConfig]:
        """The training data by where the configuration names them."""
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
        if train.keep_best is None:
            for name, value in (("best_is", train.best_is), ("patience", train.patience)):
                _require(value is None, f"train.{name}", value, "it needs train.keep_best, the score to go by")
            _require(train.export == "last", "train.export", train.export, "it needs train.keep_best, the score to go by")
        elif not self.watched:
            labels = sorted({evaluator.label for evaluator in self.evaluate if evaluator.every})
            known = f"labels with one: {', '.join(labels)}" if labels else "no evaluator has one"
            raise UserError(f"train.keep_best is {train.keep_best}: give LABEL/METRIC of an evaluator with `every` ({known})")

    @property
    def watched(self) -> tuple[EvaluatorConfig, ...]:
        """The evaluators with a cadence that may give the score of `train.keep_best`."""
        best = self.train.keep_best or ""
        return tuple(one for one in self.evaluate if one.every and best.startswith(f"{one.label}/"))

    def _check_optim(self) -> None:
        optim = self.optim
        for one in dataclasses.fields(optim):
            used_by, value = facts_of(one).used_by, getattr(optim, one.name)
            is_used = not used_by or optim.name in used_by
            _require(is_used or value == one.default, f"optim.{one.name}", value, f"optim.name {optim.name} has no use for it")
        rising = sorted(optim.milestones) == list(optim.milestones)
        _require(rising, "optim.milestones", optim.milestones, "give rising shares of the run")
        no_cosine = not optim.milestones or optim.final_lr == 0
        _require(no_cosine, "optim.final_lr", optim.final_lr, "optim.milestones has no use for it")
        decay = optim.weight_decay
        fix = f"{optim.name} adds it to the gradient; give a smaller one, such as 1e-4"
        _require(optim.name == "adamw" or decay < 0.2, "optim.weight_decay", decay, fix)

    def _check_data(self) -> None:
        labels, weights = self.data.labels, self.data.caption_weights
        is_amount = labels is None or 0 < labels < 1 or (labels >= 1 and labels == int(labels))
        _require(is_amount, "data.labels", labels, "give a share above 0 and below 1, or a whole number")
        some = weights is None or sum(weights) > 0
        _require(some, "data.caption_weights", weights, "one of them must be above 0")

    def _check_mix(self) -> None:
        data = self.data
        if data.mix is None:
            return
        _require(bool(data.mix), "data.mix", data.mix, "name at least one dataset")
        given = {"train": data.train != SourceConfig(), "labels": data.labels, "samples_per_class": data.samples_per_class}
        for key in (key for key, value in given.items() if value):
            raise UserError(f"data.mix and data.{key} exclude each other: remove one of them")
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
            keeps = tower.init_head_layers
            new_head = self.init is not None and tower.encoder is None and tower.head is not None
            _require(keeps == 0 or new_head, f"{name}.init_head_layers", keeps, f"set init and {name}.head, without an encoder")
        if self.init is not None and self.init_missing == "error" and towers and all(t.encoder for t in towers.values()):
            names = " and ".join(f"{name}.encoder" for name in towers)
            raise UserError(f"{names} and init exclude each other: the towers of {self.init} would replace them")


def _require(holds: bool, name: str, value: object, fix: str) -> None:
    if not holds:
        raise UserError(f"{name} is {shown(value)}: {fix}")
