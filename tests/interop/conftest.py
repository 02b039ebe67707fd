"""Fixtures shared by the tests of models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest

from tests.encoders import tiny


@pytest.fixture
def arch(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A small CLIP registered in open_clip as "Tiny"; the configuration may be changed."""
    config = tiny.open_clip_config("clip", Path())
    monkeypatch.setattr(open_clip, "list_models", lambda: ["Tiny"])
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: copy.deepcopy(config))
    return config
