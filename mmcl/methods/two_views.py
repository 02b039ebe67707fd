"""Two views of a batch as one set of 2B rows, for losses that compare every row with all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcl.core.info_nce import info_nce
from mmcl.types import Embeddings


@dataclass(frozen=True, slots=True)
class TwoViewRows:
    """Rows with their ids and their row numbers among the 2B rows of all processes.

    Attributes:
        row_ND: [N, D].
        id_N, number_N: int64 [N].
    """

    row_ND: Tensor
    id_N: Tensor
    number_N: Tensor


def all_rows(embeddings: Embeddings, views: tuple[str, str] = ("a", "b")) -> TwoViewRows:
    """Return the rows of both views of all processes: the first view, then the second."""
    rows = torch.cat([embeddings.all[view] for view in views])
    return TwoViewRows(rows, embeddings.all_ids.repeat(2), torch.arange(len(rows), device=rows.device))


def local_rows(embeddings: Embeddings, views: tuple[str, str] = ("a", "b")) -> TwoViewRows:
    """Return the rows of this process, numbered as in `all_rows`."""
    first = torch.arange(len(embeddings.ids), device=embeddings.ids.device) + embeddings.offset
    rows = torch.cat([embeddings.local[view] for view in views])
    return TwoViewRows(rows, embeddings.ids.repeat(2), torch.cat([first, first + len(embeddings.all_ids)]))


def label_ids(rows: TwoViewRows) -> TwoViewRows:
    """Replace ids by labels; a row without a label (-1) has no positives, so it gets a unique negative id."""
    return TwoViewRows(rows.row_ND, torch.where(rows.id_N < 0, -1 - rows.number_N, rows.id_N), rows.number_N)


def nt_xent(queries: TwoViewRows, keys: TwoViewRows, *, scale: Tensor | float, **options: Any) -> Tensor:
    """Return InfoNCE against all other rows, summed over the queries; the options are those of `info_nce`."""
    return info_nce(
        queries.row_ND,
        keys.row_ND,
        query_id_N=queries.id_N,
        key_id_M=keys.id_N,
        query_row_N=queries.number_N,
        key_row_M=keys.number_N,
        scale=scale,
        reduction="sum",
        **options,
    )
