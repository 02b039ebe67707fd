"""Texts of the bundled emoji without images: names, and the keywords assigned by Unicode's editors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mmcl.data.sample import Sample
from mmcl.data.source import SampleList, refuse_path
from mmcl.data.sources.emoji import FOLDER, FOLDS, Fold
from mmcl.errors import unknown_name
from mmcl.files.digest import digest
from mmcl.rng import permutation

_RELATIONS = ("concept_id", "subgroup", "group")


class EmojiTextSource(SampleList):
    """Names of emoji ("see-no-evil monkey"), each with a list of keywords as its positive ("evil, forbidden, gesture").

    Keywords that occur in the name are removed, so that pairs cannot be matched by shared words alone.

    Args:
        fold: only the concepts of this fold of "unseen_concept".
        pairs: for the evaluator `sts`, pair each name with four kinds of keywords: its own (score 3), or those of another emoji
            of the same subgroup (2), of the same group (1), and of any other (0). The scores follow Unicode's
            classification by its editors, not similarity ratings by readers.

    Attributes:
        scores: float64 [N] for pairs.
    """

    def __init__(self, path: str | None, root: str | None, *, fold: Fold = "train", pairs: bool = False):
        refuse_path(path, "emoji_texts")
        if fold not in FOLDS:
            raise unknown_name("fold", str(fold), FOLDS, where="emoji_texts")
        table = pq.read_table(FOLDER / "concepts.parquet").to_pylist()
        rows = [row for row in table if fold in (row["fold_concept"], "all") and _keywords(row)]
        matches = _graded(rows) if pairs else [(number, number, 3.0) for number in range(len(rows))]
        self.scores = np.array([score for _, _, score in matches]) if pairs else None
        self._samples = [
            Sample(
                name=f"{rows[a]['concept_id']}/{rows[b]['concept_id']}",
                image=None,
                captions=(rows[a]["caption"],),
                positives=(_keywords(rows[b]),),
            )
            for a, b, _ in matches
        ]

    @property
    def fingerprint(self) -> str:
        return digest([(sample.captions, sample.positives) for sample in self._samples])


def _keywords(row: dict[str, Any]) -> str:
    words = set(row["caption"].lower().split())
    return ", ".join(keyword for keyword in row["keywords"] if not words & set(keyword.lower().split()))


def _graded(rows: list[dict[str, Any]]) -> list[tuple[int, int, float]]:
    """Pairs (name, keywords, score): every name with its own keywords, and one of each weaker relation if available."""
    matches: list[tuple[int, int, float]] = []
    for number, row in enumerate(rows):
        order = permutation(len(rows), number).tolist()
        nearness = {other: _nearness(row, rows[other]) for other in order}
        for score in (3, 2, 1, 0):
            found = next((other for other in order if nearness[other] == score), None)
            if found is not None:
                matches.append((number, found, float(score)))
    return matches


def _nearness(a: dict[str, Any], b: dict[str, Any]) -> int:
    return next((3 - depth for depth, key in enumerate(_RELATIONS) if a[key] == b[key]), 0)
