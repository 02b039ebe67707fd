"""The bundled pairs: their contents are as documented, and no split leaks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmcl.data.sources.emoji import FOLDER, SENTENCES, VENDORS, EmojiSource
from mmcl.errors import UserError
from tests.data.files import decoded
from tests.narrow import present

BUNDLED = FOLDER.parent


def emoji(**args: Any) -> EmojiSource:
    return EmojiSource(None, None, **args)


def splits(name: str) -> Any:
    return json.loads((FOLDER / "splits" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_files_are_those_that_were_bundled() -> None:
    listed = {name: digest for digest, name in (line.split("  ") for line in (BUNDLED / "SHA256SUMS").read_text().splitlines())}
    there = {f.relative_to(BUNDLED).as_posix(): f for f in BUNDLED.rglob("*") if f.is_file() and f.name != "SHA256SUMS"}
    assert set(listed) == set(there)
    for name, file in there.items():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == listed[name], name


def test_every_vendor_has_its_license() -> None:
    notice = (BUNDLED / "NOTICE.md").read_text(encoding="utf-8")
    licenses = [file.name for file in (BUNDLED / "LICENSES").iterdir()]
    for vendor in VENDORS:
        assert f"emoji/{vendor}.parquet" in notice
        assert any(vendor in name for name in licenses)
        (license,) = set(pq.read_table(FOLDER / f"{vendor}.parquet", columns=["license"])["license"].to_pylist())
        assert any(license.split("-")[0] in name for name in licenses)
    assert "All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0." in notice


def test_unseen_style() -> None:
    train, val, test = (emoji(fold=fold) for fold in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (5291, 86, 1906)
    assert set(test.vendor) == {"twemoji"}
    assert not set(train.vendor) & {"twemoji"}
    assert {val[i].name for i in range(len(val))} == set(splits("unseen_style")["val"])
    assert set(test.concept) <= set(train.concept)
    assert len(emoji(fold="all")) == 7283


def test_unseen_concept() -> None:
    train, test = emoji(split="unseen_concept"), emoji(split="unseen_concept", fold="test")
    assert set(test.concept) == set(splits("unseen_concept")["test"])
    assert not set(test.concept) & set(train.concept)
    assert set(test.vendor) == set(VENDORS)


def test_selections() -> None:
    scored = emoji(fold="test", concepts="test")
    assert len(scored) == 192
    assert set(scored.concept) == set(splits("unseen_concept")["test"])
    without = emoji(fold="test", flags=False)
    assert len(without) == 1906 - 270
    assert "flags" not in without.group
    assert set(emoji(vendors=["noto"], fold="all").vendor) == {"noto"}


@pytest.mark.parametrize(("labels", "count"), [("group", 9), ("subgroup", 98)])
def test_classes(labels: str, count: int) -> None:
    source = emoji(labels=labels)
    names, classes = present(source.class_names), splits("zeroshot_classes")[labels]
    assert len(names) == count
    for i in range(0, len(source), 50):
        label = present(source[i].label)
        assert classes[label]["slug"] == getattr(source, labels)[i]
        assert names[label] == classes[label]["name"]


def test_names_captions_and_images() -> None:
    source = emoji(fold="test")
    sample = source[next(i for i in range(len(source)) if source.concept[i] == "1f648")]
    assert sample.name == "twemoji/1f648"
    assert sample.captions == ("see-no-evil monkey",)
    for i in range(0, len(source), 100):
        assert decoded(source[i]).size == (64, 64)


@pytest.mark.parametrize("vendor", VENDORS)
def test_equal_ids_are_equal_images_within_a_vendor(vendor: str) -> None:
    source = emoji(fold="all", vendors=[vendor])
    twins = splits("duplicates")["exact"][vendor]
    pairs = {frozenset(pair) for pair in twins.items()}
    by_id: dict[int, list[int]] = {}
    for row, number in enumerate(present(source.ids).tolist()):
        by_id.setdefault(number, []).append(row)
    assert len(source) - len(by_id) == len(twins)
    for rows in by_id.values():
        assert len(rows) == 1 or len({np.asarray(decoded(source[row])).tobytes() for row in rows}) == 1
    merged = {
        frozenset((source.concept[a], source.concept[b])) for rows in by_id.values() for a in rows for b in rows if a != b
    }
    assert pairs <= merged


def test_ids_over_several_vendors_are_the_concepts() -> None:
    source = emoji()
    number = dict(zip(source.concept, present(source.ids).tolist(), strict=True))
    assert present(source.ids).tolist() == [number[concept] for concept in source.concept], (
        "one concept, one id, in every vendor"
    )
    linked = Counter(number.values())
    assert sum(concepts for concepts in linked.values() if concepts > 1) == 80, "as the documentation says"


def test_keywords_are_mixed_in() -> None:
    source = emoji(keyword_share=0.5)
    keywords = set(source._keywords[0])
    captions = [source.caption(0, draw) for draw in np.arange(4000) / 4000]
    assert sum(caption == "grinning face" for caption in captions) == pytest.approx(2000, abs=1)
    mixed = [caption.split(", ") for caption in captions if caption != "grinning face"]
    assert all(name == "grinning face" and 1 <= len(rest) <= 2 and set(rest) <= keywords for name, *rest in mixed)
    used = Counter(keyword for _, *rest in mixed for keyword in rest)
    assert set(used) == keywords
    assert max(used.values()) < 1.2 * min(used.values())
    plain, always = emoji(keyword_share=0.0), emoji(keyword_share=1.0)
    assert {plain.caption(0, draw) for draw in np.arange(100) / 100} == {"grinning face"}
    assert "grinning face" not in {always.caption(0, draw) for draw in np.arange(100) / 100}
    assert len({source.fingerprint, plain.fingerprint, always.fingerprint}) == 3


def test_names_are_put_into_sentences() -> None:
    source = emoji(keyword_share=0.0, sentence_share=0.5)
    captions = Counter(source.caption(0, draw) for draw in np.arange(8000) / 8000)
    assert captions.pop("grinning face") == pytest.approx(4000, abs=1)
    assert set(captions) == {sentence.format("grinning face") for sentence in SENTENCES}
    assert max(captions.values()) - min(captions.values()) <= 1
    assert source.fingerprint != emoji(keyword_share=0.0).fingerprint


def test_sentences_and_keywords_are_drawn_independently() -> None:
    source = emoji(keyword_share=0.25, sentence_share=0.5)
    captions = [source.caption(0, draw) for draw in np.arange(16000) / 16000]
    with_keywords = [caption.rsplit(", ", 1)[-1] in source._keywords[0] for caption in captions]
    assert sum(with_keywords) == pytest.approx(16000 * 0.25, rel=0.01)
    assert captions.count("grinning face") == pytest.approx(16000 * 0.5 * 0.75, rel=0.01)


def test_no_sentence_is_a_template_of_the_evaluation() -> None:
    assert not set(SENTENCES) & set(emoji(fold="test").templates)
    assert len(set(SENTENCES)) == len(SENTENCES)


def test_things_are_emoji_named_by_one_word() -> None:
    source = emoji(fold="test", labels="thing")
    names = present(source.class_names)
    assert len(source) == len(names) == len(set(names)) >= 400
    assert {"cat", "pizza", "airplane", "guitar", "violin"} <= set(names)
    assert not {"locked", "T-Rex", "plus", "polar bear", "flag: France"} & set(names)
    samples = [source[i] for i in range(len(source))]
    assert all(names[present(sample.label)] == sample.captions[0] for sample in samples)
    assert len(set(present(source.ids).tolist())) == len(source), "no two of them look the same"


def test_things_have_the_same_numbers_in_every_fold() -> None:
    train, test = emoji(labels="thing"), emoji(fold="test", labels="thing")
    assert train.class_names == test.class_names


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"split": "unseen_styles"}, "did you mean 'unseen_style'"),
        ({"fold": "tests"}, "did you mean 'test'"),
        ({"vendors": ["apple"]}, "unknown vendor 'apple'; known"),
        ({"vendors": []}, "no image has"),
        ({"labels": "groups"}, "did you mean 'group'"),
        ({"keyword_share": 1.5}, "keyword_share is 1.5"),
        ({"sentence_share": -0.1}, "sentence_share is -0.1"),
        ({"fold": "test", "vendors": ["noto"]}, "no image has split=unseen_style, fold=test"),
    ],
)
def test_wrong_arguments(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        emoji(**args)
