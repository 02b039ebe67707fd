"""Image classifiers: zero-shot from class names, or trained with labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmcl.data.sample import ImageLike
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.evaluate.head import Head, zero_shot_head
from mmcl.evaluate.measures.calibration import probabilities
from mmcl.evaluate.prompts import Templates, class_embeddings
from mmcl.evaluate.validation import unit_rows
from mmcl.types import ClassifierModel, EmbeddingModel

OneImage = str | Path | bytes | Image.Image | np.ndarray
Scored = list[dict[str, Any]]
"""The best labels of an image, [{"label": str, "score": float}, ...], best first."""


NONE_OF_THESE = "none of these"


class Classifier(ABC):
    """Assigns scored labels to images.

    Args:
        candidate_labels: C different names.
        reject: minimum score of the best label, above 0 and below 1. An image whose labels all score lower gets the single
            label "none of these" with its best score. `zero_shot_reject` measures how well this works.

    Raises:
        UserError: `reject` is out of range.
    """

    def __init__(self, candidate_labels: Sequence[str], reject: float | None):
        if reject is not None and not 0 < reject < 1:
            raise UserError(f"reject must be a probability above 0 and below 1, not {reject}")
        self.candidate_labels = candidate_labels
        self.reject = reject

    @abstractmethod
    def _scores(self, images: Any, batch_size: int | None) -> tuple[Tensor, Tensor]:
        """Ranking scores [N, C] and probabilities [N, C]; separate, because rounding can make probabilities equal."""

    # A text and bytes are sequences too: they are one image, as the first that fits is taken.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, images: OneImage, *, top_k: int | None = 5, batch_size: int | None = None
    ) -> Scored: ...

    @overload
    def __call__(
        self, images: Sequence[ImageLike] | Source, *, top_k: int | None = 5, batch_size: int | None = None
    ) -> list[Scored]: ...

    def __call__(self, images: Any, *, top_k: int | None = 5, batch_size: int | None = None) -> Scored | list[Scored]:
        """Classifies images.

        Args:
            images: a path, an encoded file, a PIL image or a uint8 array; or a list of these, or a data source.
            top_k: maximum number of labels per image; None for all.
            batch_size: images per batch; by default the model chooses.

        Returns:
            The best labels of one image, [{"label", "score"}, ...], best first; for a list of images, a list of these.
        """
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k must be at least 1, not {top_k}")
        one = isinstance(images, OneImage)
        if not one and len(images) == 0:
            return []
        logits, score = self._scores([images] if one else images, batch_size)
        order = logits.argsort(dim=1, descending=True, stable=True)[:, :top_k]
        ordered = (part.gather(1, order).tolist() for part in (logits, score))
        best = [self._scored(*row) for row in zip(order.tolist(), *ordered, strict=True)]
        return best[0] if one else best

    def _scored(self, labels: list[int], logits: list[float], scores: list[float]) -> Scored:
        if self.reject is not None and scores[0] < self.reject:
            return [{"label": NONE_OF_THESE, "score": scores[0]}]
        return [{"label": self.candidate_labels[n], "score": score} for n, score in zip(labels, scores, strict=True)]


class ZeroShotClassifier(Classifier):
    """Classifies images by the texts of the labels, which are encoded once at construction.

    The scores are probabilities at the model's own scale: a softmax over the labels, or for a sigmoid model (SigLIP) a separate
    probability per label, so that they need not sum to 1.

    Args:
        model: a model with a text tower.
        candidate_labels: C different names.
        templates: sentences with a placeholder "{}" for the name, see `class_embeddings`; by default the name alone.
        reject: as in `Classifier`.

    Attributes:
        class_emb: float32 [C, D], unit length.

    Raises:
        UserError: the model has no text tower, a label is empty or duplicated, a template has no placeholder, or `reject` is
            out of range.

    Example:
        >>> from mmcl import load_model
        >>> classify = ZeroShotClassifier(load_model("runs/clip_emoji"), ["cat", "dog"], "a photo of a {}")
        >>> [sorted(label) for label in classify(np.zeros((32, 32, 3), np.uint8))]
        [['label', 'score'], ['label', 'score']]
    """

    def __init__(
        self,
        model: EmbeddingModel,
        candidate_labels: Sequence[str],
        templates: Templates = "{}",
        *,
        reject: float | None = None,
    ):
        if not model.has_text:
            raise UserError("zero-shot classification needs a model with a text tower; this one embeds only images")
        super().__init__(candidate_labels if isinstance(candidate_labels, str) else list(candidate_labels), reject)
        self.model = model
        self.class_emb = class_embeddings(model, self.candidate_labels, templates)
        self._templates = templates

    def _scores(self, images: Any, batch_size: int | None) -> tuple[Tensor, Tensor]:
        image = unit_rows(self.model.encode_image(images, batch_size=batch_size), "the image embeddings")
        cosine = image @ torch.from_numpy(self.class_emb).T
        return cosine, probabilities(cosine, self.model.logit_scale, self.model.logit_bias)

    def head(self) -> Head:
        """The classifier as a file that `Head.load` and `mmcl classify --head` read. Raises UserError without a temperature."""
        return zero_shot_head(self.class_emb, self.candidate_labels, self._templates, self.model, {"evaluator": "zero_shot"})


class HeadClassifier(Classifier):
    """Classifies images with a saved head, which a linear probe, the texts of classes or pairs of prompts have left.

    The scores are its probabilities. A head with thresholds answers yes or no for each class: every result has the key "yes",
    true or false, None without a threshold. The surest yes comes first.

    Args:
        model: the model that the head was fitted on.
        head: the head, or its file.
        reject: as in `Classifier`; not with thresholds.

    Raises:
        UserError: the head is of another model or damaged, or `reject` is out of range or given beside thresholds.

    Example:
        >>> from mmcl import load_model
        >>> model = load_model("runs/clip_emoji")
        >>> ZeroShotClassifier(model, ["cat", "dog"], "a photo of a {}").head().save("pets.safetensors")
        >>> classify = HeadClassifier(model, "pets.safetensors")
        >>> [sorted(label) for label in classify(np.zeros((32, 32, 3), np.uint8))]
        [['label', 'score'], ['label', 'score']]
    """

    def __init__(self, model: EmbeddingModel, head: Head | str | Path, *, reject: float | None = None):
        where = "the head" if isinstance(head, Head) else str(head)
        self.head = head if isinstance(head, Head) else Head.load(head)
        if self.head.model != model.fingerprint:
            raise UserError(
                f"{where}: fitted on the embeddings of another model ({self.head.model[:12]}, and this one is "
                f"{model.fingerprint[:12]}); give that model, or fit a head on this one"
            )
        if reject is not None and self.head.thresholds is not None:
            raise UserError(f"{where}: has thresholds of its own, and reject would be another; leave reject out")
        super().__init__(self.head.class_names, reject)
        self.model = model

    def _scores(self, images: Any, batch_size: int | None) -> tuple[Tensor, Tensor]:
        logits = torch.from_numpy(self.head.logits(self.model.encode_image(images, batch_size=batch_size)))
        probability = logits.softmax(dim=1) if self.head.probability == "softmax" else logits.sigmoid()
        if self.head.thresholds is None:
            return logits, probability
        # Above the threshold; classes without one come last.
        edge = torch.tensor([np.inf if one is None else one for one in self.head.thresholds], dtype=torch.float64)
        return logits - edge, probability

    def _scored(self, labels: list[int], logits: list[float], scores: list[float]) -> Scored:
        found = super()._scored(labels, logits, scores)
        if self.head.thresholds is None:
            return found
        answers = [None if logit == -np.inf else logit >= 0 for logit in logits]
        return [{**one, "yes": answer} for one, answer in zip(found, answers, strict=True)]


class TrainedClassifier(Classifier):
    """Classifies images with a model trained on labels (methods `supervised` and `distillation`).

    The scores are the softmax of its logits.

    Args:
        model: a classifier.
        reject: as in `Classifier`.

    Raises:
        UserError: the model has no classes, or `reject` is out of range.

    Example:
        >>> class Brightness:
        ...     class_names = ("dark", "bright")
        ...     def image_logits(self, images, *, batch_size=None):
        ...         return np.array([[128 - image.mean(), image.mean() - 128] for image in images], np.float32)
        >>> TrainedClassifier(Brightness())(np.full((8, 8), 255, np.uint8), top_k=1)
        [{'label': 'bright', 'score': 1.0}]
    """

    def __init__(self, model: ClassifierModel, *, reject: float | None = None):
        if model.class_names is None:
            raise UserError("this model was not trained with labels and has none of its own; give the labels to choose from")
        super().__init__(model.class_names, reject)
        self.model = model

    def _scores(self, images: Any, batch_size: int | None) -> tuple[Tensor, Tensor]:
        logits = torch.from_numpy(self.model.image_logits(images, batch_size=batch_size))
        return logits, logits.softmax(dim=1)
