"""Stored rows as inputs of a tower: checked against its encoder, and read in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from mmcl.data.stored_rows import StoredRow, read_rows
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.types import Features

_BATCH = 4096


def feature_batches(tower: Tower, modality: str, rows: Sequence[StoredRow]) -> Iterator[Features]:
    """Yields rows in order, in batches. Raises UserError as `check_rows` does."""
    for start in range(0, len(rows), _BATCH):
        yield check_rows(tower, modality, rows[start : start + _BATCH])


def check_rows(tower: Tower, modality: str, rows: Sequence[StoredRow]) -> Features:
    """Reads rows that are to stand for the features of a tower's encoder.

    Raises:
        UserError: no rows can stand for them, or only those of another model or width.
    """
    wanted, name = tower.encoder.rows_of, tower.encoder_name
    if wanted is None:
        raise UserError(
            f"the data have stored rows in place of {modality}s, which the encoder {name} cannot read: take {modality}.encoder "
            "rows, or embeddings_of with the model that wrote them"
        )
    for other in sorted({row.model for row in rows}):
        if wanted and other and other != wanted:
            raise UserError(
                f"the stored rows of {modality}s were written by another model ({_shown(other)}) than the model was made for "
                f"({_shown(wanted)}): embed the data with that one"
            )
    features = Features(torch.from_numpy(read_rows(rows)))
    if (width := features.rows.shape[1]) != tower.encoder.feature_dim:
        raise UserError(
            f"the stored rows of {modality}s have {width} numbers, and the {modality} tower takes {tower.encoder.feature_dim}: "
            "give rows of the model that it was made for"
        )
    return features


def _shown(model: str) -> str:
    """The beginning of a fingerprint, after the words before it."""
    words, _, fingerprint = model.rpartition(" ")
    return f"{words} {fingerprint[:8]}".strip()
