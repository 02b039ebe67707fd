"""Evaluation during training: several processes score like one, and an interrupted evaluation costs no step and no score."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from mmcl.config import Config
from mmcl.engine.live_evaluation import LiveEvaluation
from mmcl.engine.log import EVALUATION, read_log
from mmcl.interop.model import Model
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


def report_of(config: Config) -> dict[tuple[str, ...], tuple[float | None, int]]:
    rows = json.loads((Path(config.run_dir or "") / "report/metrics.json").read_text())
    return {tuple(row[key] for key in ("evaluator", "data", "metric", "model")): (row["value"], row["n"]) for row in rows}


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.long)])
def test_the_report_of_many_processes_is_that_of_one(world: int, uninterrupted: Uninterrupted) -> None:
    """With all baselines; the processes share the encoding of the trained and of the untrained model."""
    ours, expected = (report_of(uninterrupted(number, *EVALUATED)) for number in (world, 1))
    assert {model for *_, model in expected} >= {"trained", "untrained", "chance"}
    assert ours.keys() == expected.keys()
    for row, (value, count) in expected.items():
        assert ours[row][0] == pytest.approx(value, abs=1e-6), row
        assert ours[row][1] == count, row


def test_every_process_encodes_for_the_report(image_folder: Path, tmp_path: Path) -> None:
    def fault(rank: int) -> None:
        original = Model.encode_image

        def counted(self: Model, images: Any, **options: Any) -> Any:
            with Path(f"{tmp_path}/encoded-{rank}").open("a") as file:
                file.write(f"{len(images)}\n")
            return original(self, images, **options)

        patch.object(Model, "encode_image", counted).start()

    config = tiny_run(image_folder, tmp_path / "run", "--data.holdout", "0.3", "--evaluate", "[{name: retrieval, label: x}]")
    assert run(config, 3, fault) == [0, 0, 0]
    encoded = [[int(line) for line in (tmp_path / f"encoded-{rank}").read_text().split()] for rank in range(3)]
    assert len({len(counts) for counts in encoded}) == 1
    for shares in zip(*encoded, strict=True):
        assert max(shares) - min(shares) <= 1


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
