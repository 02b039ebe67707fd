"""Fixtures shared by the tests of encoders: one of every library."""

from __future__ import annotations

import pytest

from tests.encoders.cases import IMAGES, TEXT_MODELS, Case, build_case


@pytest.fixture(scope="module", params=IMAGES, ids="-".join)
def image_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    library, kind = request.param
    return build_case(library, kind, "image", tmp_path_factory.mktemp(f"image-{library}-{kind}"))


@pytest.fixture(scope="module", params=TEXT_MODELS, ids="-".join)
def text_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    library, kind = request.param
    return build_case(library, kind, "text", tmp_path_factory.mktemp(f"text-{library}-{kind}"))
