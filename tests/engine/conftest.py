"""Fixtures shared by the tests of the engine."""

from __future__ import annotations

from typing import Any

import pytest

from mmcl.encoders.small_cnn import SmallCNN
from mmcl.encoders.small_text import SmallText
from mmcl.runs import checks


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
