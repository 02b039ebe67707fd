"""Learning from few labels: fine-tuning and a linear probe on a stratified subset of the training data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmcl.config import ComponentConfig
from mmcl.data.augment.pipeline import AugmentationPipeline
from mmcl.data.derived.subset import Subset, label_subset
from mmcl.data.images.image_cache import decoded_batches
from mmcl.data.source import Source
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.evaluate.evaluators.linear_probe import linear_probe
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs
from mmcl.rng import permutation, sample_seed

EVALUATOR = "few_label"


def _check(
    task: Task, has_text: bool, *, amounts: Sequence[float], seeds: int, epochs: int, batch_size: int, lr: float, **_: Any
) -> None:
    if seeds < 1 or epochs < 1 or batch_size < 2 or not lr > 0:
        given = f"seeds {seeds}, epochs {epochs}, batch_size {batch_size}, lr {lr}"
        raise UserError(f"{EVALUATOR}: seeds and epochs must be 1 or more, batch_size 2 or more, lr above 0, not {given}")
    task.require_classes(EVALUATOR)
    for amount in amounts:
        _part(task.bank_labels, amount, seed=0)


@needs(_check, test_args={"amounts": [0.2], "seeds": 2, "epochs": 2, "batch_size": 12})
def evaluate_few_label(
    model: CachedModel,
    task: Task,
    *,
    amounts: Sequence[float] = (0.01, 0.1),
    seeds: int = 3,
    epochs: int = 60,
    batch_size: int = 64,
    lr: float = 1e-3,
    augment: Sequence[dict[str, Any]] = (),
) -> Report:
    """Evaluates accuracy with few labels, as in SimCLRv2 (Chen et al., 2020, section 3): full fine-tuning and a linear probe.

    Fine-tuning trains a copy of the image encoder with a linear classifier on its features, using AdamW with cosine decay; the
    model itself does not change. The untrained model, in a column of its own, is the same network trained from scratch. Raw
    pixels and PCA-50 have only the linear probe.

    Args:
        amounts: amounts of labeled training data: below 1, a share of every class; from 1, a number of samples per class.
        seeds: number of random subsets, each with its own initial classifier and data order; the interval is Student's over
            them.
        epochs, batch_size, lr: settings of the fine-tuning.
        augment: augmentations for the fine-tuning, as in a configuration.

    Returns:
        `few_label_1pct_finetuned_top1`, `few_label_1pct_linear_top1` and so on; for 10 per class `few_label_10_per_class_...`.

    Raises:
        UserError: the model has no image tower, labels are missing, or an argument is out of range.
    """
    tower = _image_tower(model)
    pipeline = AugmentationPipeline.build([ComponentConfig(**component) for component in augment])
    bank, test = (_Images(source, tower) for source in (task.required_bank, task.source))
    report = Report(notes=task.about_bank(EVALUATOR))
    for amount in amounts:
        parts = [_part(task.bank_labels, amount, seed) for seed in range(seeds)]

        def finetuned(rows: np.ndarray, seed: int) -> float:
            train_images, labels = bank[rows], torch.from_numpy(task.bank_labels[rows])
            options: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "pipeline": pipeline}
            classifier = fine_tune(tower, train_images, labels, rows, seed=seed, **options)
            return float((_predict(classifier, test[None], batch_size) == torch.from_numpy(task.labels)).double().mean())

        def probed(one: CachedModel) -> Callable[[np.ndarray, int], float]:
            return lambda rows, seed: _probe(one, task, rows)

        name = f"few_label_{_amount_name(amount)}"
        report += _rows(task, model.name, f"{name}_finetuned_top1", finetuned, parts)
        probes = [model, task.pixels(model), task.pca(model)] if task.baselines else [model]
        for one in probes:
            report += _rows(task, one.name, f"{name}_linear_top1", probed(one), parts)
        if task.baselines:
            chance = statistics.exact(1 / len(np.unique(task.bank_labels)), len(task.labels))
            metrics = {f"{name}_{kind}_top1": chance for kind in ("finetuned", "linear")}
            report += Report(metric_rows(EVALUATOR, task.name, "chance", metrics))
    return report


def fine_tune(
    tower: Tower,
    image_NCHW: Tensor,
    label_N: Tensor,
    number_N: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    pipeline: AugmentationPipeline,
    seed: int,
) -> nn.Module:
    """Trains a copy of a tower's encoder with a linear classifier on labeled images.

    Args:
        tower: the image tower; it is not changed.
        image_NCHW: uint8.
        label_N: int64, from 0.
        number_N: int64, sample numbers of the images, which determine their augmentation.

    Returns:
        A module in evaluation mode that maps float32 [B, C, H, W] in [0, 1] to logits.
    """
    device = next(tower.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(sample_seed(seed))
        encoder = copy.deepcopy(tower.encoder).requires_grad_(True)
        classifier = nn.Sequential(encoder, nn.Linear(encoder.feature_dim, int(label_N.max()) + 1)).to(device).train()
        # Only full batches, so that batch norm never sees a single image; the images left out differ in every epoch.
        size = min(batch_size, len(label_N))
        steps = epochs * (len(label_N) // size)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=lr, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for epoch in range(epochs):
            order = permutation(len(label_N), seed, epoch)
            for start in range(0, len(order) - size + 1, size):
                rows = order[start : start + size]
                image = image_NCHW[rows].float() / 255
                image = pipeline(image, seed=seed, epoch=np.full(size, epoch), index=number_N[rows])
                loss = nn.functional.cross_entropy(classifier(image.to(device)), label_N[rows].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return classifier.eval()


class _Images:
    """Images of a source at a tower's size, uint8 [n, C, H, W]; decodes all of them once, or only the requested rows."""

    def __init__(self, source: Source, tower: Tower):
        self.source, self.preprocess = source, tower.encoder.preprocess
        self._all: Tensor | None = None

    def __getitem__(self, rows: np.ndarray | None) -> Tensor:
        if rows is not None:
            return self._decoded(Subset(self.source, rows))
        if self._all is None:
            self._all = self._decoded(self.source)
        return self._all

    def _decoded(self, source: Source) -> Tensor:
        return torch.cat(list(decoded_batches(source, self.preprocess, 256)))  # type: ignore[arg-type]


def _image_tower(model: CachedModel) -> Tower:
    towers = getattr(model.model, "towers", {})
    if "image" not in towers:
        raise UserError(f"{EVALUATOR} fine-tunes an image tower, which this model does not have; use linear_probe")
    tower: Tower = towers["image"]
    return tower


def _part(labels: np.ndarray, amount: float, seed: int) -> np.ndarray:
    if not (0 < amount < 1 or (amount >= 1 and amount == int(amount))):
        raise UserError(f"{EVALUATOR}: amounts has {amount}; give a share above 0 and below 1, or a whole number")
    if amount < 1:
        return label_subset(labels, share=amount, seed=seed)
    return label_subset(labels, per_class=int(amount), seed=seed)


def _amount_name(amount: float) -> str:
    return f"{100 * amount:g}pct" if amount < 1 else f"{int(amount)}_per_class"


def _rows(
    task: Task, model: str, metric: str, score: Callable[[np.ndarray, int], float], parts: Sequence[np.ndarray]
) -> Report:
    scores = [score(rows, seed) for seed, rows in enumerate(parts)]
    return Report(metric_rows(EVALUATOR, task.name, model, {metric: statistics.over_runs(scores, len(task.labels))}))


def _probe(model: CachedModel, task: Task, rows: np.ndarray) -> float:
    train_emb, test_emb = model.images(task.required_bank)[rows], model.images(task.source)
    value = linear_probe(train_emb, task.bank_labels[rows], test_emb, task.labels)["linear_top1"]
    assert value is not None
    return value


@torch.inference_mode()
def _predict(classifier: nn.Module, image_NCHW: Tensor, batch_size: int) -> Tensor:
    device = next(classifier.parameters()).device
    return torch.cat([classifier(part.to(device).float() / 255).argmax(1).cpu() for part in image_NCHW.split(batch_size)])
