"""Arguments with which every evaluator runs on `mmcl.testing.patterns`, and random rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmcl.evaluate import EVALUATORS
from mmcl.evaluate.measures.statistics import Estimate
from mmcl.evaluate.reporting.compare import Difference
from mmcl.evaluate.reporting.metric import Metric
from mmcl.testing.require import small_args
from tests.narrow import present

ARGS: dict[str, dict[str, Any]] = {name: small_args(EVALUATORS[name], None) for name in EVALUATORS}


def unit(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Random unit rows, float32."""
    rows = np.random.default_rng(seed).normal(size=shape)
    return normalized(rows).astype(np.float32)


def normalized(rows: np.ndarray) -> np.ndarray:
    """Unit rows, float64."""
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def bounds(estimate: Estimate | Metric | Difference) -> tuple[float, float]:
    """Both ends of an interval that exists."""
    return present(estimate.low), present(estimate.high)
