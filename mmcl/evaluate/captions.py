"""Captions of a source for evaluation, and which images each of them describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmcl.data.captions import caption_key, checked_caption
from mmcl.data.sample import Sample
from mmcl.data.source import Source


@dataclass(frozen=True)
class Captions:
    """Captions of a source, each once per image id that it describes.

    Attributes:
        texts: M texts.
        text_ids: int64 [M], ids of the images that the texts describe.
        image_ids: int64 [N], ids of the images.
    """

    texts: tuple[str, ...]
    text_ids: np.ndarray
    image_ids: np.ndarray


def captions_of(source: Source, *, checked: bool = False) -> Captions:
    """Collects the captions of a source.

    Without `source.ids`, images that share a caption (up to case and white space, see `caption_key`), directly or through a
    chain of other images, have equal ids.

    Args:
        source: the images.
        checked: whether every caption must be one that can be encoded, see `checked_caption`.

    Raises:
        UserError: a caption that is checked cannot be encoded; names the sample.
    """
    captions = [_checked(source[index]) if checked else source[index].captions for index in range(len(source))]
    image_ids = _linked_by_caption(captions) if source.ids is None else np.asarray(source.ids, np.int64)
    pairs = dict.fromkeys((text, int(image_ids[image])) for image, own in enumerate(captions) for text in own)
    return Captions(tuple(text for text, _ in pairs), np.array([image_id for _, image_id in pairs], np.int64), image_ids)


def _checked(sample: Sample) -> tuple[str, ...]:
    return tuple(checked_caption(caption, sample.name) for caption in sample.captions)


def _linked_by_caption(captions: Sequence[Sequence[str]]) -> np.ndarray:
    """Connected components of the graph of images and captions: int64 [N]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys = [[caption_key(text) for text in own] for own in captions]
    node = {key: number for number, key in enumerate(dict.fromkeys(key for own in keys for key in own), len(captions))}
    image = [number for number, own in enumerate(keys) for _ in own]
    text = [node[key] for own in keys for key in own]
    size = len(captions) + len(node)
    _, component = connected_components(coo_array((np.ones(len(text)), (image, text)), shape=(size, size)), directed=False)
    ids: np.ndarray = component[: len(captions)].astype(np.int64)
    return ids
