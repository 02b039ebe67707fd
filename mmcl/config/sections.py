"""Sections of a configuration: frozen dataclasses, each the facts and the help of its settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmcl.config.setting import setting
from mmcl.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentConfig:
    """A registered component, by name."""

    name: str
    """Name of the component; `mmcl list` shows all names."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of its factory, checked against the signature before anything is built."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig(ComponentConfig):
    """Adapters of an encoder's matrices."""

    name: str = "lora"
    """Type of the adapters; `mmcl list adapters` shows all."""
    where: str | None = None
    """Regular expression that is searched for in the names of the encoder's parameters, such as "attn|mlp"; the matrices that
    it matches are adapted. Null adapts the linear layers and convolutions of the repeated blocks: attention and MLP of a
    transformer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerConfig:
    """Encoder and projection head of one modality."""

    encoder: ComponentConfig | None = None
    """Encoder: pixels or tokens to features. Null uses the tower of `init`, including its head."""
    head: ComponentConfig | None = None
    """Projection head: features to the embedding that the loss compares. Null uses a linear head, or the head of `init`. A head
    given without an encoder is a new head on the encoder of `init`."""
    init_head_layers: int = setting(0, at_least=0)
    """Number of first layers that a new head copies from the head of `init`, as for fine-tuning in SimCLRv2."""
    preprocess: dict[str, Any] = field(default_factory=dict)
    """Overrides of the encoder's image preprocessing: fields of mmcl.preprocess.Preprocess, such as {intensity: [0, 4095]} for
    12-bit values in 16-bit files, or {intensity: {percentiles: [1, 99]}} for the range of each image. Saved with the model."""
    freeze: bool | int = False
    """Freeze the encoder and keep it in evaluation mode; the head is still trained. A number freezes that many of the lowest
    blocks, such as transformer layers, and everything below them: embeddings, the patch convolution, the first norm. A negative
    number leaves that many of the highest blocks to train: -2 freezes everything below the last two."""
    adapt: AdapterConfig | None = None
    """Freeze the encoder's weights and batch-norm statistics, and train adapters of its matrices, which are merged into them
    at the end; the head is still trained. Needs trained weights: `init`, or an encoder with `pretrained`. Null trains all
    weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """A dataset."""

    name: str = "auto"
    """Kind of source; "auto" detects it from the content of `path`."""
    path: str | None = setting(None, decides=False)
    """File or folder, for sources that read from one."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartConfig(SourceConfig):
    """A dataset in a mixture."""

    weight: float | None = setting(None, above=0)
    """Share of the rows, relative to the other datasets; an epoch then has as many rows as there are samples in total."""
    epochs: float | None = setting(None, above=0)
    """Number of times that an epoch of the mixture shows each sample of this dataset; 1 if no dataset has a weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupConfig:
    """Parameters with a learning rate, weight decay or freezing of their own."""

    match: str
    """Regular expression that is searched for in the names of the parameters, such as "image.encoder.norm.weight": "^text[.]"
    for all parameters of the text tower, "[.]head[.]" for the heads. A parameter belongs to the first group that matches."""
    lr: float | None = setting(None, above=0)
    """Peak learning rate."""
    scale: float | None = setting(None, above=0)
    """Factor of the peak learning rate that the parameters would have without the group."""
    weight_decay: float | None = setting(None, at_least=0)
    """Weight decay of the matrices, embedding tables and adapters in the group; other parameters have none."""
    freeze: bool = False
    """Leave the parameters as they are: no gradient, no weight decay, no optimizer state. Dropout stays."""

    def __post_init__(self) -> None:
        where = f"optim.groups: the group with match {self.match!r}"
        try:
            re.compile(self.match)
        except re.error as error:
            raise UserError(f"{where}: it is not a regular expression ({error})") from None
        given = [name for name in ("lr", "scale", "weight_decay") if getattr(self, name) is not None]
        if "lr" in given and "scale" in given:
            raise UserError(f"{where} has lr and scale, which exclude each other: remove one of them")
        if self.freeze == bool(given):
            raise UserError(
                f"{where} has freeze and {given[0]}, which exclude each other: remove one of them"
                if given
                else f"{where} changes nothing: give lr, scale, weight_decay or freeze"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimizer, with linear warm-up and cosine decay; weight decay applies to matrices and token embeddings only."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    """AdamW, optionally with Muon; SGD with momentum; or LARS: SGD with momentum and a layer-wise rate for every matrix."""
    lr: float = setting(1e-3, above=0)
    """Peak learning rate. It is not scaled with the batch size: give the rate for your batch size."""
    bias_lr: float | None = setting(None, above=0)
    """Peak learning rate of parameters without weight decay (biases, norms, the temperature), as in Barlow Twins; null uses
    `lr`."""
    muon_lr: float | None = setting(None, above=0, used_by=("adamw",))
    """Peak learning rate of the hidden matrices (linear layers, convolutions) under Muon; null leaves them to AdamW."""
    betas: tuple[float, float] = setting((0.9, 0.98), at_least=0, below=1, used_by=("adamw",))
    """Decay rates of AdamW's first and second moments."""
    eps: float = setting(1e-6, above=0, used_by=("adamw",))
    """Constant added to the square root of AdamW's second moment."""
    momentum: float = setting(0.9, at_least=0, below=1, used_by=("sgd", "lars"))
    """Momentum of SGD and LARS."""
    weight_decay: float = setting(0.2, at_least=0)
    """Weight decay; not applied to biases, norms, scales, temperatures, position, class and register embeddings, or adapters.
    AdamW and Muon decouple it from the gradient; SGD and LARS add it and need smaller values, such as 1e-4 and 1e-6."""
    layer_decay: float | None = setting(None, above=0, at_most=1)
    """Factor by which the learning rate falls from each block of an encoder to the one below it, as in BEiT: heads,
    temperature and what follows the last block have the full rate, and embeddings the lowest. Null gives all the same rate."""
    groups: tuple[GroupConfig, ...] = ()
    """Parameters with a learning rate, weight decay or freezing of their own; `mmcl doctor` shows all groups."""
    probe: float = setting(0.0, at_least=0, below=1)
    """Share of all steps in which the encoders wait and only what follows their last block learns: heads, projections, the last
    norm, and the temperature. Their blocks and embeddings then join with a warm-up and a decay of their own, so that a new head
    does not spoil them by its first gradients (Kumar et al., "Fine-Tuning can Distort Pretrained Features", 2022, LP-FT)."""
    warmup: float = setting(0.05, at_least=0, below=1)
    """Share of all steps over which the learning rate rises from 0."""
    final_lr: float = setting(0.0, at_least=0)
    """Learning rate at the end of the cosine decay, as a share of the peak."""
    milestones: tuple[float, ...] = setting((), above=0, below=1)
    """Points of the run, as shares of its length, at which the learning rate is divided by 10, in place of the cosine decay:
    0.6 0.8 in MoCo v1."""
    clip: float | None = setting(1.0, above=0)
    """Maximum gradient norm; null disables clipping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorConfig:
    """Anchors of a model that is fine-tuned to the model that it starts from, against forgetting."""

    l2_sp: float = setting(0.0, at_least=0)
    """Strength of the pull of weights towards their values at the start (L2-SP): after each step, a weight moves by this times
    its learning rate times its distance. Weight decay in the other direction, towards zero, is `optim.weight_decay`. Weights of
    new heads and adapters are not pulled."""
    features: float = setting(0.0, at_least=0)
    """Weight in the loss of the distance between the embeddings of the batch and those of the frozen start: the mean of 1 -
    cosine. It costs a forward pass through the start in every step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatryoshkaConfig:
    """Training of prefixes of the embeddings as embeddings of their own, so that a model can be used at several widths
    (Kusupati et al., "Matryoshka Representation Learning", 2022)."""

    dims: tuple[int, ...] = setting((), at_least=2)
    """Widths of the prefixes below the full one, such as [32, 64, 128]. The loss is the mean of the method's loss over all
    prefixes, each scaled to unit length, and over the whole embeddings. None trains the full width alone."""
    weights: tuple[float, ...] | None = setting(None, above=0)
    """Relative weights in this mean: one for each of `dims`, and last that of the full width. Null weighs all equally."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FewerTokensConfig:
    """Training of the image encoder on some of the patches of every image (Li et al., "Scaling Language-Image Pre-training via
    Masking", 2023, FLIP), on smaller images (Li et al., "An Inverse Scaling Law for CLIP Training", 2023, CLIPA), or on some of
    the patches of smaller images, in most of the steps."""

    patches: float = setting(1.0, above=0, at_most=1)
    """Share of the patches of each image that the encoder sees, such as 0.5, drawn anew for every epoch and view; evaluations
    see all. For vision transformers, which then take about this share of the time."""
    image_size: int | None = setting(None, at_least=1)
    """Side in pixels of the images that the encoder sees, such as 112 of 224, and the longer one where they are not square;
    evaluations see the full size. Crops and augmentations are those of the full size. For encoders that take images of another
    size, such as ResNets and vision transformers. Views with a size of their own keep it. Null is the full size."""
    finish: float = setting(0.1, at_least=0, below=1)
    """Share of the steps, the last ones, in which the encoder sees all patches of images of full size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig:
    """Learning from other models, whose embeddings of the training data are stored: `data.embeddings`
    (Vasu et al., "MobileCLIP: Fast Image-Text Models through Multi-Modal Reinforced Training", 2024)."""

    weight: float = setting(0.0, at_least=0, at_most=1)
    """Share in the loss of the divergence of the model's similarities, over all pairs of the batch, from those of the teachers;
    the rest is the loss of the method."""
    temperature: float | None = setting(None, above=0)
    """Temperature of the teachers' logits. Null takes that of each teacher, which features (`mmcl embed --features`) and models
    that compare without one do not have."""
    targets: Literal["pairs", "neighbors"] = "pairs"
    """What the teachers compare: each image with the captions, as the model does; or images with images and captions with
    captions, so that the captions of its neighbors are positives of an image, as much as they are near (Gao et al., "SoftCLIP:
    Softer Cross-modal Alignment Makes CLIP Stronger", 2024). Neighbors need a `temperature`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Run length, batch size, precision and checkpointing."""

    batch_size: int = setting(256, at_least=1)
    """Pairs per step over all processes; the loss is computed over all of them."""
    micro_batch: int | None = setting(None, at_least=1, decides=False)
    """Pairs that a process encodes at a time, to save memory. The loss is still computed over the whole batch, so the gradient
    is the same (except with batch norm), at the cost of one more forward pass. Texts of similar length are grouped, to reduce
    padding. Null encodes the process's share of the batch at once."""
    epochs: float | None = setting(None, above=0)
    """Length of the run in passes over the data; give either this or `steps`."""
    steps: int | None = setting(None, at_least=1)
    """Length of the run in steps; overrides `epochs`."""
    seed: int = 0
    """Random seed of the initial weights, sample order, augmentation and dropout."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Precision of the encoders; the loss is always computed in float32. "auto" takes bf16 where the machine has instructions
    for it, else fp32; a resumed run keeps the precision of its start."""
    matmul: Literal["highest", "high"] = "highest"
    """Precision of products of float32 matrices on GPUs: "highest" is float32, "high" is TF32, several times as fast, with an
    error of about 5e-4 in the gradient of the loss. It has no effect on a CPU."""
    freeze_statistics: Literal["auto"] | bool = "auto"
    """Keep the batch norms of the encoders, and of heads from `init`, in evaluation mode: statistics of small or other data
    cost accuracy. "auto" does so for what comes from `init`."""
    compile: bool = False
    """Compile the blocks of the encoders with torch.compile, which starts slowly and computes faster from then on, above all on
    GPUs. Texts are padded to multiples of 8 tokens. Rounding differs, and so do the dropout masks of texts that are padded."""
    channels_last: bool = False
    """Keep pixels and convolutions of image encoders in channels-last memory, in which convolutions are faster on GPUs, and
    in bf16 also on CPUs. Rounding differs. For encoders such as ResNets; not with `fsdp`."""
    checkpoint_activations: bool = setting(False, decides=False)
    """Store only the inputs of the blocks of each encoder, and compute their activations again in the backward pass: the same
    gradient in a fraction of the memory, at the cost of one more forward pass. For encoders with blocks, such as transformers
    and ResNets."""
    ema: float | None = setting(None, above=0, below=1)
    """Momentum of an exponential moving average of the weights, such as 0.999, which the run evaluates and exports in place of
    the weights of the last step. Early steps use a smaller momentum, so that short runs forget their initial weights. Null
    averages nothing."""
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    """Anchors to the model that the run starts from, against forgetting."""
    matryoshka: MatryoshkaConfig = field(default_factory=MatryoshkaConfig)
    """Widths below the full one at which the embeddings are to be usable, too."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """Learning from stored teachers."""
    fewer_tokens: FewerTokensConfig = field(default_factory=FewerTokensConfig)
    """Images of which the encoder sees fewer pixels or some of the patches, and all in the end: about the same result in less
    time."""
    fsdp: bool = setting(False, decides=False)
    """Shard the towers' weights, gradients and optimizer state over the processes (FSDP), for towers that are too large for
    one device; the result is the same. Launch with torchrun or `accelerate launch --multi_gpu`."""
    threads: int | None = setting(None, at_least=1, decides=False)
    """CPU threads per process; default: OMP_NUM_THREADS; if it is not set, or under a launcher, cores / local processes."""
    log_every: int = setting(10, at_least=1, decides=False)
    """Number of steps between two lines of metrics.jsonl."""
    save_every: int | None = setting(None, at_least=1, decides=False)
    """Number of steps between two checkpoints; the last step is always saved."""
    save_minutes: float | None = setting(15.0, above=0, decides=False)
    """Minutes between two checkpoints, in addition to `save_every`; null saves by steps only."""
    keep_checkpoints: int = setting(2, at_least=1, decides=False)
    """Number of most recent checkpoints to keep."""
    keep_best: str | None = setting(None, decides=False)
    """Also keep the checkpoint with the best score: evaluator, label and metric, as in "emoji/unseen_style/text_to_image_R@1".
    That evaluator must run during training (`every`)."""
    best_is: Literal["max", "min"] | None = setting(None, decides=False)
    """Direction of the best score. Null infers it from the metric's name: the lowest for ranks, losses, errors and gaps, the
    highest for all others."""
    patience: int | None = setting(None, at_least=1, decides=False)
    """Stop after this number of evaluations without an improvement of `keep_best`; null disables early stopping."""
    export: Literal["last", "best"] = setting("last", decides=False)
    """Weights to export to `model/`: those of the last step, or those with the best score of `keep_best`."""
    alpha: float = setting(1.0, above=0, at_most=1, decides=False)
    """Share of the trained weights in the model that is exported; the rest is the share of the weights of `init`. What is
    forgotten shrinks faster with it than what is gained (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022)."""
    on_nonfinite: Literal["stop", "skip"] = setting("stop", decides=False)
    """Reaction to a non-finite loss or gradient: stop before the update, or skip the step."""
    max_skipped: int = setting(10, at_least=0, decides=False)
    """Stop when more than this number of steps were skipped."""
    timeout_seconds: float = setting(600.0, above=0, decides=False)
    """Seconds that a process waits for the others within a step; a process that died or hangs ends the run."""
    trackers: tuple[str, ...] = setting((), decides=False)
    """Experiment trackers that receive the metrics in addition to metrics.jsonl: tensorboard, wandb, trackio."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatorConfig:
    """One evaluation: at the end of the run next to its baselines, and also during training if `every` is set."""

    name: str
    """Name of the evaluator."""
    label: str
    """Name of the data in the report."""
    every: int | None = setting(None, at_least=1)
    """Number of steps between two evaluations during training, which include the last step; all processes share the encoding.
    Null evaluates only at the end."""
    data: SourceConfig | None = None
    """Data to evaluate on; null uses the share held out by `data.holdout`."""
    bank: SourceConfig | None = None
    """Labeled data for fitting k-NN and probes; default: the training data."""
    keep: bool = False
    """The data are old, of the kind that the model of `init` was trained on: what a report says first is what the run gained on
    new data and lost on these."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the evaluator."""


def refuse_equal_labels(evaluators: Sequence[EvaluatorConfig], where: str = "evaluate") -> None:
    """Raises UserError if an evaluator appears twice under one label, or under two labels that give the same file name: one
    result would overwrite the other."""
    first: dict[tuple[str, str], int] = {}
    for number, one in enumerate(evaluators):
        other = first.setdefault((one.name, re.sub(r"[^\w-]+", "_", one.label).strip("_")), number)
        if other != number:
            raise UserError(
                f"{where}.{number} and {where}.{other} are both {one.name}, of {one.label!r} and {evaluators[other].label!r}, "
                "and would replace each other: give one of them another label"
            )
