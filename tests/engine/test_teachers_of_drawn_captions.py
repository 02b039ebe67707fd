"""Stored teachers of data that draw other texts than the captions they list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import mmcl
from mmcl.config import SourceConfig
from mmcl.data.sample import Sample
from mmcl.data.source import SampleList
from mmcl.data.stored_rows import caption_place
from mmcl.errors import UserError
from mmcl.runs import stored_teachers
from mmcl.runs.embedding.job import EmbeddingJob
from mmcl.runs.embedding.runners import run_embedding_job
from mmcl.runs.plan import make_plan
from mmcl.runs.run import _batches, train
from mmcl.runs.stored_teachers import open_teachers
from mmcl.types import Tokens
from tests.engine.test_stored_teachers import TAUGHT, Alone, given
from tests.engine.tiny import tiny_config


@pytest.fixture(scope="module")
def model(folder: Path) -> str:
    return str(train(tiny_config(folder, folder.parent / "teacher_of_drawn", "--train.steps", "2")).run_dir)


class Drawn(SampleList):
    """Half of the time, some samples draw "a drawing of" their caption."""

    fingerprint = "drawn"
    draws_as_listed = False

    def __init__(self, captions: Sequence[tuple[str, ...]], drawn: Sequence[int] = (0, 1)):
        self.drawn = drawn
        self._samples = [Sample(str(row), b"", captions=texts) for row, texts in enumerate(captions)]

    def caption(self, index: int, draw: float) -> str:
        text = super().caption(index, draw * 2 % 1)
        return f"a drawing of {text}" if draw >= 0.5 and index in self.drawn else text


def test_texts_made_of_the_only_caption_have_its_row(model: str, tmp_path: Path, folder: Path) -> None:
    """Sentences around the names of emoji: the row is that of the name."""
    data = SourceConfig(
        name="emoji", args={"vendors": ["noto"], "fold": "val", "sentence_share": 0.5, "keyword_share": 0.5, "flags": False}
    )
    shards = tmp_path / "shards"
    run_embedding_job(EmbeddingJob(data=data, model=model, folder=shards, shard_rows=4096, device="cpu"), workers=1)
    config = tiny_config(folder, tmp_path / "run", *TAUGHT)
    plan = make_plan(replace(config, data=replace(config.data, train=data, embeddings=(str(shards),))), 1)
    assert not plan.source.draws_as_listed
    batch = _batches(plan, Alone())[0]
    names = [plan.source[index].captions[0] for index in batch.index.tolist()]
    tokens, as_named = batch.views["text"], plan.method.tower("text").encoder.tokenizer(names)  # type: ignore[operator]
    assert isinstance(tokens, Tokens)
    assert (tokens.mask.sum(1) > as_named.mask.sum(1)).any()
    rows = mmcl.load_model(model).encode_text(names)
    np.testing.assert_allclose(batch.stored[f"{shards}/text"].numpy(), rows, atol=2e-6)


@pytest.mark.parametrize(
    ("captions", "refused"),
    [([("a cat",), ("a dog",)], False), ([("a cat",), ("a dog", "a hound")], True), ([("a cat",), ("a dog", "a dog")], False)],
    ids=["one each", "several", "one twice"],
)
def test_texts_made_of_one_of_several_captions_are_refused(
    captions: list[tuple[str, ...]], refused: bool, tmp_path: Path, folder: Path
) -> None:
    source, config = Drawn(captions), tiny_config(folder, tmp_path / "run", *TAUGHT, *given(tmp_path / "shards"))
    method = make_plan(tiny_config(folder, tmp_path / "run"), 1).method
    with mock.patch.object(stored_teachers, "open_stored_shards", return_value=fake(source, tmp_path / "shards")):
        if refused:
            with pytest.raises(UserError, match="the training data draw others for 1, which has several"):
                open_teachers(config, method, source)
        else:
            assert open_teachers(config, method, source)[0].teacher.has_text


def test_samples_that_draw_as_they_list_may_have_several(tmp_path: Path, folder: Path) -> None:
    """As in a mixture of two sources."""
    source = Drawn([("a cat",), ("a dog", "a hound")], drawn=[0])
    config = tiny_config(folder, tmp_path / "run", *TAUGHT, *given(tmp_path / "shards"))
    method = make_plan(tiny_config(folder, tmp_path / "run"), 1).method
    with mock.patch.object(stored_teachers, "open_stored_shards", return_value=fake(source, tmp_path / "shards")):
        assert open_teachers(config, method, source)[0].teacher.has_text
    listed = source[1].captions
    assert [caption_place(text, listed, as_listed=False) for text in listed] == [0, 1]
    with pytest.raises(UserError, match="no row is stored for the caption 'a drawing of a dog'"):
        caption_place("a drawing of a dog", listed, as_listed=False)


def fake(source: Any, path: Path) -> Any:
    plan = mock.Mock(data=source.fingerprint, rows=len(source), model="m", features=False)
    return mock.Mock(
        path=path, plan=plan, width=4, texts=len(source), digest="d", about=mock.Mock(logit_scale=5.0, logit_bias=None)
    )
