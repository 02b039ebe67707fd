"""The queries on which the results of two runs differ, with what each finds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from mmcl.config import EvaluatorConfig
from mmcl.core.nearest import nearest
from mmcl.errors import UserError
from mmcl.evaluate import CachedModel, Comparison, Task
from mmcl.evaluate.cache import default_cache
from mmcl.evaluate.captions import Captions
from mmcl.evaluate.reporting.examples import Changes, Hit, Query
from mmcl.interop.load import load_model
from mmcl.runs.build_data import build_source
from mmcl.runs.evaluation import read_config

METRIC = "text_to_image_R@1"
_QUERIES, _FOUND = 4, 3


def with_changes(comparison: Comparison, a: Path, b: Path) -> Comparison:
    """Add to a comparison of two models, for every retrieval dataset, texts with the images that A and B find for them.

    This needs the models and the data. If one of the two is not a run directory, or its data are missing, a note is added
    instead.
    """
    try:
        configs, models = [read_config(run) for run in (a, b)], [load_model(run) for run in (a, b)]
        cached = [CachedModel(model, name, cache=default_cache()) for model, name in zip(models, "AB", strict=True)]
        found = {
            evaluator.label: _changes(comparison, evaluator, configs[0].data.root, cached)
            for evaluator in configs[0].evaluate
            if evaluator.name == "retrieval" and evaluator.data is not None
        }
    except UserError as error:
        return dataclasses.replace(comparison, notes=(*comparison.notes, f"No images of what changed: {error}"))
    return dataclasses.replace(comparison, changes={data: changes for data, changes in found.items() if changes})


def _changes(comparison: Comparison, evaluator: EvaluatorConfig, root: str | None, models: list[CachedModel]) -> Changes:
    """Some texts that only one of the models finds at once, those that B finds first; empty if there are none."""
    place = ("retrieval", evaluator.label, METRIC)
    one = next((d for d in comparison.differences if (d.evaluator, d.data, d.metric) == place), None)
    if one is None or not one.won + one.lost:
        return ()
    assert evaluator.data is not None
    task = Task(evaluator.label, build_source(evaluator.data, root, f"evaluate: {evaluator.label}"))
    if not task.has_images:
        return ()
    groups = {text: group for group, texts in (("better", one.won), ("worse", one.lost)) for text in texts[:_QUERIES]}
    sides = [_queries(model, task, groups) for model in models]
    return tuple(zip(*sides, strict=True))


def _queries(model: CachedModel, task: Task, groups: dict[str, str]) -> list[Query]:
    """Texts, each with its group, and the images that the model finds for them."""
    captions, row = task.captions, {text: number for number, text in enumerate(task.captions.texts)}
    text_emb, image_emb = (torch.from_numpy(rows) for rows in (model.encode_text(list(groups)), model.images(task.source)))
    scores, rows = nearest(text_emb, image_emb, min(_FOUND, len(image_emb)))
    found = zip(groups.items(), scores.tolist(), rows.tolist(), strict=True)
    return [
        Query(group=group, text=text, image=None, hits=_hits(model, task, captions, row[text], score, own))
        for (text, group), score, own in found
    ]


def _hits(
    model: CachedModel, task: Task, captions: Captions, text: int, scores: list[float], rows: list[int]
) -> tuple[Hit, ...]:
    samples = [task.source[row] for row in rows]
    return tuple(
        Hit(
            rank=rank,
            score=score,
            is_right=bool(captions.image_ids[row] == captions.text_ids[text]),
            text=sample.captions[0] if sample.captions else sample.name,
            image=model.thumbnail(sample),
        )
        for rank, (score, row, sample) in enumerate(zip(scores, rows, samples, strict=True), 1)
    )
