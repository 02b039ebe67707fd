"""The index against brute force, and faults of its files."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from mmcl.errors import UserError
from mmcl.preprocess import Preprocess
from mmcl.search import Hits, Index
from mmcl.search.hits import Hit
from mmcl.testing.patterns import CLASSES, NAMES, SIZE, PatternModel, PatternSource, pattern


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of the patterns 0 to 5 with their names beside them, a broken image and an empty one."""
    place = tmp_path / "photos"
    (place / "more").mkdir(parents=True)
    for number in range(CLASSES):
        file = place / ("more" if number % 2 else ".") / f"{number}.png"
        Image.fromarray(pattern(number)).save(file)
        file.with_suffix(".txt").write_text(f"{NAMES[number]}\nalso pattern {number}\n")
    (place / "broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    (place / "empty.png").touch()
    return place


def test_finds_images_by_text_and_lists_the_unreadable_ones(folder: Path) -> None:
    index = Index.build(folder, PatternModel())
    assert len(index) == CLASSES
    assert sorted(Path(bad.name).name for bad in index.bad) == ["broken.jpg", "empty.png"]
    assert all(Path(bad.name).name in bad.reason for bad in index.bad)
    for number, name in enumerate(NAMES):
        best = index.search(name, top_k=3)[0]
        assert (best.path.name, best.caption) == (f"{number}.png", name)
        assert best.score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "no image"])
def test_only_the_bad_image_is_left_out(damage: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other image is decoded once and embedded once, in one pass, as it would be without the bad one."""
    files = [tmp_path / f"{number}.png" for number in range(40)]
    for number, file in enumerate(files):
        Image.fromarray(pattern(number % CLASSES)).save(file)
    whole = Index.build(files, PatternModel())
    if damage == "missing":
        files[7].unlink()
    elif damage == "no image":
        files[7].write_text("none")
    else:
        files[7].write_bytes(files[7].read_bytes()[: 60 if damage == "truncated" else 0])
    read: list[str] = []
    real = Image.open

    def counted(file: Path, **options: object) -> Image.Image:
        read.append(str(file))
        return real(file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", counted)
    model = PatternModel()
    if known:
        model.preprocess = Preprocess(size=SIZE)  # type: ignore[attr-defined]
    index = Index.build(files, model)
    assert [(bad.index, bad.name) for bad in index.bad] == [(7, str(files[7]))]
    assert "7.png" in index.bad[0].reason
    assert model.image_calls == [40]
    assert len(read) == len(set(read)) >= 39
    assert np.array_equal(index.image_emb, np.delete(whole.image_emb, 7, 0))
    assert [sample.name for sample in index.samples] == [str(file) for file in files[:7] + files[8:]]


def test_a_file_is_decoded_once_for_its_vector_and_its_small_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "photo.jpg"
    taken = Image.Exif()
    taken.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:05:04 03:02:01"
    large = Image.fromarray(pattern(1)).resize((400, 600))
    large.save(file, exif=taken, comment=b"private")
    names = {image.read_bytes(): image.name for image in folder.rglob("*") if image.is_file()}
    read: list[str] = []
    real = Image.open

    def counted(file: Path | io.BytesIO, **options: object) -> Image.Image:
        read.append(names[file.getvalue()] if isinstance(file, io.BytesIO) else Path(str(file)).name)
        return real(file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", counted)
    model = PatternModel()
    model.preprocess = Preprocess(size=SIZE)  # type: ignore[attr-defined]
    index = Index.build(folder, model, out=folder.parent / "index")
    assert read.count("photo.jpg") == read.count("0.png") == 1
    (item,) = (index.item(hit.id) for hit in index.search("pattern 1", top_k=9) if hit.name == str(file))
    assert (item.width, item.height, str(item.taken)) == (400, 600, "2020-05-04 03:02:01")
    thumb = index.thumb(item.id)
    assert thumb is not None
    assert b"private" not in thumb
    with real(io.BytesIO(thumb)) as small:
        assert (small.size, dict(small.getexif())) == ((171, 256), {})
    assert np.array_equal(index.image_emb, Index.build(folder, model).image_emb)


def test_only_the_bad_caption_is_left_out(folder: Path) -> None:
    captions: list[object] = ["pattern 2", {"en": "x"}, "y" * 30_000, ["z"], " "]
    rows = [{"image": "0.png", "text": captions}, {"image": "more/1.png", "text": "pattern 1"}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    index = Index.build(folder / "rows.jsonl", PatternModel())
    assert [sample.captions for sample in index.samples] == [("pattern 2",), ("pattern 1",)]
    assert len(index.text_emb) == 2
    assert [(bad.index, Path(bad.name).name) for bad in index.bad] == [(0, "0.png")] * 3


def test_a_folder_a_list_and_a_source_give_the_same(folder: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    by_folder, by_list = Index.build(str(folder), PatternModel()), Index.build(files, PatternModel(), batch_size=1)
    assert {hit.name: hit.score for hit in by_folder.search(NAMES[2])} == {
        hit.name: hit.score for hit in by_list.search(NAMES[2])
    }
    by_source = Index.build(PatternSource(20, seed=0), PatternModel())
    assert by_source.search(image=folder / "2.png")[0].name in {"row 2", "row 8", "row 14"}


def test_order_and_scores_equal_brute_force() -> None:
    model, source = PatternModel(), PatternSource(50, seed=0)
    index = Index.build(source, model)
    query = model.encode_text([NAMES[4]]).astype(np.float64)[0] + model.encode_image([pattern(1)]).astype(np.float64)[0]
    score = model.encode_image(source).astype(np.float64) @ (query / np.linalg.norm(query))
    hits = index.search(NAMES[4], image=pattern(1), top_k=50)
    assert [hit.name for hit in hits] == [f"row {row}" for row in np.argsort(-score, kind="stable")]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(score)[::-1], atol=1e-6)
    assert {int(hit.name[4:]) % CLASSES for hit in hits[:16]} == {1, 4}, "text and image both count"


def test_finds_captions_by_image(folder: Path) -> None:
    hits = Index.build(folder, PatternModel()).search(image=str(folder / "2.png"), target="texts", top_k=2)
    assert {hit.caption for hit in hits} == {"pattern 2", "also pattern 2"}
    assert {hit.path for hit in hits} == {folder / "2.png"}


def test_more_hits_than_rows_gives_all(folder: Path) -> None:
    index = Index.build(folder, PatternModel())
    assert len(index.search("pattern 0", top_k=1000)) == CLASSES
    assert len(index.search("pattern 0", target="texts", top_k=1000)) == 2 * CLASSES


@pytest.mark.parametrize("on_disk", [False, True])
def test_saved_index_finds_the_same_after_loading(on_disk: bool, folder: Path, tmp_path: Path) -> None:
    model = PatternModel()
    built = Index.build(folder, model)
    if on_disk:
        Index.build(folder, model, out=tmp_path / "index")
    else:
        built.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", model)
    for search in ({"text": NAMES[3]}, {"image": folder / "0.png"}, {"image": folder / "0.png", "target": "texts"}):
        assert loaded.search(**search) == built.search(**search)
    assert [(bad.name, bad.reason) for bad in loaded.bad] == [(bad.name, bad.reason) for bad in built.bad]


def test_hits_are_drawn_as_one_image(folder: Path, tmp_path: Path) -> None:
    Index.build(folder, PatternModel()).search(NAMES[3]).save(tmp_path / "hits.png", columns=4)
    with Image.open(tmp_path / "hits.png") as sheet:
        assert sheet.width > 4 * 170
        assert sheet.height > 2 * 240
        # Below the query, the first image begins; where it stands, is where most of its pattern is.
        best = np.asarray(sheet.convert("RGB").crop((30, 79, 201, 250)).resize((8, 8), Image.Resampling.BOX)).astype(float)
        query = np.asarray(sheet.crop((20, 20, 300, 60)))
    assert np.corrcoef(best.ravel(), pattern(3).ravel())[0, 1] > 0.9
    assert query.min() < 100, "the query is written above"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".pdf"])
def test_what_is_hard_to_draw_is_drawn(suffix: str, tmp_path: Path) -> None:
    """Captions of any script and length, images of any shape, one hit or many, queries by image or by both."""
    captions = ["", "قطة " * 90, "笑う猫" * 90, "a" * 999, "$x_1$ <b>", "\ud800\x1b[2J"]
    shapes = [(1, 1), (2, 3000), (3000, 2), (30, 20), (400, 400), (5, 5)]
    hits = [
        Hit(f"folder/{n}.png", 0.5, caption, np.zeros((*shape, 3), np.uint8))
        for n, (caption, shape) in enumerate(zip(captions, shapes, strict=True))
    ]
    for number, found in enumerate(
        (hits, hits[:1], Hits(hits, text="猫 " * 99), Hits(hits, image=pattern(0)), Hits(hits, text="a", image=pattern(0)))
    ):
        path = tmp_path / f"{number}{suffix}"
        (found if isinstance(found, Hits) else Hits(found)).save(path)
        assert 1000 < path.stat().st_size < 400_000


def test_saving_over_an_index_leaves_one_or_the_other(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, place = PatternModel(), tmp_path / "index"
    Index.build(folder, model).save(place)
    other, replace = Index.build(PatternSource(9, seed=0), model), os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "index.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        other.save(place)
    assert len(Index.load(place, model)) == CLASSES
    monkeypatch.undo()
    other.save(place)
    assert len(Index.load(place, model)) == 9
    assert len(list(place.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("on_disk", [False, True])
def test_another_model_is_refused(on_disk: bool, folder: Path, tmp_path: Path) -> None:
    if on_disk:
        Index.build(folder, PatternModel(), out=tmp_path / "index")
    else:
        Index.build(folder, PatternModel()).save(tmp_path / "index")
    other = PatternModel()
    other.fingerprint = "retrained"
    with pytest.raises(UserError, match=r"made with another model \(patterns, not retrained\)"):
        Index.load(tmp_path / "index", other)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "../../../etc/passwd"},
        {"digest": "0" * 16},
        {"digest": 7},
        {"samples": []},
        {"samples": [{"name": "a", "captions": []}]},
        {"samples": [{"name": "a"}]},
        {"samples": None},
        {"bad": [{"unknown": 1}]},
    ],
)
def test_a_damaged_index_is_a_user_error(change: dict[str, object], folder: Path, tmp_path: Path) -> None:
    model = PatternModel()
    Index.build(folder, model).save(tmp_path / "index")
    content = json.loads((tmp_path / "index" / "index.json").read_text(encoding="utf-8"))
    (tmp_path / "index" / "index.json").write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(UserError, match=r"build the index again|no such file"):
        Index.load(tmp_path / "index", model)


def test_truncated_embeddings_and_no_index_are_user_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: no such index; `mmcl index build IMAGES --out .*nothing` makes one"):
        Index.load(tmp_path / "nothing", PatternModel())
    Index.build(folder, PatternModel()).save(tmp_path / "index")
    (file,) = (tmp_path / "index").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged"):
        Index.load(tmp_path / "index", PatternModel())


def test_a_flipped_bit_is_seen(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    Index.build(folder, PatternModel()).save(index)
    (file,) = index.glob("embeddings-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        Index.load(index, PatternModel())


def test_a_model_without_texts_searches_by_image(folder: Path) -> None:
    index = Index.build(folder, PatternModel(has_text=False))
    assert index.search(image=folder / "4.png")[0].path == folder / "4.png"
    with pytest.raises(UserError, match="search by text needs a model with a text tower"):
        index.search("pattern 4")
    with pytest.raises(UserError, match="no texts to find"):
        index.search(image=folder / "4.png", target="texts")


def test_bad_queries_are_user_errors(folder: Path) -> None:
    index = Index.build(folder, PatternModel())
    with pytest.raises(UserError, match="give a text, an image, or both"):
        index.search()
    with pytest.raises(UserError, match="top_k must be at least 1"):
        index.search("pattern 0", top_k=0)
    with pytest.raises(UserError, match="did you mean 'texts'"):
        index.search("pattern 0", target="text")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"broken\.jpg"):
        index.search(image=folder / "broken.jpg")


def test_empty_collections_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        Index.build(tmp_path / "empty", PatternModel())
    with pytest.raises(UserError, match="is empty"):
        Index.build([], PatternModel())
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of 1 image can be read; the first: .*a\.png"):
        Index.build([tmp_path / "a.png"], PatternModel())
    with pytest.raises(UserError, match="no hits"):
        Hits().save(tmp_path / "hits.png")


@pytest.mark.parametrize("listed", [True, False])
def test_names_that_are_not_utf_8_are_kept_and_escaped(listed: bool, tmp_path: Path) -> None:
    place = tmp_path / "caf\udce9"
    place.mkdir()
    files = [place / "na\udcefve.png", place / "plain.png"]
    for number, file in enumerate(files):
        Image.fromarray(pattern(number)).save(file)
    (place / "br\udce9ken.png").touch()
    Index.build([*files, place / "br\udce9ken.png"] if listed else place, PatternModel(), out=tmp_path / "index")
    index = Index.load(tmp_path / "index", PatternModel())
    assert sorted(hit.name for hit in index.search(NAMES[0])) == [
        f"{tmp_path}/caf\\udce9/na\\udcefve.png",
        f"{tmp_path}/caf\\udce9/plain.png",
    ]
    assert index.search(NAMES[0])[0].path == files[0], "the file is found again"
    assert [bad.name for bad in index.bad] == [f"{tmp_path}/caf\\udce9/br\\udce9ken.png"]


def test_an_index_json_of_another_program_is_neither_read_nor_replaced(folder: Path) -> None:
    (folder / "index.json").write_text('{"photos": 8}')
    assert not Index.is_saved(folder)
    index = Index.build(folder, PatternModel())
    with pytest.raises(UserError, match=r"holds .*, and no index of mmcl; give a new folder"):
        index.save(folder)
    assert (folder / "index.json").read_text() == '{"photos": 8}'
    index.save(folder / "index")
    assert Index.is_saved(folder / "index")
    index.save(folder / "index")


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_is_not_searched_for(text: str, folder: Path) -> None:
    with pytest.raises(UserError, match="the text to search for is empty"):
        Index.build(folder, PatternModel()).search(text)
