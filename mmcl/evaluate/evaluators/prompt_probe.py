"""A linear probe that starts at the texts of the classes and is held near them, for a few labeled images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmcl.errors import UserError
from mmcl.evaluate.evaluators.linear_probe import minimize

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
_FOLDS = 3
_TOLERANCE = 1e-5
_MAX_ITER = 1000


@dataclass(frozen=True, slots=True)
class PromptProbe:
    """A fitted classifier: logits = rows of unit length @ weight.T.

    Attributes:
        weight_CD: float64 [C, D].
        c: inverse strength of the penalty; 0 without images, where the weights are those of the texts.
        converged: whether the solver did.
    """

    weight_CD: Tensor
    c: float
    converged: bool = True

    def predict(self, image_ND: Tensor) -> Tensor:
        """The class of each image: int64 [N]."""
        return (image_ND.double() @ self.weight_CD.T).argmax(dim=1)


def fit_prompt_probe(
    image_ND: Tensor, class_N: Tensor, class_emb_CD: Tensor, *, logit_scale: float, c: float | None = None
) -> PromptProbe:
    r"""Minimizes, from the zero-shot classifier $T$, the texts of the classes times `logit_scale`,

    $$\frac{1}{N} \sum_i -\log \mathrm{softmax}(W x_i)_{y_i} + \frac{\lVert W - T \rVert^2}{2 c N}$$

    which is CLAP's linear probe (Silva-Rodríguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language
    Models", 2024) with three differences: the rows of $W$ are not scaled to unit length, so that there is one minimum; the
    strength is the same for all classes; and it is chosen by cross-validation on the images themselves. It is in units of
    logits: as a prior, it says that the logits of an image deviate from the zero-shot ones by about $\sqrt c$.

    Args:
        image_ND: rows of unit length [N, D]; without any, the probe is the zero-shot classifier.
        class_N: int64 [N], from 0 to C - 1; there may be classes without images.
        class_emb_CD: [C, D], rows of unit length.
        logit_scale: above 0.
        c: inverse strength of the penalty; infinity for none. By default the smallest of `STRENGTHS` whose mean loss on images
            that were left out, each image once, is within a standard error of the smallest loss.

    Raises:
        UserError: `c` is not above 0.

    Example:
        >>> texts = torch.eye(2)
        >>> probe = fit_prompt_probe(texts[[0, 1]], torch.tensor([0, 1]), texts, logit_scale=10.0, c=1.0)
        >>> probe.predict(texts).tolist()
        [0, 1]
    """
    check_strength(c)
    start_CD, image_ND = logit_scale * class_emb_CD.double(), image_ND.double()
    if not len(image_ND):
        return PromptProbe(start_CD, 0.0)
    chosen = _chosen(image_ND, class_N, start_CD) if c is None else c
    weight_CD, converged = _fitted(image_ND, class_N, start_CD, chosen, start_CD)
    return PromptProbe(weight_CD, chosen, converged)


def check_strength(c: float | None) -> None:
    """Raises UserError unless the inverse strength of the penalty is above 0, or None."""
    if c is not None and not c > 0:
        raise UserError(f"few_shot: prompt_c must be above 0, not {c}")


def _chosen(image_ND: Tensor, class_N: Tensor, start_CD: Tensor) -> float:
    """The largest penalty whose loss on left out images is within a standard error of the smallest loss.

    Without the standard error, four images would often choose a penalty that makes the texts worse.
    """
    fold_N = _folds(class_N)
    loss_NS = image_ND.new_zeros(len(image_ND), len(STRENGTHS))
    for fold in range(_FOLDS):
        left, kept = fold_N == fold, fold_N != fold
        weight_CD = start_CD
        for number, c in enumerate(STRENGTHS if left.any() and kept.any() else ()):
            weight_CD, _ = _fitted(image_ND[kept], class_N[kept], start_CD, c, weight_CD)
            logit_NC = image_ND[left] @ weight_CD.T
            loss_NS[left, number] = torch.nn.functional.cross_entropy(logit_NC, class_N[left], reduction="none")
    more_NS = loss_NS - loss_NS[:, loss_NS.mean(dim=0).argmin(), None]
    is_near_S = more_NS.mean(dim=0) <= more_NS.std(dim=0, correction=0) / len(image_ND) ** 0.5
    return STRENGTHS[int(is_near_S.int().argmax())]


def _folds(class_N: Tensor) -> Tensor:
    """A fold for each image: those of a class are in different ones, and so are the first of each class."""
    place_N = torch.zeros_like(class_N)
    for one in class_N.unique():
        own = class_N == one
        place_N[own] = torch.arange(int(own.sum()), device=class_N.device)
    return (place_N + class_N) % _FOLDS


def _fitted(image_ND: Tensor, class_N: Tensor, start_CD: Tensor, c: float, first_CD: Tensor) -> tuple[Tensor, bool]:
    """The weights, and whether the solver has converged; `first_CD` is where it begins."""
    penalty = 1 / (c * len(image_ND))
    target_NC = torch.nn.functional.one_hot(class_N, len(start_CD)).to(image_ND.dtype)

    def objective(weight_CD: Tensor) -> tuple[Tensor, Tensor]:
        log_probability_NC = (image_ND @ weight_CD.T).log_softmax(dim=1)
        away_CD = weight_CD - start_CD
        loss = penalty / 2 * away_CD.square().sum() - (log_probability_NC * target_NC).sum() / len(image_ND)
        error_NC = (log_probability_NC.exp() - target_NC) / len(image_ND)
        return loss, error_NC.T @ image_ND + penalty * away_CD

    weight_CD, _, gradient = minimize(objective, first_CD, max_iter=_MAX_ITER, tolerance=_TOLERANCE)
    return weight_CD, gradient <= _TOLERANCE
