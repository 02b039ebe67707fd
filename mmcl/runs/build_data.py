"""Construction of the training data: opening, captioning, splitting and mixing sources, and the order of batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.config import Config, DataConfig, SourceConfig
from mmcl.data.batches.class_order import ClassOrder
from mmcl.data.batches.cluster_order import ClusterOrder
from mmcl.data.batches.mixed_order import MixedOrder, rows_of_a_round
from mmcl.data.batches.order import BatchOrder, Order
from mmcl.data.derived.label_captions import CAPTIONS_WANTED, LabelCaptions, has_captions
from mmcl.data.derived.mixture import Mixture
from mmcl.data.derived.subset import Subset, label_subset, split_source
from mmcl.data.derived.weighted_captions import WeightedCaptions
from mmcl.data.images.decode import allow_pixels
from mmcl.data.names import rows_in_list
from mmcl.data.open import open_source
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.files.root import data_root
from mmcl.methods import METHODS
from mmcl.methods.method import Method


def build_source(config: SourceConfig, root: str | None, where: str) -> Source:
    """Open a data source."""
    return open_source(config.name, config.path, root, config.args, where=where)


def build_training_data(config: Config) -> tuple[Source, Source | None]:
    """Return the training data and the held-out share, which is None if `data.holdout` is 0.

    Also sets the limit for decoding images to `data.max_pixels`.
    """
    if config.data.max_pixels is not None:
        allow_pixels(config.data.max_pixels)
    sources = {where: build_source(part, config.data.root, where) for where, part in config.training_parts.items()}
    if config.data.keep is not None:
        rows = rows_in_list(list(sources.values()), Path(config.data.keep).expanduser())
        sources = {where: Subset(source, kept) for (where, source), kept in zip(sources.items(), rows, strict=True)}
    uncaptioned = _uncaptioned(sources) if config.data.templates is not None else set()
    views = getattr(METHODS[config.method.name], "views", {})  # of some methods they depend on the arguments
    if "text" in views.values() and not uncaptioned:
        _require_captions(sources)
    split: dict[str, Source] = {}
    if config.data.holdout > 0:
        # Before captions are made of labels, which would hold out whole classes: equal captions stay together.
        sources, split = _split(sources, config.data.holdout, config.train.seed, data_root(config.data.root) / "index")
    for parts in (sources, split):
        for where, source in parts.items():
            parts[where] = _with_texts(source, config.data, needs_captions=where in uncaptioned)
    source, held_out = _joined(sources), _joined(split) if split else None
    if config.data.labels is not None:
        source = _few_labels(source, config.data.labels, config.train.seed)
    return source, held_out


def _split(sources: Mapping[str, Source], share: float, seed: int, cache: Path) -> tuple[dict[str, Source], dict[str, Source]]:
    """Split every source into (rest, held out). Groups that several sources share are held out of all of them, or of none."""
    rest: dict[str, Source] = {}
    held_out: dict[str, Source] = {}
    for where, source in sources.items():
        others = [one.groups for one in sources.values() if one is not source and one.groups is not None]
        beside = others if source.groups is not None else []
        rest[where], held = split_source(source, share, seed, cache=cache, beside=beside)
        if len(held):
            held_out[where] = held
    return rest, held_out


def _require_captions(sources: Mapping[str, Source]) -> None:
    """Raise UserError where no source has a caption, before the data are split by their captions."""
    if not any(has_captions(source) for source in sources.values()):
        where, source = next(iter(sources.items()))
        raise UserError(f"{where}: no captions, which the method learns from ({source[0].name} has none); {CAPTIONS_WANTED}")


def _uncaptioned(sources: Mapping[str, Source]) -> set[str]:
    """Return the names of the sources whose captions are made of labels. Raises UserError if all have captions."""
    found = {where for where, source in sources.items() if not has_captions(source)}
    if not found:
        raise UserError("data.templates is not used: the training data have captions of their own; remove it")
    return found


def _with_texts(source: Source, config: DataConfig, *, needs_captions: bool) -> Source:
    """Add captions by class and the weights of captions. Raises UserError if captions are needed and there are no labels."""
    if needs_captions:
        source = LabelCaptions(source, config.templates or ())
    return source if config.caption_weights is None else WeightedCaptions(source, config.caption_weights)


def _joined(sources: Mapping[str, Source]) -> Source:
    """Return the only source, or the mixture of several sources with their names."""
    if "data.train" in sources:
        return sources["data.train"]
    return Mixture({where.removeprefix("data.mix."): source for where, source in sources.items()})


def _few_labels(source: Source, amount: float, seed: int) -> Subset:
    size: dict[str, Any] = {"share": amount} if amount < 1 else {"per_class": int(amount)}
    return Subset(source, label_subset(required_labels(source, "data.labels"), **size, seed=seed))


def required_labels(source: Source, needed_by: str) -> np.ndarray:
    """Return class numbers, int64 [N]. Raises UserError if the training data have none; the message names `needed_by`."""
    if source.labels is None:
        raise UserError(
            f"{needed_by} needs labels, and the training data have none: "
            "give data with classes, e.g. a folder with a subfolder for each, or set label_column"
        )
    return source.labels


def build_order(config: Config, source: Source, clusters: Path | None = None) -> BatchOrder:
    """Build the order that selects the samples of each step. Raises UserError when the batch does not fit the data.

    Args:
        config: the configuration.
        source: the training data.
        clusters: file of the clusters of `data.hard_batches`, which is read with the first batch.
    """
    batch_size, seed, samples = config.train.batch_size, config.train.seed, config.data.samples_per_class
    if isinstance(source, Mixture):
        return MixedOrder(source.sizes, _rows_of_a_round(config, source), batch_size, seed)
    if config.data.hard_batches is not None:
        assert clusters is not None, "open_hard_batches names the file"
        return ClusterOrder(clusters, len(source), batch_size, config.data.hard_batches.cluster, seed)
    if samples is None:
        return Order(len(source), batch_size, seed)
    return ClassOrder(required_labels(source, "data.samples_per_class"), batch_size, samples, seed)


def _rows_of_a_round(config: Config, source: Mixture) -> dict[str, int]:
    parts = config.data.mix or {}
    weights = {name: part.weight for name, part in parts.items() if part.weight is not None}
    epochs = {name: part.epochs for name, part in parts.items() if part.epochs is not None}
    return rows_of_a_round(source.sizes, weights=weights or None, epochs=epochs)


def check_data(config: Config, method: Method, source: Source) -> None:
    """Check the data before the first step.

    Raises:
        UserError: the method finds its positives by labels and the data have none, or captions have weights but the method has
            no view of texts. The message names the method.
    """
    if config.data.caption_weights is not None and "text" not in method.views.values():
        raise UserError(f"data.caption_weights is not used: method {config.method.name} reads no captions; remove it")
    if method.positives == "labels":
        classes = int(required_labels(source, f"method {config.method.name}").max()) + 1
        if method.classes is not None and classes > method.classes:
            raise UserError(
                f"image.head gives {method.classes} logits and the training data have {classes} classes: "
                f"set image.head.args.embed_dim to {classes}"
            )
