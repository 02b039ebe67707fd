"""Models and datasets for evaluation: a model that encodes everything once, and a source with its training source."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mmcl.data.images.image_cache import decode_sample
from mmcl.data.sample import Sample
from mmcl.data.source import Source, has_rows
from mmcl.data.stored_rows import text_identity
from mmcl.errors import UserError
from mmcl.evaluate.baselines import PCAPixels, RawPixels, RawRows
from mmcl.evaluate.cache import EmbeddingCache, library_versions
from mmcl.evaluate.captions import Captions, captions_of
from mmcl.evaluate.measures.statistics import SEED
from mmcl.evaluate.reporting.metric import Provenance
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.reporting.thumbnails import data_uri
from mmcl.files.digest import digest
from mmcl.preprocess import Preprocess
from mmcl.terminal import counted
from mmcl.types import EmbeddingModel

DTYPE = "float32"
"""Type of the embeddings of every model, see `EmbeddingModel`."""


class CachedModel:
    """Wraps a model so that each source and each text is encoded once, however many evaluators use it.

    Args:
        model: the embedding model.
        name: name of its column in the report: "trained", "untrained", ...
        batch_size: images per batch; by default the model chooses.
        cache: on-disk cache that keeps embeddings between processes; None for no cache.

    Example:
        >>> from mmcl import load_model, open_source
        >>> model, source = CachedModel(load_model("runs/clip_emoji")), open_source("digits")
        >>> model.images(source) is model.images(source)  # encoded once
        True
    """

    def __init__(
        self,
        model: EmbeddingModel,
        name: str = "trained",
        *,
        batch_size: int | None = None,
        cache: EmbeddingCache | None = None,
    ):
        self.model = model
        self.name = name
        self.batch_size = batch_size
        self.cache = cache
        # Keyed by object identity, and the object is kept so that its id is not reused: no fingerprint covers the images.
        self._images: dict[int, tuple[Source, np.ndarray]] = {}
        self._texts: dict[str, np.ndarray] = {}

    @property
    def preprocess(self) -> Preprocess | None:
        """Image preprocessing of the model; None if unknown."""
        return getattr(self.model, "preprocess", None)

    def images(self, source: Source) -> np.ndarray:
        """Embeddings of every image of a source: float32 [N, D]."""
        if id(source) not in self._images:
            rows = self._stored(
                lambda: self.model.encode_image(source, batch_size=self.batch_size), lambda: {"data": source.identity}
            )
            self._images[id(source)] = source, rows
        return self._images[id(source)][1]

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts: float32 [M, D]; only new ones are encoded."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            rows = self._stored(lambda: self.model.encode_text(new), lambda: {"texts": digest(*map(text_identity, new))})
            self._texts.update(zip(new, rows, strict=True))
        return np.stack([self._texts[text] for text in texts])

    def _stored(self, encode: Callable[[], np.ndarray], inputs: Callable[[], Mapping[str, str]]) -> np.ndarray:
        if self.cache is None:
            return encode()
        # The fingerprint of the model covers its weights, preprocessing and tokenizer.
        depends_on = {"model": self.model.fingerprint, "dtype": DTYPE, "versions": str(library_versions()), **inputs()}
        rows = self.cache.load(depends_on)
        if rows is None:
            rows = encode()
            self.cache.save(depends_on, rows)
        return rows

    def thumbnail(self, sample: Sample) -> str | None:
        """A sample's image as a data URI, with the intensity range and the channels that the model sees, or None."""
        return None if sample.image is None else data_uri(decode_sample(sample, self.preprocess))

    def require_text(self, evaluator: str) -> None:
        """Raises UserError when the model has no text tower."""
        require_text(evaluator, self.model.has_text)


@dataclass(frozen=True)
class Questions:
    """Yes/no questions about the images of a source.

    Attributes:
        names: Q different names.
        target_NQ: int8 [N, Q]: 1 yes, 0 no, -1 unknown.
    """

    names: tuple[str, ...]
    target_NQ: np.ndarray


@dataclass(frozen=True)
class Task:
    """A dataset to evaluate.

    Attributes:
        name: name in the report, e.g. "emoji/unseen_style".
        source: the samples to evaluate on.
        bank: training samples: neighbors for k-NN, training rows of the linear probe, references of the raw-pixel baseline.
        baselines: whether the evaluators also report chance, majority and raw pixels; when several models are compared, once
            is enough.
        figures: whether the evaluators also draw figures: examples and maps.
        pixel_models: the baseline "raw pixels" for each preprocessing, or "stored rows" for None; tasks that share this mapping
            decode images once.
        pca_models: the baseline "PCA-50" for each preprocessing, for this task only.

    Example:
        >>> from mmcl import open_source
        >>> task = Task("digits", open_source("digits"))
        >>> task.has_labels, task.labels[:3]
        (True, array([0, 1, 2]))
    """

    name: str
    source: Source
    bank: Source | None = None
    baselines: bool = True
    figures: bool = True
    pixel_models: dict[Preprocess | None, CachedModel] = field(default_factory=dict)
    pca_models: dict[Preprocess | None, CachedModel] = field(default_factory=dict, init=False)

    @cached_property
    def captions(self) -> Captions:
        """Captions of the source. Raises UserError if it has none, or one that cannot be encoded."""
        captions = captions_of(self.source, checked=True)
        if not captions.texts:
            raise UserError(f"{self.name}: no sample has a caption, which retrieval needs; choose another source or evaluator")
        return captions

    @cached_property
    def has_images(self) -> bool:
        """True if the samples have images; samples of an embedding file have none."""
        return len(self.source) > 0 and self.source[0].image is not None

    @cached_property
    def has_labels(self) -> bool:
        """True if every sample has a label."""
        return self.source.labels is not None and bool((self.source.labels >= 0).all())

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels of the source, int64 [N]. Raises UserError if a sample has no label."""
        return _labels(self.source, self.name)

    @cached_property
    def questions(self) -> Questions:
        """The questions of the source; without any, whether an image is of a class. Raises UserError if it has neither."""
        if self.source.targets is not None:
            return Questions(tuple(self.source.target_names), self.source.targets)
        names = self.source.class_names
        if names is None:
            raise UserError(f"{self.name}: has neither target_columns nor class names; name the columns with the answers")
        return Questions(tuple(names), (self.labels[:, None] == np.arange(len(names))).astype(np.int8))

    @cached_property
    def bank_labels(self) -> np.ndarray:
        """Labels of the bank, int64 [M]. Classes are numbered as in the source; classes that the source lacks follow.

        Raises:
            UserError: a training sample has no label, or source and bank have class names but none in common.
        """
        bank = self.required_bank
        labels, ours, theirs = _labels(bank, f"the training data of {self.name}"), self.source.class_names, bank.class_names
        if ours is None or theirs is None or list(ours) == list(theirs):
            return labels
        if not set(ours) & set(theirs):
            raise UserError(
                f"{self.name}: training and test data have different classes, none of {theirs[0]!r}, ... is a name "
                f"of both; give both the same class names"
            )
        number = {name: place for place, name in enumerate(dict.fromkeys([*ours, *theirs]))}
        renumbered: np.ndarray = np.array([number[name] for name in theirs], np.int64)[labels]
        return renumbered

    def about_bank(self, evaluator: str) -> tuple[str, ...]:
        """Notes on test samples of classes without training samples, which every model gets wrong, and on shared groups."""
        notes, ours, theirs = [], self.source.groups, self.required_bank.groups
        unseen = ~np.isin(self.labels, self.bank_labels)
        if unseen.any():
            notes.append(
                f"{evaluator}, {self.name}: {int(unseen.sum())} of {len(unseen)} samples are of classes that the training data "
                "lack, and count as wrong."
            )
        if ours is not None and theirs is not None and (shared := np.isin(np.unique(ours), theirs)).any():
            notes.append(
                f"{evaluator}, {self.name}: {int(shared.sum())} of {counted(len(shared), 'group')} are in the training data "
                "too: the results do not hold for new groups."
            )
        return tuple(notes)

    def require_labels(self, *, bank: bool = False) -> None:
        """Raises UserError unless every sample has a label, and with `bank` every training sample too."""
        _ = bank and self.bank_labels, self.labels

    def require_classes(self, evaluator: str) -> None:
        """Raises UserError if the bank has no labels or only one class, or the source has no labels."""
        if len(np.unique(self.bank_labels)) < 2:
            raise UserError(f"{evaluator}: the training data of {self.name} have one class only; a classifier needs two")
        self.require_labels()

    def row_names(self, metric: str) -> Sequence[str]:
        """Names of the rows of a metric: captions for text-to-image retrieval, else samples: "photos/cat.png (a cat)"."""
        if metric.startswith("text_to_image"):
            return self.captions.texts
        return self._described_names if metric.startswith("image_to_text") else self._sample_names

    @cached_property
    def _sample_names(self) -> tuple[str, ...]:
        return tuple(_with_caption(self.source[index]) for index in range(len(self.source)))

    @cached_property
    def _described_names(self) -> tuple[str, ...]:
        """Names of the samples that have a caption or share an id with one that does."""
        described = np.isin(self.captions.image_ids, self.captions.text_ids)
        return tuple(name for name, here in zip(self._sample_names, described, strict=True) if here)

    def provenance(self, evaluator: str, model: CachedModel) -> Provenance:
        """Provenance of a model's results on this task."""
        return Provenance(
            evaluator,
            self.name,
            model.name,
            len(self.source),
            self.source.identity,
            None if self.bank is None else self.bank.identity,
            model.model.fingerprint,
            DTYPE,
            SEED,
            library_versions(),
        )

    @property
    def required_bank(self) -> Source:
        """The training samples. Raises UserError if there are none."""
        if self.bank is None:
            raise UserError(
                f"{self.name}: this evaluator needs labeled data to compare with: give --bank, or `bank` in the configuration"
            )
        return self.bank

    def pixels(self, beside: CachedModel) -> CachedModel:
        """The baseline "raw pixels", with the intensity range and channels of the model that is compared; or "stored rows"."""
        if has_rows(self.source):
            return self.pixel_models.setdefault(None, CachedModel(RawRows(), "stored rows"))
        model = RawPixels.like(self.source, beside.preprocess)
        return self.pixel_models.setdefault(model.preprocess, CachedModel(model, "raw pixels"))

    def pca(self, beside: CachedModel) -> CachedModel:
        """The baseline "PCA-50" of the training images, with the same intensity range and channels as `pixels`."""
        pixels = self.pixels(beside)
        key = pixels.model.preprocess  # type: ignore[attr-defined]
        if key not in self.pca_models:
            self.pca_models[key] = CachedModel(PCAPixels(pixels.images(self.required_bank), pixels.images), "PCA-50")
        return self.pca_models[key]


class NeedsTexts(UserError):
    """The evaluator needs a model with a text tower."""


def require_text(evaluator: str, has_text: bool) -> None:
    """Raises NeedsTexts, a UserError, for a model without a text tower."""
    if not has_text:
        raise NeedsTexts(f"{evaluator} needs a model with a text tower; this one embeds only images: use knn or linear_probe")


Evaluator = Callable[..., Report]
Check = Callable[..., None]


def needs(
    check: Check, *, reads: Collection[str] = (), test_args: Mapping[str, Any] | None = None
) -> Callable[[Evaluator], Evaluator]:
    """Decorates an evaluator with a check of its requirements, which can run before a model exists.

    Args:
        check: called with the task, whether the model embeds texts, and the evaluator's arguments by name, defaults included;
            raises UserError if the evaluator cannot run. It may read labels, sizes and texts, but must not embed anything.
        reads: which it reads of "targets" and "scores" of a `Source`, and "positives" and "negatives" of a `Sample`. Where
            nothing does, a configuration that names their columns is refused.
        test_args: arguments for `mmcl.testing.check_evaluator`, which runs the evaluator on `mmcl.testing.patterns`, if the
            defaults are too slow or unsuitable.

    Example:
        >>> def has_labels(task, has_text):
        ...     task.require_labels()
        >>> @needs(has_labels)
        ... def class_count(model, task):
        ...     return Report(notes=(f"{len(set(task.labels.tolist()))} classes",))
        >>> from mmcl import open_source
        >>> class_count.check(Task("digits", open_source("digits")), has_text=False)
    """

    def checked(evaluate: Evaluator) -> Evaluator:
        signature = inspect.signature(evaluate)

        def given(task: Task, has_text: bool, **args: Any) -> None:
            bound = signature.bind(None, task, **args)
            bound.apply_defaults()
            check(task, has_text, **bound.kwargs)

        @functools.wraps(evaluate)
        def run(model: CachedModel, task: Task, **args: Any) -> Report:
            given(task, model.model.has_text, **args)
            return evaluate(model, task, **args)

        run.check = given  # type: ignore[attr-defined]
        run.reads = frozenset(reads)  # type: ignore[attr-defined]
        run.test_args = dict(test_args or {})  # type: ignore[attr-defined]
        return run

    return checked


def _with_caption(sample: Sample) -> str:
    """The name of a sample, with its first caption if it has one."""
    return f"{sample.name} ({sample.captions[0]})" if sample.captions else sample.name


def _labels(source: Source, name: str) -> np.ndarray:
    missing = np.arange(len(source)) if source.labels is None else np.flatnonzero(source.labels < 0)
    if source.labels is None or len(missing):
        raise UserError(
            f"{name}: {source[int(missing[0])].name} has no label, which this evaluator needs; put the images into a "
            "folder for each class, or name the column of labels"
        )
    return source.labels
