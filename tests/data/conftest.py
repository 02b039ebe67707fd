from __future__ import annotations

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """640 x 427 pixels, with fine patterns, plain areas and edges."""
    return Image.fromarray(load_sample_image("china.jpg"))
