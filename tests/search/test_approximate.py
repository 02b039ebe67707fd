"""The approximate index: only when it is asked for, said in every answer, measured, and exact where it promises that."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmcl.data.images.image_cache import decode_sample
from mmcl.data.sample import Sample
from mmcl.errors import UserError
from mmcl.search import Index, lance_store
from mmcl.search.memory_store import MemoryStore

ROWS, WIDTH = 300, 32


class Looked:
    """Embeds an image by the numbers in its pixels, and a text "17" as image 17."""

    fingerprint, has_text, logit_scale, logit_bias, embed_dim = "looked", True, None, None, WIDTH

    def __init__(self) -> None:
        rows = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
        self.rows: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode_image(self, images: Any, **options: Any) -> np.ndarray:
        pixels = [np.asarray(decode_sample(images[number], None))[0, 0].astype(int) for number in range(len(images))]
        found: np.ndarray = self.rows[[red + 256 * green for red, green, _ in pixels]]
        return found

    def encode_text(self, texts: Any, **options: Any) -> np.ndarray:
        found: np.ndarray = self.rows[[int(text) for text in texts]]
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 300 images in three folders."""
    folder = tmp_path_factory.mktemp("approximate")
    for number in range(ROWS):
        (folder / "photos" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (2, 2), (number % 256, number // 256, 0))
        image.save(folder / "photos" / str(number % 3) / f"{number:03}.png")
    Index.build(folder / "photos", Looked(), out=folder / "index")
    return folder / "index"


@pytest.fixture
def index(place: Path) -> Any:
    with Index.open(place, Looked(), mode="w") as opened:
        yield opened
        opened.drop_ann()


def names(hits: Any) -> list[str]:
    return [hit.path.stem for hit in hits]


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_rq"])
def test_an_approximate_index_is_asked_for_said_and_removed(kind: Any, index: Index, place: Path) -> None:
    expected = index.search("17", top_k=5)
    assert expected.exact
    index.build_ann(kind)
    near = index.search("17", top_k=5)
    assert not near.exact
    assert near[0].path.stem == "017"
    # Scores are those of the vectors, not of their codes.
    exact = {hit.id: hit.score for hit in index.search("17", top_k=ROWS, exact=True)}
    assert [hit.score for hit in near] == [exact[hit.id] for hit in near]
    # One bit of a number says little of vectors that are drawn at random.
    assert index.recall(50, 5).value > {"ivf_flat": 0.95, "ivf_rq": 0.8}[kind]
    reopened = Index.open(place, Looked())
    assert names(reopened.search("17", top_k=5)) == names(near)
    assert not reopened.search("17").exact
    index.drop_ann()
    assert index.search("17", top_k=5) == expected
    assert index.search("17").exact
    assert index.recall(20, 5).value == 1


def test_filters_dates_and_all_of_a_collection_stay_exact(index: Index) -> None:
    questions: list[dict[str, Any]] = [{"where": 'folder = "1"', "top_k": 7}, {"sort": "taken"}, {"exact": True, "top_k": ROWS}]
    expected = [index.search("17", **question) for question in questions]
    like = index.search(like=expected[0][0].id, top_k=3)
    index.build_ann()
    for question, hits in zip(questions, expected, strict=True):
        found = index.search("17", **question)
        assert (found, found.exact) == (hits, True)
    assert names(index.search(like=expected[0][0].id, top_k=3))[0] == names(like)[0]
    assert len(index.search("17", top_k=ROWS)) == ROWS  # as many lists as the hits need are searched
    assert index.duplicates(0.999) == []


def test_images_that_come_after_it_are_found(index: Index, place: Path) -> None:
    index.build_ann()
    new = place.parent / "photos" / "0" / "new.png"
    Image.new("RGB", (2, 2), (17, 0, 1)).save(new)
    assert index.sync().new == 1
    found = index.search("17", top_k=2)
    assert (sorted(names(found)), found.exact) == (["017", "new"], False)
    new.unlink()
    assert index.sync().gone == 1
    assert "new" not in names(index.search("17", top_k=2))


def test_recall_counts_what_is_missed(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the true neighbors, and others in their place: half is found; a tie is no miss."""
    store, real = index.store, lance_store.LanceStore.nearby

    def every_second(self: Any, query: np.ndarray, count: int, **options: Any) -> list[int]:
        found = real(self, query, 2 * count)
        return [found[0], *found[2::2]][:count]

    monkeypatch.setattr(lance_store.LanceStore, "nearby", every_second)
    measured = index.recall(10, 10)
    assert (measured.queries, measured.k) == ("images", 10)
    np.testing.assert_allclose(measured.found, 0.5)
    assert store.exact
    for k, n in ((0, 5), (ROWS, 5), (5, 0)):
        with pytest.raises(UserError, match="recall: k is"):
            index.recall(n, k)


def test_a_large_index_names_it_and_does_not_switch(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both sides of each limit; once, and never where the index is approximate."""

    def warned(rows: int, size: int) -> int:
        caplog.clear()
        monkeypatch.setattr(lance_store, "LARGE_ROWS", rows)
        monkeypatch.setattr(lance_store, "LARGE_BYTES", size)
        opened = Index.open(place, Looked())
        assert opened.search("17").exact
        assert opened.search("18").exact
        return sum("--ann ivf_flat" in record.message for record in caplog.records if record.levelno == logging.WARNING)

    size = 4 * ROWS * WIDTH
    assert [warned(ROWS, size), warned(ROWS - 1, size), warned(ROWS, size - 1)] == [0, 1, 1]


def test_what_cannot_have_one_is_refused(tmp_path: Path, index: Index) -> None:
    with pytest.raises(UserError, match="ivf_flat"):
        index.build_ann("ivf_flatt")  # type: ignore[arg-type]
    memory = Index(MemoryStore([Sample("a", None)], np.eye(1, WIDTH, dtype=np.float32), np.zeros((0, WIDTH), np.float32)))
    for call in (memory.build_ann, memory.drop_ann, memory.recall):
        with pytest.raises(UserError, match="needs an index on disk"):
            call()
