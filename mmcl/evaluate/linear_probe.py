"""Linear probe: multinomial logistic regression on frozen embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcl.errors import UserError
from mmcl.evaluate import statistics
from mmcl.evaluate.arrays import Array, features, integers, same_width
from mmcl.evaluate.baselines import class_baselines
from mmcl.evaluate.report import Report, metric_rows
from mmcl.evaluate.task import CachedModel, Task

EVALUATOR = "linear_probe"


@dataclass(frozen=True, slots=True)
class LogisticRegression:
    """A fitted classifier: logits = features @ weight + bias.

    Attributes:
        weight, bias: float32 [D, C], [C].
        steps: L-BFGS iterations.
        gradient: largest component of the gradient of the mean loss at the end.
        converged: whether that is at most the tolerance.
    """

    weight: Tensor
    bias: Tensor
    steps: int
    gradient: float
    converged: bool


def fit_logistic_regression(
    feature_ND: Tensor, class_N: Tensor, *, c: float, max_iter: int = 1000, tolerance: float = 1e-4
) -> LogisticRegression:
    r"""Minimises, by L-BFGS with a strong Wolfe line search from zero,

    $$\frac{1}{N} \sum_i -\log \mathrm{softmax}(W^\top x_i + b)_{y_i} + \frac{\lVert W \rVert^2}{2 c N}$$

    which is scikit-learn's `LogisticRegression(C=c)`: the bias is not penalised, and it ends when no component of the gradient
    exceeds `tolerance`.

    Args:
        feature_ND: float32 or float64 [N, D].
        class_N: int64 [N], from 0 without gaps.
    """
    width, classes = feature_ND.shape[1], int(class_N.max()) + 1
    parameter_CD = feature_ND.new_zeros(classes, width + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [parameter_CD],
        max_iter=max_iter,
        max_eval=2 * max_iter,
        tolerance_grad=tolerance,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    objective = _Objective(feature_ND, class_N, classes, penalty=1 / (c * len(feature_ND)))

    def closure() -> Tensor:
        loss, parameter_CD.grad = objective(parameter_CD)
        return loss

    with torch.no_grad():
        optimiser.step(closure)
        closure()
    gradient = float(parameter_CD.grad.abs().max())  # type: ignore[union-attr]
    steps = int(optimiser.state[parameter_CD]["n_iter"])
    solution = parameter_CD.detach().T
    return LogisticRegression(solution[:-1], solution[-1], steps, gradient, gradient <= tolerance)


class _Objective:
    """The loss and its gradient, written out: with the classes as rows, twice as fast as autograd with the samples as rows."""

    def __init__(self, feature_ND: Tensor, class_N: Tensor, classes: int, penalty: float):
        self.feature_ND, self.penalty = feature_ND, penalty
        self.target_CN = torch.nn.functional.one_hot(class_N, classes).T.to(feature_ND.dtype).contiguous()

    def __call__(self, parameter_CD: Tensor) -> tuple[Tensor, Tensor]:
        weight_CD, bias_C = parameter_CD[:, :-1], parameter_CD[:, -1]
        logit_CN = torch.addmm(bias_C[:, None], weight_CD, self.feature_ND.T)
        log_probability_CN = logit_CN.sub_(logit_CN.logsumexp(dim=0))
        samples = len(self.feature_ND)
        loss = self.penalty / 2 * weight_CD.square().sum() - (log_probability_CN * self.target_CN).sum() / samples
        error_CN = log_probability_CN.exp_().sub_(self.target_CN).div_(samples)
        grad_weight_CD = torch.addmm(weight_CD, error_CN, self.feature_ND, beta=self.penalty)
        return loss, torch.cat([grad_weight_CD, error_CN.sum(dim=1, keepdim=True)], dim=1)


def linear_probe(
    train_emb: Array,
    train_labels: Array | Sequence[int],
    test_emb: Array,
    test_labels: Array | Sequence[int],
    *,
    c: float = 0.316,
    max_iter: int = 1000,
    tolerance: float = 1e-4,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Fits a logistic regression on training rows and scores it on test rows.

    Features are standardised first: mean 0 and deviation 1 over the training rows (constant ones stay 0), so that `c` means the
    same for embeddings of any scale. A note says whether the solver converged.

    Args:
        train_emb, test_emb: finite rows [N, D], [M, D].
        train_labels, test_labels: integers [N], [M], in any range, with any gaps.
        c: inverse strength of the L2 penalty, as in scikit-learn; .316 is CLIP's (Radford et al., 2021, app. A.3).
        max_iter: most L-BFGS iterations.
        tolerance: largest component of the gradient at which the solver ends.
        data, model: what the rows of the report call them.

    Returns:
        `linear_top1`, the test accuracy.

    Raises:
        UserError: fewer than two classes, `c` not above 0, shapes that do not fit, or features that are not finite.
    """
    train, test = features(train_emb, "train_emb"), features(test_emb, "test_emb")
    same_width(train, test, "train_emb and test_emb")
    train_label = integers(train_labels, "train_labels", len(train)).to(train.device)
    test_label = integers(test_labels, "test_labels", len(test)).to(train.device)
    classes, train_class = train_label.unique(return_inverse=True)
    if len(classes) < 2:
        raise UserError("linear_probe: the training rows have one class only; a classifier needs two")
    if not c > 0 or max_iter < 1:
        raise UserError(f"linear_probe: c must be above 0 and max_iter at least 1, not {c} and {max_iter}")
    mean, deviation = train.mean(dim=0), train.std(dim=0, correction=0)
    scale = torch.where(deviation > 1e-6 * mean.abs(), deviation, torch.inf)
    fit = fit_logistic_regression((train - mean) / scale, train_class, c=c, max_iter=max_iter, tolerance=tolerance)
    predicted = classes[((test - mean) / scale @ fit.weight + fit.bias).argmax(dim=1)]
    estimate = statistics.mean((predicted == test_label).cpu().numpy())
    state = "converged" if fit.converged else "did NOT converge (raise max_iter)"
    place = f"{EVALUATOR}, {data}, {model}" if data else f"{EVALUATOR}, {model}"
    note = (
        f"{place}: standardised features, C = {c}; L-BFGS {state} after {fit.steps} steps, largest gradient {fit.gradient:.1e}."
    )
    return Report(metric_rows(EVALUATOR, data, model, {"linear_top1": estimate}), notes=(note,))


def evaluate_linear_probe(model: CachedModel, task: Task, *, c: float = 0.316, max_iter: int = 1000) -> Report:
    """`linear_probe` of a model, fitted on the training data, scored on the source; with chance, majority, raw pixels, PCA-50.

    Args:
        c, max_iter: as in `linear_probe`.
    """

    def score(one: CachedModel) -> Report:
        train_emb, test_emb = one.images(task.required_bank), one.images(task.source)
        options: dict[str, Any] = {"c": c, "max_iter": max_iter, "data": task.name, "model": one.name}
        return linear_probe(train_emb, task.bank_labels, test_emb, task.labels, **options)

    report = score(model)
    if task.baselines:
        report += score(task.pixels) + score(task.pca)
        report += class_baselines(EVALUATOR, task.name, ["linear_top1"], task.labels, task.bank_labels)
    return report
