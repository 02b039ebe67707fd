"""Linear probe: a linear classifier on frozen embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmcl.errors import UserError, unknown_name
from mmcl.evaluate.baselines import class_baselines
from mmcl.evaluate.evaluators.adamw import choose_weight_decay, fit_adamw
from mmcl.evaluate.head import Head
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.reporting.clusters import clusters_note
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs
from mmcl.evaluate.validation import Array, Values, cluster_numbers, features, labels_or_ids, same_width, unit_rows

EVALUATOR = "linear_probe"
_DEAD = 1e-5
"""A column's deviation over the largest: float32 sums over a thousand inputs leave a few millionths of rounding."""

Solver = Literal["lbfgs", "adamw"]
OPTIONS: dict[str, dict[str, Any]] = {
    "lbfgs": {"c": 0.316, "max_iter": 1000, "tolerance": 1e-4},
    "adamw": {"lr": 0.1, "epochs": 10, "batch_size": 64, "seed": 0},
}


@dataclass(frozen=True, slots=True)
class LogisticRegression:
    """A fitted classifier: logits = features @ weight + bias.

    Attributes:
        weight, bias: float32 [D, C], [C].
        steps: L-BFGS iterations.
        gradient: largest component of the gradient of the mean loss at the end.
        converged: True if `gradient` is at most the tolerance.
    """

    weight: Tensor
    bias: Tensor
    steps: int
    gradient: float
    converged: bool


def fit_logistic_regression(
    feature_ND: Tensor, class_N: Tensor, *, c: float, max_iter: int = 1000, tolerance: float = 1e-4
) -> LogisticRegression:
    r"""Minimizes, by L-BFGS with a strong Wolfe line search from zero,

    $$\frac{1}{N} \sum_i -\log \mathrm{softmax}(W^\top x_i + b)_{y_i} + \frac{\lVert W \rVert^2}{2 c N}$$

    which is scikit-learn's `LogisticRegression(C=c)`: the bias is not penalized, and the solver stops when no component of the
    gradient exceeds `tolerance`.

    Args:
        feature_ND: float32 or float64 [N, D].
        class_N: int64 [N], from 0 without gaps.
    """
    width, classes = feature_ND.shape[1], int(class_N.max()) + 1
    objective = _Objective(feature_ND, class_N, classes, penalty=1 / (c * len(feature_ND)))
    start_CD = feature_ND.new_zeros(classes, width + 1)
    solution_CD, steps, gradient = minimize(objective, start_CD, max_iter=max_iter, tolerance=tolerance)
    solution = solution_CD.T
    return LogisticRegression(solution[:-1], solution[-1], steps, gradient, gradient <= tolerance)


def minimize(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, *, max_iter: int, tolerance: float
) -> tuple[Tensor, int, float]:
    """Minimizes a smooth function by L-BFGS with a strong Wolfe line search.

    Args:
        objective: its value and gradient at a tensor.
        start: where to begin.
        max_iter: maximum number of iterations.
        tolerance: stops when no component of the gradient is larger.

    Returns:
        The solution, the number of iterations, and the largest component of the gradient there.
    """
    parameter = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameter],
        max_iter=max_iter,
        max_eval=2 * max_iter,
        tolerance_grad=tolerance,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        loss, parameter.grad = objective(parameter)
        return loss

    with torch.no_grad():
        optimizer.step(closure)
        closure()
    gradient = float(parameter.grad.abs().max())  # type: ignore[union-attr]
    return parameter.detach(), int(optimizer.state[parameter]["n_iter"]), gradient


class _Objective:
    """Loss with a hand-written gradient. With classes as rows, it is twice as fast as autograd with samples as rows."""

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
    train_labels: Values,
    test_emb: Array,
    test_labels: Values,
    *,
    solver: Solver = "lbfgs",
    c: float | None = None,
    max_iter: int | None = None,
    tolerance: float | None = None,
    lr: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    val_emb: Array | None = None,
    val_labels: Values | None = None,
    clusters: Values | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Fits a linear classifier on training rows and evaluates it on test rows.

    "lbfgs" is logistic regression, solved to convergence. Features are standardized first: mean 0 and standard deviation 1 over
    the training rows (constant features stay 0), so that `c` means the same for embeddings of any scale. "adamw" is the short
    training of CLIP_benchmark, see `fit_adamw`, on rows of unit length. The two accuracies may differ by up to one percentage
    point. `details` says how the solver ended, and a note if it did not converge.

    Args:
        train_emb, test_emb: finite rows [N, D], [M, D].
        train_labels, test_labels: integers [N], [M], in any range, with any gaps; or strings.
        solver: "lbfgs" or "adamw".
        c: lbfgs only: inverse strength of the L2 penalty, as in scikit-learn; by default .316, CLIP's value (Radford et al.,
            2021, app. A.3).
        max_iter: lbfgs only: maximum number of iterations, by default 1000.
        tolerance: lbfgs only: stops when no component of the gradient is larger, by default 1e-4.
        lr, epochs, batch_size, seed: adamw only; by default .1, 10, 64, 0.
        val_emb, val_labels: adamw only: rows for choosing the weight decay, which the final fit also trains on; without them
            the weight decay is 0.
        clusters: integers or strings [M], equal for test rows that were drawn together, such as the images of one
            patient; the intervals treat them as one draw.
        data, model: names of the data and the model in the report.

    Returns:
        `linear_top1`, the test accuracy.

    Raises:
        UserError: there are fewer than two classes, an argument is out of range or belongs to the other solver, shapes do not
            match, or a feature is not finite.

    Example:
        >>> rows, labels = np.repeat(np.eye(2), 4, axis=0), np.repeat([0, 1], 4)
        >>> linear_probe(rows, labels, rows, labels)["linear_top1"]
        1.0
    """
    given = {"c": c, "max_iter": max_iter, "tolerance": tolerance, "lr": lr, "epochs": epochs, "batch_size": batch_size}
    return _probed(
        (train_emb, train_labels),
        (test_emb, test_labels),
        (val_emb, val_labels),
        solver=solver,
        given=given | {"seed": seed, "val_emb": val_emb},
        clusters=clusters,
        data=data,
        model=model,
    )[0]


@dataclass(frozen=True, slots=True)
class _Fit:
    """A fitted probe: logits = rows @ weight + bias.

    Attributes:
        weight_DC, bias_C: float64, of rows of unit length; for the solver lbfgs, of rows as they are.
        predict: finds the class numbers of rows: int64 [N].
        how: how the solver ended.
        converged: whether it did.
    """

    weight_DC: Tensor
    bias_C: Tensor
    predict: Callable[[Tensor], Tensor]
    how: str
    converged: bool = True


Rows = tuple[Array, Values]
"""Embeddings and labels."""


def _probed(
    train_rows: Rows,
    test_rows: Rows,
    val_rows: tuple[Array | None, Values | None],
    *,
    solver: Solver,
    given: dict[str, Any],
    clusters: Values | None,
    data: str,
    model: str,
) -> tuple[Report, Tensor, _Fit]:
    """Also returns the labels of the classes, in order, and the probe."""
    (train_emb, train_labels), (test_emb, test_labels), (val_emb, val_labels) = train_rows, test_rows, val_rows
    train, test = features(train_emb, "train_emb"), features(test_emb, "test_emb")
    same_width(train, test, "train_emb and test_emb")
    sizes = len(train), len(test)
    both = labels_or_ids(train_labels, test_labels, ("train_labels", "test_labels"), sizes)
    train_label, test_label = (label.to(train.device) for label in both)
    classes, train_class = train_label.unique(return_inverse=True)
    if len(classes) < 2:
        raise UserError("linear_probe: the training rows have one class only; a classifier needs two")
    if (val_emb is None) != (val_labels is None):
        raise UserError("linear_probe: give val_emb and val_labels, or neither")
    options = _options(solver, given)
    if solver == "lbfgs":
        fit = _fit_lbfgs(train, train_class, **options)
    else:
        validation = None
        if val_emb is not None and val_labels is not None:
            val = features(val_emb, "val_emb")
            same_width(train, val, "train_emb and val_emb")
            validation = unit_rows(val, "val_emb"), _classes(train_labels, val_labels, (len(train), len(val)))
        fit = _fit_adamw(unit_rows(train, "train_emb"), train_class, validation, **options)
    drawn = cluster_numbers(clusters, len(test))
    estimate = statistics.mean((classes[fit.predict(test)] == test_label).cpu().numpy(), clusters=drawn)
    place = f"{EVALUATOR}, {data}, {model}" if data else f"{EVALUATOR}, {model}"
    notes = (*clusters_note(EVALUATOR, data, drawn), *(() if fit.converged else (f"{place}: {fit.how}.",)))
    report = Report(metric_rows(EVALUATOR, data, model, {"linear_top1": estimate}), notes, {f"solver: {place}": fit.how})
    return report, classes, fit


def _check(task: Task, has_text: bool, *, solver: Solver, **given: Any) -> None:
    task.require_classes(EVALUATOR)
    _options(solver, given)


@needs(_check)
def evaluate_linear_probe(
    model: CachedModel,
    task: Task,
    *,
    solver: Solver = "lbfgs",
    c: float | None = None,
    max_iter: int | None = None,
    lr: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> Report:
    """Fits `linear_probe` on a model's training data and evaluates it on the source; with chance, majority, raw pixels, PCA-50.

    Args:
        solver, c, max_iter, lr, epochs, batch_size, seed: as in `linear_probe`.
    """
    given = {"c": c, "max_iter": max_iter, "lr": lr, "epochs": epochs, "batch_size": batch_size, "seed": seed}

    def score(one: CachedModel) -> tuple[Report, Tensor, _Fit]:
        bank, test = (one.images(task.required_bank), task.bank_labels), (one.images(task.source), task.labels)
        options: dict[str, Any] = {"clusters": task.source.groups, "data": task.name, "model": one.name}
        return _probed(bank, test, (None, None), solver=solver, given=given, **options)

    report, classes, fit = score(model)
    head = Head(
        fit.weight_DC.T.cpu().numpy(),
        fit.bias_C.cpu().numpy(),
        _names(task, classes.tolist()),
        model.model.fingerprint,
        "softmax",
        how={"evaluator": EVALUATOR, "data": task.name, "solver": fit.how},
    )
    report += Report(notes=task.about_bank(EVALUATOR), heads=head.for_report(EVALUATOR, task.name, model.name))
    if task.baselines:
        report += score(task.pixels(model))[0] + score(task.pca(model))[0]
        report += class_baselines(EVALUATOR, task.name, ["linear_top1"], task.labels, task.bank_labels, task.source.groups)
    return report


def class_names_of(task: Task) -> tuple[str, ...]:
    """Names of the classes by their numbers in the test and training data; () if neither has any."""
    return tuple(dict.fromkeys([*(task.source.class_names or ()), *(task.required_bank.class_names or ())]))


def _names(task: Task, classes: list[int]) -> tuple[str, ...]:
    """Names of classes; the numbers themselves if there are none."""
    names = class_names_of(task)
    return tuple(names[number] if number < len(names) else str(number) for number in classes)


def _options(solver: Solver, given: dict[str, Any]) -> dict[str, Any]:
    """Options of the solver, with defaults filled in. Raises UserError for an option of the other solver."""
    if solver not in OPTIONS:
        raise unknown_name("solver", solver, OPTIONS)
    own = OPTIONS[solver]
    given = {name: value for name, value in given.items() if value is not None}
    foreign = [name for name in given if name not in own and not (name == "val_emb" and solver == "adamw")]
    if foreign:
        raise UserError(f"linear_probe: {foreign[0]} is not an option of the solver {solver}; its options are {', '.join(own)}")
    options = own | {name: value for name, value in given.items() if name in own}
    low = [name for name, value in options.items() if name != "seed" and not value > 0]
    if low:
        raise UserError(f"linear_probe: {low[0]} must be above 0, not {options[low[0]]}")
    return options


def _fit_lbfgs(train: Tensor, train_class: Tensor, **options: Any) -> _Fit:
    mean, deviation = train.mean(dim=0), train.std(dim=0, correction=0)
    # After standardization, a column that varies only by rounding error would weigh as much as any other.
    is_alive = (deviation > 1e-6 * mean.abs()) & (deviation > _DEAD * deviation.max())
    scale = torch.where(is_alive, deviation, torch.inf)
    fit = fit_logistic_regression((train - mean) / scale, train_class, **options)
    state = "converged" if fit.converged else "did NOT converge (raise max_iter)"
    end = f"L-BFGS {state} after {fit.steps} steps, largest gradient {fit.gradient:.1e}"
    how = f"standardized features, C = {options['c']}; {end}"
    weight_DC = fit.weight.double() / scale.double()[:, None]
    bias_C = fit.bias.double() - mean.double() @ weight_DC
    predict = lambda test: ((test - mean) / scale @ fit.weight + fit.bias).argmax(dim=1)  # noqa: E731
    return _Fit(weight_DC, bias_C, predict, how, fit.converged)


def _fit_adamw(train: Tensor, train_class: Tensor, validation: tuple[Tensor, Tensor] | None, **options: Any) -> _Fit:
    decay, rows = 0.0, (train, train_class)
    if validation is not None:
        decay = choose_weight_decay(rows, validation, **options)
        rows = torch.cat([train, validation[0]]), torch.cat([train_class, validation[1]])
    classifier = fit_adamw(*rows, weight_decay=decay, **options)
    how = f"rows of unit length, AdamW, lr {options['lr']}, {options['epochs']} epochs, weight decay {decay:.2g}"
    predict = lambda test: classifier(unit_rows(test, "test_emb")).argmax(dim=1)  # noqa: E731
    return _Fit(classifier.weight.double().T, classifier.bias.double(), predict, how)


def _classes(train_labels: Values, val_labels: Values, sizes: tuple[int, int]) -> Tensor:
    """Class numbers of the validation rows, as used for the training rows."""
    train, val = labels_or_ids(train_labels, val_labels, ("train_labels", "val_labels"), sizes)
    classes = train.unique()
    place = torch.searchsorted(classes, val).clamp(max=len(classes) - 1)
    if not torch.equal(classes[place], val):
        raise UserError("linear_probe: val_labels has a class that the training rows lack; leave its rows out")
    return place
