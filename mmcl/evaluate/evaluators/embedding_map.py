"""A map of a model's embeddings as an image and as an interactive page, colored by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcl.data.images.image_cache import decode_sample
from mmcl.data.sample import ImageLike, Sample
from mmcl.data.threads import in_threads
from mmcl.evaluate.evaluators.projection import FEWEST, NAMES, ProjectionMethod, check_arguments, chosen_rows, project
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.reporting.map_page import thumbnail_side
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report, file_name
from mmcl.evaluate.reporting.thumbnails import square
from mmcl.evaluate.task import CachedModel, Task, needs
from mmcl.evaluate.validation import Array
from mmcl.preprocess import Preprocess

EVALUATOR = "embedding_map"


def embedding_map(
    emb: Array,
    labels: Array | Sequence[int] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    images: Sequence[ImageLike] | None = None,
    method: ProjectionMethod = "tsne",
    max_points: int = 2000,
    neighbors: int = 10,
    perplexity: float = 30.0,
    seed: int = 0,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Projects rows with `project` and returns a report: a figure, a page, and quality measures of the projection.

    Args:
        data, model: names of the data and the model in the title and in the report.
        Others: as in `project`.

    Returns:
        `tsne_trustworthiness@10` and `tsne_neighbors_kept@10`, named after the method and the neighbors, see `Projection`.

    Raises:
        UserError: as `project` does.

    Example:
        >>> emb = np.random.default_rng(0).normal(size=(30, 8))
        >>> report = embedding_map(emb, method="pca")
        >>> [metric.metric for metric in report.metrics], len(report.figures), len(report.pages)
        (['pca_trustworthiness@10', 'pca_neighbors_kept@10'], 1, 1)
    """
    drawn = project(
        emb,
        labels,
        method=method,
        class_names=class_names,
        captions=captions,
        images=images,
        max_points=max_points,
        neighbors=neighbors,
        perplexity=perplexity,
        seed=seed,
        title=", ".join(part for part in (f"Embedding map ({NAMES[method]})", data, model) if part),
    )
    quality = {"trustworthiness": drawn.trustworthiness, "neighbors_kept": drawn.neighbors_kept}
    estimates = {
        f"{method}_{name}@{drawn.neighbors}": statistics.exact(value, len(drawn.rows)) for name, value in quality.items()
    }
    name = file_name(EVALUATOR, data, model)
    rows = metric_rows(EVALUATOR, data, model, estimates)
    return Report(rows, figures={name: drawn.to_png()}, pages={name: drawn.to_html()})


def _check(task: Task, has_text: bool, *, method: ProjectionMethod, max_points: int, neighbors: int, **_: Any) -> None:
    check_arguments(method, max_points, neighbors)


@needs(_check)
def evaluate_embedding_map(
    model: CachedModel,
    task: Task,
    *,
    method: ProjectionMethod = "tsne",
    max_points: int = 2000,
    neighbors: int = 10,
    perplexity: float = 30.0,
    seed: int = 0,
) -> Report:
    """Draws `embedding_map` of a source's images with their captions, colored by label if every sample has one.

    Args:
        method, max_points, neighbors, perplexity, seed: as in `embedding_map`.
    """
    if not task.figures:
        return Report()
    if len(task.source) < FEWEST:
        return Report(
            notes=(f"{EVALUATOR}, {task.name}: no map, as it needs {FEWEST} images, and there are {len(task.source)}.",)
        )
    rows = chosen_rows(len(task.source), max_points, seed)
    samples = [task.source[row] for row in rows.tolist()]
    has_images = all(sample.image is not None for sample in samples)
    return embedding_map(
        model.images(task.source)[rows],
        task.labels[rows] if task.has_labels else None,
        class_names=task.source.class_names,
        captions=[sample.captions[0] if sample.captions else sample.name for sample in samples],
        images=_thumbnails(samples, model.preprocess) if has_images else None,
        method=method,
        max_points=max_points,
        neighbors=neighbors,
        perplexity=perplexity,
        seed=seed,
        data=task.name,
        model=model.name,
    )


def _thumbnails(samples: Sequence[Sample], preprocess: Preprocess | None) -> list[ImageLike]:
    """Thumbnails in the size of the page, with the intensity range and the channels that the model sees."""
    side = thumbnail_side(len(samples))
    return list(in_threads(lambda row: square(decode_sample(samples[row], preprocess), side), range(len(samples))))
