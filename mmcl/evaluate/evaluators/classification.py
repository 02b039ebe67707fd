"""Accuracy of a classifier trained with labels, from the logits of its head."""

from __future__ import annotations

from mmcl.errors import UserError
from mmcl.evaluate.baselines import class_baselines
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.reporting.clusters import clusters_note
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs

EVALUATOR = "classification"
METRIC = "top1"


def _check(task: Task, has_text: bool) -> None:
    task.require_labels()


@needs(_check)
def evaluate_classification(model: CachedModel, task: Task) -> Report:
    """Evaluates the accuracy of the largest logit; with chance, and with majority if there is training data.

    Raises:
        UserError: the model has no head with a logit for every class of the source.
    """
    logits_of, names = getattr(model.model, "image_logits", None), task.source.class_names or ()
    if logits_of is None:
        raise UserError(f"{EVALUATOR} needs a classifier, a model trained by the method supervised or distillation")
    logits_NC = logits_of(task.source)
    if logits_NC.shape[1] != (len(names) or int(task.labels.max()) + 1):
        raise UserError(
            f"{task.name} has {len(names)} classes, and the head of the model gives {logits_NC.shape[1]} logits: evaluate "
            "it on data with the classes that it was trained on"
        )
    groups = task.source.groups
    right = statistics.mean(logits_NC.argmax(1) == task.labels, clusters=groups)
    notes = clusters_note(EVALUATOR, task.name, groups)
    report = Report(metric_rows(EVALUATOR, task.name, model.name, {METRIC: right}), notes)
    if task.baselines and task.bank is not None:
        report += class_baselines(EVALUATOR, task.name, [METRIC], task.labels, task.bank_labels, groups)
    return report
