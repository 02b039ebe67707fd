"""Baselines: raw pixels and their principal components as models, nearest training images, chance and majority."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mmcl.data.images.image_cache import decode_sample, decoded_batches
from mmcl.data.source import Source, required_rows
from mmcl.data.stored_rows import read_rows
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.rank_counts import Scores
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.preprocess import Preprocess

BELOW_ALL = -2.0
"""Score of a class without training images: lower than any cosine."""


class _Pixels:
    """Base class of pixel models, which have no text tower and no logit scale."""

    logit_scale = 1.0
    logit_bias = None
    has_text = False

    def encode_text(self, texts: object, *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        raise NotImplementedError("pixels cannot embed texts")


class RawPixels(_Pixels):
    """A model whose embedding is the image: pixels in [0, 1], flattened and scaled to unit length, without centering.

    Args:
        preprocess: size and channels of the pixels.
    """

    def __init__(self, preprocess: Preprocess):
        self.preprocess = preprocess
        self.fingerprint = f"raw pixels {preprocess}"

    @classmethod
    def like(cls, source: Source, preprocess: Preprocess | None = None) -> RawPixels:
        """Creates a model of 32 x 32 pixels, or of the image size if that is smaller; gray if the first image is gray.

        Args:
            source: source of the images.
            preprocess: preprocessing of the model to compare with; its intensity range and extra channels are used here too.
        """
        first = decode_sample(source[0], preprocess)
        channels, intensity = (3, None) if preprocess is None else (preprocess.channels, preprocess.intensity)
        if channels in (1, 3):
            channels = 1 if first.mode == "L" else 3
        return cls(Preprocess(size=min(32, *first.size), channels=channels, intensity=intensity))

    def encode_image(self, images: Source, *, batch_size: int | None = None, progress: bool = False) -> np.ndarray:
        """Pixels of a source: float32 [N, C * size * size], unit length. Raises UserError for an image that cannot be read."""
        pixels = torch.cat(list(decoded_batches(images, self.preprocess, batch_size or 1024))).flatten(1).float()
        return torch.nn.functional.normalize(pixels, dim=1).numpy()


class RawRows(_Pixels):
    """The stored rows that stand for the images, scaled to unit length, where there are no pixels."""

    preprocess = None
    fingerprint = "stored rows"

    def encode_image(self, images: Source, *, batch_size: int | None = None, progress: bool = False) -> np.ndarray:
        """Rows of a source: float32 [N, F], unit length. Raises UserError if a sample has none."""
        return torch.nn.functional.normalize(torch.from_numpy(read_rows(required_rows(images))), dim=1).numpy()


class PCAPixels(_Pixels):
    """The first 50 principal components of the pixels, fitted on training images; at most n - 1 for n images.

    Args:
        bank_pixels: float32 [T, P], the training images as encoded by `RawPixels`.
        pixels: maps a source to its pixels, so that images are decoded once.
    """

    def __init__(self, bank_pixels: np.ndarray, pixels: Callable[[Source], np.ndarray]):
        from sklearn.decomposition import PCA

        self.fingerprint = "PCA-50"
        self._pixels = pixels
        components = min(50, len(bank_pixels) - 1, bank_pixels.shape[1])
        # Identical images have no components.
        varies = components > 0 and bool(np.ptp(bank_pixels, axis=0).any())
        self._pca = PCA(components, random_state=0).fit(bank_pixels) if varies else None

    def encode_image(self, images: Source, *, batch_size: int | None = None, progress: bool = False) -> np.ndarray:
        """Components of a source: float32 [N, 50] or fewer columns; one column of zeros if there are no components."""
        pixels = self._pixels(images)
        return np.zeros((len(pixels), 1), np.float32) if self._pca is None else self._pca.transform(pixels).astype(np.float32)


def best_of_group(query_ND: Tensor, member_TD: Tensor, group_T: Tensor, groups: int) -> Scores:
    """Scores queries against groups of images by the highest cosine with any member; `BELOW_ALL` for an empty group.

    Args:
        query_ND, member_TD: unit-length rows.
        group_T: int64, 0 to `groups` - 1, the group of each member.

    Returns:
        Rows of queries -> float32 [n, groups].
    """

    def scores(part: slice) -> Tensor:
        cosine = _cosine(query_ND[part], member_TD)
        best = cosine.new_full((len(cosine), groups), BELOW_ALL)
        return best.scatter_reduce(1, group_T.expand(len(cosine), -1), cosine, "amax")

    return scores


def group_to_queries(query_ND: Tensor, member_TD: Tensor, group_T: Tensor) -> Scores:
    """The transposed scores of `best_of_group`: rows of groups -> float32 [n, N]."""

    def scores(part: slice) -> Tensor:
        own = (group_T >= part.start) & (group_T < part.stop)
        cosine = _cosine(member_TD[own], query_ND)
        best = cosine.new_full((part.stop - part.start, len(query_ND)), BELOW_ALL)
        row = (group_T[own] - part.start)[:, None].expand(-1, len(query_ND))
        return best.scatter_reduce(0, row, cosine, "amax")

    return scores


def _cosine(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Cosines, float32 [N, M], in float64 in blocks of `b`, because float64 copies of all pixels would need too much memory."""
    a = a_ND.double()
    return torch.cat([(a @ block.double().T).float() for block in b_MD.split(512)], dim=1)


def class_baselines(
    evaluator: str,
    data: str,
    metrics: Sequence[str],
    labels: np.ndarray,
    bank_labels: np.ndarray,
    clusters: np.ndarray | None = None,
) -> Report:
    """Top-1 accuracy without a model: chance (a random class) and majority (the most common class of the training data).

    Args:
        metrics: names of the top-1 accuracies that the baselines are for.
        labels, bank_labels: int64, of the test and of the training rows.
        clusters: those of the test rows, as for `statistics.mean`.
    """
    classes, counts = np.unique(bank_labels, return_counts=True)
    chance = statistics.exact(float(np.isin(labels, classes).mean() / len(classes)), len(labels))
    majority = statistics.mean(labels == classes[counts.argmax()], clusters=clusters)
    by_model = {"majority": majority, "chance": chance}
    rows = (metric_rows(evaluator, data, model, dict.fromkeys(metrics, value)) for model, value in by_model.items())
    return Report(tuple(metric for row in rows for metric in row))
