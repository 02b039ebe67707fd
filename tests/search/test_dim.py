"""An index of a smaller width: it equals one of rows cut by hand, remembers its width, and takes no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmcl
from mmcl.errors import UserError
from mmcl.interop.model import Model
from mmcl.search import Index
from tests.interop.test_model import make_towers

WIDTH, DIM = 8, 3


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model."""
    folder = tmp_path_factory.mktemp("model") / "model"
    Model(make_towers(), logit_scale=10.0, device="cpu").save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(name: str) -> Model:
    return mmcl.load_model(name, device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number, level in enumerate((0, 60, 120, 180, 240)):
        Image.new("RGB", (20, 20), (level, 255 - level, 90)).save(tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.txt").write_text(f"picture {number}")
    return tmp_path / "photos"


def place_of(kind: str, photos: Path, model: Any, **options: Any) -> Path:
    """Folder of an index on disk, or of one in memory that was saved."""
    place = photos.parent / kind
    if kind == "disk":
        Index.build(photos, model, out=place, **options)
    else:
        Index.build(photos, model, **options).save(place)
    return place


@pytest.mark.parametrize("kind", ["disk", "saved"])
def test_rows_and_queries_are_cut(kind: str, photos: Path, model: Model, name: str) -> None:
    place = place_of(kind, photos, model, dim=DIM, model_name=name)
    rows = model.encode_image(sorted(photos.glob("*.png")))[:, :DIM].astype(np.float64)
    query = model.encode_text("a cat")[0, :DIM].astype(np.float64)
    cosine = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    for given in (model, mmcl.TruncatedModel(model, DIM), name, None):
        index = Index.open(place, given, device="cpu")
        hits = index.search("a cat", top_k=5)
        assert [hit.path.stem for hit in hits] == [str(row) for row in np.argsort(-cosine)]
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosine)[::-1], atol=1e-6)
        assert index.store.dim == index.text_emb.shape[1] == DIM
    assert len(index.search(image=photos / "0.png", target="texts", top_k=9)) == 5


@pytest.mark.parametrize("kind", ["disk", "saved"])
@pytest.mark.parametrize(("built", "opened"), [(DIM, 4), (DIM, 2), (None, DIM)])
def test_another_width_is_refused(kind: str, built: int | None, opened: int, photos: Path, model: Model) -> None:
    place = place_of(kind, photos, model, dim=built)
    message = rf"{place}: made with another model \(\w{{12}} at a width of {built or WIDTH}, not \w{{12}} at {opened}\)"
    with pytest.raises(UserError, match=message):
        Index.open(place, mmcl.TruncatedModel(model, opened))


def test_a_build_goes_on_at_its_width_only(photos: Path, model: Model) -> None:
    place = place_of("disk", photos, model, dim=DIM)
    assert len(Index.build(photos, model, out=place, dim=DIM)) == 5
    for dim in (None, 4):
        with pytest.raises(UserError, match="at a width of 3, not"):
            Index.build(photos, model, out=place, dim=dim)
    assert Index.build(photos, model, out=place, dim=None, replace=True).store.dim == WIDTH


def test_sync_encodes_at_the_width(photos: Path, model: Model, name: str) -> None:
    place = place_of("disk", photos, model, dim=DIM, model_name=name)
    Image.new("RGB", (20, 20), (9, 9, 9)).save(photos / "new.png")
    with Index.open(place, mode="w", device="cpu") as index:
        assert index.sync().encoded == 1
    rebuilt = Index.build(photos, mmcl.TruncatedModel(model, DIM))
    np.testing.assert_allclose(Index.open(place).image_emb, rebuilt.image_emb, atol=1e-6)


def test_the_full_width_is_the_model_itself(photos: Path, model: Model) -> None:
    assert Index.build(photos, model, dim=WIDTH).store.model == model.fingerprint
    for dim in (0, WIDTH + 1, True, 2.0):
        with pytest.raises(UserError, match=r"dim is .*: give a whole number from 1 to 8"):
            Index.build(photos, model, dim=dim)  # type: ignore[arg-type]


def test_the_commands_take_it(photos: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from mmcl.cli.main import main

    place = str(photos.parent / "a.mmcl")
    assert main(["index", "build", str(photos), "--out", place, "--model", name, "--dim", "3", "--device", "cpu"]) == 0
    capsys.readouterr()
    found = []
    for words in ([place], [place, "--dim", "3"], [name, "--images", str(photos), "--dim", "3"]):
        assert main(["search", *words[:1], "a cat", *words[1:], "--device", "cpu"]) == 0
        found.append([line.split()[1] for line in capsys.readouterr().out.splitlines()])
    assert found[0] == found[1] == found[2]
    assert main(["search", place, "a cat", "--dim", "4", "--device", "cpu"]) == 2
    assert f"{place}: holds vectors of 3 columns, not 4: leave --dim out" in capsys.readouterr().err
    file = photos.parent / "rows.parquet"
    assert main(["embed", str(photos), "--model", name, "--out", str(file), "--dim", "3", "--no_cache", "--device", "cpu"]) == 0
    import pyarrow.parquet as parquet

    rows = parquet.read_table(file)["embedding"].combine_chunks()
    assert rows.type.list_size == DIM
    capsys.readouterr()
    assert main(["embed", str(photos), "--model", name, "--out", str(file), "--dim", "3", "--features", "--device", "cpu"]) == 2
    assert "--features are what comes before them" in capsys.readouterr().err
