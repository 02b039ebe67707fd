"""Indices of a Lance table, by which it is searched without reading it whole: words of captions, approximate neighbors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np

from mmcl.errors import UserError, unknown_name
from mmcl.search.lance_table import FOUND, LanceTable, readable, writable

if TYPE_CHECKING:
    from lancedb.query import LanceVectorQueryBuilder

Approximate = Literal["ivf_flat", "ivf_rq"]
"""Inverted lists around centers found by k-means: of the vectors as they are (Sivic and Zisserman 2003), or of one bit a number
(RaBitQ, Gao and Long 2024), whose candidates are compared by their vectors, read from the disk."""

_PROBES = 20
"""Lists that are searched at least, of about the square root of the number of rows."""
_SPARE = 4
"""Times as many rows as are wanted that the searched lists should hold."""
_REFINED = 10
"""Times as many candidates as are wanted that are compared by their vectors, where lists hold less than these."""


def index_captions(table: LanceTable) -> None:
    """Makes the full-text index of the captions, in any script, unless it is there; it also finds rows that come later.

    Words are taken as they are: the stop words and stems are English, and even of captions in English, "dog" is left out.
    """
    from lancedb.index import FTS

    if _kind_of(table, "captions") or not table.count("array_length(captions) > 0"):
        return
    with writable(table.place):
        table.table.create_index("captions", config=FTS(base_tokenizer="icu", stem=False, remove_stop_words=False))


def with_words(table: LanceTable, text: str, limit: int) -> list[tuple[int, float]]:
    """Returns the ids of rows whose captions have words of a text, with their scores, best first."""
    from lancedb.query import MatchQuery

    if not _kind_of(table, "captions"):
        raise UserError(f"{table.place}: has no captions to search in; hybrid search needs a collection with captions")
    with readable(table.place):
        words = MatchQuery(text, "captions")  # type: ignore[call-arg]
        search = table.table.search(words, query_type="fts").select(["id", "_score"])
        rows = search.with_row_id(True).limit(max(limit, 1)).to_arrow()
    return list(zip(rows["_rowid"].to_pylist(), rows["_score"].to_pylist(), strict=True))


def approximate_kind(table: LanceTable) -> Approximate | None:
    """Returns the kind of the approximate index; None if there is none, and the table is searched exactly."""
    kind = _kind_of(table, "vector").lower()
    return next((one for one in get_args(Approximate) if one.replace("_", "") == kind.replace("_", "")), None)


def index_vectors(table: LanceTable, kind: str) -> None:
    """Makes the approximate index, in place of another one; it also finds rows that come later, which `optimize` adds to it.

    Raises:
        UserError: the kind is unknown, there are no vectors, or the index cannot be written.
    """
    from lancedb.index import IvfFlat, IvfRq

    if kind not in get_args(Approximate):
        raise unknown_name("approximate index", kind, get_args(Approximate))
    rows = table.count(FOUND)
    if not rows:
        raise UserError(f"{table.place}: has no vectors to index")
    config = {"ivf_flat": IvfFlat, "ivf_rq": IvfRq}[kind](distance_type="dot", num_partitions=_lists(rows))
    with writable(table.place):
        table.table.create_index("vector", config=config, replace=True)


def drop_vectors(table: LanceTable) -> None:
    """Removes the approximate index; the table is searched exactly again."""
    with readable(table.place):
        names = [index.name for index in table.table.list_indices() if "vector" in index.columns]
    for name in names:
        with writable(table.place):
            table.table.drop_index(name)


def nearest_rows(table: LanceTable, kind: Approximate, query_D: np.ndarray, count: int) -> list[int]:
    """Returns the ids of rows that an approximate index of some kind finds nearest to a query, best first."""
    rows = max(table.count(FOUND), 1)
    probes = max(_PROBES, math.ceil(_SPARE * count * _lists(rows) / rows))
    with readable(table.place):
        search = cast("LanceVectorQueryBuilder", table.table.search(query_D)).distance_type("dot").nprobes(probes)
        search = search if kind == "ivf_flat" else search.refine_factor(_REFINED)
        found = search.select(["_distance"]).with_row_id(True).limit(count).to_arrow()
    ids: list[int] = found["_rowid"].to_pylist()
    return ids


def _lists(rows: int) -> int:
    return max(1, round(math.sqrt(rows)))


def _kind_of(table: LanceTable, column: str) -> str:
    """Kind of the index of a column; "" if there is none."""
    with readable(table.place):
        return next((str(index.index_type) for index in table.table.list_indices() if column in index.columns), "")
