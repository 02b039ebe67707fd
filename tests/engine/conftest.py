"""Fixtures shared by the tests of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmcl.encoders.small_cnn import SmallCNN
from mmcl.encoders.small_text import SmallText
from mmcl.runs import checks
from tests.engine.tiny import make_folder
from tests.faults.runs import small_vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 images of squares with captions."""
    return make_folder(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(autouse=True, scope="module")
def _small_vocabulary() -> Iterator[None]:
    """Text encoders of a few tokens: their runs take a third of the time."""
    with small_vocabulary():
        yield


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Rows that each encoder has computed so far, but for those with which a run tries its views before it starts."""
    monkeypatch.setattr(checks, "check_views", lambda config, method, views: None)
    seen = {"image": 0, "text": 0}
    for kind, encoder in (("image", SmallCNN), ("text", SmallText)):
        original = encoder.forward

        def counting(self: Any, inputs: Any, kind: str = kind, original: Any = original) -> Any:
            seen[kind] += len(inputs)
            return original(self, inputs)

        monkeypatch.setattr(encoder, "forward", counting)
    return seen
