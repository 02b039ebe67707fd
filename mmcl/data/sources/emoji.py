"""Bundled pairs: 1,906 emoji as drawn by four vendors, with names and keywords. Licenses: `bundled/NOTICE.md`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from mmcl.data.sample import Sample
from mmcl.data.source import SampleList, refuse_path
from mmcl.errors import UserError, unknown_name
from mmcl.files.digest import digest

FOLDER = Path(__file__).parents[1] / "bundled" / "emoji"
VENDORS = ("noto", "twemoji", "openmoji", "fluent")
FOLDS = ("train", "val", "test", "all")

LABELS = ("group", "subgroup", "thing")

Fold = Literal["train", "val", "test", "all"]
Labels = Literal["group", "subgroup", "thing"]

_GROUPS_OF_THINGS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
_OTHER_WORDS = ("locked", "unlocked", "foggy", "camping", "cooking", "construction")

SENTENCES = (
    "a {}",
    "the {}",
    "one large {}",
    "a photo of {}",
    "a photo of a {}",
    "a photo of the {}, close up",
    "a picture of a {}",
    "a picture showing a {}",
    "an image of {}",
    "an image of a {}",
    "this image shows {}",
    "a drawing of {}",
    "a drawing of a {}",
    "a painting of {}",
    "a painting of a {} on a wall",
    "an illustration of {}",
    "an illustration showing {}",
    "a cartoon of a {}",
    "a symbol of {}",
    "a sign showing a {}",
    "an icon of {}",
    "an icon of a {}",
    "emoji: {}",
    "{} emoji",
    "{}, clip art",
    "a sticker with a {} on it",
    "{} in the style of a sticker",
    "this is a {}",
    "it is a {}",
    "there is a {} here",
    "I see a {}",
    "we can see {} in this one",
    "look at this {}",
    "a small {}",
    "a small {} in the middle",
    "my favorite {}",
    "a nice {} for you",
    "{} on a plain background",
    "{} on white paper",
    "{} in front of a blue background",
)
"""Sentences around training captions; none of them is among the templates of zero-shot classification."""


class EmojiSource(SampleList):
    """Images of 64 x 64 pixels, captioned with the emoji's name ("see-no-evil monkey") and labeled with its group.

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
        labels: zero-shot classes: 9 groups ("an animal or a plant"), 98 subgroups, or 410 everyday things ("cat"), without the
            other emoji.
        keyword_share: probability, from 0 to 1, that a training caption (`caption`) appends one or two of the emoji's keywords.
            `Sample.captions`, used in evaluation, is the plain name.
        sentence_share: probability, from 0 to 1, that a training caption puts the name into one of
            `SENTENCES`: "a drawing of a cat".

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
        labels: Labels = "group",
        keyword_share: float = 0.5,
        sentence_share: float = 0.0,
    ):
        refuse_path(path, "emoji")
        _check_choice("labels", labels, LABELS)
        _check_share("keyword_share", keyword_share)
        _check_share("sentence_share", sentence_share)
        selected = _select(split, fold, concepts, VENDORS if vendors is None else vendors, flags)
        columns = ["concept_id", "concept_index", "keywords", "caption", "group"]
        table = pq.read_table(FOLDER / "concepts.parquet", columns=columns).to_pylist()
        keywords = {concept["concept_id"]: tuple(concept["keywords"]) for concept in table}
        zero_shot = json.loads((FOLDER / "splits" / "zeroshot_classes.json").read_text(encoding="utf-8"))
        names, column = _classes(labels, table, zero_shot)
        rows = [row for row in selected if row[column] in names]
        if not rows:
            asked = {"split": split, "fold": fold, "concepts": concepts, "vendors": vendors, "labels": labels}
            raise UserError("emoji: no image has " + ", ".join(f"{key}={value}" for key, value in asked.items()))
        label_number = {value: number for number, value in enumerate(names)}

        self.class_names = list(names.values())
        self.templates = zero_shot["templates"]
        self.ids = _ids(rows, {concept["concept_id"]: concept["concept_index"] for concept in table})
        self.vendor, self.group, self.subgroup, self.concept = (
            [row[column] for row in rows] for column in ("vendor", "group", "subgroup", "concept_id")
        )
        self._keywords = [keywords[concept] for concept in self.concept]
        self._keyword_share, self._sentence_share = float(keyword_share), float(sentence_share)  # 0 and 0.0 are equal data
        self.draws_as_listed = not keyword_share and not sentence_share
        self._samples = [
            Sample(
                name=f"{row['vendor']}/{row['concept_id']}",
                image=row["image"]["bytes"],
                captions=(row["caption"],),
                label=label_number[row[column]],
            )
            for row in rows
        ]

    @property
    def fingerprint(self) -> str:
        rows = [(sample.name, sample.captions, sample.label, digest(sample.image)) for sample in self._samples]
        return digest(rows, self._keywords, self._keyword_share, SENTENCES, self._sentence_share)

    def caption(self, index: int, draw: float) -> str:
        """Returns the name, at times in a sentence, with keywords, or both: "a drawing of a monkey face, animal, banana"."""
        (text,), keywords = self._samples[index].captions, self._keywords[index]
        in_sentence, draw = _event(draw, self._sentence_share)
        if in_sentence:
            sentence, draw = _choice(draw, SENTENCES)
            text = sentence.format(text)
        with_keywords, draw = _event(draw, self._keyword_share)
        if with_keywords and keywords:
            first, draw = _choice(draw, keywords)
            second, draw = _choice(draw, keywords)
            text = ", ".join(dict.fromkeys([text, first, second]))
        return text


def _classes(labels: Labels, concepts: Sequence[Mapping[str, Any]], zero_shot: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Returns the class names, keyed by the value of a column that identifies the class, and the name of this column."""
    if labels == "thing":
        return {concept["caption"]: concept["caption"] for concept in concepts if _is_thing(concept)}, "caption"
    return {entry["slug"]: entry["name"] for entry in zero_shot[labels]}, labels


def _is_thing(concept: Mapping[str, Any]) -> bool:
    """True for emoji named by one common noun: "cat", but not "polar bear", "T-Rex" or "locked"."""
    name = concept["caption"]
    is_word = name.isascii() and name.isalpha() and name.islower()
    return is_word and concept["group"] in _GROUPS_OF_THINGS and name not in _OTHER_WORDS


def _event(draw: float, probability: float) -> tuple[bool, float]:
    """Decides by a uniform draw in [0, 1) whether an event occurs; also returns a new draw that is independent of it."""
    if draw < probability:
        return True, draw / probability
    return False, (draw - probability) / (1 - probability)


def _choice(draw: float, choices: Sequence[str]) -> tuple[str, float]:
    """Picks one of equally probable choices by a uniform draw in [0, 1); also returns a new draw that is independent of it."""
    number, rest = divmod(draw * len(choices), 1)
    return choices[int(number)], rest


def _select(split: str, fold: str, concepts: str, vendors: Sequence[str], flags: bool) -> list[dict[str, Any]]:
    """Selects rows of the bundled tables by the arguments, vendor by vendor."""
    _check_choice("split", split, ("unseen_style", "unseen_concept"))
    _check_choice("fold", fold, FOLDS)
    _check_choice("concepts", concepts, FOLDS)
    for vendor in vendors:
        _check_choice("vendor", vendor, VENDORS)
    column = "fold_style" if split == "unseen_style" else "fold_concept"
    return [
        row
        for vendor in VENDORS
        if vendor in vendors
        for row in pq.read_table(FOLDER / f"{vendor}.parquet").to_pylist()
        if fold in (row[column], "all") and concepts in (row["fold_concept"], "all") and (flags or row["group"] != "flags")
    ]


def _check_share(argument: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"emoji: {argument} is {value}; choose a share from 0 to 1")


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
