"""Narrow rows: embeddings as int8 or as one bit a number, which are compared with a query in a fraction of the memory.

A row of int8 is $round(127 v / max_i |v_i|)$, and a row of bits is $v_i > 0$ (Charikar 2002, for given directions). Rows are of
unit length, so the scale of each is known from its numbers and is not stored. A scale for each dimension would depend on the
collection, so that a synced index would differ from a new one, and finds no more.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

Narrow = Literal["int8", "binary"]
RESCORE = 10
"""Times as many rows as are wanted that are compared by their vectors."""
_BLOCK = 2**16
"""Words or numbers that are compared at a time, so that they stay in the cache."""
_WORD = 64


def code_bytes(narrow: Narrow, dim: int) -> int:
    """Returns the bytes of a row."""
    return dim if narrow == "int8" else -(-dim // 8)


def narrowed(row_ND: np.ndarray, narrow: Narrow) -> np.ndarray:
    """Returns the codes of rows, uint8 [N, `code_bytes`]; those of int8 are its bytes.

    Example:
        >>> narrowed(np.array([[0.6, -0.8]], np.float32), "int8").view(np.int8).tolist()
        [[95, -127]]
        >>> narrowed(np.array([[0.6, -0.8]], np.float32), "binary").tolist()
        [[128]]
    """
    if narrow == "binary":
        return np.packbits(row_ND > 0, axis=1)
    largest = np.abs(row_ND).max(axis=1, keepdims=True, initial=1e-12)
    codes: np.ndarray = np.rint(row_ND * (127 / largest)).astype(np.int8).view(np.uint8)
    return codes


def widened(code_NB: np.ndarray, narrow: Narrow, dim: int) -> np.ndarray:
    """Returns the unit vectors that codes stand for, float32 [N, dim]. Their codes are the same again."""
    if narrow == "binary":
        bits = np.unpackbits(code_NB, axis=1, count=dim).astype(np.float32)
        signs: np.ndarray = (2 * bits - 1) / np.float32(dim**0.5)
        return signs
    rows = code_NB.view(np.int8).astype(np.float32)
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)
    return unit


class NarrowRows:
    """Codes of the rows of an index, in memory, and the rows nearest to a query by them.

    Args:
        code_NB: as `narrowed` gives them.
        narrow: their kind.
        dim: width of the vectors.
    """

    def __init__(self, code_NB: np.ndarray, narrow: Narrow, dim: int):
        self.narrow, self.dim = narrow, dim
        if narrow == "binary":
            self._word_WN = _words(code_NB)
        else:
            self._row_ND = torch.from_numpy(code_NB.view(np.int8))
            rows = max(1, _BLOCK // dim)
            self._length_N = torch.cat([torch.empty(0), *(part.float().norm(dim=1) for part in self._row_ND.split(rows))])

    @property
    def nbytes(self) -> int:
        """Memory that a search reads."""
        return self._word_WN.nbytes if self.narrow == "binary" else self._row_ND.nbytes + self._length_N.nbytes

    def nearest(self, query_D: np.ndarray, count: int, among_N: np.ndarray | None = None) -> np.ndarray:
        """Returns the rows nearest to a query by their codes, int64, in ascending order; of equally near ones the first.

        Args:
            query_D: float32.
            count: number of rows at most.
            among_N: bool [N], the rows that may be found; None for all.
        """
        distance = self._differing_bits(query_D) if self.narrow == "binary" else -self._cosines(query_D)
        places = np.arange(len(distance)) if among_N is None else np.flatnonzero(among_N)
        distance = distance[places]
        if count >= len(places):
            return places
        last = np.partition(distance, count - 1)[count - 1]
        nearer = distance < last
        tied = np.flatnonzero(distance == last)[: count - int(nearer.sum())]
        nearer[tied] = True
        found: np.ndarray = places[nearer]
        return found

    def _differing_bits(self, query_D: np.ndarray) -> np.ndarray:
        """Number of bits of each row that are not the query's, uint16 [N]."""
        query_W = _words(narrowed(query_D[None], "binary"))[:, 0]
        distance = np.zeros(self._word_WN.shape[1], np.uint16)
        for start in range(0, len(distance), _BLOCK):
            part = slice(start, start + _BLOCK)
            for word_N, word in zip(self._word_WN[:, part], query_W, strict=True):
                distance[part] += np.bitwise_count(word_N ^ word)
        return distance

    def _cosines(self, query_D: np.ndarray) -> np.ndarray:
        """Cosine of the query, as it is, with each row, float32 [N]."""
        query, rows = torch.from_numpy(query_D), max(1, _BLOCK // self.dim)
        products = [torch.mv(part.float(), query) for part in self._row_ND.split(rows)]
        cosines: np.ndarray = (torch.cat([torch.empty(0), *products]) / self._length_N.clamp(min=1)).numpy()
        return cosines


def _words(code_NB: np.ndarray) -> np.ndarray:
    """Bits in words of 64, uint64 [W, N], the first word of all rows first; filled up with zeros."""
    spare = -code_NB.shape[1] % (_WORD // 8)
    words_NW = np.ascontiguousarray(np.pad(code_NB, ((0, 0), (0, spare)))).view(np.uint64)
    return np.ascontiguousarray(words_NW.T)
