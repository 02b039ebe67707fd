"""The identity of a dataset depends on the contents of its samples, and not on their names or locations."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmcl.data import SOURCES
from mmcl.data import identity as identity_module
from mmcl.data.derived.label_captions import LabelCaptions
from mmcl.data.derived.mixture import Mixture
from mmcl.data.derived.subset import Subset, text_groups
from mmcl.data.derived.weighted_captions import WeightedCaptions
from mmcl.data.identity import identity_of, spread_rows
from mmcl.data.open import open_source
from mmcl.data.sample import Sample
from mmcl.data.source import SampleList, Source
from mmcl.data.sources import emoji as emoji_module
from tests.data.servers import serve
from tests.data.tars import write_tar

NAMES = [f"{number}.bmp" for number in range(6)]
"""Of a format in which all images of a size take the same number of bytes."""


def noise(seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(256, size=(len(NAMES), 28, 28)).astype(np.uint8))


def write_images(folder: Path, seed: int) -> list[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(NAMES, noise(seed), strict=True):
        Image.fromarray(pixels).save(folder / name)
    return [(folder / name).read_bytes() for name in NAMES]


def write_table(folder: Path, seed: int) -> str:
    write_images(folder, seed)
    (folder / "list.csv").write_text("image,caption,label\n" + "".join(f"{name},of {name},{name > '2'}\n" for name in NAMES))
    return str(folder / "list.csv")


def write_parquet(folder: Path, seed: int) -> str:
    contents = write_images(folder / "images", seed)
    rows = [{"image": content, "caption": name} for content, name in zip(contents, NAMES, strict=True)]
    (folder / "table").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "table" / "list.parquet")
    return str(folder / "table" / "list.parquet")


def write_shards(folder: Path, seed: int) -> str:
    contents = zip(NAMES, write_images(folder / "images", seed), strict=True)
    members = [member for name, content in contents for member in ((name, content), (f"{name[0]}.txt", b"a caption"))]
    return str(write_tar(folder / "0.tar", members))


def write_mnist(folder: Path, seed: int) -> str:
    place = folder / "MNIST" / "raw"
    place.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        pixels = np.stack(noise(seed)).tobytes()
        (place / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, len(NAMES), 28, 28) + pixels)
        (place / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(NAMES)) + bytes(range(len(NAMES))))
    return str(folder)


def write_places(folder: Path, seed: int) -> str:
    """What `torchvision.datasets.ImageFolder` reads."""
    for name in ("cat", "dog"):
        write_images(folder / name, seed)
    return str(folder)


def of_folder(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Source:
    write_images(folder, seed)
    return open_source("folder", str(folder))


def of_emoji(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Source:
    shutil.copytree(emoji_module.FOLDER, folder, dirs_exist_ok=True)
    path = folder / "noto.parquet"
    table = pq.read_table(path).slice(0, len(NAMES))
    images = [{"bytes": content, "path": None} for content in write_images(folder, seed)]
    column = table.column_names.index("image")
    pq.write_table(table.set_column(column, "image", pa.array(images, table.schema.field("image").type)), path)
    with monkeypatch.context() as patch:
        patch.setattr(emoji_module, "FOLDER", folder)
        return open_source("emoji", None, None, {"vendors": ["noto"], "fold": "all"})


def of_digits(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Source:
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    digits.images = np.random.default_rng(seed).integers(17, size=digits.images.shape).astype(float)
    with monkeypatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", lambda: digits)
        return open_source("digits", None, None, {"fold": "test"})


Opened = Callable[[Path, int, pytest.MonkeyPatch], Source]

OPENED: dict[str, Opened] = {
    "folder": of_folder,
    "table": lambda folder, seed, patch: open_source("table", write_table(folder, seed)),
    "table of a root": lambda folder, seed, patch: open_source(
        "table", write_table(folder, seed), None, {"image_root": str(folder)}
    ),
    "table of encoded images": lambda folder, seed, patch: open_source("table", write_parquet(folder, seed)),
    "webdataset": lambda folder, seed, patch: open_source("webdataset", write_shards(folder, seed), str(folder)),
    "huggingface": lambda folder, seed, patch: open_source(
        "huggingface", str(Path(write_parquet(folder, seed)).parent), str(folder / "cache")
    ),
    "torchvision": lambda folder, seed, patch: open_source(
        "torchvision", None, write_mnist(folder, seed), {"dataset": "MNIST", "train": False}
    ),
    "torchvision of files": lambda folder, seed, patch: open_source(
        "torchvision", None, write_places(folder, seed), {"dataset": "ImageFolder"}
    ),
    "emoji": of_emoji,
    "digits": of_digits,
}
WITHOUT_IMAGES = {"emoji_texts", "embeddings"}
DERIVED: dict[str, Callable[[Source], Source]] = {
    "Subset": lambda source: Subset(source, np.arange(4)),
    "Mixture": lambda source: Mixture({"one": source, "two": Subset(source, np.arange(2))}),
    "WeightedCaptions": lambda source: WeightedCaptions(source, [1, 2]),
    "LabelCaptions": lambda source: LabelCaptions(source, ["a {}."]),
}


def test_the_suite_covers_the_registry() -> None:
    assert {name.split()[0] for name in OPENED} | WITHOUT_IMAGES == set(SOURCES)


@pytest.mark.parametrize("name", OPENED)
def test_other_images_under_an_equal_list_are_other_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, noisy, copied = (
        OPENED[name](tmp_path / place, seed, monkeypatch) for place, seed in zip("abc", (1, 2, 1), strict=True)
    )
    assert len(clean) == len(noisy) > 0
    assert [clean[row].captions for row in range(len(clean))] == [noisy[row].captions for row in range(len(clean))]
    assert clean.identity != noisy.identity
    assert clean.identity == copied.identity


@pytest.mark.parametrize("name", DERIVED)
def test_derived_sources_have_the_identity_of_what_they_show(name: str, tmp_path: Path) -> None:
    derive = DERIVED[name]
    sources = [open_source("table", write_table(tmp_path / place, seed)) for place, seed in zip("abc", (1, 2, 1), strict=True)]
    clean, noisy, copied = map(derive, sources)
    assert clean.identity != noisy.identity
    assert clean.identity == copied.identity


@pytest.mark.parametrize("name", ["folder", "table of images", "table of encoded images", "webdataset"])
def test_a_copy_is_split_alike(name: str, tmp_path: Path) -> None:
    """Without captions, samples go by their names; not by where these lie."""

    def opened(place: Path) -> Source:
        if name == "folder":
            write_images(place / "sub", 1)
            return open_source("folder", str(place))
        if name == "webdataset":
            write_tar(place / "0.tar", dict(zip(NAMES, write_images(place / "images", 1), strict=True)))
            return open_source("webdataset", str(place / "0.tar"), str(tmp_path))
        if name == "table of images":
            write_table(place, 1)
            (place / "bare.csv").write_text("image\n" + "\n".join(NAMES))
            return open_source("table", str(place / "bare.csv"))
        path = Path(write_parquet(place, 1))
        pq.write_table(pq.read_table(path).select(["image"]), path)
        return open_source("table", str(path))

    here, elsewhere = (text_groups(opened(tmp_path / place)) for place in ("here", "elsewhere/deep"))
    assert len(set(here.tolist())) == len(NAMES)
    np.testing.assert_array_equal(here, elsewhere)


def test_labels_of_a_list_belong_to_the_fingerprint(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    found = set()
    for label in ("cat", "dog", "cow"):
        (tmp_path / "captions.csv").write_text(f"image,caption,label\n0.bmp,one,cat\n1.bmp,two,{label}\n")
        found.add(open_source("folder", str(tmp_path)).fingerprint)
    assert len(found) == 3


def test_images_replaced_in_place_are_other_data(tmp_path: Path) -> None:
    first = open_source("folder", str(tmp_path / "photos") if write_images(tmp_path / "photos", 1) else None)
    before = first.identity
    times = (tmp_path / "photos" / NAMES[0]).stat()
    write_images(tmp_path / "photos", 2)
    os.utime(tmp_path / "photos" / NAMES[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert open_source("folder", str(tmp_path / "photos")).identity != before
    write_images(tmp_path / "photos", 1)
    assert open_source("folder", str(tmp_path / "photos")).identity == before
    assert first.identity == before, "an open source is read once"


def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path, 1)
    read = Mock(wraps=identity_module._content)
    monkeypatch.setattr(identity_module, "_content", read)
    identities = {open_source("table", path).identity for _ in range(3)}
    assert (len(identities), read.call_count) == (1, len(NAMES))
    assert Subset(open_source("table", path), np.arange(2)).identity not in identities
    assert read.call_count == len(NAMES) + 2


def test_a_large_table_replaced_by_one_of_its_size_and_time_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a copy that keeps times leaves it: what was made of the first is not used for the second."""
    for module in ("source", "table_file"):
        monkeypatch.setattr(f"mmcl.data.sources.tables.{module}.LARGE", 0)
    path = Path(write_table(tmp_path / "data", 1))
    first = open_source("table", str(path), str(tmp_path))
    other = tmp_path / "other.csv"
    other.write_text(path.read_text().replace("of 0.bmp", "of 0.gif"))
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    fingerprint = first.fingerprint
    other.replace(path)
    second = open_source("table", str(path), str(tmp_path))
    assert second[0].captions == ("of 0.gif",)
    assert second.fingerprint != fingerprint


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\xff\xfe"])
def test_a_damaged_cache_of_it_is_not_used(damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCL_DATA_ROOT", str(tmp_path / "root"))
    path = write_table(tmp_path, 1)
    identity = open_source("table", path).identity
    (note,) = (tmp_path / "root" / "index").glob("identity-*.txt")
    note.write_bytes(damage)
    assert open_source("table", path).identity == identity
    assert note.read_text() == identity


def test_where_nothing_can_be_kept_it_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").write_text("a file, and no folder")
    monkeypatch.setenv("MMCL_DATA_ROOT", str(tmp_path / "root"))
    path = write_table(tmp_path / "data", 1)
    assert identity_of(open_source("table", path, str(tmp_path))) == identity_of(open_source("table", path, str(tmp_path)))


class Listed(SampleList):
    """Samples in memory under one fingerprint."""

    fingerprint = "the same"

    def __init__(self, *samples: Sample, **facts: Any):
        self._samples = samples
        for name, value in facts.items():
            setattr(self, name, value)


def painted(mode: str, color: Any) -> Image.Image:
    return Image.new(mode, (2, 2), color)


def palette(*color: int) -> Image.Image:
    image = painted("P", 0)
    image.putpalette(color)
    return image


PIXELS = np.arange(12, dtype=np.uint8)
DIFFERENT: dict[str, tuple[Source, Source]] = {
    "captions": (Listed(Sample("a", None, ("x", "y"))), Listed(Sample("a", None, ("xy",)))),
    "positives": (Listed(Sample("a", None, positives=("x",))), Listed(Sample("a", None, negatives=("x",)))),
    "label": (Listed(Sample("a", None, label=0)), Listed(Sample("a", None))),
    "class names": (Listed(Sample("a", None), class_names=["x"]), Listed(Sample("a", None), class_names=["y"])),
    "templates": (Listed(Sample("a", None), templates=("x {}",)), Listed(Sample("a", None), templates=("{}",))),
    "ids": (Listed(Sample("a", None), ids=np.array([1])), Listed(Sample("a", None))),
    "scores": (Listed(Sample("a", None), scores=np.array([1.0])), Listed(Sample("a", None), scores=np.array([2.0]))),
    "shape": (Listed(Sample("a", PIXELS.reshape(3, 4))), Listed(Sample("a", PIXELS.reshape(4, 3)))),
    "palette": (Listed(Sample("a", palette(9, 9, 9))), Listed(Sample("a", palette(7, 7, 7)))),
    "bytes": (Listed(Sample("a", b"x")), Listed(Sample("a", b"y"))),
    "number": (Listed(Sample("a", b"x")), Listed(Sample("a", b"x"), Sample("a", b"x"))),
    "order": (Listed(Sample("a", b"x"), Sample("a", b"y")), Listed(Sample("a", b"y"), Sample("a", b"x"))),
    "a missing file": (Listed(Sample("a", "/nowhere/a.png")), Listed(Sample("a", None))),
    "an unusable sample": (Listed(Sample("a", b"x", problem="is cut short")), Listed(Sample("a", b"x"))),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_every_part_of_a_sample_belongs_to_it(what: str) -> None:
    one, other = DIFFERENT[what]
    assert one.identity != other.identity


def test_names_and_storage_do_not_belong_to_it(tmp_path: Path) -> None:
    contents = write_images(tmp_path, 1)
    in_memory = Listed(*(Sample(f"row {row}", content) for row, content in enumerate(contents)))
    in_files = Listed(*(Sample(name, tmp_path / name) for name in NAMES))
    assert in_memory.identity == in_files.identity
    assert Listed(Sample("a\0", "a\0.png")).identity == Listed(Sample("b", "/nowhere/b.png")).identity


def test_shards_on_a_server_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of one size and time, for which this server has no ETag, are two; and both are what they are on the disk."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = tmp_path / "served"
    for name, seed in (("clean", 1), ("noisy", 2)):
        os.utime(write_shards(served / name, seed), (1_000_000_000, 1_000_000_000))
    with serve(served) as server:
        for etags in (True, False):
            server.etags = etags
            urls = [f"{server.url}/{name}/0.tar" for name in ("clean", "noisy", "clean")]
            opened = [open_source("webdataset", url, str(tmp_path / f"root {etags}"), {"cache_gb": 0}) for url in urls * 2]
            clean, noisy, *again = (source.identity for source in opened[:4])
            assert again == [clean, clean]
            assert clean != noisy
            assert clean == open_source("webdataset", str(served / "clean/0.tar"), str(tmp_path / "local")).identity
            before = len(server.requests())
            assert [source.identity for source in opened[4:]] == [noisy, clean]
            assert len(server.requests()) == before, "nothing is fetched again"


@pytest.mark.parametrize(("size", "count", "least"), [(5, 9, 5), (9, 9, 9), (10_000, 100, 90)])
def test_spread_rows(size: int, count: int, least: int) -> None:
    rows = spread_rows(size, count)
    assert least <= len(rows) == len(set(rows.tolist())) <= count
    assert 0 <= rows.min() <= size / 20
    assert size * 0.95 - 1 <= rows.max() < size
    np.testing.assert_array_equal(rows, spread_rows(size, count))


def test_pipes_and_endless_files_are_not_read(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with (tmp_path / "b.png").open("wb") as file:
        file.truncate(2**40)
    os.mkfifo(tmp_path / "c.png")
    assert len(identity_of(open_source("folder", str(tmp_path)))) == 64
