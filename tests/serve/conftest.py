"""A collection of patterns, photographs with dates among them, and a page over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmcl.search import Index
from mmcl.serve.gallery import Gallery
from mmcl.testing.patterns import CLASSES, NAMES, PatternModel, pattern
from tests.serve.server import Served, served


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of the six patterns in two folders, with captions."""
    place = tmp_path_factory.mktemp("serve") / "photos"
    for number in range(30):
        file = place / ("even" if number % 2 == 0 else "odd") / f"{number:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = f"20{10 + number // 10}:01:{1 + number % 28:02} 12:00:00"
        Image.fromarray(pattern(number % CLASSES)).resize((64, 64)).save(file, exif=exif, quality=95)
        file.with_suffix(".txt").write_text(f"{NAMES[number % CLASSES]}\nnumber {number}\n")
    return place


@pytest.fixture(scope="package")
def index(folder: Path) -> Index:
    return Index.build(folder, PatternModel())


@pytest.fixture
def gallery(index: Index) -> Gallery:
    return Gallery(index.store, index.model, "photos")


@pytest.fixture
def server(gallery: Gallery) -> Iterator[Served]:
    with served(gallery) as running:
        yield running


@pytest.fixture
def locked(gallery: Gallery) -> Iterator[Served]:
    """One that asks for a token."""
    with served(gallery, token="0123456789abcdef-_ABCD") as running:
        yield running
