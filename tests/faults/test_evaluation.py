"""Evaluation during training: several processes score like one, and an interrupted evaluation costs no step and no score."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from mmcl.config import Config
from mmcl.engine.live_evaluation import LiveEvaluation
from mmcl.engine.log import EVALUATION, read_log
from tests.faults.runs import KILLED, final_state, kill, output, run, tiny_run

Uninterrupted = Callable[..., Config]
SCORE = "held_out/text_to_image_mean_rank"
EVALUATED = (
    *("--data.holdout", "0.3", "--text.encoder.args.dropout", "0", "--train.keep_best", SCORE),
    *("--evaluate", "[{name: retrieval, label: held_out, every: 3}]"),
)


def scores(config: Config) -> dict[int, dict[str, float]]:
    rows = [row for row in read_log(Path(config.run_dir or "") / "metrics.jsonl") if EVALUATION in row]
    assert [row["step"] for row in rows] == [3, 6, 8], "each once"
    return {row["step"]: {key: row[key] for key in row if key.startswith("held_out/")} for row in rows}


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.long)])
def test_scores_of_many_processes_are_those_of_one(world: int, uninterrupted: Uninterrupted) -> None:
    ours, expected = (scores(uninterrupted(number, *EVALUATED)) for number in (world, 1))
    for step, values in expected.items():
        assert SCORE in values
        assert ours[step] == pytest.approx(values)


def test_a_kill_in_an_evaluation_costs_nothing(image_folder: Path, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """The first process dies in the second evaluation: the other ends with a message, and the run continues from that step,
    whose checkpoint does not wait for its evaluation."""
    checkpoint = tmp_path / "run/checkpoints/step-0000006"

    def fault(rank: int) -> None:
        original, calls = LiveEvaluation._score, []

        def deadly(self: LiveEvaluation, *args: Any) -> dict[str, float]:
            calls.append(1)
            if len(calls) == 2:
                while not checkpoint.exists():
                    time.sleep(0.01)
                kill()
            return original(self, *args)

        patch.object(LiveEvaluation, "_score", deadly).start()

    config = tiny_run(image_folder, tmp_path / "run", *EVALUATED)
    assert run(config, 2, fault) == [KILLED, 2]
    assert "another process of this run died" in output(config, rank=1)
    config = tiny_run(image_folder, tmp_path / "run", *EVALUATED, "--resume")
    assert run(config, 2) == [0, 0]
    assert f"continuing from {checkpoint}" in output(config)
    assert final_state(config) == final_state(uninterrupted(2, *EVALUATED))
