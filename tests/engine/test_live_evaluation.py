"""Evaluation during training does not affect the run, gives the scores of the report, and keeps the best checkpoint."""

from __future__ import annotations

import io
import json
import random
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import mmcl
from mmcl.config import Config
from mmcl.engine.best_checkpoint import BestScore, BestState
from mmcl.engine.checkpoint import checkpoint_of_step
from mmcl.engine.live_evaluation import LiveEvaluation, state_preserved
from mmcl.engine.log import EVALUATION, read_log
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Report, Task
from mmcl.evaluate.measures.statistics import exact
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.runs.plan import make_plan
from mmcl.runs.run import train
from tests.engine.tiny import tiny_config

SCORE = "held_out/text_to_image_R@1"
STEPS = ("--train.steps", "6", "--data.holdout", "0.2", "--text.encoder.args.dropout", "0.2")
RETRIEVAL = "{name: retrieval, label: held_out, every: 2}"


def evaluated(folder: Path, run_dir: Path, *flags: str, evaluators: str = RETRIEVAL) -> Config:
    return tiny_config(folder, run_dir, *STEPS, "--evaluate", f"[{evaluators}]", *flags)


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluated after steps 2, 4 and 6."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    train(evaluated(folder, run_dir, "--train.keep_checkpoints", "9"))
    return run_dir


def scores_of(run_dir: Path) -> dict[int, dict[str, float]]:
    rows = [row for row in read_log(run_dir / "metrics.jsonl") if EVALUATION in row]
    assert len({row["step"] for row in rows}) == len(rows), "each once"
    return {row["step"]: {key: row[key] for key in row if key not in ("step", EVALUATION)} for row in rows}


def losses_of(run_dir: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_log(run_dir / "metrics.jsonl") if EVALUATION not in row]


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_file(path / "model/model.safetensors") for path in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def draw_from_everything(model: CachedModel, task: Task) -> Report:
    """An evaluator that uses the generators of the whole process."""
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    model.images(task.source)
    return Report(metric_rows("rude", task.name, model.name, {"drawn": exact(float(torch.rand(())), 1)}))


def test_training_goes_as_it_would_without(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses, weights and running statistics to the bit, although the evaluator sets all generators."""
    monkeypatch.setitem(EVALUATORS._entries, "rude", draw_from_everything)
    train(evaluated(folder, tmp_path / "with", evaluators=f"{RETRIEVAL}, {{name: rude, label: held_out, every: 1}}"))
    train(tiny_config(folder, tmp_path / "without", *STEPS))
    assert sorted(scores_of(tmp_path / "with")) == [1, 2, 3, 4, 5, 6]
    assert losses_of(tmp_path / "with") == losses_of(tmp_path / "without")
    ends = [tmp_path / name / "checkpoints/step-0000006" for name in ("with", "without")]
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (ends[0] / file).read_bytes() == (ends[1] / file).read_bytes()


def test_scores_of_one_name_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVALUATORS._entries, "rude", draw_from_everything)
    monkeypatch.setitem(EVALUATORS._entries, "other", draw_from_everything)
    rude = ", ".join(f"{{name: {name}, label: held_out, every: 1}}" for name in ("rude", "other"))
    with pytest.raises(UserError, match="both give held_out/drawn; give them different labels"):
        train(evaluated(folder, tmp_path / "run", evaluators=rude))


def numpy_state() -> list[int]:
    state: list[int] = np.random.get_state(legacy=False)["state"]["key"].tolist()
    return state


def test_modes_and_generators_are_put_back() -> None:
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3))
    module[0].eval()
    state = (torch.get_rng_state(), numpy_state(), random.getstate())
    with suppress(KeyError), state_preserved(module):
        module.eval()
        torch.rand(3), np.random.rand(3), random.random()
        raise KeyError
    assert [m.training for m in module.modules()] == [True, False, True]
    assert torch.equal(torch.get_rng_state(), state[0])
    assert numpy_state() == state[1]
    assert random.getstate() == state[2]


def test_the_last_scores_are_those_of_the_report(finished: Path) -> None:
    scores = scores_of(finished)
    assert sorted(scores) == [2, 4, 6]
    report = json.loads((finished / "report/metrics.json").read_text())
    expected = {f"{row['data']}/{row['metric']}": row["value"] for row in report if row["model"] == "trained"}
    assert scores[6] == {key: value for key, value in expected.items() if value is not None}
    assert scores[2].keys() == scores[6].keys()


def test_the_last_step_is_always_evaluated(folder: Path, tmp_path: Path) -> None:
    train(evaluated(folder, tmp_path / "run", evaluators=RETRIEVAL.replace("2", "4")))
    assert sorted(scores_of(tmp_path / "run")) == [4, 6]


def test_a_resumed_run_evaluates_at_the_same_steps(finished: Path, folder: Path, tmp_path: Path) -> None:
    """Continued from step 4, whose scores may or may not have been written when the run was cut short."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-0000006")
    train(evaluated(folder, tmp_path / "run", "--train.keep_checkpoints", "9", "--resume"))
    assert scores_of(tmp_path / "run") == scores_of(finished)
    assert losses_of(tmp_path / "run") == losses_of(finished)
    assert same_weights(tmp_path / "run", finished)


class TestBestCheckpoint:
    """Runs whose scores are given: after step 2n, the n-th."""

    @pytest.fixture(autouse=True)
    def _script(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scores: list[float] = []
        original = LiveEvaluation.due

        def due(live: LiveEvaluation, step: int) -> Any:
            return [step] if original(live, step) else []

        monkeypatch.setattr(LiveEvaluation, "due", due)
        monkeypatch.setattr(LiveEvaluation, "scores", lambda live, due: {SCORE: self.scores[due[0] // 2 - 1]})

    def run(self, folder: Path, run_dir: Path, scores: list[float], *flags: str) -> Path:
        self.scores = scores
        length = ("--train.steps", str(2 * len(scores)), "--train.keep_best", SCORE, "--train.keep_checkpoints", "1")
        train(evaluated(folder, run_dir, *length, *flags))
        return run_dir

    def test_it_stays_beside_the_newest_and_is_exported(self, folder: Path, tmp_path: Path) -> None:
        run_dir = self.run(folder, tmp_path / "run", [0.1, 0.7, 0.7, 0.2], "--train.export", "best")
        assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step-0000004", "step-0000008"]
        kept = load_file(run_dir / "checkpoints/step-0000004/model.safetensors")
        model = load_file(run_dir / "model/model.safetensors")
        assert all(torch.equal(model[key], kept[f"towers.{key}"]) for key in model)
        provenance = mmcl.load_model(run_dir).provenance
        assert (provenance["export"], provenance["steps"], provenance["score"]) == ("best", 4, {SCORE: 0.7})

    def test_the_last_weights_are_exported_unless_asked(self, folder: Path, tmp_path: Path) -> None:
        run_dir = self.run(folder, tmp_path / "run", [0.7, 0.1, 0.2])
        provenance = mmcl.load_model(run_dir).provenance
        assert (provenance["export"], provenance["steps"]) == ("last", 6)
        kept = load_file(run_dir / "checkpoints/step-0000006/model.safetensors")
        model = load_file(run_dir / "model/model.safetensors")
        assert all(torch.equal(model[key], kept[f"towers.{key}"]) for key in model)

    @pytest.mark.long
    def test_lowest_where_that_is_best(self, folder: Path, tmp_path: Path) -> None:
        run_dir = self.run(folder, tmp_path / "run", [0.5, 0.1, 0.9], "--train.export", "best", "--train.best_is", "min")
        assert mmcl.load_model(run_dir).provenance["steps"] == 4

    @pytest.mark.long
    def test_patience(self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The best at step 4, then two that are not better; it stops after step 8 and takes no step when resumed."""
        caplog.set_level("INFO", "mmcl")
        flags = ("--train.patience", "2", "--train.export", "best")
        scores = [0.1, 0.7, 0.7, 0.3, 0.9, 0.9]
        run_dir = self.run(folder, tmp_path / "run", scores, *flags)
        assert [step for step, _ in losses_of(run_dir)] == list(range(1, 9))
        assert f"best {SCORE}: 0.7 at step 4 of 8" in caplog.text
        first = (run_dir / "model/model.safetensors").read_bytes()
        self.run(folder, run_dir, scores, *flags, "--resume")
        assert [step for step, _ in losses_of(run_dir)] == list(range(1, 9))
        assert (run_dir / "model/model.safetensors").read_bytes() == first
        self.run(folder, run_dir, scores, "--train.patience", "9", "--train.export", "best", "--resume")
        assert mmcl.load_model(run_dir).provenance["steps"] == 10, "with more patience it continues"

    def test_it_is_remembered_through_a_resume(self, folder: Path, tmp_path: Path) -> None:
        """Cut short after step 6, while the best is that of step 2; the last evaluation is worse than it and better than
        those that came between."""
        run_dir, scores = tmp_path / "run", [0.9, 0.1, 0.2, 0.8]
        self.run(folder, run_dir, scores[:3])
        config = ("--allow_change", "train.steps", "--resume", "--train.export", "best")
        self.run(folder, run_dir, scores, *config)
        assert mmcl.load_model(run_dir).provenance["steps"] == 2
        assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step-0000002", "step-0000008"]

    def test_non_finite_scores_export_the_last(self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        run_dir = self.run(folder, tmp_path / "run", [float("nan")] * 2, "--train.export", "best")
        assert "no score was finite" in caplog.text
        assert mmcl.load_model(run_dir).provenance["export"] == "last"


class TestBest:
    def best(self, folder: Path, *flags: str) -> BestScore:
        return BestScore(evaluated(folder, folder / "none", "--train.keep_best", SCORE, *flags).train)

    def test_what_is_better(self, folder: Path) -> None:
        best = self.best(folder, "--train.patience", "2")
        seen = []
        for step, value in enumerate([float("nan"), 0.5, 0.5, float("nan"), 0.6, 0.1, 0.6], 1):
            best.update(step, {SCORE: value, "other": 9.0})
            best.update(step, {"other": 9.0})
            seen.append((best.step, best.waiting, best.is_over))
        no_better = [(2, 1, False), (2, 2, True)]
        assert seen == [(None, 1, False), (2, 0, False), *no_better, (5, 0, False), (5, 1, False), (5, 2, True)]

    def test_a_damaged_best_checkpoint_is_dropped_with_a_warning(
        self, finished: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.copytree(finished / "checkpoints", tmp_path / "c")
        best, state = self.best(folder), BestState(metric=SCORE, value=0.5, step=2, waiting=1)
        best.restore(replace(state, metric="another"), tmp_path / "c")
        assert best.step is None
        best.restore(state, tmp_path / "c")
        assert best.state == state
        (checkpoint_of_step(tmp_path / "c", 2).path / "model.safetensors").write_bytes(b"")
        best = self.best(folder)
        best.restore(state, tmp_path / "c")
        assert best.step is None
        assert "step-0000002: model.safetensors is damaged" in caplog.text


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--train.keep_best", "heldout/text_to_image_R@1"), r"give LABEL/METRIC.*labels with one: held_out"),
        (("--train.patience", "3"), r"train\.patience is 3: it needs train\.keep_best"),
        (("--train.export", "best"), r"train\.export is best: it needs train\.keep_best"),
        (("--train.best_is", "min"), r"train\.best_is is min: it needs train\.keep_best"),
        (("--train.keep_best", SCORE, "--train.patience", "0"), r"train\.patience is 0"),
        (("--evaluate.0.every", "0"), r"evaluate\.0\.every is 0"),
        (("--evaluate.0.every", "null", "--train.keep_best", SCORE), "no evaluator has one"),
    ],
)
def test_mistakes_are_named_when_the_configuration_is_read(
    flags: tuple[str, ...], named: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=named):
        evaluated(folder, tmp_path / "run", *flags)


@pytest.mark.parametrize(
    ("flags", "evaluators", "named"),
    [
        (("--train.keep_best", "held_out/R@1"), RETRIEVAL, r"R@1, which no evaluator gives; there are .*text_to_image_R@1"),
        (
            (),
            "{name: embedding_map, label: held_out, every: 2}",
            r"embedding_map of held_out gives no scores.*`every`",
        ),
    ],
)
def test_mistakes_are_named_at_the_first_evaluation(
    flags: tuple[str, ...], evaluators: str, named: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=named):
        train(evaluated(folder, tmp_path / "run", *flags, evaluators=evaluators))
    assert losses_of(tmp_path / "run")[-1][0] == 2


def test_data_that_are_not_there_are_named_before_training(folder: Path, tmp_path: Path) -> None:
    missing = "{name: retrieval, label: other, data: {path: nowhere}}"
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        train(evaluated(folder, tmp_path / "run", evaluators=missing))
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.long
def test_tensorboard_shows_the_curves_the_scores_and_examples_of_what_is_found(folder: Path, tmp_path: Path) -> None:
    """Also of the evaluation at the end, with its baselines; what is learned is the same as without a tracker."""
    train(evaluated(folder, tmp_path / "run", "--train.trackers", "tensorboard"))
    shown = EventAccumulator(str(tmp_path / "run" / "mmcl"), size_guidance={"images": 0, "scalars": 0})
    shown.Reload()
    rows = read_log(tmp_path / "run" / "metrics.jsonl")
    for name, steps in (("loss", [1, 2, 3, 4, 5, 6]), ("temperature", [1, 2, 3, 4, 5, 6]), (SCORE, [2, 4, 6])):
        logged = {event.step: event.value for event in shown.Scalars(name)}
        assert logged == pytest.approx({row["step"]: row[name] for row in rows if name in row}, rel=1e-6)
        assert list(logged) == steps
    assert "total_steps" not in shown.Tags()["scalars"]
    (examples,) = [name for name in shown.Tags()["images"] if name.startswith("retrieval_") and name.endswith("_trained")]
    assert {event.step for event in shown.Images(examples)} == {2, 4, 6}
    picture = Image.open(io.BytesIO(shown.Images(examples)[-1].encoded_image_string))
    report = Image.open(tmp_path / "run" / "report" / f"{examples}.png").convert("RGB")
    assert picture.size == report.size
    assert np.abs(np.asarray(picture.convert("RGB"), float) - np.asarray(report, float)).max() == 0


def test_without_a_tracker_no_figure_is_drawn_while_training(folder: Path, tmp_path: Path) -> None:
    config = evaluated(folder, tmp_path / "run")
    plan = make_plan(config, 1)
    for trackers, drawn in (((), False), (("tensorboard",), True)):
        tracked = replace(config, train=replace(config.train, trackers=trackers))
        for is_first in (True, False):
            accelerator: Any = SimpleNamespace(is_main_process=is_first)
            live = LiveEvaluation(tracked, accelerator, plan.method, plan.tasks, total_steps=6)
            assert [task.figures for _, task in live.due(2)] == [drawn and is_first]
