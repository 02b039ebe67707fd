"""A map of the embedding: t-SNE, coloured by class. It shows neighbourhoods; distances and sizes on it mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmcl.errors import UserError
from mmcl.evaluate.arrays import Array, integers, unit_rows
from mmcl.evaluate.plots import scatter
from mmcl.evaluate.report import Report, file_name
from mmcl.evaluate.task import CachedModel, Task
from mmcl.rng import permutation

EVALUATOR = "embedding_map"
ITERATIONS = 500


def embedding_map(
    emb: Array,
    labels: Array | Sequence[int] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    max_points: int = 2000,
    perplexity: float = 30.0,
    seed: int = 0,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Draws rows in the plane by t-SNE (van der Maaten and Hinton, 2008) of their cosines.

    Args:
        emb: finite rows [N, D], at least 5; they are scaled to unit length.
        labels: integers [N], for the colours; None for one colour.
        class_names: of the labels; None shows their numbers.
        max_points: rows drawn, chosen at random where there are more.
        perplexity: about the number of neighbours that a row has; at most a third of the rows.
        seed: of that choice and of t-SNE.
        data, model: what the title calls them.

    Returns:
        A report with one figure and no metrics.

    Raises:
        UserError: fewer than 5 rows, shapes that do not fit, or embeddings that are not finite.
    """
    unit = unit_rows(emb, "emb").cpu().numpy()
    if len(unit) < 5 or max_points < 5:
        raise UserError(f"{EVALUATOR}: needs at least 5 rows and max_points of at least 5, not {len(unit)} and {max_points}")
    label = None if labels is None else integers(labels, "labels", len(unit)).cpu().numpy()
    chosen = permutation(len(unit), seed)[:max_points]
    points = tsne(unit[chosen], perplexity=perplexity, seed=seed)
    title = ", ".join(part for part in ("Embedding map (t-SNE)", data, model) if part)
    png = scatter(points, None if label is None else label[chosen], class_names, title=title)
    return Report(figures={file_name(EVALUATOR, data, model): png})


def tsne(row_ND: np.ndarray, *, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """t-SNE of rows: float32 [N, 2]. 500 iterations, enough for a picture; equal rows fall together."""
    from sklearn.manifold import TSNE

    # The usual start, principal components, divides by their deviation, which a collapsed model does not have.
    start = "pca" if row_ND.std(axis=0).max() > 1e-6 and row_ND.shape[1] > 1 else "random"
    perplexity = min(perplexity, (len(row_ND) - 1) / 3)
    return TSNE(init=start, perplexity=perplexity, max_iter=ITERATIONS, random_state=seed).fit_transform(row_ND)


def evaluate_embedding_map(
    model: CachedModel, task: Task, *, max_points: int = 2000, perplexity: float = 30.0, seed: int = 0
) -> Report:
    """`embedding_map` of a source's images, coloured by label where every sample has one.

    Args:
        max_points, perplexity, seed: as in `embedding_map`.
    """
    if not task.baselines:
        return Report()
    return embedding_map(
        model.images(task.source),
        task.labels if task.has_labels else None,
        class_names=task.source.class_names,
        max_points=max_points,
        perplexity=perplexity,
        seed=seed,
        data=task.name,
        model=model.name,
    )
