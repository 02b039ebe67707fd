"""Image-text retrieval in both directions, with any number of captions per image and images per caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmcl.data.captions import caption_key
from mmcl.errors import UserError
from mmcl.evaluate.baselines import best_of_group, group_to_queries
from mmcl.evaluate.captions import Captions
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.rank_counts import Scores, cosine_rank_counts
from mmcl.evaluate.measures.ranking import Ranks, Ties, chance_ranks, ranks, score_ranks
from mmcl.evaluate.measures.statistics import Estimate
from mmcl.evaluate.reporting.clusters import clusters_note
from mmcl.evaluate.reporting.examples import Examples, check_count
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs, require_text
from mmcl.evaluate.validation import (
    Array,
    Values,
    as_tensor,
    cluster_numbers,
    cutoffs,
    features,
    labels_or_ids,
    same_width,
    unit_rows,
)

EVALUATOR = "retrieval"


def retrieval(
    image_emb: Array,
    text_emb: Array,
    *,
    image_ids: Values,
    text_image_ids: Values,
    ks: Sequence[int] = (1, 5, 10),
    ties: Ties = "mean",
    clusters: Values | None = None,
    chunk_size: int | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Evaluates retrieval by cosine similarity, from texts to images and from images to texts.

    A query and a candidate with equal ids are a positive pair; n images may match m texts. Queries without a positive are left
    out, but remain candidates in the other direction. Scores are computed in tiles, so the full matrix never exists, see
    measures/rank_counts.py; one matrix product serves both directions.

    Args:
        image_emb, text_emb: finite rows [N, D], [M, D], of any length.
        image_ids, text_image_ids: integers or strings [N], [M]: ids of the images, and of the image that each text describes.
        ks: cut-offs. A metric at k has no value if there are fewer than k candidates.
        ties: how equal scores are ranked: "mean" is the exact expectation over a random order, so that a collapsed model scores
            k / N; "optimistic" ranks positives first, "pessimistic" last; "index" keeps the order of the rows.
        clusters: integers or strings [N], equal for images that were drawn together, such as the images of one patient. The
            intervals treat all queries of an id as one draw, and with clusters all ids of a cluster; clusters that share an id
            are one.
        chunk_size: rows of either side in a tile of scores; affects only time and memory.
        data, model: names of the data and the model in the report.

    Returns:
        Means over the queries, for `text_to_image` and likewise for `image_to_text`:
        `text_to_image_R@k`, the hit rate reported in CLIP papers: 1 if at least one positive is among the first k;
        `text_to_image_recall@k`, the share of the positives that are among the first k;
        `text_to_image_mAP`, mean average precision, and at the largest k `text_to_image_mAP@k` (over min(k, positives)),
        `text_to_image_MRR@k` (1 / rank of the first positive) and `text_to_image_nDCG@k` (gain 1, discount log2(rank + 1));
        `text_to_image_mean_rank` and `text_to_image_median_rank` of the first positive, from 1;
        `text_to_image_tied`, the share of the queries whose best positive has the same score as a negative.

    Raises:
        UserError: shapes or ids do not match, an embedding is not finite, or no query has a positive.

    Example:
        >>> image = np.eye(3)
        >>> text = np.eye(3)[[0, 1, 0]]  # the last text is nearest to the wrong image
        >>> report = retrieval(image, text, image_ids=[0, 1, 2], text_image_ids=[0, 1, 2])
        >>> round(report["text_to_image_R@1"], 4)
        0.6667
    """
    image, text = features(image_emb, "image_emb"), features(text_emb, "text_emb")
    same_width(image, text, "image_emb and text_emb")
    sizes = len(image), len(text)
    both_ids = labels_or_ids(image_ids, text_image_ids, ("image_ids", "text_image_ids"), sizes)
    image_id, text_id = (ids.to(image.device) for ids in both_ids)
    ks = cutoffs(ks)
    both = cosine_rank_counts(text, image, text_id, image_id, chunk_size=chunk_size)
    queries = {"text_to_image": (text_id, image_id), "image_to_text": (image_id, text_id)}
    found = {name: (ranks(counts, ties), _answered(*queries[name])) for name, counts in zip(queries, both, strict=True)}
    return _report(found, _Draws.of(image_id, clusters), ks, data, model)


def retrieval_from_scores(
    scores: Mapping[str, Callable[[slice], Array]],
    *,
    image_ids: Values,
    text_image_ids: Values,
    ks: Sequence[int] = (1, 5, 10),
    ties: Ties = "mean",
    clusters: Values | None = None,
    chunk_size: int | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Evaluates retrieval like `retrieval`, but from any function that scores pairs.

    Args:
        scores: for each direction, "text_to_image" and "image_to_text", a function that maps a slice of the queries to their
            scores with all keys, float32 [n, keys].

    Example:
        >>> scores = np.eye(3, dtype=np.float32)
        >>> directions = {"text_to_image": lambda rows: scores[rows]}
        >>> report = retrieval_from_scores(directions, image_ids=[0, 1, 2], text_image_ids=[0, 1, 2])
        >>> report["text_to_image_R@1"]
        1.0
    """
    sizes = len(image_ids), len(text_image_ids)
    image, text = labels_or_ids(image_ids, text_image_ids, ("image_ids", "text_image_ids"), sizes)
    ids = {"text_to_image": (text, image), "image_to_text": (image, text)}
    found = {
        name: (score_ranks(_tensors(score, name), *ids[name], ties=ties, chunk_size=chunk_size), _answered(*ids[name]))
        for name, score in scores.items()
    }
    return _report(found, _Draws.of(image, clusters), cutoffs(ks), data, model)


def _tensors(scores: Callable[[slice], Array], direction: str) -> Scores:
    return lambda rows: as_tensor(scores(rows), f"the scores of {direction}")


def _check(task: Task, has_text: bool, *, ks: Sequence[int], examples: int, **_: Any) -> None:
    check_count(examples, EVALUATOR)
    require_text(EVALUATOR, has_text)
    cutoffs(ks)
    if not any(task.source[index].captions for index in range(len(task.source))):
        raise UserError(f"{task.name}: no sample has a caption, which {EVALUATOR} needs; choose another source or evaluator")


@needs(_check, test_args={"examples": 1})
def evaluate_retrieval(
    model: CachedModel, task: Task, *, ks: Sequence[int] = (1, 5, 10), ties: Ties = "mean", examples: int = 2
) -> Report:
    """Evaluates `retrieval` of a model on a source, with the baselines chance and raw pixels, and examples of queries.

    The raw-pixel score of an image and a caption is the image's highest cosine with a training image that has the same caption
    (up to case and white space). The baseline exists only if training and test data have captions in common.

    Args:
        ks, ties: as in `retrieval`.
        examples: queries shown per direction, of the best, the median and the worst each; 0 to 10.
    """
    captions = task.captions
    image_emb, text_emb = model.images(task.source), model.encode_text(captions.texts)
    options: dict[str, Any] = {
        "image_ids": captions.image_ids,
        "text_image_ids": captions.text_ids,
        "ks": ks,
        "clusters": task.source.groups,
        "data": task.name,
    }
    report = retrieval(image_emb, text_emb, ties=ties, model=model.name, **options)
    if examples and task.figures and task.has_images:
        report += Report(examples=_examples(model, task, image_emb, text_emb, examples))
    if task.baselines:
        report += _chance(captions, ks, task.name) + _raw_pixels(task, task.pixels(model), ties=ties, **options)
    return report


def _answered(query_ids: torch.Tensor, key_ids: torch.Tensor) -> np.ndarray:
    """Ids of the queries that have a positive, in the order of `Ranks`."""
    return query_ids[torch.isin(query_ids, key_ids)].cpu().numpy()


@dataclass(frozen=True)
class _Draws:
    """What was drawn together: the images and texts of an id and, with groups of images, all ids of these.

    Attributes:
        ids: int64 [I], the different ids of the images, ascending.
        cluster: int64 [I], the cluster of each.
        unit: what a cluster is.
        linked: which of them count as one, if any.
    """

    ids: np.ndarray
    cluster: np.ndarray
    unit: str
    linked: str

    @classmethod
    def of(cls, image_ids: torch.Tensor, groups: Values | None) -> _Draws:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        ids, place = np.unique(image_ids.cpu().numpy(), return_inverse=True)
        linked = "those that share a caption or an id count as one"
        named = cluster_numbers(groups, len(place))
        if named is None:
            return cls(ids, ids, "image", linked if len(ids) < len(place) else "")
        names, group = np.unique(named, return_inverse=True)
        size = len(ids) + len(names)
        edges = coo_array((np.ones(len(place)), (place, len(ids) + group)), shape=(size, size))
        number, component = connected_components(edges, directed=False)
        return cls(ids, component[: len(ids)].astype(np.int64), "group", linked if number < len(names) else "")

    def clusters(self, query_ids: np.ndarray) -> np.ndarray:
        """Clusters of queries that have a positive: int64 [Q]."""
        return self.cluster[np.searchsorted(self.ids, query_ids)]


def _report(
    directions: Mapping[str, tuple[Ranks, np.ndarray]], draws: _Draws, ks: Sequence[int], data: str, model: str
) -> Report:
    estimates: dict[str, Estimate] = {}
    notes: tuple[str, ...] = ()
    for direction, (found, query_ids) in directions.items():
        ids = draws.clusters(query_ids)
        notes = notes or clusters_note(EVALUATOR, data, ids, unit=draws.unit, linked=draws.linked)
        for name, outcome_Q in _outcomes(found, ks).items():
            within = (1.0, float(found.keys)) if name == "mean_rank" else (0.0, 1.0)
            estimates[f"{direction}_{name}"] = (
                statistics.exact(None, len(found))
                if outcome_Q is None
                else statistics.mean(outcome_Q, clusters=ids, within=within)
            )
        estimates[f"{direction}_median_rank"] = statistics.median(found.first(), clusters=ids)
        estimates[f"{direction}_tied"] = statistics.mean(found.tied, clusters=ids)
    return Report(metric_rows(EVALUATOR, data, model, estimates), notes)


def _outcomes(found: Ranks, ks: Sequence[int]) -> dict[str, np.ndarray | None]:
    """Per-query values of each metric that is a mean over the queries: float64 [Q]; None if the metric does not exist."""

    def cut(name: str, metric: Callable[[int], np.ndarray], cutoffs: Sequence[int]) -> dict[str, np.ndarray | None]:
        return {f"{name}@{k}": metric(k) if k <= found.keys else None for k in cutoffs}

    last = ks[-1:]
    return {
        **cut("R", found.hits, ks),
        **cut("recall", found.recall, ks),
        "mAP": found.average_precision(),
        **cut("mAP", found.average_precision, last),
        **cut("MRR", found.reciprocal, last),
        **cut("nDCG", found.ndcg, last),
        "mean_rank": found.first(),
    }


def _chance(captions: Captions, ks: Sequence[int], data: str) -> Report:
    image_ids, text_ids = torch.as_tensor(captions.image_ids), torch.as_tensor(captions.text_ids)
    estimates: dict[str, Estimate] = {}
    for direction, ids in {"text_to_image": (text_ids, image_ids), "image_to_text": (image_ids, text_ids)}.items():
        found = chance_ranks(*ids)
        values = {name: None if row is None else float(row.mean()) for name, row in _outcomes(found, cutoffs(ks)).items()}
        values["median_rank"] = float(np.median(found.first()))
        estimates |= {f"{direction}_{name}": statistics.exact(value, len(found)) for name, value in values.items()}
    return Report(metric_rows(EVALUATOR, data, "chance", estimates))


def _raw_pixels(task: Task, pixels: CachedModel, **options: Any) -> Report:
    texts = task.captions.texts
    columns: dict[str, list[int]] = {}
    for column, text in enumerate(texts):
        columns.setdefault(caption_key(text), []).append(column)
    bank = () if task.bank is None else [task.bank[row].captions for row in range(len(task.bank))]
    pairs = [(row, column) for row, own in enumerate(bank) for text in own for column in columns.get(caption_key(text), ())]
    if not pairs:
        reason = "there are no training data" if task.bank is None else "no training image has a caption of the test set"
        return Report(notes=(f"{EVALUATOR}, {task.name}: no raw pixels, as {reason}.",))
    row, group = torch.tensor(pairs).T
    member = torch.from_numpy(pixels.images(task.required_bank))[row]
    image = torch.from_numpy(pixels.images(task.source))
    scores = {
        "text_to_image": group_to_queries(image, member, group),
        "image_to_text": best_of_group(image, member, group, len(texts)),
    }
    return retrieval_from_scores(scores, model=pixels.name, **options)


def _examples(model: CachedModel, task: Task, image_emb: np.ndarray, text_emb: np.ndarray, count: int) -> tuple[Examples, ...]:
    """Texts with the images found for them, and images with the texts found for them."""
    captions = task.captions
    image, text = unit_rows(image_emb, "image_emb"), unit_rows(text_emb, "text_emb")
    image_id, text_id = torch.from_numpy(captions.image_ids), torch.from_numpy(captions.text_ids)

    def of_image(row: int) -> dict[str, str | None]:
        sample = task.source[row]
        return {"text": sample.captions[0] if sample.captions else sample.name, "image": model.thumbnail(sample)}

    def of_text(row: int) -> dict[str, str | None]:
        return {"text": captions.texts[row], "image": None}

    place = {"evaluator": EVALUATOR, "data": task.name, "model": model.name}
    return (
        Examples.choose(text, image, text_id, image_id, of_text, of_image, per_group=count, title="text to image", **place),
        Examples.choose(image, text, image_id, text_id, of_image, of_text, per_group=count, title="image to text", **place),
    )
