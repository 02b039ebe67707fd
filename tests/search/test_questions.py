"""Questions of several parts, filters, dates, hybrid search and calibration, against values by hand and brute force."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmcl.data.captions import text_hash
from mmcl.data.sample import Sample
from mmcl.errors import UserError
from mmcl.search import Index, calibration
from mmcl.search.calibration import match_of, score_at
from mmcl.search.memory_store import MemoryStore
from mmcl.search.query import combined
from mmcl.search.ranking import Ranked, by_date, fused
from mmcl.testing.patterns import NAMES, PatternModel, pattern

NONE = np.zeros((0, 2))
RIGHT, UP, SLANTED = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[0.6, 0.8]])


def test_the_values_of_the_formula() -> None:
    half = combined(RIGHT, UP, NONE, text=[1], image=[1], negative=[])
    np.testing.assert_allclose(half, [math.sqrt(0.5)] * 2, rtol=1e-6)
    less = combined(RIGHT, NONE, SLANTED, text=[1], image=[], negative=[0.5])
    np.testing.assert_allclose(less, [0.7 / math.sqrt(0.65), -0.4 / math.sqrt(0.65)], rtol=1e-6)
    np.testing.assert_allclose(less, [0.8682, -0.4961], atol=1e-4)
    with pytest.raises(UserError, match="cancels out"):
        combined(RIGHT, NONE, RIGHT, text=[1], image=[], negative=[1])


@given(st.floats(1e-3, 1e3))
def test_only_the_ratio_of_weights_counts(scale: float) -> None:
    one = combined(RIGHT, UP, SLANTED, text=[1], image=[0.7], negative=[0.3])
    other = combined(RIGHT, UP, SLANTED, text=[scale], image=[0.7 * scale], negative=[0.3 * scale])
    np.testing.assert_allclose(one, other, atol=1e-6)


class Plane:
    """Embeds a text "3" as the unit vector at 3 degrees, and an image by the degrees in its only pixel."""

    fingerprint, has_text, logit_scale, logit_bias = "plane", True, None, None

    def encode_text(self, texts: Any, **options: Any) -> np.ndarray:
        return circle([float(text) for text in texts])

    def encode_image(self, images: Any, **options: Any) -> np.ndarray:
        return circle([float(np.asarray(image).ravel()[0]) for image in images])


def circle(degrees: Any) -> np.ndarray:
    angle = np.deg2rad(np.asarray(degrees, np.float64))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def pixel(degrees: int) -> np.ndarray:
    return np.full((1, 1, 3), degrees, np.uint8)


@pytest.fixture
def plane() -> Index:
    samples = [Sample(f"{n}.png", None, (str(n),)) for n in range(0, 180, 5)]
    degrees = [int(sample.captions[0]) for sample in samples]
    return Index(MemoryStore(samples, circle(degrees), circle(degrees), model="plane"), Plane())


def angle(index: Index, **question: Any) -> int:
    return int(index.search(top_k=1, **question)[0].caption)


def test_parts_are_added_with_their_weights(plane: Index) -> None:
    assert angle(plane, text=["10", "30"]) == 20
    assert angle(plane, text=["10", "30"], weights={"text": [1, 0]}) == 10
    assert angle(plane, text="10", image=pixel(50)) == 30
    assert angle(plane, text="10", image=[pixel(40), pixel(60)]) == 30, "several images share the weight of one"
    assert angle(plane, text="10", image=[pixel(40)], like=plane.search("60", top_k=1)[0].id) == 30
    assert angle(plane, text="10", negative="100") < 0 + 5, "the negative pushes away"
    assert angle(plane, text="10", image=pixel(90), weights={"image": 0}) == 10
    assert plane.search("10", negative=[pixel(90)])[0].caption == "0", "an image may be unwanted too"


def test_any_finds_what_is_near_one_of_the_images(plane: Index) -> None:
    images = [pixel(10), pixel(90)]
    assert angle(plane, image=images) == 50
    found = plane.search(image=images, combine="any", top_k=4)
    assert {found[0].caption, found[1].caption} == {"10", "90"}
    assert [hit.score for hit in found[:2]] == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"text": "10", "negative": "10", "weights": {"negative": 1}}, "cancels out"),
        ({"text": "10", "negative": "40", "weights": {"negative": 1.5}}, "give it half"),
        ({"text": "10", "weights": {"txt": 1}}, "did you mean 'text'"),
        ({"text": ["10", "20"], "weights": {"text": [1]}}, "1 for text, which has 2"),
        ({"text": "10", "weights": {"text": -1}}, "0 or more"),
        ({"text": "10", "weights": {"text": math.nan}}, "finite"),
        ({"text": "10", "weights": {"text": 0}}, "the weight 0"),
        ({"negative": "10"}, "give a text, an image, or both"),
        ({"like": "0123456789abcdef"}, "no image '0123456789abcdef'"),
        ({"text": "10", "top_k": 0}, "top_k"),
        ({"text": "10", "offset": -1}, "offset"),
        ({"text": "10", "sort": "size"}, "unknown order"),
        ({"text": "10", "min_score": math.nan}, "min_score"),
        ({"text": "10", "min_match": 0.5}, "needs a calibration"),
        ({"text": "10", "hybrid": True}, "full-text index"),
        ({"text": "x" * 30_000}, "30,000 characters"),
        ({"text": "\ud800"}, "not valid Unicode"),
    ],
)
def test_bad_questions_are_refused(question: dict[str, Any], message: str, plane: Index) -> None:
    with pytest.raises(UserError, match=message):
        plane.search(**question)


def test_offset_and_lowest_score(plane: Index) -> None:
    every = plane.search("50", top_k=36)
    assert plane.search("50", top_k=5, offset=7) == every[7:12]
    assert plane.search("50", offset=100) == []
    near = plane.search("50", top_k=36, min_score=0.98)
    assert [hit.score >= 0.98 for hit in every[: len(near) + 1]] == [True] * len(near) + [False]


def test_similar_leaves_out_the_image_itself(plane: Index) -> None:
    one = plane.search("50", top_k=1)[0]
    assert {hit.caption for hit in plane.similar(one.id, 2)} == {"45", "55"}


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0, 1))
def test_a_filter_gives_full_k_like_brute_force(seed: int, k: int, share: float) -> None:
    """Also ties, in the order of the collection, and filters that let almost nothing through."""
    rng = np.random.default_rng(seed)
    degrees = rng.integers(0, 60, 50)
    samples = [Sample(f"{n:02}.png", None, ("yes" if rng.random() < share else "no",)) for n in range(50)]
    index = Index(MemoryStore(samples, circle(degrees), circle(degrees), model="plane"), Plane())
    score = circle(degrees).astype(np.float64) @ circle([20])[0].astype(np.float64)
    passing = [n for n in range(50) if samples[n].captions == ("yes",)]
    expected = sorted(passing, key=lambda n: (-np.float32(score[n]), n))[:k]
    assert [hit.name for hit in index.search("20", where='captions contains "yes"', top_k=k)] == [
        samples[n].name for n in expected
    ]


def test_dates_sort_after_a_cut() -> None:
    import pyarrow as pa

    days = [datetime(2020, 1, 3), None, datetime(2020, 1, 1), datetime(2020, 1, 3)]
    rows = [Ranked(0, 0.7), Ranked(1, 0.9), Ranked(2, 0.8), Ranked(3, 0.75)]
    dates = pa.array(days, pa.timestamp("us"))
    assert [row.position for row in by_date(rows, dates, "taken")] == [2, 3, 0, 1]
    assert [row.position for row in by_date(rows, dates, "-taken")] == [3, 0, 2, 1]


def test_reciprocal_ranks() -> None:
    both = fused([Ranked(4, 0.9), Ranked(5, 0.8)], [4, 6, 7], {6: 0.1, 7: 0.0})
    assert [(row.position, round(row.fused or 0, 6)) for row in both] == [
        (4, 0.032787),
        (5, 0.016129),
        (6, 0.016129),
        (7, 0.015873),
    ]


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with dates, folders, and captions in several scripts; and a table of columns."""
    place = tmp_path_factory.mktemp("dated")
    for number, text in enumerate(["a sleeping dog", "二匹の犬が走る", "قطة سوداء", "a dog and a cat", "un perro"]):
        file = place / "photos" / ("trip" if number % 2 else "home") / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = f"20{20 - number}:01:02 03:04:05"
        Image.fromarray(pattern(number)).save(file, exif=exif if number != 4 else Image.Exif(), quality=95)
        file.with_suffix(".txt").write_text(f"{text}\npattern {number}")
    (place / "own.csv").write_text("image,rating,camera,day\nhome/0.jpg,5,a,2020-01-01\ntrip/1.jpg,2,b,2021-01-01\n")
    return place


@pytest.fixture(scope="module", params=["memory", "disk"])
def album(request: pytest.FixtureRequest, dated: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    out = None if request.param == "memory" else tmp_path_factory.mktemp("album") / "photos.mmcl"
    return Index.build(dated / "photos", PatternModel(), out=out)


def test_columns_of_the_files(album: Index) -> None:
    found = album.search(NAMES[0], where="taken >= 2018-01-01 and folder = 'home'", sort=None)
    assert sorted(hit.path.name for hit in found) == ["0.jpg", "2.jpg"]
    assert {hit.taken for hit in found} == {datetime(2020, 1, 2, 3, 4, 5), datetime(2018, 1, 2, 3, 4, 5)}
    assert [hit.path.name for hit in album.search(NAMES[0], where="not taken exists")] == ["4.jpg"]
    assert len(album.search(NAMES[0], where="width = 8 and height <= 8 and size > 10")) == 5
    item = album.item(found[0].id)
    assert (item.path.endswith(".jpg"), len(item.captions), item.width) == (True, 2, 8)
    thumb = album.thumb(item.id)
    assert thumb is not None
    assert thumb[:2] == b"\xff\xd8"


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("kind", ["folder", "table", "list"])
def test_the_image_of_an_item_can_be_what_is_not_wanted(kind: str, disk: bool, dated: Path, tmp_path: Path) -> None:
    files = sorted(dated.glob("**/*.jpg"))
    table = tmp_path / "images.csv"
    table.write_text("\n".join(["image", *map(str, files)]), encoding="utf-8")
    collection: Any = {"folder": dated, "table": table, "list": files}[kind]
    index = Index.build(collection, PatternModel(), out=tmp_path / "images.mmcl" if disk else None)
    first, second = (index.item(hit.id) for hit in index.search(NAMES[0], top_k=2))
    assert isinstance(first.image, Path)
    given: dict[str, Any] = {"like": [second.id], "top_k": len(files)}
    found = [(hit.path, hit.score) for hit in index.search(negative=first.image, **given)]
    assert found == [(hit.path, hit.score) for hit in index.search(negative=first.image.read_bytes(), **given)]


def test_own_columns(dated: Path, tmp_path: Path) -> None:
    index = Index.build(dated / "photos", PatternModel(), out=tmp_path / "index", columns=dated / "own.csv")
    found = index.search(NAMES[0], where='rating >= 2 and camera in ("a", "b") and day < 2020-06-01')
    assert [(hit.path.name, hit.meta["rating"]) for hit in found] == [("0.jpg", 5)]
    assert index.sync().commits == 0
    (dated / "own.csv").write_text((dated / "own.csv").read_text().replace(",5,", ",4,"))
    report = index.sync()
    assert (report.changed, report.encoded) == (1, 0)
    (dated / "own.csv").write_text((dated / "own.csv").read_text().replace(",4,", ",5,"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("rating\n5\n", "no column names the images"),
        ("image,Rating\na.jpg,5\n", "cannot be called 'Rating'"),
        ("image,width\na.jpg,5\n", "a column 'width' of its own"),
        ("image,rating\na.jpg,5\na.jpg,6\n", "several rows"),
    ],
)
def test_bad_columns_are_refused(table: str, message: str, dated: Path, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(table)
    with pytest.raises(UserError, match=message):
        Index.build(dated / "photos", PatternModel(), out=tmp_path / "index", columns=tmp_path / "own.csv")
    assert not (tmp_path / "index").exists()


def test_words_of_any_script_are_found(dated: Path, tmp_path: Path) -> None:
    index = Index.build(dated / "photos", PatternModel(), out=tmp_path / "index")
    for text, names in (("dog", {"0.jpg", "3.jpg"}), ("犬", {"1.jpg"}), ("سوداء", {"2.jpg"}), ("nothing", set())):
        place = index.store.column("path")
        assert {place[row].as_py()[-5:] for row, _ in index.store.full_text(text)} == names
    hits = index.search("dog pattern 5", hybrid=True, top_k=5)
    assert hits[0].fused == max(hit.fused or 0 for hit in hits)
    assert {hit.path.name for hit in index.search("dog", hybrid=True, where='folder = "trip"')} == {"1.jpg", "3.jpg"}


def captioned(rng: np.random.Generator, size: int, noise: float) -> Index:
    """Images and their captions, each its own direction with noise."""
    image = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(size, 16))), dim=1).float().numpy()
    text = image + noise * rng.normal(size=image.shape)
    text = (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32)
    samples = [Sample(f"{n}.png", None, (f"caption {n}",)) for n in range(size)]
    return Index(MemoryStore(samples, image, text))


def test_match_is_calibrated_on_the_captions() -> None:
    index = captioned(np.random.default_rng(0), 600, 0.1)
    found = index.calibrate()
    assert found.a > 0
    assert found.auroc > 0.95
    assert found.ece < 0.1
    scores = np.linspace(-1, 1, 50)
    match = [match_of(score, {"a": found.a, "b": found.b}) for score in scores]
    assert match == sorted(match)
    assert score_at(match_of(0.3, {"a": found.a, "b": found.b}), {"a": found.a, "b": found.b}) == pytest.approx(0.3)
    hits = index.search(like=index.store.items([3])[0].id, top_k=600)
    assert hits[0].match == pytest.approx(match_of(hits[0].score, {"a": found.a, "b": found.b}))
    likely = index.search(like=index.store.items([3])[0].id, top_k=600, min_match=0.5)
    assert likely == [hit for hit in hits if hit.match is not None and hit.match >= 0.5]


def test_the_calibration_holds_out_whole_images_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(300, 16)).astype(np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text = image.repeat(3, axis=0) + 0.2 * rng.normal(size=(900, 16)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)

    def of(order: np.ndarray) -> Index:
        samples = [Sample(f"{n}.png", None, tuple(f"caption {3 * n + part}" for part in range(3))) for n in order]
        return Index(MemoryStore(samples, image[order], text.reshape(300, 3, 16)[order].reshape(900, 16)))

    found = [of(order).calibrate() for order in (np.arange(300), rng.permutation(300))]
    assert [(one.a, one.b, one.auroc) for one in found[:1]] == [pytest.approx((one.a, one.b, one.auroc)) for one in found[1:]]
    store = of(np.arange(300)).store
    held = calibration._examples(store)[2]
    texts = sorted((f"caption {n}" for n in range(900)), key=text_hash)
    sides = [{bool(side) for side, text in zip(held, texts, strict=True) if int(text[8:]) // 3 == n} for n in range(300)]
    assert {len(side) for side in sides} == {1}
    assert 0.4 < held.mean() < 0.6


def test_match_is_missing_where_it_cannot_be_calibrated() -> None:
    with pytest.raises(UserError, match="200 different captions or more, and the index has 150"):
        captioned(np.random.default_rng(0), 150, 0.1).calibrate()
    backwards = captioned(np.random.default_rng(0), 400, 0.1)
    backwards.store.texts.vectors.neg_()
    with pytest.raises(UserError, match="score no higher with their images than without"):
        backwards.calibrate()
