"""Hard batches of a run: which rows are compared, what a run shows, and what is refused. The order itself: `tests/data`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import mmcl
from mmcl.data.batches.clusters import cluster_rows
from mmcl.errors import UserError
from mmcl.runs import hard_batches
from mmcl.runs.plan import make_plan
from mmcl.runs.run import _batches, train
from tests.engine.test_stored_teachers import Alone, embedded, model, pairs, shards, without_list
from tests.engine.tiny import tiny_config

__all__ = ["model", "pairs", "shards"]


def hard(folder: Path | None, **more: Any) -> tuple[str, ...]:
    asked = {"cluster": 4, "skip": 2, **more, **({} if folder is None else {"embeddings": folder})}
    return tuple(word for name, value in asked.items() for word in (f"--data.hard_batches.{name}", str(value)))


@pytest.mark.parametrize("side", ["image", "text"])
def test_batches_are_clusters_of_the_rows_of_a_model(
    side: str, pairs: Path, model: str, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Against the embeddings of the model itself, of the samples that are left; of several captions their mean."""
    plan = make_plan(tiny_config(pairs, tmp_path / "run", *hard(shards, side=side), "--data.holdout", "0.2"), 1)
    samples = [plan.source[index] for index in range(len(plan.source))]
    encoder = mmcl.load_model(model)
    if side == "image":
        rows = encoder.encode_image([sample.required_image() for sample in samples])
    else:
        rows = np.stack([encoder.encode_text(list(sample.captions)).mean(axis=0) for sample in samples])
    expected = cluster_rows(rows, 4, 2)
    with caplog.at_level(logging.INFO, "mmcl"):
        batches = _batches(plan, Alone())
    assert f"clusters of 4 samples with a mean cosine of {expected.cosine:.3f}, where that of any two is" in caplog.text
    of_cluster = {frozenset(part) for part in expected.order_N[:20].reshape(-1, 4).tolist()}
    assert len(samples) == 20
    for step in range(5):
        index = batches[step].index.numpy()
        assert {frozenset(part) for part in index.reshape(-1, 4).tolist()} <= of_cluster
    shown = np.concatenate([batches[step].index.numpy() for step in range(5)])
    assert np.bincount(shown).tolist() == [3] * 20


def test_clusters_are_computed_once_and_shared(pairs: Path, shards: Path, model: str, tmp_path: Path) -> None:
    flags, moved = ("--train.steps", "2"), tmp_path / "moved"
    with mock.patch.object(hard_batches, "cluster_rows", wraps=cluster_rows) as computed:
        train(tiny_config(pairs, tmp_path / "run", *hard(shards), *flags))
        shutil.copytree(shards, moved)
        train(tiny_config(pairs, tmp_path / "run", *hard(moved), *flags, "--resume"))
        assert computed.call_count == 1
    other = embedded(pairs, model, tmp_path / "other", dtype="float16")
    with pytest.raises(UserError, match="cannot be continued with clusters of other rows: restore the folder"):
        train(tiny_config(pairs, tmp_path / "run", *hard(other), *flags, "--resume"))
    with pytest.raises(UserError, match=r"data\.hard_batches\.skip: 2 -> 3"):
        train(tiny_config(pairs, tmp_path / "run", *hard(moved, skip=3), *flags, "--resume"))


def test_rows_that_are_the_data_themselves(shards: Path, tmp_path: Path) -> None:
    rows = ("--image.encoder", "{name: rows}", "--text.encoder", "{name: rows}", "--data.augment", "[]")
    frozen = ("--image.freeze", "true", "--text.freeze", "true", "--data.train.name", "embeddings")
    found = {}
    for side in ("image", "text"):
        plan = make_plan(tiny_config(shards, tmp_path / side, *rows, *frozen, *hard(None, side=side)), 1)
        found[side] = _batches(plan, Alone())[0].index.tolist()
    folder = make_plan(tiny_config(shards, tmp_path / "again", *rows, *frozen, *hard(None)), 1)
    assert _batches(folder, Alone())[0].index.tolist() == found["image"] != found["text"]


def test_settings_and_data_that_do_not_fit_are_refused(pairs: Path, shards: Path, model: str, tmp_path: Path) -> None:
    incomplete = tmp_path / "incomplete"
    shutil.copytree(shards, incomplete)
    without_list(incomplete)
    features = embedded(pairs, model, tmp_path / "features", features=True)
    byol = ("--method", "{name: byol}", "--text", "null")
    cases: list[tuple[tuple[str, ...], str]] = [
        (hard(None), r"data\.hard_batches\.embeddings is missing: name the folder that `mmcl embed` wrote"),
        (hard(incomplete), r"data\.hard_batches\.embeddings: .* is not complete; run the same `mmcl embed` again"),
        (hard(pairs), r"data\.hard_batches\.embeddings: .* has no plan.json"),
        (hard(features, side="text"), r"data\.hard_batches\.side is text, and .* has no rows of captions: set it to image"),
        (hard(shards, skip=30), r"cluster 4 and skip 30 are more than the 25 samples; lower them"),
        (
            hard(shards, cluster=5),
            r"batch_size is 12: with data\.hard_batches\.cluster 5 choose a multiple of it, up to 25 for",
        ),
        (hard(shards, cluster=1), r"data\.hard_batches\.cluster is 1: give a whole number from 2 to 1024"),
        (
            (*hard(shards), "--data.samples_per_class", "2"),
            r"hard_batches and data\.samples_per_class exclude each other",
        ),
        ((*hard(shards), *byol), r"data\.hard_batches has no use: method byol has no negatives; remove it"),
    ]
    for flags, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            make_plan(tiny_config(pairs, tmp_path / "run", *flags), 1)
        assert "\n" not in str(caught.value)


def test_a_sample_without_a_row_is_named(pairs: Path, shards: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    shutil.copytree(shards, rows)
    plan = make_plan(tiny_config(pairs, tmp_path / "run", *hard(rows)), 1)
    sample = plan.source[9].name
    with (
        mock.patch("mmcl.runs.stored_shards.ShardRows.row", side_effect=UserError(f"no row of {sample}")),
        pytest.raises(UserError, match="no row of"),
    ):
        _batches(plan, Alone())
    assert not list((tmp_path / "run").glob("features/*"))
