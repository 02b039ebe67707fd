"""The page's answers are those of the index."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from mmcl import ZeroShotClassifier
from mmcl.errors import UserError
from mmcl.search import Index
from mmcl.serve import gallery as galleries
from mmcl.serve.gallery import Gallery, Query
from mmcl.serve.pictures import BytesCache
from mmcl.serve.text_cache import TextCache
from mmcl.testing.patterns import CLASSES, NAMES, PatternModel, pattern
from tests.serve.server import Served

STORES: dict[str, dict[str, Any]] = {
    "memory": {},
    "disk": {"dtype": "float32"},
    "narrow": {"dtype": "float16", "narrow": "int8"},
    "narrow-alone": {"dtype": "none", "narrow": "int8"},
}


@pytest.fixture(scope="module", params=STORES)
def index(request: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The collection in every kind of store."""
    out = None if request.param == "memory" else tmp_path_factory.mktemp("index") / "photos.mmcl"
    return Index.build(folder, PatternModel(), out=out, **STORES[request.param])


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pattern(number)).save(file, "PNG")
    return file.getvalue()


def test_about(server: Served, index: Index) -> None:
    about = server.get("/api/health").json
    assert (about["name"], about["rows"], about["exact"], about["has_text"]) == ("photos", 30, index.store.narrow is None, True)
    assert set(about["suggestions"]) <= {*NAMES}
    assert about["suggestions"]


def test_a_question_is_answered_as_by_the_index(server: Served, index: Index) -> None:
    found = server.get(f"/api/search?q={NAMES[2].replace(' ', '+')}&negative={NAMES[1].replace(' ', '+')}&k=7&offset=2").json
    expected = index.search(NAMES[2], negative=NAMES[1], top_k=7, offset=2)
    assert [(row["id"], row["caption"]) for row in found["rows"]] == [(hit.id, hit.caption) for hit in expected]
    assert [row["score"] for row in found["rows"]] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert (found["total"], found["exact"]) == (30, index.store.narrow is None)


def test_pictures_examples_and_filters(server: Served, index: Index) -> None:
    by_picture = server.post_form("/api/search", [png(3)], k="5").json["rows"]
    assert [row["id"] for row in by_picture] == [hit.id for hit in index.search(image=png(3), top_k=5)]
    like = by_picture[0]["id"]
    both = server.post_form("/api/search", [png(3), png(4)], q=NAMES[0], like=like, where='folder under "odd"').json
    expected = index.search(NAMES[0], image=[png(3), png(4)], like=like, where='folder under "odd"', top_k=60)
    assert [row["id"] for row in both["rows"]] == [hit.id for hit in expected]
    assert both["total"] == 15
    similar = server.get(f"/api/similar/{like}?k=4").json["rows"]
    assert [row["id"] for row in similar] == [hit.id for hit in index.similar(like, 4)]


def test_without_a_question_the_collection_is_shown_in_its_order(server: Served, index: Index) -> None:
    rows = server.get("/api/search?k=500").json["rows"]
    assert [row["name"] for row in rows] == [item.path for item in index.store.items(range(30))]
    assert "score" not in rows[0]
    part = server.get("/api/search?k=5&offset=28").json
    assert [row["id"] for row in part["rows"]] == [row["id"] for row in rows[28:]]
    newest = server.get("/api/search?sort=-taken&k=30").json["rows"]
    dates = [row["taken"] for row in newest]
    assert dates == sorted(dates, reverse=True)
    assert dates[0].startswith("2012-01-")
    filtered = server.get("/api/search?where=taken+%3E%3D+2012-01-01+and+taken+%3C+2013-01-01").json
    assert filtered["total"] == len(filtered["rows"]) == 10


def test_what_an_image_should_not_show_needs_what_it_should(server: Served) -> None:
    answer = server.get("/api/search?negative=a+ring")
    assert answer.status == 422
    assert "say what to look for" in answer.json["error"]


def test_an_item_and_its_images(server: Served, folder: Path) -> None:
    row = server.get("/api/search?k=1").json["rows"][0]
    item = server.get(f"/api/item/{row['id']}").json
    assert (item["name"], item["width"], item["height"]) == ("even/00.jpg", 64, 64)
    assert item["captions"] == [NAMES[0], "number 0"]
    assert str(folder) not in json.dumps(item)
    for kind in ("thumb", "image"):
        answer = server.get(f"/api/{kind}/{row['id']}")
        assert "immutable" in answer.headers["cache-control"]
        shown = np.asarray(Image.open(io.BytesIO(answer.body)).convert("RGB"), np.float32)
        given = np.asarray(Image.open(folder / "even" / "00.jpg").convert("RGB"), np.float32)
        assert np.abs(shown - given).mean() < 12


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    Image.fromarray(pattern(0)).resize((3000, 1500)).save(tmp_path / "large.png")
    gallery = Gallery(Index.build(tmp_path, PatternModel()).store, PatternModel(), "large")
    one = gallery.search(Query())["rows"][0]["id"]
    assert Image.open(io.BytesIO(gallery.image(one))).size == (2048, 1024)
    assert Image.open(io.BytesIO(gallery.thumb(one))).size == (256, 128)


def test_facets(server: Served) -> None:
    found = server.get("/api/facets").json
    assert found["folders"] == [{"value": "even", "count": 15}, {"value": "odd", "count": 15}]
    assert found["years"] == [{"value": year, "count": 10} for year in (2012, 2011, 2010)]
    assert found["labels"] == found["folders"], "folders of images are classes"
    assert found["columns"]["taken"] == "date"


def test_labels_are_compared_as_by_the_classifier(server: Served, index: Index) -> None:
    labels = list(NAMES[:3])
    found = server.post("/api/zeroshot", {"labels": labels, "templates": ["{}"]}).json
    assert len(found["rows"]) == 30
    classify = ZeroShotClassifier(index.model, candidate_labels=labels, templates=["{}"])
    best = {row["id"]: labels[int(np.argmax(row["scores"]))] for row in found["rows"]}
    for item in index.store.items(range(30)):
        assert isinstance(item.image, str | Path)
        assert best[item.id] == classify(item.image)[0]["label"]
    assert found["counts"] == [sum(label == one for one in best.values()) for label in labels]
    some = server.post("/api/zeroshot", {"labels": labels, "where": 'folder = "odd"'}).json
    assert sum(some["counts"]) == 15
    assert server.post("/api/zeroshot", {"labels": ["a", "a"]}).status == 422
    assert server.post("/api/zeroshot", {"labels": ["a"], "templates": ["no slot"]}).status == 422
    assert server.post("/api/zeroshot", {"labels": []}).status == 422


def test_duplicates_are_those_of_the_index(server: Served, index: Index) -> None:
    found = server.get("/api/duplicates?threshold=0.99").json
    expected = index.duplicates(0.99)
    assert found["total"] == len(expected) == len(found["groups"])
    groups = {group.keep: group for group in expected}
    for group in found["groups"]:
        own = groups[group["keep"]]
        assert [row["id"] for row in group["rows"]] == list(own.ids)
        assert [row["score"] for row in group["rows"]] == pytest.approx(list(own.scores), abs=1e-5)
        assert group["lowest"] == pytest.approx(own.lowest, abs=1e-5)
    lowest = [group["lowest"] for group in found["groups"]]
    assert lowest == sorted(lowest, reverse=True)
    for query in ("threshold=nan", "threshold=2", "threshold=0", "cursor=-1"):
        assert server.get(f"/api/duplicates?{query}").status == 422


def test_duplicates_of_too_many_images_are_for_the_command_line(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(galleries, "MAX_PAIRWISE", 10)
    with pytest.raises(UserError, match="takes minutes: use `mmcl dedup`"):
        gallery.duplicates(0.97, 0)


def test_export(server: Served) -> None:
    rows = server.get("/api/search?k=3").json["rows"]
    ids = [row["id"] for row in rows]
    answer = server.post("/api/export", {"ids": ids, "format": "json"})
    assert [(row["rank"], row["id"], row["caption"]) for row in answer.json] == [
        (rank, row["id"], row["caption"]) for rank, row in enumerate(rows, 1)
    ]
    table = server.post("/api/export", {"ids": ids})
    assert "attachment" in table.headers["content-disposition"]
    assert [row["id"] for row in csv.DictReader(io.StringIO(table.body.decode()))] == ids


def test_an_exported_table_has_no_formula(tmp_path: Path) -> None:
    Image.fromarray(pattern(0)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("=HYPERLINK(1)\n")
    gallery = Gallery(Index.build(tmp_path, PatternModel()).store, PatternModel(), "a")
    one = gallery.search(Query())["rows"][0]["id"]
    [row] = csv.DictReader(io.StringIO(gallery.export([one], "csv")))
    assert row["caption"] == "'=HYPERLINK(1)"


def test_a_text_is_encoded_once(index: Index) -> None:
    with patch.object(PatternModel, "encode_text", autospec=True, side_effect=PatternModel.encode_text) as encode:
        cache = TextCache(PatternModel(), kept=2)
        first = cache.encode_text([NAMES[0], NAMES[1], NAMES[0]])
        assert encode.call_count == 2
        cache.encode_text([NAMES[2]])  # the second is dropped, which was asked for less recently
        cache.encode_text([NAMES[0]])
        assert encode.call_count == 3
        cache.encode_text([NAMES[1]])
        assert encode.call_count == 4
    assert np.allclose(first, PatternModel().encode_text([NAMES[0], NAMES[1], NAMES[0]]))


def test_recent_files_are_kept_up_to_a_size() -> None:
    made: list[int] = []

    def file(key: int) -> bytes:
        def make() -> bytes:
            made.append(key)
            return bytes(40)

        return cache.get(key, make)

    cache = BytesCache(max_bytes=100)
    for key in (1, 2, 1, 3, 1, 2):
        assert len(file(key)) == 40
    assert made == [1, 2, 3, 2]


def test_a_model_of_images_alone(folder: Path) -> None:
    model = PatternModel()
    model.has_text = False
    index = Index.build(folder, model)
    gallery = Gallery(index.store, index.model, "photos")
    assert gallery.about()["suggestions"] == []
    assert not gallery.about()["has_text"]
    assert len(gallery.search(Query(images=[png(1)], k=3))["rows"]) == 3
    with pytest.raises(UserError, match="needs a model with a text tower"):
        gallery.search(Query(texts=["a ring"]))


@pytest.mark.parametrize("number", range(CLASSES))
def test_every_pattern_is_found_first(number: int, server: Served) -> None:
    rows = server.get(f"/api/search?q={NAMES[number].replace(' ', '+')}&k=5").json["rows"]
    assert {row["caption"] for row in rows} == {NAMES[number]}
