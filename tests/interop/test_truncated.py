"""Smaller widths of a model: the first columns, of unit length, by argument and by wrapper, and in what takes a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mmcl
from mmcl.errors import UserError
from mmcl.evaluate import CachedModel, Task, run
from mmcl.interop.encoding import unit_prefixes
from mmcl.interop.model import Model
from mmcl.testing.patterns import PatternModel, PatternSource
from tests.interop.test_model import make_towers

WIDTH = 8


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(make_towers(), logit_scale=10.0, logit_bias=-1.0, device="cpu")


def test_a_prefix_is_cut_and_scaled() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    rows[3, :4] = 0
    for row, found in zip(rows.astype(np.float64), unit_prefixes(rows, 4), strict=True):
        length = sum(value**2 for value in row[:4]) ** 0.5
        np.testing.assert_allclose(found, row[:4] / (length or 1), rtol=1e-6)
    assert unit_prefixes(rows, 7) is rows
    assert unit_prefixes(rows, None) is rows
    assert unit_prefixes(rows, 4).dtype == np.float32


@pytest.mark.parametrize("dim", [1, 3, WIDTH])
def test_argument_and_wrapper_give_the_same(model: Model, dim: int, rng: Any) -> None:
    images = [np.full((20, 20, 3), level, np.uint8) for level in (0, 90, 255)]
    texts = ["a cat", "a dog", "two dogs"]
    small = mmcl.TruncatedModel(model, dim)
    for ours, same, whole in (
        (model.encode_image(images, dim=dim), small.encode_image(images), model.encode_image(images)),
        (model.encode_text(texts, dim=dim), small.encode_text(texts), model.encode_text(texts)),
    ):
        np.testing.assert_array_equal(ours, same)
        np.testing.assert_array_equal(ours, unit_prefixes(whole, dim))
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-6)
    assert (small.logit_scale, small.logit_bias, small.has_text) == (10.0, -1.0, True)
    assert (small.embed_dim, small.preprocess) == (dim, model.preprocess)
    assert small.fingerprint not in (model.fingerprint, mmcl.TruncatedModel(model, 2).fingerprint)


@pytest.mark.parametrize("dim", [0, -3, WIDTH + 1, 2.0, True, "4"])
def test_a_width_that_is_not_there_is_named_before_anything_is_encoded(model: Model, dim: Any) -> None:
    message = r"dim is .*: give a whole number from 1 to 8, the width of the embeddings"
    for call in (
        lambda: mmcl.TruncatedModel(model, dim),
        lambda: model.encode_text("a cat", dim=dim),
        lambda: model.encode_image("missing.png", dim=dim),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_an_index_of_a_smaller_width_finds_by_it(model: Model, tmp_path: Any) -> None:
    from PIL import Image

    files = []
    for level in (0, 80, 160, 240):
        files.append(tmp_path / f"{level}.png")
        Image.new("RGB", (20, 20), (level, 255 - level, 90)).save(files[-1])
    small = mmcl.TruncatedModel(model, 3)
    hits = mmcl.Index.build(list(map(str, files)), small).search("a cat", top_k=4)
    cosines = small.encode_image(list(map(str, files))) @ small.encode_text("a cat")[0]
    assert [hit.score for hit in hits] == pytest.approx(sorted(cosines.tolist(), reverse=True), abs=1e-6)


def test_evaluators_take_it() -> None:
    source = PatternSource(30, seed=0)
    whole, same = (
        run([("retrieval", {})], [CachedModel(one)], [Task("patterns", source)])
        for one in (PatternModel(), mmcl.TruncatedModel(PatternModel(), PatternModel().encode_text(["a"]).shape[1]))
    )
    value = {metric.metric: metric.value for metric in whole.metrics}
    assert value == {metric.metric: metric.value for metric in same.metrics}
    with pytest.raises(UserError, match="dim is 100000: give a whole number from 1 to"):
        mmcl.TruncatedModel(PatternModel(), 100_000).encode_text(["a"])
