"""Quality of a classifier's probabilities: calibration error, Brier score, negative log-likelihood.

Shape suffixes: N images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmcl.errors import UserError
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.statistics import Estimate

BINS = 15


@dataclass(frozen=True, slots=True)
class Calibration:
    """Per-image terms of the calibration metrics.

    Attributes:
        confidence: float64 [N], the highest probability.
        right: float64 [N], 1 if the class with that probability is the label, else 0.
        brier: float64 [N], sum over the classes of (probability - truth)^2 (Brier, 1950).
        nll: float64 [N], -log of the probability of the label; for a sigmoid model, the sum over the classes of the binary
            cross-entropies, in nats.
        one_by_one: whether each class has an independent probability, as in a sigmoid model.
    """

    confidence: np.ndarray
    right: np.ndarray
    brier: np.ndarray
    nll: np.ndarray
    one_by_one: bool

    @classmethod
    def of(cls, cosine_NC: Tensor, label_N: Tensor, scale: float, bias: float | None) -> Calibration:
        """Computes the terms from a block of cosines and the model's scale and bias."""
        logit_NC = cosine_NC.double() * scale
        target_NC = torch.nn.functional.one_hot(label_N, cosine_NC.shape[1]).double()
        if bias is None:
            probability_NC = logit_NC.softmax(dim=1)
            nll_N = torch.nn.functional.cross_entropy(logit_NC, label_N, reduction="none")
        else:
            probability_NC = (logit_NC + bias).sigmoid()
            both_NC = torch.nn.functional.binary_cross_entropy_with_logits(logit_NC + bias, target_NC, reduction="none")
            nll_N = both_NC.sum(dim=1)
        right_N = (cosine_NC.argmax(dim=1) == label_N).double()
        brier_N = (probability_NC - target_NC).square_().sum(dim=1)
        columns = (probability_NC.amax(dim=1), right_N, brier_N, nll_N)
        confidence, right, brier, nll = (column.cpu().numpy() for column in columns)
        return cls(confidence, right, brier, nll, one_by_one=bias is not None)

    @classmethod
    def join(cls, blocks: list[Calibration]) -> Calibration:
        """Concatenates the terms of several blocks of images."""
        fields = ("confidence", "right", "brier", "nll")
        columns = (np.concatenate([getattr(block, name) for block in blocks]) for name in fields)
        confidence, right, brier, nll = columns
        return cls(confidence, right, brier, nll, blocks[0].one_by_one)

    def estimates(self, clusters: np.ndarray | None = None) -> dict[str, Estimate]:
        """`ece` (Guo et al., "On calibration of modern neural networks", 2017, equation 3, 15 equal bins), `brier`, `nll`.

        The calibration error has no interval: even for a perfectly calibrated model it is above 0 by chance, and a bootstrap
        increases this bias, so that its interval is above the true value. `clusters` are as for `statistics.mean`.
        """
        # The Brier score is at most 2 for probabilities that sum to 1; for a sigmoid model, every class can add 1.
        bounds = statistics.ANYTHING if self.one_by_one else (0.0, 2.0)
        return {
            "ece": self._error(),
            "brier": statistics.mean(self.brier, clusters=clusters, within=bounds),
            "nll": statistics.mean(self.nll, clusters=clusters, within=statistics.ANYTHING),
        }

    def _error(self) -> Estimate:
        bins = np.minimum((self.confidence * BINS).astype(np.int64), BINS - 1)
        # |accuracy - confidence| of a bin, weighted by its share of the rows, is |sum of the differences| / N.
        gaps = np.bincount(bins, weights=self.right - self.confidence)
        return statistics.exact(float(np.abs(gaps).sum() / len(bins)), len(bins))


def probabilities(score_NC: Tensor, scale: float | None, bias: float | None) -> Tensor:
    """Probabilities from cosines: a softmax over the classes, or for a sigmoid model (`bias` not None) a sigmoid per class.

    Raises:
        UserError: the model has no temperature.
    """
    if scale is None:
        raise UserError("this model was trained without a temperature and gives no probabilities; rank by cosine")
    logits = score_NC * scale
    return logits.softmax(dim=1) if bias is None else (logits + bias).sigmoid()
