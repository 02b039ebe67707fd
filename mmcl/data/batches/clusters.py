"""Clusters of equal size of rows that lie near each other, but are not among each other's very nearest.

Samples that share a batch are negatives of each other, and near ones are hard. The very nearest of a sample are often copies of
it, or other samples with its meaning: false negatives. B3 leaves out as many of the nearest as are told (Thirukovalluru et
al., "Breaking the Batch Barrier (B3) of Contrastive Learning via Smart Batch Mining", 2025), and so do these clusters.

k-means divides the rows into cells, which are gathered in parts that are small enough for a table of their cosines; within a
part, clusters grow one row at a time. k-means of libraries was not taken, because its sums, and so its clusters, change with
the number of threads. Here rows are rounded to integers of a length at which float32 holds all products and their sums
exactly, so that no order of summation changes the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmcl.progress import progress_bar

_LENGTH = 4000
"""Length of the rounded rows. With the rounding it stays below 4096, and the products below 2**24, for 30,000 columns."""
_PART = 4096
"""Rows of a part, whose table of cosines takes 64 MB."""
_CELL, _CELLS = 256, 4096
"""Rows of a cell on average, and the most cells that there are."""
_LOOKED_AT = 2**16
"""Rows from which the centers of the cells are found."""
_ROUNDS = 10
"""Rounds of k-means."""
_BLOCK = 4096
"""Rows compared with all centers at a time."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """Rows in clusters.

    Attributes:
        order_N: int64 [N], the numbers of the rows, cluster by cluster. Rows that fill no cluster are the last.
        cosine: mean cosine of two rows of a cluster.
        random: mean cosine of any two rows.
        crowded: number of rows in a cluster with one of their nearest, for want of others.
    """

    order_N: np.ndarray
    cosine: float
    random: float
    crowded: int


def cluster_rows(row_NE: np.ndarray, size: int, skip: int) -> Clusters:
    """Divides rows into clusters; the result does not depend on the number of threads.

    Two rows of which one is among the `skip` nearest of the other are put into one cluster only if too few others are left.

    Args:
        row_NE: rows of any length, float32 or float16 [N, E], which may be mapped from a file.
        size: rows of a cluster, from 2 to N.
        skip: number of the nearest rows of each that are left out, 0 or more; ties count as nearest.

    Example:
        >>> angle = np.radians([0, 90, 1, 95, 2, 91])
        >>> cluster_rows(np.stack([np.cos(angle), np.sin(angle)], 1), 3, 0).order_N.reshape(2, 3).tolist()
        [[3, 5, 1], [0, 2, 4]]
    """
    parts = []
    with progress_bar(total=len(row_NE), shown=len(row_NE) > 20 * _PART, desc="clusters") as bar:
        for part in _parts(row_NE, size, max(_PART, 4 * (size + skip))):
            parts.append(_grown(row_NE, part, size, skip))
            bar.update(len(part))
    full = len(row_NE) // size * size
    return Clusters(
        order_N=np.concatenate([order for order, _, _ in parts]),
        cosine=sum(total for _, total, _ in parts) / (full * (size - 1)),
        random=_mean_cosine(row_NE),
        crowded=sum(crowded for _, _, crowded in parts),
    )


def _rounded(row_nE: np.ndarray) -> np.ndarray:
    """Returns rows as integers in float32, of a length near 4000; zeros stay zeros."""
    wide = row_nE.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    rounded: np.ndarray = np.rint(wide * (_LENGTH / np.where(length > 0, length, 1))).astype(np.float32)
    return rounded


def _parts(row_NE: np.ndarray, size: int, largest: int) -> list[np.ndarray]:
    """Returns the rows of parts of about equal size, each of one or several cells; that of all but the last is a multiple."""
    if len(row_NE) <= largest:
        return [np.arange(len(row_NE))]
    number = max(2, min(_CELLS, len(row_NE) // _CELL))
    center_KE = _centers(_rounded(row_NE[:: -(-len(row_NE) // _LOOKED_AT)]), number)
    starts = range(0, len(row_NE), _BLOCK)
    cell_N = np.concatenate([_nearest(_rounded(row_NE[start : start + _BLOCK]), center_KE) for start in starts])
    order = np.argsort(_places(center_KE)[cell_N], kind="stable")
    step = -(-len(order) // (-(-len(order) // largest) * size)) * size
    return np.split(order, range(step, len(order), step))


def _centers(row_nE: np.ndarray, number: int) -> np.ndarray:
    """Returns the centers of k-means by cosine, of rounded rows and rounded themselves: [number, E]."""
    center_KE = row_nE[np.arange(number) * len(row_nE) // number]
    for _ in range(_ROUNDS):
        cell_n = np.concatenate([_nearest(block, center_KE) for block in np.split(row_nE, range(_BLOCK, len(row_nE), _BLOCK))])
        order = np.argsort(cell_n, kind="stable")
        cells, begins = np.unique(cell_n[order], return_index=True)
        center_KE[cells] = _rounded(np.add.reduceat(row_nE[order], begins, axis=0, dtype=np.float64))
    return center_KE


def _nearest(row_nE: np.ndarray, center_KE: np.ndarray) -> np.ndarray:
    nearest: np.ndarray = np.argmax(row_nE @ center_KE.T, axis=1)
    return nearest


def _places(center_KE: np.ndarray) -> np.ndarray:
    """Returns the place of each center in a chain, in which the next is the nearest that is left."""
    score, one = center_KE @ center_KE.T, 0
    place_K = np.empty(len(center_KE), np.int64)
    for place in range(len(center_KE)):
        place_K[one] = place
        score[:, one] = -np.inf
        one = int(np.argmax(score[one]))
    return place_K


def _grown(row_NE: np.ndarray, part: np.ndarray, size: int, skip: int) -> tuple[np.ndarray, float, int]:
    """Returns the rows of a part cluster by cluster, the sum of cosines over pairs in clusters, and the crowded rows.

    The row that is least like all others begins a cluster, because those in the middle find company even late; then the row
    joins whose cosines with the cluster have the largest sum.
    """
    row_nE = _rounded(row_NE[part])
    score = row_nE @ row_nE.T
    score /= np.float32(_LENGTH**2)
    begins = np.argsort(score.sum(axis=1, dtype=np.float64), kind="stable")
    near = _put_off(score, skip, np.float32(4 * size))
    order, free = np.empty(len(part), np.int64), np.zeros(len(part), np.float32)
    filled = 0
    for begin in begins.tolist():
        if free[begin]:
            continue
        total, one = free.copy(), begin
        for place in range(filled, min(filled + size, len(part))):
            order[place] = one
            free[one] = total[one] = -np.inf
            total += score[one]
            one = int(np.argmax(total))
        filled += size
    full = order[: len(part) // size * size].reshape(-1, size)  # a view: swaps change the order
    crowded = _swapped_apart(full, near, score)
    within = row_nE[full] / np.float32(_LENGTH)
    # The sum over all pairs is the square of the sum of the rows.
    total = np.square(within.sum(axis=1, dtype=np.float64)).sum() - np.square(within, dtype=np.float64).sum()
    return part[order], float(total), crowded


def _put_off(score_nn: np.ndarray, skip: int, by: np.float32) -> np.ndarray:
    """Lowers the cosines of pairs of which one is among the `skip` nearest of the other. Returns these pairs, bool [n, n]."""
    rank = min(skip, len(score_nn) - 1)
    if rank < 1:
        return np.zeros_like(score_nn, bool)
    np.fill_diagonal(score_nn, -2)
    least = np.partition(score_nn, len(score_nn) - rank, axis=1)[:, len(score_nn) - rank]
    near_nn: np.ndarray = score_nn >= least[:, None]
    near_nn |= near_nn.T
    score_nn[near_nn] -= by
    return near_nn


def _swapped_apart(row_GK: np.ndarray, near_nn: np.ndarray, score_nn: np.ndarray) -> int:
    """Swaps rows that are with one of their nearest for like rows of other clusters, where both are with none of theirs.

    Returns:
        The number of rows that are still with one of their nearest.
    """
    clusters, size = row_GK.shape
    row_F, cluster_F = row_GK.reshape(-1), np.repeat(np.arange(clusters), size)
    is_member = np.zeros((len(near_nn), clusters), np.float32)
    is_member[row_F, cluster_F] = 1
    near_nG = near_nn.astype(np.float32) @ is_member  # nearest of each row in each cluster
    for place in np.flatnonzero(near_nG[row_F, cluster_F]).tolist():
        row, cluster = row_F[place], cluster_F[place]
        if not near_nG[row, cluster]:
            continue  # a swap has freed it
        fits_F = (near_nG[row, cluster_F] == near_nn[row, row_F]) & (near_nG[row_F, cluster] == near_nn[row_F, row])
        fits_F &= cluster_F != cluster
        other_place = int(np.argmax(np.where(fits_F, score_nn[row, row_F], -np.inf)))
        if fits_F[other_place]:
            other = row_F[other_place]
            change_n = near_nn[:, other].astype(np.float32) - near_nn[:, row]
            near_nG[:, cluster] += change_n
            near_nG[:, cluster_F[other_place]] -= change_n
            row_F[place], row_F[other_place] = other, row
    return int(np.count_nonzero(near_nG[row_F, cluster_F]))


def _mean_cosine(row_NE: np.ndarray) -> float:
    """Returns the mean cosine of any two of some rows, evenly spaced."""
    row_nE = _rounded(row_NE[:: -(-len(row_NE) // _BLOCK)]).astype(np.float64) / _LENGTH
    pairs = len(row_nE) * (len(row_nE) - 1)
    return float((np.square(row_nE.sum(axis=0)).sum() - np.square(row_nE).sum()) / max(pairs, 1))
