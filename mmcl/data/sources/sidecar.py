"""Texts beside an image, under its name: files in a folder, or members of a shard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mmcl.data.captions import caption_lines
from mmcl.data.sources.tables.column_names import USUAL_NAMES, captions_of
from mmcl.files.listing import IMAGE_SUFFIXES, composed, is_image, suffix_of, without_suffix

TEXT_SUFFIXES = (".txt", ".caption")
"""Of a text with a caption on every line."""

RECORD_SUFFIX = ".json"
"""Of an object with the captions in one of its fields; only where there is no text."""

MAX_TEXT_BYTES = 2**20

_FURTHER = r"\d+|captions?\d*"
_BOX = re.compile(r"\d+(?:\s+(?:[01](?:\.\d*)?|\.\d+|\d(?:\.\d+)?e-\d+)){4,}")
"""A line of YOLO's labels: a class number, and coordinates from 0 to 1."""


def owner(stem: str, images: Iterable[str]) -> str | None:
    """The image that a text belongs to; None of a text beside no image.

    Args:
        stem: the text's name without its suffix.
        images: what images are called, with and without their suffixes; a set or a mapping.

    Returns:
        The one of `images`: that of the same name ("a.txt" or "a.jpg.txt" beside "a.jpg"), or the one of which it is a further
        text ("a.0.txt", "a.1.txt", "a.caption.txt").
    """
    if stem in images:
        return stem
    further = re.fullmatch(rf"(.+)\.(?:{_FURTHER})", stem, re.DOTALL)
    return further[1] if further and further[1] in images else None


def kind_of_member(extension: str) -> str | None:
    """The suffix of a text in a shard, where a name is the sample's key up to its first dot; None of what is no such text.

    Args:
        extension: all after that dot, in lower case: "txt" and "json", but also "jpg.txt", "0.txt" and "caption.txt".
    """
    before, _, last = extension.rpartition(".")
    is_text = f".{last}" in (*TEXT_SUFFIXES, RECORD_SUFFIX)
    is_own = not before or f".{before}" in IMAGE_SUFFIXES or re.fullmatch(_FURTHER, before) is not None
    return f".{last}" if is_text and is_own else None


def find_sidecars(names: Sequence[str]) -> dict[str, list[str]]:
    """The texts beside every image that has some, in the order of the names: those that are read, records or texts."""
    keys = {key: name for name in names if is_image(name) for key in (without_suffix(name), composed(name))}
    beside: dict[str, list[str]] = {}
    for name in names:
        if suffix_of(name) in (*TEXT_SUFFIXES, RECORD_SUFFIX):
            key = owner(without_suffix(name), keys)
            if key is not None:
                beside.setdefault(key, []).append(name)
    found = {}
    for image in filter(is_image, names):
        near = [text for key in (without_suffix(image), composed(image)) for text in beside.get(key, ())]
        texts = [text for text in near if suffix_of(text) in TEXT_SUFFIXES]
        if near:
            found[image] = texts or near
    return found


def read_captions(suffix: str, raw: bytes, fields: Sequence[str] | None = None) -> tuple[str, ...]:
    """The captions in a text or a record; none in a text of boxes, as object detectors are trained on.

    Args:
        suffix: one of `TEXT_SUFFIXES`, or `RECORD_SUFFIX`.
        raw: the content, UTF-8.
        fields: of a record that hold captions; by default the first of the usual ones.

    Raises:
        ValueError: says what is wrong with it.
    """
    text = raw.decode("utf-8-sig")
    if suffix == RECORD_SUFFIX:
        return _record_captions(json.loads(text), fields)
    lines = caption_lines(text)
    return () if all(map(_BOX.fullmatch, lines)) else lines


def _record_captions(record: Any, fields: Sequence[str] | None) -> tuple[str, ...]:
    if not isinstance(record, dict):
        raise ValueError("it is no object")
    spelling = {name.lower(): name for name in reversed(record)}
    usual = [spelling[name] for name in USUAL_NAMES["caption"] if record.get(spelling.get(name, name))][:1]
    captions = tuple(text for name in (usual if fields is None else fields) for text in captions_of(record.get(name)))
    for text in captions:
        if not isinstance(text, str):
            raise ValueError(f"a caption is of type {type(text).__name__}, not a text")
        text.encode()  # JSON can spell halves of characters; an index, and a tokenizer, cannot.
    return captions
