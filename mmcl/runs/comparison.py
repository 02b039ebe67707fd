"""Figures of the queries on which the results of two runs differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from PIL import Image

from mmcl.config import EvaluatorConfig
from mmcl.core.nearest import nearest
from mmcl.data.images.image_cache import decode_sample
from mmcl.errors import UserError
from mmcl.evaluate import CachedModel, Comparison, Task
from mmcl.evaluate.cache import default_cache
from mmcl.evaluate.reporting.figures import retrieval_changes
from mmcl.evaluate.reporting.report import file_name
from mmcl.interop.load import load_model
from mmcl.runs.build_data import build_source
from mmcl.runs.evaluation import read_config

METRIC = "text_to_image_R@1"
_QUERIES, _FOUND = 4, 3


def with_figures(comparison: Comparison, a: Path, b: Path) -> Comparison:
    """Add to a comparison of two models a figure for every retrieval dataset: texts, results of A, results of B.

    This needs the models and the data. If one of the two is not a run directory, or its data are missing, a note is added
    instead.
    """
    try:
        configs, models = [read_config(run) for run in (a, b)], [load_model(run) for run in (a, b)]
        cached = [CachedModel(model, name, cache=default_cache()) for model, name in zip(models, "AB", strict=True)]
        figures = {
            file_name("what changed", evaluator.label): _changes(comparison, evaluator, configs[0].data.root, cached)
            for evaluator in configs[0].evaluate
            if evaluator.name == "retrieval" and evaluator.data is not None
        }
    except UserError as error:
        return dataclasses.replace(comparison, notes=(*comparison.notes, f"No figures of what changed: {error}"))
    found = {name: png for name, png in figures.items() if png}
    return dataclasses.replace(comparison, figures={**comparison.figures, **found})


def _changes(comparison: Comparison, evaluator: EvaluatorConfig, root: str | None, models: list[CachedModel]) -> bytes | None:
    place = ("retrieval", evaluator.label, METRIC)
    one = next((d for d in comparison.differences if (d.evaluator, d.data, d.metric) == place), None)
    if one is None or not one.won + one.lost:
        return None
    assert evaluator.data is not None
    source = build_source(evaluator.data, root, f"evaluate: {evaluator.label}")
    captions = Task(evaluator.label, source).captions
    texts = [*one.won[:_QUERIES], *one.lost[:_QUERIES]]
    row = {text: number for number, text in enumerate(captions.texts)}
    found = []
    for model in models:
        text_emb, image_emb = torch.from_numpy(model.encode_text(texts)), torch.from_numpy(model.images(source))
        found.append(nearest(text_emb, image_emb, min(_FOUND, len(source)))[1].tolist())

    def hits(model: CachedModel, text: str, rows: list[int]) -> list[tuple[Image.Image, bool]]:
        """Return the images as the model sees them, and whether each is a correct result."""
        is_right = captions.image_ids[rows] == captions.text_ids[row[text]]
        return [(decode_sample(source[i], model.preprocess), right) for i, right in zip(rows, is_right.tolist(), strict=True)]

    return retrieval_changes(
        [
            (text, hits(models[0], text, ours), hits(models[1], text, theirs))
            for text, ours, theirs in zip(texts, *found, strict=True)
        ],
        names=(comparison.a, comparison.b),
        title=f"What changed, {evaluator.label}",
    )
