"""Embeddings on disk: keyed by everything that they depend on, verified, bounded in size, and never in the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmcl.data.source import Source
from mmcl.data.sources.folders.source import FolderSource
from mmcl.data.sources.tables.source import TableSource
from mmcl.encoders.heads import NoHead
from mmcl.encoders.tower import Tower, TowerSpec
from mmcl.evaluate import cache as cache_module
from mmcl.evaluate.cache import EmbeddingCache, default_cache
from mmcl.evaluate.task import CachedModel
from mmcl.files.atomic import write_file
from mmcl.interop.model import Model
from mmcl.preprocess import Preprocess
from mmcl.testing.patterns import PatternEncoder, PatternModel, PatternSource
from tests.narrow import of_type, present

FACTS = {"model": "m", "data": "d", "dtype": "float32"}
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache")


def encoded(cache: EmbeddingCache | None, source: Source, model: PatternModel | None = None) -> tuple[np.ndarray, int]:
    """The rows, and how many images had to be encoded for them."""
    model = model or PatternModel()
    before = len(model.image_calls)
    rows = CachedModel(model, cache=cache).images(source)
    return rows, sum(model.image_calls[before:])


def test_rows_come_back_as_they_were(cache: EmbeddingCache) -> None:
    first, calls = encoded(cache, PatternSource(12, seed=0))
    again, none = encoded(cache, PatternSource(12, seed=0))
    assert (calls, none) == (12, 0)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, first)


def test_texts_are_kept_too(cache: EmbeddingCache) -> None:
    models = [PatternModel(), PatternModel()]
    first, again = (CachedModel(model, cache=cache).encode_text(["pattern 1", "pattern 2"]) for model in models)
    assert [model.text_calls for model in models] == [[2], []]
    np.testing.assert_array_equal(again, first)
    other = PatternModel()
    CachedModel(other, cache=cache).encode_text(["pattern 2", "pattern 1"])
    assert other.text_calls == [2]


@pytest.mark.parametrize("fact", FACTS)
def test_any_other_fact_is_another_entry(cache: EmbeddingCache, fact: str) -> None:
    cache.save(FACTS, ROWS)
    assert cache.load(FACTS) is not None
    assert cache.load(FACTS | {fact: "other"}) is None
    assert cache.load({key: value for key, value in FACTS.items() if key != fact}) is None


def model_with(*, shift: float = -0.5, size: int = 8, half: bool = False) -> Model:
    encoder = PatternEncoder()
    torch.nn.init.constant_(encoder.shift, shift)
    encoder.preprocess = Preprocess(size=size)
    tower = Tower(encoder, NoHead(encoder.feature_dim), spec=TowerSpec(modality="image", encoder="pattern"))
    return Model(torch.nn.ModuleDict({"image": tower.half() if half else tower}))


@pytest.mark.parametrize("change", [{"shift": -0.25}, {"size": 9}, {"half": True}], ids=["weights", "preprocessing", "dtype"])
def test_a_changed_model_has_another_fingerprint(change: dict[str, Any]) -> None:
    assert model_with().fingerprint == model_with().fingerprint
    assert model_with(**change).fingerprint != model_with().fingerprint


def folder(path: Path, *, gray: int) -> Path:
    path.mkdir(exist_ok=True)
    for name, value in (("a.bmp", gray), ("b.bmp", 7)):
        Image.new("L", (8, 8), value).convert("RGB").save(path / name)
    (path / "pairs.csv").write_text("image,caption\na.bmp,one\nb.bmp,two\n")
    return path


@pytest.mark.parametrize("opened", [FolderSource, lambda path, root: TableSource(f"{path}/pairs.csv", root)])
def test_an_image_changed_in_place_is_encoded_again(
    cache: EmbeddingCache, tmp_path: Path, opened: Callable[[str, None], Source]
) -> None:
    """Same name and same size: the fingerprint of the source does not see it, its identity does."""
    place = str(folder(tmp_path / "photos", gray=10))
    before, after = opened(place, None), None
    first, _ = encoded(cache, before)
    assert encoded(cache, opened(place, None))[1] == 0
    folder(Path(place), gray=200)
    after = opened(place, None)
    assert after.fingerprint == before.fingerprint
    rows, calls = encoded(cache, after)
    assert calls == 2
    assert not np.array_equal(rows[0], first[0])


def test_other_bytes_in_memory_are_other_data(cache: EmbeddingCache) -> None:
    source, changed = PatternSource(6, seed=0), PatternSource(6, seed=0)
    of_type(np.ndarray, changed[0].image)[0, 0] += 1
    assert changed.fingerprint == source.fingerprint
    assert encoded(cache, source)[1] == encoded(cache, changed)[1] == 6


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: bytes([data[0] ^ 1]) + data[1:]])
def test_a_damaged_entry_is_computed_again_with_a_warning(
    cache: EmbeddingCache, suffix: str, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    cache.save(FACTS, ROWS)
    (file,) = cache.folder.glob(f"*{suffix}")
    file.write_bytes(damage(file.read_bytes()))
    assert cache.load(FACTS) is None
    assert "damaged" in caplog.text
    assert not list(cache.folder.iterdir())
    cache.save(FACTS, ROWS)
    np.testing.assert_array_equal(cache.load(FACTS), ROWS)


def test_the_entry_used_least_recently_makes_room(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    for name in "ab":
        cache.save(FACTS | {"data": name}, ROWS)
    for file in tmp_path.glob("*.json"):
        os.utime(file, ns=(0, 0))
    assert cache.load(FACTS | {"data": "a"}) is not None  # which makes b the one that was not used for longest
    cache.max_bytes = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    cache.save(FACTS | {"data": "c"}, ROWS)
    assert [name for name in "abc" if cache.load(FACTS | {"data": name}) is not None] == ["a", "c"]
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) == cache.max_bytes


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path / "cache", max_bytes=10).save(FACTS, ROWS)
    assert not (tmp_path / "cache").exists()


def test_an_unwritable_folder_is_not_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    EmbeddingCache(tmp_path / "file").save(FACTS, ROWS)
    assert "not cached" in caplog.text


def test_stopped_between_the_two_files_there_is_no_entry(cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(path: Path, content: str | bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write_file(path, content)

    monkeypatch.setattr(cache_module, "write_file", stop)
    with pytest.raises(KeyboardInterrupt):
        cache.save(FACTS, ROWS)
    monkeypatch.undo()
    assert cache.load(FACTS) is None
    cache.save(FACTS, ROWS)
    np.testing.assert_array_equal(cache.load(FACTS), ROWS)


def test_the_environment_says_where_or_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "here"))
    assert present(default_cache()).folder == tmp_path / "here"
    monkeypatch.setenv("MMCL_CACHE", "off")
    assert default_cache() is None
    monkeypatch.delenv("MMCL_CACHE")
    assert present(default_cache()).folder == Path("~/.cache/mmcl/embeddings").expanduser()
