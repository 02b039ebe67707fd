"""What lets every evaluator run on `mmcl.testing.patterns`, and random rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmcl.evaluate import EVALUATORS
from mmcl.testing.require import small_args

ARGS: dict[str, dict[str, Any]] = {name: small_args(EVALUATORS[name], None) for name in EVALUATORS}


def unit(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Random unit rows, float32."""
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
