"""Bundled pairs: 1,906 emoji as drawn by four vendors, with names and keywords. Licences: `bundled/NOTICE.md`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from mmcl.data.source import Sample, SampleList, refuse_path
from mmcl.errors import UserError, unknown_name
from mmcl.files.digest import digest

FOLDER = Path(__file__).parents[1] / "bundled" / "emoji"
VENDORS = ("noto", "twemoji", "openmoji", "fluent")
FOLDS = ("train", "val", "test", "all")

Fold = Literal["train", "val", "test", "all"]


class EmojiSource(SampleList):
    """Images of 64 x 64 pixels, captioned with the emoji's name ("see-no-evil monkey") and labelled with its group.

    Rows with equal ids count as the same in retrieval. A row's id is its concept, but concepts for which any vendor among the
    selected rows uses an identical image share an id, such as two flags. With one vendor, this means that retrieving an
    identical image is correct. With several, concepts that only one vendor draws identically (80 of 1,906 in the default
    training fold) are not trained as different, since that vendor's image cannot distinguish them.

    Args:
        split: "unseen_style" trains on three vendors and tests on the fourth, with the same concepts; "unseen_concept" holds
            out whole families of concepts, for all vendors.
        fold: fold of the split.
        concepts: only the concepts of this fold of "unseen_concept"; zero-shot classes are scored on "test".
        vendors: only these vendors; default: all.
        flags: whether to include flags, which are the easiest images and 270 of the concepts.
        labels: zero-shot classes: 9 groups or 98 subgroups.
        keyword_share: probability, from 0 to 1, that a training caption (`caption`) appends one or two of the emoji's keywords.
            `Sample.captions`, used in evaluation, is the plain name.

    Attributes:
        vendor, group, subgroup, concept: values of every row, as str.
    """

    def __init__(
        self,
        path: str | None,
        root: str | None,
        *,
        split: Literal["unseen_style", "unseen_concept"] = "unseen_style",
        fold: Fold = "train",
        concepts: Fold = "all",
        vendors: Sequence[str] | None = None,
        flags: bool = True,
        labels: Literal["group", "subgroup"] = "group",
        keyword_share: float = 0.5,
    ):
        refuse_path(path, "emoji")
        _check_choice("labels", labels, ("group", "subgroup"))
        if not 0 <= keyword_share <= 1:
            raise UserError(f"emoji: keyword_share is {keyword_share}; choose a share from 0 to 1")
        rows = _select(split, fold, concepts, VENDORS if vendors is None else vendors, flags)
        table = pq.read_table(FOLDER / "concepts.parquet", columns=["concept_id", "concept_index", "keywords"]).to_pylist()
        keywords = {concept["concept_id"]: tuple(concept["keywords"]) for concept in table}
        classes = json.loads((FOLDER / "splits" / "zeroshot_classes.json").read_text(encoding="utf-8"))
        label_number = {entry["slug"]: entry["index"] for entry in classes[labels]}

        self.class_names = [entry["name"] for entry in classes[labels]]
        self.templates = classes["templates"]
        self.ids = _ids(rows, {concept["concept_id"]: concept["concept_index"] for concept in table})
        self.vendor, self.group, self.subgroup, self.concept = (
            [row[column] for row in rows] for column in ("vendor", "group", "subgroup", "concept_id")
        )
        self._keywords = [keywords[concept] for concept in self.concept]
        self._keyword_share = keyword_share
        self._samples = [
            Sample(
                name=f"{row['vendor']}/{row['concept_id']}",
                image=row["image"]["bytes"],
                captions=(row["caption"],),
                label=label_number[row[labels]],
            )
            for row in rows
        ]

    @property
    def fingerprint(self) -> str:
        rows = [(sample.name, sample.captions, sample.label, digest(sample.image)) for sample in self._samples]
        return digest(rows, self._keywords, self._keyword_share)

    def caption(self, index: int, draw: float) -> str:
        """Returns the name, with two draws from the keywords if below `keyword_share`: "monkey face, animal, banana"."""
        (name,), keywords = self._samples[index].captions, self._keywords[index]
        if draw >= self._keyword_share or not keywords:
            return name
        count = len(keywords)
        first, second = divmod(int(draw / self._keyword_share * count**2), count)
        return ", ".join(dict.fromkeys([name, keywords[first], keywords[second]]))


def _select(split: str, fold: str, concepts: str, vendors: Sequence[str], flags: bool) -> list[dict[str, Any]]:
    """Selects rows of the bundled tables by the arguments, vendor by vendor."""
    _check_choice("split", split, ("unseen_style", "unseen_concept"))
    _check_choice("fold", fold, FOLDS)
    _check_choice("concepts", concepts, FOLDS)
    for vendor in vendors:
        _check_choice("vendor", vendor, VENDORS)
    column = "fold_style" if split == "unseen_style" else "fold_concept"
    rows = [
        row
        for vendor in VENDORS
        if vendor in vendors
        for row in pq.read_table(FOLDER / f"{vendor}.parquet").to_pylist()
        if fold in (row[column], "all") and concepts in (row["fold_concept"], "all") and (flags or row["group"] != "flags")
    ]
    if not rows:
        raise UserError(f"emoji: no image has split={split}, fold={fold}, concepts={concepts}, vendors={list(vendors)}")
    return rows


def _check_choice(what: str, name: str, choices: Sequence[str]) -> None:
    if name not in choices:
        raise unknown_name(what, str(name), choices, where="emoji")


def _ids(rows: Sequence[Mapping[str, Any]], number: Mapping[str, int]) -> np.ndarray:
    """Ids by union-find over "same image": a row's id is the smallest number among the concepts linked to its own."""
    parent = list(range(len(number)))

    def find(concept: str) -> int:
        node = number[concept]
        while parent[node] != node:
            node = parent[node]
        return node

    for row in rows:
        if row["same_picture_as"]:
            small, large = sorted((find(row["concept_id"]), find(row["same_picture_as"])))
            parent[large] = small
    return np.array([find(row["concept_id"]) for row in rows], np.int64)
