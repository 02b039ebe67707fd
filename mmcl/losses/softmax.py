"""Softmax losses of queries and keys: thin wrappers of `mmcl.core.info_nce`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mmcl.core import info_nce as core
from mmcl.core.higher_derivatives import is_transformed
from mmcl.core.negative_mixing import mixed_negatives
from mmcl.core.precision import in_float32, unit_rows
from mmcl.core.tiled.pairs import TileShape
from mmcl.errors import UserError
from mmcl.losses.arguments import check_mixing, check_rows, checked_ids, inverse, number, stacked
from mmcl.rng import sample_seed

Similarity = Literal["cosine", "dot", "euclidean"]


def info_nce(
    query: Tensor,
    key: Tensor,
    ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    rows: Tensor | None = None,
    key_rows: Tensor | None = None,
    *,
    temperature: Tensor | float,
    similarity: Similarity = "cosine",
    positives: Literal["outside", "inside"] = "outside",
    denominator: Literal["all", "negatives"] = "all",
    hardness: float = 0.0,
    positive_prior: float = 0.0,
    reduction: core.Reduction = "mean",
    tile: TileShape | None = None,
) -> Tensor:
    r"""InfoNCE: contrasts every query with all keys; the keys with the query's id are its positives.

    $$\ell_i = \log \sum_{a \in A(i)} e^{s_{ia} / T} - \frac{1}{|P(i)|} \sum_{p \in P(i)} s_{ip} / T$$

    where $s_{ij}$ is the similarity, $A(i)$ all keys but the query itself, and $P(i) \subset A(i)$ those with the query's id.

    Args:
        query, key: rows of any floating type and any length. If both are the same tensor, its rows are compared with each
            other, and the pair of a row with itself is excluded.
        ids, key_ids: equal ids are positives. Without ids, query i and key i are a pair.
        rows, key_rows: row numbers, needed if the queries are some of the rows in the keys, such as those of one process. A
            query and a key with equal numbers are the same row, and the pair is excluded.
        temperature: T, a number above 0 or a one-element tensor (with a gradient if it is learned).
        similarity: "cosine" scales rows to unit length; "dot" uses them unscaled; "euclidean" is $-\frac{1}{2} \|q - k\|^2$,
            which for unit-length rows gives the same loss as "cosine".
        positives, denominator, hardness, positive_prior: variants, see `nt_xent`, `dcl_loss` and `supcon_loss`; the last one
            needs "cosine".
        reduction: "mean" over the queries that have a positive, or "sum" over them.
        tile: queries and keys compared at once; by default chosen from the shapes.

    Shape:
        query [N, D]; key [M, D]; ids, rows [N] and key_ids, key_rows [M], of integers; returns a scalar.

    Requirements:
        Equal ids in one batch, for instance of two captions of one image, are positives, never negatives. Ids are compared over
        the whole batch, so they must be unique across processes.

    Relations:
        `clip_loss` is the mean of both directions, `nt_xent` compares two views with each other, `supcon_loss` uses labels as
        ids, `moco_loss` uses a queue as keys, `simcse_loss` adds hard negatives, and `dcl_loss` leaves the positives out of the
        denominator. Constant rows give ln |A|.

    Raises:
        UserError: shapes, dtypes or devices do not match, an option is invalid, a value is not finite, or required ids are
            missing.

    Source:
        van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, eq. 4; with several positives
        Khosla et al., "Supervised Contrastive Learning", 2020, eq. 2.

    Example:
        >>> query, key = torch.eye(3), torch.eye(3)
        >>> round(info_nce(query, key, temperature=0.5).item(), 4)
        0.2395
        >>> views = torch.eye(3).repeat(2, 1)  # two views of three samples, one set of rows: it must be told who is whose
        >>> round(info_nce(views, views, torch.arange(3).repeat(2), temperature=0.5).item(), 4)
        0.4327
    """
    check_rows({"query": query, "key": key}, paired=False)
    is_itself = key is query
    query_ids, key_ids = _ids_of_both(query, key, ids, key_ids, is_itself)
    query_rows, key_rows = _rows_of_both(query, key, rows, key_rows, is_itself)
    if not is_itself and query_rows is None:
        _refuse_a_copy(query, key, query_ids, key_ids)
    if positive_prior and similarity != "cosine":
        raise UserError(f"positive_prior needs similarity 'cosine', which has a smallest value, and not {similarity!r}")
    query, key = _comparable(query, key, similarity)
    return core.info_nce(
        query,
        key,
        query_id_N=query_ids,
        key_id_M=key_ids,
        query_row_N=query_rows,
        key_row_M=key_rows,
        scale=inverse(temperature, query),
        positives=positives,
        denominator=denominator,
        hardness=hardness,
        positive_prior=positive_prior,
        reduction=reduction,
        tile=tile,
    )


def clip_loss(
    image: Tensor, text: Tensor, ids: Tensor | None = None, *, scale: Tensor | float, tile: TileShape | None = None
) -> Tensor:
    r"""CLIP: classifies the text of each image among all texts, and the image of each text among all images.

    $$\ell = -\frac{1}{2N} \sum_i \Big( \log \frac{e^{\tau s_{ii}}}{\sum_j e^{\tau s_{ij}}}
    + \log \frac{e^{\tau s_{ii}}}{\sum_j e^{\tau s_{ji}}} \Big)$$

    where $s_{ij}$ is the cosine of image i and text j, and $\tau$ the scale.

    Args:
        image, text: row i of each forms a pair; scaled to unit length.
        ids: pairs with equal ids, such as two captions of one image, are positives of each other; without ids, none are.
        scale: inverse temperature, a number above 0 or a one-element tensor. The paper learns its logarithm, which starts at
            ln(1 / 0.07) and stays below ln 100, see `ClipLoss`.
        tile: images and texts compared at once; by default chosen from the shapes.

    Shape:
        image, text [N, D]; ids [N], of integers; returns a scalar.

    Requirements:
        Large batches, because each pair's negatives are the other pairs. On several processes, use `gathered`.

    Relations:
        The mean of both directions of `info_nce`. `siglip_loss` scores each pair independently. Constant rows give ln N.

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.

    Source:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, fig. 3.

    Example:
        >>> image, text = torch.eye(3), torch.eye(3)
        >>> round(clip_loss(image, text, scale=2.0).item(), 4)
        0.2395
        >>> round(clip_loss(torch.ones(3, 8), torch.ones(3, 8), scale=2.0).item(), 4)  # ln 3
        1.0986
    """
    check_rows({"image": image, "text": text})
    pair_ids = checked_ids("ids", ids, "image", image)
    scale = number("scale", scale, image, positive=True)
    return core.symmetric_info_nce(unit_rows(image), unit_rows(text), id_N=pair_ids, scale=scale, tile=tile) / 2


def moco_loss(
    query: Tensor,
    key: Tensor,
    ids: Tensor | None = None,
    *,
    queue: Tensor,
    queue_ids: Tensor | None = None,
    temperature: Tensor | float,
    mixed: int = 0,
    mixed_with_query: int = 0,
    hardest: int | None = None,
    seed: int = 0,
    tile: TileShape | None = None,
) -> Tensor:
    r"""MoCo: contrasts a query with the momentum teacher's key of the same sample and a queue of keys from past batches.

    $$\ell = -\frac{1}{N} \sum_i \log \frac{e^{q_i^\top k_i / T}}{e^{q_i^\top k_i / T} + \sum_{j=1}^{K} e^{q_i^\top n_j / T}}$$

    MoCHi adds negatives that are mixed from the keys nearest to the query, which have no gradient.

    Args:
        query: rows of the student; scaled to unit length.
        key: rows of the teacher, row i of the same sample as query i; scaled to unit length. Receives no gradient.
        ids: sample numbers of the queries; only together with `queue_ids`.
        queue: keys of past batches, already of unit length; the same on all processes. Receives no gradient.
        queue_ids: sample numbers of the queue; keys of the query's own sample that are still in the queue are ignored.
        temperature: T, a number above 0 or a one-element tensor; 0.07 in v1, 0.2 in v2.
        mixed: s of MoCHi, negatives of each query that are mixed from two keys of the queue; 1024 there, for K = 16,384.
        mixed_with_query: s', negatives that are mixed from the query and a key; 128 to 256 there.
        hardest: N, keys nearest to the query that are mixed; 1024 unless given. Of fewer keys, all.
        seed: determines what is mixed; give another in every step, and the same on all processes.
        tile: queries and keys compared at once; by default chosen from the shapes.

    Shape:
        query, key [N, D]; queue [K, D], K may be 0; ids [N] and queue_ids [K], of integers; returns a scalar.

    Requirements:
        Keys of the same batch are not negatives: add them to the queue after computing the loss, see `MoCoLoss`.

    Relations:
        `info_nce` with the queue as keys. Constant rows give ln(K + 1); an empty queue gives 0.

    Raises:
        UserError: shapes, dtypes or devices do not match, a value is not finite, or an option is out of range or without
            effect.

    Source:
        He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020, eq. 1; the mixing: Kalantidis et
        al., "Hard Negative Mixing for Contrastive Learning", 2020, section 4.

    Example:
        >>> query, key, queue = torch.eye(4)[:2], torch.eye(4)[:2], torch.eye(4)[2:]
        >>> round(moco_loss(query, key, queue=queue, temperature=0.5).item(), 4)
        0.2395
        >>> round(moco_loss(query, key, queue=queue, temperature=0.5, mixed=2).item(), 4)  # two more with a cosine of 0
        0.4327
    """
    check_rows({"query": query, "key": key})
    check_rows({"query": query, "queue": queue}, paired=False)
    check_mixing(mixed=mixed, mixed_with_query=mixed_with_query, hardest=hardest)
    if (ids is None) != (queue_ids is None):
        raise UserError("give ids and queue_ids, or neither: keys of the query's own sample are found by both")
    query_ids = checked_ids("ids", ids, "query", query)
    # Without ids, no key in the queue belongs to a sample of this batch.
    stale_ids = -1 - checked_ids("queue_ids", None, "queue", queue) if queue_ids is None else queue_ids
    stale_ids = checked_ids("queue_ids", stale_ids, "queue", queue)
    query, stale, scale = unit_rows(query), unit_rows(queue.detach()), inverse(temperature, query)
    mixtures: dict[str, Any] = {}
    if mixed or mixed_with_query:
        mixtures = mixed_negatives(
            query,
            stale,
            query_id_N=query_ids,
            key_id_M=stale_ids,
            scale=scale,
            hardest=hardest or 1024,
            pairs=mixed,
            with_query=mixed_with_query,
            seed=sample_seed(seed),  # hashed, or it would meet small ids: sample 1 of step 0 would draw as sample 0 of step 1
        )
    return core.info_nce(
        query,
        stale,
        query_id_N=query_ids,
        key_id_M=stale_ids,
        # Equal row numbers exclude a pair, so keys of the query's own sample are ignored.
        query_row_N=query_ids,
        key_row_M=stale_ids,
        own_key_ND=unit_rows(key.detach()),
        scale=scale,
        tile=tile,
        **mixtures,
    )


def simcse_loss(
    a: Tensor,
    b: Tensor,
    ids: Tensor | None = None,
    negative: Tensor | None = None,
    *,
    temperature: Tensor | float = 0.05,
    negative_log_weight: float = 0.0,
    tile: TileShape | None = None,
) -> Tensor:
    r"""SimCSE: classifies a sentence's positive among those of the batch and optional hard negatives.

    $$\ell = -\frac{1}{N} \sum_i \log \frac{e^{s(a_i, b_i) / T}}
    {\sum_j \big( e^{s(a_i, b_j) / T} + \alpha^{[i = j]} e^{s(a_i, n_j) / T} \big)}$$

    Args:
        a: embeddings of the sentences; scaled to unit length.
        b: their positives: the same sentences with another dropout mask, or entailments; scaled to unit length.
        ids: sentences with equal ids are positives too; without ids, only row i of both.
        negative: hard negatives, such as contradictions; row i belongs to sentence i. Scaled to unit length.
        temperature: T, a number above 0 or a one-element tensor; the paper's 0.05.
        negative_log_weight: $\log \alpha$ of a sentence's own hard negative; minus infinity removes it.
        tile: sentences and keys compared at once; by default chosen from the shapes.

    Shape:
        a, b, negative [N, D]; ids [N], of integers; returns a scalar.

    Requirements:
        Without supervision, the two passes need different dropout masks: call a tower in training mode twice.

    Relations:
        Without hard negatives, equal to `info_nce(a, b)`. It uses one direction, `clip_loss` both. Constant rows give ln N.

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.

    Source:
        Gao, Yao, Chen, "SimCSE: Simple Contrastive Learning of Sentence Embeddings", 2021, eq. 4 and 5, section 5.2.

    Example:
        >>> a, b, negative = torch.eye(4)[:2], torch.eye(4)[:2], torch.eye(4)[2:]
        >>> round(simcse_loss(a, b, temperature=0.5).item(), 4)
        0.1269
        >>> round(simcse_loss(a, b, negative=negative, temperature=0.5).item(), 4)
        0.3408
    """
    check_rows({"a": a, "b": b} | ({} if negative is None else {"negative": negative}))
    own_ids = checked_ids("ids", ids, "a", a)
    keys, key_ids, row = b, own_ids, torch.arange(len(a), device=a.device)
    key_row = len(a) + row
    if negative is not None:
        keys = stacked(b, negative)
        key_ids = torch.cat([own_ids, _unused_ids(own_ids)])
        key_row = torch.cat([key_row, row])  # A sentence's own hard negative is added separately, with its weight.
    return core.info_nce(
        unit_rows(a),
        unit_rows(keys),
        query_id_N=own_ids,
        key_id_M=key_ids,
        query_row_N=row,
        key_row_M=key_row,
        own_negative_ND=None if negative is None else unit_rows(negative),
        own_negative_log_weight=negative_log_weight,
        scale=inverse(temperature, a),
        tile=tile,
    )


def _ids_of_both(
    query: Tensor, key: Tensor, ids: Tensor | None, key_ids: Tensor | None, is_itself: bool
) -> tuple[Tensor, Tensor]:
    if ids is None:
        if is_itself or key_ids is not None:
            raise UserError("info_nce needs ids: equal ids say which keys are the positives of a query")
        if len(key) != len(query):
            raise UserError(f"{len(query)} queries and {len(key)} keys: give ids and key_ids to say which are pairs")
    query_ids = checked_ids("ids", ids, "query", query)
    if key_ids is None or key_ids is ids:
        if len(key) != len(query):
            raise UserError(f"info_nce needs key_ids [{len(key)}]: there are {len(query)} queries and {len(key)} keys")
        return query_ids, query_ids
    return query_ids, checked_ids("key_ids", key_ids, "key", key)


def _rows_of_both(
    query: Tensor, key: Tensor, rows: Tensor | None, key_rows: Tensor | None, is_itself: bool
) -> tuple[Tensor | None, Tensor | None]:
    if (rows is None) != (key_rows is None):
        raise UserError("give rows and key_rows, or neither: a query and a key of equal number are the same row")
    if rows is not None:
        query_rows = checked_ids("rows", rows, "query", query)
        return query_rows, query_rows if key_rows is rows else checked_ids("key_rows", key_rows, "key", key)
    own = torch.arange(len(query), device=query.device) if is_itself else None
    return own, own


def _refuse_a_copy(query: Tensor, key: Tensor, query_ids: Tensor, key_ids: Tensor) -> None:
    """Refuses rows against a copy of themselves: without row numbers, every row would be its own positive."""
    if is_transformed() or query.shape != key.shape or not torch.equal(query, key) or not torch.equal(query_ids, key_ids):
        return
    # If all rows are equal, a copy cannot be detected.
    if len(query_ids.unique()) < len(query_ids) and not torch.equal(query, query[:1].expand_as(query)):
        raise UserError("key is a copy of query, so each row would be its own positive: pass the same tensor for both")


@in_float32
def _comparable(query: Tensor, key: Tensor, similarity: str) -> tuple[Tensor, Tensor]:
    """Rows whose scalar products are the similarities, up to a term of the query alone, which cancels in a softmax."""
    if similarity == "dot":
        return query, key
    if similarity == "cosine":
        unit = unit_rows(query)
        return unit, unit if key is query else unit_rows(key)
    if similarity != "euclidean":
        raise UserError(f"similarity must be 'cosine', 'dot' or 'euclidean', not {similarity!r}")
    # -|q - k|^2 / 2 = q k - |k|^2 / 2 - |q|^2 / 2. Distances stay as they are around the mean, and the terms are small there.
    center = key.detach().sum(0) / max(len(key), 1)
    query, key = query - center, key - center
    return (
        torch.cat([query, torch.ones_like(query[:, :1])], dim=1),
        torch.cat([key, -key.square().sum(1, keepdim=True) / 2], dim=1),
    )


def _unused_ids(ids: Tensor) -> Tensor:
    """As many distinct ids as given, none of which is among the given ones."""
    lowest = ids.min() if len(ids) else 0
    return lowest - 1 - torch.arange(len(ids), device=ids.device)
