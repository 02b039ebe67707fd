"""Similarity and ranks of given pairs of an image and a text, each among all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mmcl.evaluate.measures.rank_counts import RankCounts, cosine_rank_counts


@dataclass(frozen=True, slots=True)
class PairRanks:
    """Places of P pairs.

    Attributes:
        similarity: float32 [P], cosines.
        text_rank: float64 [P], rank of the text among the texts for the image, from 1. Other texts of the image are no rivals,
            and of equal scores the rank is that expected in a random order.
        texts: int64 [P], number of texts that are ranked: the text and its rivals.
        image_rank, images: the same of the image among the images for the text.
    """

    similarity: np.ndarray
    text_rank: np.ndarray
    texts: np.ndarray
    image_rank: np.ndarray
    images: np.ndarray


def pair_ranks(
    image_ND: Tensor,
    text_MD: Tensor,
    image_id_N: Tensor,
    text_id_M: Tensor,
    image_P: np.ndarray,
    text_P: np.ndarray,
    *,
    chunk_size: int | None = None,
) -> PairRanks:
    """Ranks pairs as `retrieval` does. Beside the pairs with equal ids, only a few tiles of scores are in memory.

    Args:
        image_ND, text_MD: finite rows of any length.
        image_id_N, text_id_M: int64; images and texts with equal ids belong to each other.
        image_P, text_P: int64, the rows of each pair, which have equal ids.
        chunk_size: rows of either side in a tile; affects only time and memory.

    Example:
        >>> import torch
        >>> image, text, own = torch.eye(3), torch.eye(3)[[1, 0, 2]], torch.arange(3)
        >>> ranks = pair_ranks(image, text, own, own, own.numpy(), own.numpy())
        >>> ranks.similarity.tolist(), ranks.text_rank.tolist()  # the first two have each other's text
        ([0.0, 0.0, 1.0], [2.5, 2.5, 1.0])
    """
    of_texts, of_images = cosine_rank_counts(text_MD, image_ND, text_id_M, image_id_N, chunk_size=chunk_size)
    image_rank, images, similarity = _places(of_texts, text_P, image_P)
    text_rank, texts, _ = _places(of_images, image_P, text_P)
    return PairRanks(similarity, text_rank, texts, image_rank, images)


def _places(counts: RankCounts, query_P: np.ndarray, key_P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rank, number of ranked keys and score of each pair."""
    query, key, score, above, tied = (
        column.cpu().numpy() for column in (counts.query, counts.key, counts.score, counts.above, counts.tied)
    )
    positives = np.bincount(query)
    place = np.searchsorted(query * counts.keys + key, query_P * counts.keys + key_P)
    return above[place] + 1 + tied[place] / 2, counts.keys - positives[query_P] + 1, score[place]
