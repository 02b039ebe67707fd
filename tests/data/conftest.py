from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.data.files import write_image


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """640 x 427 pixels, with fine patterns, plain areas and edges."""
    return Image.fromarray(load_sample_image("china.jpg"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.PNG", "sub/c.jpg"):
        write_image(tmp_path / "photos" / name)
        (tmp_path / "photos" / name).with_suffix(".txt").write_text(f"a photo of {name}\n\n a second caption \n")
    return tmp_path / "photos"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / name)
    path = tmp_path / "pairs.csv"
    path.write_text('filepath,title\na.png,"one, two"\nb.png,NA\na.png,12\nc.png,three\n')
    return path
