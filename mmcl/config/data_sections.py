"""The section `data` of a configuration: training data, views, augmentation and what a batch is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmcl.config.sections import ComponentConfig, PartConfig, SourceConfig
from mmcl.config.setting import setting


@dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """Random-resized crop, drawn per image and view."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest share of the image's area."""
    ratio: tuple[float, float] = (0.75, 1.3333)
    """Smallest and largest aspect ratio (width / height)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig:
    """Overrides for one image view."""

    crop: CropConfig | None = None
    """Random-resized crop during decoding; null uses `data.crop`."""
    augment: tuple[ComponentConfig, ...] | None = None
    """Augmentations that replace those of `data.augment`; null uses `data.augment`."""
    size: int | None = setting(None, at_least=1)
    """Height and width in pixels to which the crop is resized; null uses the encoder's input size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HardBatchesConfig:
    """Batches of clusters: samples whose stored rows lie near each other are in one batch, so that negatives are hard
    (Thirukovalluru et al., "Breaking the Batch Barrier (B3) of Contrastive Learning via Smart Batch Mining", 2025)."""

    embeddings: str | None = setting(None, decides=False)
    """Folder of shards that `mmcl embed` wrote of the training data. Null takes stored rows that are the training data
    themselves, as the source `embeddings` reads them."""
    side: Literal["image", "text"] = "image"
    """Rows that are compared: those of the images, or of the captions, of several captions their mean."""
    cluster: int = setting(32, at_least=2, at_most=1024)
    """Samples of a cluster; a batch is made of train.batch_size / cluster of them, drawn at random in each epoch. A larger
    cluster gives each sample more hard negatives, and others that are less hard."""
    skip: int = setting(30, at_least=0, at_most=1024)
    """Number of the nearest of each sample that are kept out of its cluster, as they may be copies or false negatives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Training data, views and augmentation."""

    root: str | None = setting(None, decides=False)
    """Folder of downloaded datasets; default: the environment variable MMCL_DATA_ROOT, else ~/.cache/mmcl."""
    train: SourceConfig = field(default_factory=SourceConfig)
    """Training data."""
    mix: dict[str, PartConfig] | None = None
    """Several training datasets in place of `train`, under names of your choice, each with a weight or a number of epochs."""
    keep: str | None = None
    """File of sample names, one a line, as `--list` of `mmcl dedup` and `mmcl data curate` writes it: of all training data,
    only these are used."""
    templates: tuple[str, ...] | None = None
    """Prompt templates with one "{}" each, such as "a photo of a {}.": captions for labeled training data without captions."""
    caption_weights: tuple[float, ...] | None = setting(None, at_least=0)
    """Relative frequencies of a sample's captions, in their order: [3, 1] shows the first caption three times as often as the
    second. Null shows all captions equally often."""
    holdout: float = setting(0.0, at_least=0, below=1)
    """Share of the training data that is held out for evaluators without `data` of their own. Samples of one group stay
    together (`group_column`, an argument of the source); without groups, those with equal captions or ids."""
    labels: float | None = None
    """Train on a stratified subset only, as for learning from few labels: a share of every class if below 1 (0.01), else the
    number of samples per class. `train.seed` determines the subset; a smaller subset is contained in a larger one."""
    samples_per_class: int | None = setting(None, at_least=1)
    """Samples per class in every batch (P x K sampling, with P = train.batch_size / samples_per_class classes), for supervised
    contrastive and metric learning. Null draws samples in random order, regardless of class."""
    hard_batches: HardBatchesConfig | None = None
    """Make batches of samples that lie near each other in a space of stored rows, so that their negatives are hard. Every epoch
    shows each sample once. Null draws samples in random order."""
    embeddings: tuple[str, ...] = setting((), decides=False)
    """Folders of shards that `mmcl embed` wrote of the training data; their rows are read with every sample, for
    `train.distillation`. Every image, and every caption that may be drawn, needs a row. All views of an image share its row.
    Folders of one model, of several datasets in a mixture, are one teacher."""
    cache: Literal["auto"] | bool = setting("auto", decides=False)
    """Keep the decoded images in memory; "auto" does so if they take less than 1 GB and are not cropped."""
    crop: CropConfig | None = None
    """Random-resized crop during decoding; null shows the whole image."""
    augment: tuple[ComponentConfig, ...] = ()
    """Augmentations in the order of application, each drawn per image and view."""
    views: dict[str, ViewConfig] = field(default_factory=dict)
    """Overrides for individual image views, by name, as in BYOL and SwAV; `small` stands for small_0, small_1, ..."""
    augment_on: Literal["host", "device"] = "host"
    """Where images are augmented: by the loader, or on the device of the training, to which then bytes travel, not floats. The
    draws are the same; pixels may differ by rounding between a GPU and the host."""
    workers: int | None = setting(None, at_least=0, decides=False)
    """Loader processes per training process; 0 loads in the training process, which is best for cached images. Null is 0 on the
    CPU, and up to 4 beside a GPU."""
    max_pixels: int | None = setting(None, at_least=1, decides=False)
    """Largest number of pixels (width x height) of an image; larger images are unusable. Null uses the environment variable
    MMCL_MAX_PIXELS, else 64 million."""
    max_bad_fraction: float = setting(0.01, at_least=0, at_most=1, decides=False)
    """Stop when more than this share of the samples read so far was unusable; unusable samples are replaced and listed."""
    max_bad_consecutive: int = setting(100, at_least=0, decides=False)
    """Stop when more than this number of consecutive samples, in the order of the run, were unusable."""
