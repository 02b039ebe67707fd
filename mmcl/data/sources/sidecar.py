"""Sidecar files: texts named after an image, in a folder or a shard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mmcl.data.captions import NotText, caption_lines
from mmcl.data.sources.tables.column_names import USUAL_NAMES, captions_of
from mmcl.files.listing import IMAGE_SUFFIXES, composed, is_image, suffix_of, without_suffix

TEXT_SUFFIXES = (".txt", ".caption")
"""Suffixes of texts with one caption per line."""

RECORD_SUFFIX = ".json"
"""Suffix of a JSON object with captions in one of its fields; used only without a text."""

MAX_TEXT_BYTES = 2**20

_FURTHER = r"\d+|captions?\d*"
_BOX = re.compile(r"\d+(?:\s+(?:[01](?:\.\d*)?|\.\d+|\d(?:\.\d+)?e-\d+)){4,}")
"""A line of YOLO's labels: a class number, and coordinates from 0 to 1."""


def owner(stem: str, images: Iterable[str]) -> str | None:
    """Finds the image that a text belongs to; None if there is none.

    Args:
        stem: the text's name without its suffix.
        images: names of images, with and without their suffixes; a set or a mapping.

    Returns:
        One of `images`: the image with the same name ("a.txt" or "a.jpg.txt" beside "a.jpg"), or the one of which this is a
        further text ("a.0.txt", "a.1.txt", "a.caption.txt").
    """
    if stem in images:
        return stem
    further = re.fullmatch(rf"(.+)\.(?:{_FURTHER})", stem, re.DOTALL)
    return further[1] if further and further[1] in images else None


def kind_of_member(extension: str) -> str | None:
    """Returns the suffix of a text in a shard, where a name is the sample's key up to its first dot; None for other members.

    Args:
        extension: everything after that dot, in lower case: "txt" and "json", but also "jpg.txt", "0.txt" and "caption.txt".
    """
    before, _, last = extension.rpartition(".")
    is_text = f".{last}" in (*TEXT_SUFFIXES, RECORD_SUFFIX)
    is_own = not before or f".{before}" in IMAGE_SUFFIXES or re.fullmatch(_FURTHER, before) is not None
    return f".{last}" if is_text and is_own else None


def find_sidecars(names: Sequence[str]) -> dict[str, list[str]]:
    """Maps images to the sidecar files that are read for them, texts or records, in the order of their names."""
    written = [name for name in names if suffix_of(name) in (*TEXT_SUFFIXES, RECORD_SUFFIX)]
    if not written:
        return {}
    keys = {key: name for name in names if is_image(name) for key in (without_suffix(name), composed(name))}
    beside: dict[str, list[str]] = {}
    for name in written:
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
    """Parses the captions in a text or a record; a text of bounding boxes for object detection gives none.

    Args:
        suffix: one of `TEXT_SUFFIXES`, or `RECORD_SUFFIX`.
        raw: the content, in UTF-8.
        fields: caption fields of a record; default: the first usual one that it has.

    Raises:
        ValueError: the content is invalid; says why.
    """
    text = raw.decode("utf-8-sig")
    if suffix == RECORD_SUFFIX:
        return _record_captions(json.loads(text), fields)
    lines = caption_lines(text)
    return () if all(map(_BOX.fullmatch, lines)) else lines


def _record_captions(record: Any, fields: Sequence[str] | None) -> tuple[str, ...]:
    if not isinstance(record, dict):
        raise ValueError("it is not an object")
    spelling = {name.lower(): name for name in reversed(record)}
    usual = [spelling[name] for name in USUAL_NAMES["caption"] if record.get(spelling.get(name, name))][:1]
    captions = tuple(text for name in (usual if fields is None else fields) for text in captions_of(record.get(name)))
    for text in captions:
        if isinstance(text, NotText):
            raise ValueError(f"a caption is of type {text.type}, not a text")
        text.encode()  # JSON may contain lone surrogates, which an index and a tokenizer cannot encode.
    return captions
