"""A fault in one process ends the step in all processes: at the same step, before the update, with one clear line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Container
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmcl.config import Config, config_hash
from mmcl.data.batches.loader import StepBatches
from mmcl.data.batches.order import Order
from mmcl.data.batches.views import ImageView
from mmcl.data.open import open_source
from mmcl.engine import launch
from mmcl.engine.checkpoint import verify
from mmcl.engine.log import StepLog, read_log
from mmcl.engine.trainer import Trainer
from mmcl.errors import UserError
from mmcl.preprocess import Preprocess
from mmcl.runs import run as run_module
from mmcl.runs.run import train
from mmcl.types import LossOutput
from tests.faults.runs import KILLED, STEPS, before_step, final_state, kill, output, run, samples, start, tiny_run
from tests.narrow import present

Uninterrupted = Callable[..., Config]


def poison_loss(trainer: Trainer) -> None:
    """The next loss of this process is not finite, though its gradient is."""
    original = trainer.method.loss

    def poisoned(embeddings: Any, batch: Any) -> LossOutput:
        del trainer.method.loss
        return LossOutput(original(embeddings, batch).loss + float("nan"))

    trainer.method.loss = poisoned  # type: ignore[method-assign]


def poison_gradient(trainer: Trainer) -> None:
    """The next gradient of this process is infinite, though its loss is not."""
    original = trainer._backward

    def poisoned(step: int, batch: Any) -> Any:
        found = original(step, batch)
        next(trainer.method.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]
        del trainer._backward
        return found

    trainer._backward = poisoned  # type: ignore[method-assign]


@pytest.mark.parametrize("poison", [poison_loss, poison_gradient])
def test_a_non_finite_loss_on_one_process_stops_all_before_the_update(
    poison: Callable[[Trainer], None], image_folder: Path, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    config = tiny_run(image_folder, tmp_path / "run")
    assert run(config, 2, before_step(4, poison, ranks=[1])) == [2, 2]
    for rank in (0, 1):
        assert "the loss of step 4 is" in output(config, rank)
        bundle = json.loads((tmp_path / f"run/crash/step-0000004-rank-{rank}.json").read_text())
        assert bundle["samples"] == samples(uninterrupted(2), 2)[4][6 * rank : 6 * rank + 6]
        assert bundle["config"]["train"]["steps"] == STEPS
    assert not list(tmp_path.glob("run/checkpoints/step-0000004"))
    config = tiny_run(image_folder, tmp_path / "run", "--resume")
    assert run(config, 2) == [0, 0]
    assert final_state(config) == final_state(uninterrupted(2))


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> list[torch.amp.GradScaler]:
    """Runs of this process have the scaler of fp16, as they would on an accelerator; the list gets each."""
    scalers: list[torch.amp.GradScaler] = []

    def with_scaler(*args: Any) -> Any:
        accelerator = launch.start(*args)
        scalers.append(torch.amp.GradScaler("cpu"))
        accelerator.scaler, accelerator.native_amp = scalers[-1], True
        monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
        return accelerator

    monkeypatch.setattr(run_module, "start", with_scaler)
    return scalers


def poison_gradients(monkeypatch: pytest.MonkeyPatch, steps: Container[int]) -> None:
    original = Trainer._backward

    def poisoned(self: Trainer, step: int, batch: Any) -> Any:
        result = original(self, step, batch)
        if step in steps:
            present(next(self.method.parameters()).grad).fill_(float("nan"))
        return result

    monkeypatch.setattr(Trainer, "_backward", poisoned)


def test_gradients_that_are_never_a_number_end_a_run_in_fp16(
    image_folder: Path, tmp_path: Path, scaled: list[torch.amp.GradScaler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler halves the scale from 2^16 on, and then it is not the scale."""
    poison_gradients(monkeypatch, range(1000))
    with pytest.raises(UserError, match="the norm of its gradient nan; nothing was updated"):
        train(tiny_run(image_folder, tmp_path / "run", "--train.steps", "60"))
    assert [row["step"] for row in read_log(tmp_path / "run/metrics.jsonl")] == list(range(1, 17))
    assert scaled[0].get_scale() == 1.0


def test_steps_with_non_finite_gradients_are_skipped(
    image_folder: Path, tmp_path: Path, scaled: list[torch.amp.GradScaler], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_gradients(monkeypatch, (2, 3))
    train(tiny_run(image_folder, tmp_path / "run"))
    assert 2.0**10 < scaled[0].get_scale() <= 2.0**14, "halved for each, and for what overflows by itself"


def test_a_skipped_loss_leaves_the_scaler_ready_for_the_next_step(
    image_folder: Path, tmp_path: Path, scaled: list[torch.amp.GradScaler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_step", Trainer._step)  # put back afterwards
    before_step(4, poison_loss)(0)
    train(tiny_run(image_folder, tmp_path / "run", "--train.on_nonfinite", "skip"))
    assert len(read_log(tmp_path / "run/metrics.jsonl")) == STEPS


def test_a_skipped_step_changes_nothing(image_folder: Path, tmp_path: Path) -> None:
    flags = ("--train.on_nonfinite", "skip", "--train.keep_checkpoints", "9")
    config = tiny_run(image_folder, tmp_path / "run", *flags)
    assert run(config, 2, before_step(4, poison_loss, ranks=[1])) == [0, 0]
    for name in ("model", "optimizer"):
        before, skipped, after = (load_file(tmp_path / f"run/checkpoints/step-000000{n}/{name}.safetensors") for n in (3, 4, 5))
        assert all(torch.equal(before[key], skipped[key]) for key in before)
        assert not all(torch.equal(before[key], after[key]) for key in before)
    assert [row["loss"] is None for row in read_log(tmp_path / "run/metrics.jsonl")] == [n == 4 for n in range(1, STEPS + 1)]


def kill_once_saved(trainer: Trainer) -> None:
    trainer.writer.wait()
    kill()


def test_skipped_steps_have_a_budget(image_folder: Path, tmp_path: Path) -> None:
    """Counted over a resume: one at step 3 before it, one at step 5 after it, and only one is allowed."""
    flags = ("--train.on_nonfinite", "skip", "--train.max_skipped", "1")
    first = before_step(3, poison_loss)

    def killed_later(rank: int) -> None:
        first(rank)
        before_step(5, kill_once_saved)(rank)

    assert run(tiny_run(image_folder, tmp_path / "run", *flags), fault=killed_later) == [KILLED]
    config = tiny_run(image_folder, tmp_path / "run", *flags, "--resume")
    assert run(config, fault=before_step(5, poison_loss)) == [2]


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 0)])
def test_a_signal_to_one_process_saves_and_ends_all(
    number: signal.Signals, rank: int, image_folder: Path, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    """The whole process group gets it, loader processes too, as from a scheduler."""

    def signalled(trainer: Trainer) -> None:
        group = os.getpgid(0)
        if (sender := os.fork()) == 0:  # loader processes take a signal of their parent for the end of their work
            os.setpgid(0, 0)
            os.killpg(group, number)
            os._exit(0)
        os.waitpid(sender, 0)
        time.sleep(0.5)

    def fault(own: int) -> None:
        os.setpgid(0, 0)
        before_step(4, signalled, ranks=[rank])(own)

    # No checkpoint is due: the one of step 5 is the signal's, in which all know that one has got it in step 4.
    config = tiny_run(image_folder, tmp_path / "run", "--train.save_every", "100", "--data.workers", "2")
    assert run(config, 2, fault) == [0, 0]
    assert "stopped by a signal after step 5 of 8; continue with --resume" in output(config)
    assert [path.name for path in tmp_path.glob("run/checkpoints/*")] == ["step-0000005"]
    assert not (tmp_path / "run/model").exists()
    config = tiny_run(image_folder, tmp_path / "run", "--resume", "--train.save_every", "100")
    assert run(config, 2) == [0, 0]
    assert final_state(config) == final_state(uninterrupted(2))


def test_a_dead_process_ends_the_run(image_folder: Path, tmp_path: Path) -> None:
    config = tiny_run(image_folder, tmp_path / "run")
    assert run(config, 2, before_step(4, kill, ranks=[1]), seconds=30) == [2, KILLED]
    assert "another process of this run died" in output(config)


def test_a_stuck_process_ends_the_run(image_folder: Path, tmp_path: Path) -> None:
    config = tiny_run(image_folder, tmp_path / "run", "--train.timeout_seconds", "3")
    began = time.monotonic()
    waiting, stuck = start(config, 2, before_step(4, lambda trainer: time.sleep(60), ranks=[1]))
    waiting.join(40)
    stuck.kill()
    assert waiting.exitcode == 2
    assert time.monotonic() - began < 40
    assert "did not answer within 3 s" in output(config)


def corrupted(image_folder: Path, folder: Path) -> Path:
    """40 images, of which 5 % cannot be read."""
    shutil.copytree(image_folder, folder)
    listing = folder / "captions.csv"
    rows = listing.read_text().splitlines()
    for row in rows[1:16]:
        name, caption = row.split(",")
        shutil.copy(folder / name, folder / f"second_{name}")
        rows.append(f"second_{name},another {caption}")
    listing.write_text("\n".join(rows))
    for name in ("red_tiny", "blue_huge"):
        (folder / f"{name}.png").write_bytes(b"not an image")
    return folder


def test_bad_samples_are_replaced_alike_everywhere(image_folder: Path, tmp_path: Path) -> None:
    """By any number of processes and loaders, and after a kill: the same rows, each bad one listed once a step."""
    folder = corrupted(image_folder, tmp_path / "squares")
    flags = ("--data.max_bad_fraction", "0.05", "--text.encoder.args.dropout", "0")
    found = []
    for name, world, workers in (("a", 1, "0"), ("b", 2, "2")):
        config = tiny_run(folder, tmp_path / name, *flags, "--data.workers", workers)
        if world == 2:
            assert run(config, 2, before_step(5, kill)) == [KILLED, KILLED]
            config = tiny_run(folder, tmp_path / name, *flags, "--resume")
        assert run(config, world) == [0] * world
        found.append((samples(config, world), read_log(tmp_path / name / "bad_samples.jsonl")))
    assert found[0] == found[1]
    rows, listed = found[0]
    assert {Path(row["name"]).stem for row in listed} == {"red_tiny", "blue_huge"}
    assert all(len(row) == 12 for row in rows.values())
    bad = {row["index"] for row in listed}
    assert not bad & {index for row in rows.values() for index in row}
    state = verify(tmp_path / f"b/checkpoints/step-{STEPS:07d}").manifest["state"]
    assert (state["bad"], state["seen"]) == (len(listed), 12 * STEPS)


def test_the_budget_of_bad_samples_is_that_of_all_processes(image_folder: Path, tmp_path: Path) -> None:
    folder = corrupted(image_folder, tmp_path / "squares")
    config = tiny_run(folder, tmp_path / "run", "--data.max_bad_fraction", "0")
    assert run(config, 2) == [2, 2]
    first, second = ([line for line in output(config, rank).splitlines() if "could not be used" in line] for rank in (0, 1))
    assert first == second
    assert len(first) == 1


def test_bad_samples_in_a_row_are_counted_over_processes_and_resumes(image_folder: Path, tmp_path: Path) -> None:
    """Of 25 images 22 are gone; one row fewer is allowed than the longest series, which continues over a kill."""
    folder = shutil.copytree(image_folder, tmp_path / "squares")
    wanted = np.concatenate([Order(25, 12, 0).rows(step)[1] for step in range(STEPS)])
    lengths = list(accumulate(wanted >= 3, lambda length, is_bad: (length + 1) * is_bad, initial=0))[1:]
    longest = max(lengths)
    step, row = divmod(lengths.index(longest), 12)
    assert longest > row + 1, "it begins in a step before"
    for name, _ in (line.split(",") for line in (folder / "captions.csv").read_text().splitlines()[4:]):
        (folder / name).write_bytes(b"gone")
    flags = ("--data.max_bad_fraction", "1", "--data.max_bad_consecutive", str(longest - 1))
    assert run(tiny_run(folder, tmp_path / "run", *flags), 2, before_step(step + 1, kill_once_saved)) == [KILLED, KILLED]
    config = tiny_run(folder, tmp_path / "run", *flags, "--resume")
    assert run(config, 2) == [2, 2]
    assert all(f"more than data.max_bad_consecutive {longest - 1} samples" in output(config, rank) for rank in (0, 1))
    assert read_log(tmp_path / "run/bad_samples.jsonl")[-1]["step"] == step + 1


def test_a_replacement_is_not_a_negative_of_itself(image_folder: Path, tmp_path: Path) -> None:
    """Where the replacement is in the batch already, both rows have one id: positives of each other."""
    source = open_source("auto", str(corrupted(image_folder, tmp_path / "squares")), None, {}, where="data.train")
    images = {name: ImageView(preprocess=Preprocess(size=8), number=number) for number, name in enumerate("ab")}
    batches = StepBatches(source, Order(25, 20, 0), images=images, cache=False)
    twice = 0
    for step in range(20):
        batch = batches[step]
        index, ids = batch.index, batch.ids
        assert torch.equal(index[:, None] == index, ids[:, None] == ids)
        twice += len(index) - len(index.unique())
    assert twice > 0


def test_a_run_directory_has_one_writer(image_folder: Path, tmp_path: Path) -> None:
    def sleep_once_saved(trainer: Trainer) -> None:
        trainer.writer.wait()
        time.sleep(60)

    config = tiny_run(image_folder, tmp_path / "run")
    (holder,) = start(config, 1, before_step(3, sleep_once_saved))
    deadline = time.monotonic() + 30
    while not (tmp_path / "run/checkpoints/step-0000002").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = tiny_run(image_folder, tmp_path / "run", "--resume")
    try:
        with pytest.raises(UserError, match=f"is being written by process {holder.pid} on"):
            train(second)
    finally:
        holder.kill()
        holder.join()
    assert run(second) == [0], "the lock of a dead process does not block"


def test_a_change_is_refused_unless_it_is_allowed(image_folder: Path, tmp_path: Path) -> None:
    config = tiny_run(image_folder, tmp_path / "run")
    assert run(config, fault=before_step(5, kill)) == [KILLED]
    changes = ("--resume", "--optim.lr", "5e-4", "--train.log_every", "2")
    config = tiny_run(image_folder, tmp_path / "run", *changes)
    assert run(config) == [2]
    assert "optim.lr: 0.001 -> 0.0005" in output(config)
    assert "--allow_change optim.lr" in output(config)
    config = tiny_run(image_folder, tmp_path / "run", *changes, "--allow_change", "optim.lr")
    assert run(config) == [0]
    assert "changed on resume: optim.lr: 0.001 -> 0.0005" in output(config)
    assert "changed on resume: train.log_every: 1 -> 2" in output(config)
    manifest = verify(tmp_path / f"run/checkpoints/step-{STEPS:07d}").manifest
    assert manifest["identity"]["config_hash"] == config_hash(config)
    assert manifest["identity"]["environment"].keys() >= {"mmcl", "torch", "numpy", "python", "threads", "processes"}


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written \(.*\); the checkpoints are untouched"):
        StepLog(tmp_path / "gone" / "metrics.jsonl").write({"step": 1})


def test_a_run_directory_that_is_removed_ends_the_run_in_one_line(image_folder: Path, tmp_path: Path) -> None:
    def remove(trainer: Trainer) -> None:
        trainer.writer.wait()
        shutil.rmtree(trainer.run_dir)

    config = tiny_run(image_folder, tmp_path / "run")
    assert run(config, 1, before_step(3, remove, ranks=[0])) == [2]
    assert "cannot be written (" in output(config).splitlines()[-1]


def test_minutes_make_a_checkpoint_due(image_folder: Path, tmp_path: Path) -> None:
    flags = ("--train.save_every", "100", "--train.save_minutes", "1", "--train.keep_checkpoints", "9")

    def a_minute_later(trainer: Trainer) -> None:
        trainer.saved_at -= 60

    config = tiny_run(image_folder, tmp_path / "run", *flags)
    assert run(config, 2, before_step(5, a_minute_later, ranks=[0])) == [0, 0]
    assert sorted(path.name for path in tmp_path.glob("run/checkpoints/*")) == ["step-0000006", "step-0000008"]


def test_what_a_loader_process_fails_with_is_one_line(image_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "squares")
    for file in folder.glob("*.png"):
        file.write_bytes(b"gone")
    config = tiny_run(folder, tmp_path / "run", "--data.workers", "1")
    assert run(config) == [2]
    assert output(config).splitlines()[-1].startswith("error: none of the 25 samples can be used; the first: ")
