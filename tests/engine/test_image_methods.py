"""Every image method trains, saves and loads from its configuration, on digits for two steps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mmcl import load_model
from mmcl.config import load_config
from mmcl.runs.run import train

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*_mnist.yaml"))
SHORT = ["--data.train", "{name: digits, args: {fold: train}}", "--evaluate", "[]", "--train.steps", "2"]
SHORT += ["--train.threads", "1", "--train.log_every", "1"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_trains_from_its_configuration(path: Path, tmp_path: Path) -> None:
    train(load_config(path, [*SHORT, "--run_dir", str(tmp_path / "run")]))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [math.isfinite(row["loss"]) for row in rows] == [True, True]
    picture = np.zeros((28, 28), np.uint8)
    assert load_model(tmp_path / "run").encode_image([picture]).shape == (1, 256)
