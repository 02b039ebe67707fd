"""How good the probabilities of a classifier are, not only its first choice: calibration error, Brier score, likelihood.

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
    """What each image's probabilities come to.

    Attributes:
        confidence: float64 [N], the highest probability.
        right: float64 [N], 1 where the class with that probability is the label, else 0.
        brier: float64 [N], sum over the classes of (probability - truth)^2 (Brier, 1950).
        nll: float64 [N], -log of the probability of the label; of a sigmoid model, the sum over the classes of the binary
            cross-entropies, in nats.
        one_by_one: whether each class has a probability by itself, as a sigmoid model gives it.
    """

    confidence: np.ndarray
    right: np.ndarray
    brier: np.ndarray
    nll: np.ndarray
    one_by_one: bool

    @classmethod
    def of(cls, cosine_NC: Tensor, label_N: Tensor, scale: float, bias: float | None) -> Calibration:
        """From a block of cosines and a model's own scale and bias."""
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
        """One of all images from those of blocks of images."""
        fields = ("confidence", "right", "brier", "nll")
        columns = (np.concatenate([getattr(block, name) for block in blocks]) for name in fields)
        confidence, right, brier, nll = columns
        return cls(confidence, right, brier, nll, blocks[0].one_by_one)

    def estimates(self) -> dict[str, Estimate]:
        """`ece` (Guo et al., "On calibration of modern neural networks", 2017, equation 3, 15 equal bins), `brier`, `nll`.

        The calibration error has no interval: of a perfectly calibrated model it is above 0 by chance, and a bootstrap adds to
        that, so that its interval lies above the truth.
        """
        # Probabilities that add up to 1 are at most 2 from the truth; those of a sigmoid model can each be 1 off.
        brier = statistics.mean(self.brier, within=statistics.ANYTHING if self.one_by_one else (0.0, 2.0))
        return {"ece": self._error(), "brier": brier, "nll": statistics.mean(self.nll, within=statistics.ANYTHING)}

    def _error(self) -> Estimate:
        bins = np.minimum((self.confidence * BINS).astype(np.int64), BINS - 1)
        # |accuracy - confidence| of a bin, weighted by its share of the rows, is |sum of the differences| / N.
        gaps = np.bincount(bins, weights=self.right - self.confidence)
        return statistics.exact(float(np.abs(gaps).sum() / len(bins)), len(bins))


def probabilities(score_NC: Tensor, scale: float | None, bias: float | None) -> Tensor:
    """Cosines to probabilities: softmax over the classes, or for a sigmoid model (`bias` not None) each class by itself.

    Raises:
        UserError: the model has no temperature.
    """
    if scale is None:
        raise UserError("this model was trained without a temperature and gives no probabilities; rank by cosine")
    logits = score_NC * scale
    return logits.softmax(dim=1) if bias is None else (logits + bias).sigmoid()
