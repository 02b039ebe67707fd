"""Equality of captions: without a tokenizer, captions are equal if a reader would not distinguish them."""

from __future__ import annotations

import numpy as np
import pytest

from mmcl.data.captions import caption_key, text_hash
from mmcl.data.derived.mixture import Mixture
from mmcl.data.derived.subset import split_source, text_group
from mmcl.data.sample import Sample
from mmcl.data.source import SampleList

SAME = [
    ("a photo of a cat", "A Photo  of\ta\ncat "),
    ("fish & chips", "fish &amp; chips", "Fish &amp;amp; chips"),
    ("café", "cafe\N{COMBINING ACUTE ACCENT}", "CAFÉ"),
    ("straße", "STRASSE"),
    ("1 < 2", "1 &lt; 2"),
]


class Texts(SampleList):
    def __init__(self, captions: list[str], ids: np.ndarray | None = None):
        self._samples = [Sample(f"row {n}", None, (text,)) for n, text in enumerate(captions)]
        self.ids = ids

    @property
    def fingerprint(self) -> str:
        return "texts"


@pytest.mark.parametrize("same", SAME, ids=lambda same: same[0])
def test_captions_of_one_key(same: tuple[str, ...]) -> None:
    assert len({caption_key(text) for text in same}) == 1
    assert caption_key(caption_key(same[-1])) == caption_key(same[0])


def test_captions_of_different_keys() -> None:
    texts = ["a cat", "a cat.", "acat", "a cap", "", "猫", "\ud800", "\ud801", *(same[0] for same in SAME)]
    assert len({caption_key(text) for text in texts}) == len(texts)
    assert len({text_hash(text) for text in texts}) == len(texts)
    assert all(0 <= text_hash(text) < 2**63 for text in texts)


def test_texts_that_are_not_valid_unicode_are_groups_of_their_own() -> None:
    groups = [text_group(Sample("row", None, (text,))) for text in ("a \ud800", "a \ud801", "a \ufffd", "a ?")]
    assert len(set(groups)) == 4


def test_a_sample_without_a_caption_is_identified_by_its_name() -> None:
    assert text_group(Sample("A.png", None)) != text_group(Sample("a.png", None))


def test_captions_of_one_key_are_on_one_side_of_a_split() -> None:
    texts = [f"{word} {n}" for n in range(60) for word in ("a cat", "A  Cat", "a CAT &#32;")]
    rest, held = split_source(Texts(texts), 0.3, seed=1)
    assert len(rest) + len(held) == 180
    assert not {n // 3 for n in rest.indices} & {n // 3 for n in held.indices}


def test_captions_of_one_key_meet_across_the_parts_of_a_mixture() -> None:
    parts = {"a": Texts(["a cat", "a dog"], ids=np.array([7, 8])), "b": Texts(["A  Cat", "a bird"])}
    ids = Mixture(parts).ids
    assert ids is not None
    assert ids[0] == ids[2]
    assert len(set(ids.tolist())) == 3
