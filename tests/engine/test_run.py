"""Whole runs: their outputs, their resumption, and the conditions that stop them."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mmcl
from mmcl.config import ComponentConfig, Config, EvaluatorConfig, ViewConfig, load_config
from mmcl.engine.launch import as_launched
from mmcl.engine.log import read_log
from mmcl.engine.transfer import views_on
from mmcl.errors import UserError
from mmcl.methods.clip import CLIP
from mmcl.methods.simclr import SimCLR
from mmcl.runs.build import build_method
from mmcl.runs.build_data import build_training_data
from mmcl.runs.doctor import diagnose
from mmcl.runs.evaluation import read_config
from mmcl.runs.run import train
from mmcl.types import LossOutput, Views
from tests.engine.tiny import SCRIPT, YAML, make_folder, run_script, tiny_config
from tests.narrow import present
from tests.warm import python

DROPOUT = ("--text.encoder.args.dropout", "0.2")


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with dropout, checkpoints at 4 and 8, and an evaluation on data held out."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    evaluation = ("--data.holdout", "0.2", "--evaluate", "[{name: retrieval, label: held_out}]")
    train(tiny_config(folder, run_dir, *DROPOUT, *evaluation, "--train.save_every", "4"))
    return run_dir


def same_tensors(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_directory_is_complete(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        ".lock",
        "config.yaml",
        "identity.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "report",
    }
    rows = read_log(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert {"loss", "temperature", "lr", "samples_per_second", "data_wait"} <= rows[0].keys()
    metrics = json.loads((finished / "report" / "metrics.json").read_text())
    assert {row["model"] for row in metrics} >= {"trained", "untrained", "chance"}
    assert {row["data"] for row in metrics} == {"held_out"}
    assert (finished / "report" / "loss_curve.png").stat().st_size > 1000


def test_the_model_loads_with_one_call_and_no_flags(finished: Path, folder: Path) -> None:
    model = mmcl.load_model(finished)
    image, text = model.encode_image(folder / "red_tiny.png"), model.encode_text(["a tiny red square"])
    assert image.shape == text.shape == (1, 16)


def test_resume_is_bit_exact(finished: Path, folder: Path, tmp_path: Path) -> None:
    """From the middle, with dropout and augmentation on, and with another number of loader workers."""
    continued = tmp_path / "continued"
    shutil.copytree(finished, continued)
    shutil.rmtree(continued / "checkpoints" / "step-0000008")
    flags = (*DROPOUT, "--data.holdout", "0.2", "--train.save_every", "4", "--resume", "--data.workers", "1")
    train(tiny_config(folder, continued, *flags))
    assert same_end(finished, continued)


def test_resume_is_bit_exact_under_muon(folder: Path, tmp_path: Path) -> None:
    flags = (*DROPOUT, "--optim.muon_lr", "0.02", "--train.save_every", "4")
    train(tiny_config(folder, tmp_path / "whole", *flags))
    shutil.copytree(tmp_path / "whole", tmp_path / "continued")
    shutil.rmtree(tmp_path / "continued/checkpoints/step-0000008")
    train(tiny_config(folder, tmp_path / "continued", *flags, "--resume"))
    assert same_end(tmp_path / "whole", tmp_path / "continued")


def same_end(a: Path, b: Path) -> bool:
    """True if two runs end with the same bits and went there by the same losses."""
    keys = ("step", "loss", "lr", "temperature")
    before, after = ([[row[key] for key in keys] for row in read_log(d / "metrics.jsonl")] for d in (a, b))
    files = [f"checkpoints/step-0000008/{name}.safetensors" for name in ("model", "optimizer")]
    return before == after and all(same_tensors(a / file, b / file) for file in files)


def test_the_same_run_twice_is_the_same(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(tiny_config(folder, tmp_path / name, *DROPOUT, "--train.steps", "3"))
    assert same_tensors(tmp_path / "a/model/model.safetensors", tmp_path / "b/model/model.safetensors")


def test_a_run_is_never_overwritten(finished: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="--resume"):
        train(tiny_config(folder, finished))


def test_resume_refuses_other_settings_by_name(finished: Path, folder: Path) -> None:
    flags = (*DROPOUT, "--data.holdout", "0.2", "--resume", "--train.seed", "7")
    with pytest.raises(UserError, match=r"train\.seed: 0 -> 7"):
        train(tiny_config(folder, finished, *flags))


def test_resume_refuses_other_data(finished: Path, folder: Path, tmp_path: Path) -> None:
    changed = tmp_path / "run"
    shutil.copytree(finished, changed)
    other = make_folder(tmp_path / "squares")
    (other / "captions.csv").write_text((other / "captions.csv").read_text().replace("a tiny", "a minute"))
    with pytest.raises(UserError, match="data changed"):
        train(tiny_config(other, changed, *DROPOUT, "--data.holdout", "0.2", "--resume"))


def test_nothing_to_resume_is_reported(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        train(tiny_config(folder, tmp_path / "none", "--resume"))


def test_a_non_finite_loss_stops_before_the_update(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Injected at step 4: the error names step and samples; the checkpoint of step 3 is the same as in an undisturbed run."""
    run_dir, calls, original = tmp_path / "nan", [], CLIP.loss

    def poisoned(self: CLIP, embeddings: Any, batch: Any) -> LossOutput:
        calls.append(1)
        output = original(self, embeddings, batch)
        return LossOutput(output.loss * (float("nan") if len(calls) == 4 else 1))

    monkeypatch.setattr(CLIP, "loss", poisoned)
    with pytest.raises(UserError, match=r"loss of step 4 is nan.*samples \d+"):
        train(tiny_config(folder, run_dir, "--train.save_every", "1"))
    assert [row["step"] for row in read_log(run_dir / "metrics.jsonl")] == [1, 2, 3]
    assert (run_dir / "checkpoints" / "step-0000003").exists()


def test_a_broken_image_is_replaced_and_the_run_continues(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "squares")
    (folder / "red_tiny.png").write_bytes(b"not an image")
    train(tiny_config(folder, tmp_path / "run", "--data.max_bad_fraction", "0.5"))
    assert len(read_log(tmp_path / "run" / "metrics.jsonl")) == 8
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert {Path(row["name"]).name for row in listed} == {"red_tiny.png"}


def test_too_many_broken_images_stop_the_run(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "squares")
    (folder / "red_tiny.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"red_tiny\.png"):
        train(tiny_config(folder, tmp_path / "run", "--data.max_bad_fraction", "0"))


def test_a_batch_larger_than_the_data_is_lowered_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny_config(folder, tmp_path / "run", "--train.batch_size", "400", "--train.steps", "1"))
    assert "using 24" in caplog.text


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--image.encoder.name", "smal_cnn"), "image.encoder: unknown image encoder 'smal_cnn'; did you mean 'small_cnn'"),
        (("--image.encoder.args.widht", "3"), "unknown argument of image encoder 'small_cnn': 'widht'"),
        (("--text", "null"), "CLIP needs the text tower"),
        (("--text.head.args.embed_dim", "8"), "differ in width"),
        (("--data.train.path", "nowhere"), "nowhere: no such file or folder"),
        (("--train.trackers", "tensorbord"), "unknown tracker 'tensorbord'"),
        (("--train.precision", "fp16"), "needs an accelerator"),
        (("--method.name", "clop"), "did you mean 'clip'"),
        (("--init", "runs/none", "--image", "null", "--text", "null"), "runs/none"),
    ],
)
def test_mistakes_are_named_before_training(folder: Path, tmp_path: Path, flags: tuple[str, ...], named: str) -> None:
    with pytest.raises(UserError) as error:
        train(tiny_config(folder, tmp_path / "run", *flags))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_fine_tuning_starts_from_the_model(finished: Path, folder: Path, tmp_path: Path) -> None:
    flags = ("--image", "null", "--text", "null", "--init", str(finished), "--optim.lr", "1e-12", "--train.steps", "1")
    train(tiny_config(folder, tmp_path / "run", *flags))
    before, after = (mmcl.load_model(path).encode_text(["a red square"]) for path in (finished, tmp_path / "run"))
    assert abs(before - after).max() < 1e-6


def image_size(run_dir: Path) -> int:
    """As the saved configuration has it."""
    image = read_config(run_dir).image
    assert image is not None
    assert image.encoder is not None
    return int(image.encoder.args["image_size"])


def test_fine_tuning_logs_what_it_starts_from_and_keeps_the_settings_that_were_used(
    finished: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The image size that the configuration gives is for random weights; the model that was loaded has its own."""
    used = read_config(finished).image
    flags = ("--image.encoder.args.image_size", "24", "--image.encoder.args.feature_dim", "8", "--train.steps", "1")
    init = ("--init", str(finished), "--init_missing", "random")
    with caplog.at_level(logging.INFO, "mmcl"):
        train(tiny_config(folder, tmp_path / "run", *flags, *init))
    scale = mmcl.load_model(finished).logit_scale or 0
    assert f"starting from {finished}: image tower, text tower, temperature {1 / scale:.3g}" in caplog.messages
    assert read_config(tmp_path / "run").image == used
    assert image_size(tmp_path / "run") == mmcl.load_model(tmp_path / "run").preprocess.height == 16
    caplog.clear()
    with caplog.at_level(logging.INFO, "mmcl"):
        train(tiny_config(folder, tmp_path / "random", *flags, "--init", "runs/none", "--init_missing", "random"))
    assert not [line for line in caplog.messages if line.startswith("starting from")]
    assert image_size(tmp_path / "random") == 24


def test_the_bias_of_siglip_is_exported_and_is_where_fine_tuning_starts(folder: Path, tmp_path: Path) -> None:
    siglip = ("--method.name", "siglip", "--optim.lr", "1e-12", "--train.steps", "1")
    train(tiny_config(folder, tmp_path / "run", *siglip, "--method.args.temperature", "0.25"))
    model = mmcl.load_model(tmp_path / "run")
    assert model.logit_bias == pytest.approx(-math.log(12 - 1))
    assert model.logit_scale == pytest.approx(4)
    init = ("--image", "null", "--text", "null", "--init", str(tmp_path / "run"), "--train.batch_size", "4")
    train(tiny_config(folder, tmp_path / "tuned", *siglip, *init))
    tuned = mmcl.load_model(tmp_path / "tuned")
    assert (tuned.logit_bias, tuned.logit_scale) == pytest.approx((model.logit_bias, model.logit_scale))


def test_a_frozen_tower_never_changes(folder: Path, tmp_path: Path) -> None:
    for steps in ("1", "2"):
        train(tiny_config(folder, tmp_path / steps, "--image.freeze", "true", "--train.steps", steps))
    first, second = (load_file(tmp_path / steps / "model/model.safetensors") for steps in ("1", "2"))
    frozen = [key for key in first if key.startswith("image.encoder.")]
    assert frozen
    assert all(torch.equal(first[key], second[key]) for key in frozen)
    assert not torch.equal(first["image.head.weight"], second["image.head.weight"])


def test_one_piece_of_a_batch_is_on_the_device_at_a_time(folder: Path, tmp_path: Path) -> None:
    """A piece goes there for each of its two passes, that of a frozen tower once."""
    moved: list[tuple[int, torch.dtype]] = []

    def watched(device: torch.device, views: Views) -> Views:
        image = views["image"]
        if isinstance(image, torch.Tensor):
            moved.append((len(image), image.dtype))
        return views_on(device, views)

    one_step = ("--train.steps", "1", "--optim.warmup", "0", "--train.micro_batch", "6")
    trained, frozen = ("--data.augment", "[]"), ("--image.freeze", "true")  # without augmentation, features are stored
    for flags, pieces in ((trained, [(6, torch.uint8)] * 4), (frozen, [(6, torch.float32)] * 2)):
        moved.clear()
        with patch("mmcl.engine.batch_gradient.views_on", watched):
            train(tiny_config(folder, tmp_path / flags[0], *flags, *one_step))
        assert moved == pieces


@pytest.mark.long
def test_two_processes_are_one_run(folder: Path, tmp_path: Path) -> None:
    """On a machine without accelerator: the losses are those of one process."""
    path = tmp_path / "tiny.yaml"
    path.write_text(YAML)
    words = [str(path), "--data.train.path", str(folder)]
    done = run_script(*words, "--run_dir", str(tmp_path / "two"), processes=2)
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu" in done.stdout
    train(tiny_config(folder, tmp_path / "one"))
    one, two = ([row["loss"] for row in read_log(tmp_path / name / "metrics.jsonl")] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)


def largest_difference(a: Path, b: Path) -> float:
    first, second = (load_file(path / "model/model.safetensors") for path in (a, b))
    assert first.keys() == second.keys()
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


def test_micro_batches_are_one_batch(folder: Path, tmp_path: Path) -> None:
    """Alone and over two processes (Accelerate and DDP), the last piece shorter, one encoder frozen: temperature and all
    weights become those of the whole batch."""
    path = tmp_path / "tiny.yaml"
    path.write_text(YAML)
    words = ["--data.train.path", str(folder), "--image.freeze", "true"]
    done = run_script(str(path), *words, "--run_dir", str(tmp_path / "two"), "--train.micro_batch", "4", processes=2)
    assert done.returncode == 0, done.stderr
    train(tiny_config(folder, tmp_path / "pieces", *words[2:], "--train.micro_batch", "5"))
    train(tiny_config(folder, tmp_path / "whole", *words[2:]))
    whole = read_log(tmp_path / "whole/metrics.jsonl")
    for name in ("pieces", "two"):
        rows = read_log(tmp_path / name / "metrics.jsonl")
        for key in ("loss", "temperature"):
            assert [row[key] for row in rows] == pytest.approx([row[key] for row in whole], rel=1e-5)
        assert largest_difference(tmp_path / name, tmp_path / "whole") < 1e-5


def test_micro_batches_may_change_on_resume(folder: Path, tmp_path: Path) -> None:
    train(tiny_config(folder, tmp_path / "whole", "--train.save_every", "4"))
    shutil.copytree(tmp_path / "whole", tmp_path / "continued")
    shutil.rmtree(tmp_path / "continued/checkpoints/step-0000008")
    train(tiny_config(folder, tmp_path / "continued", "--train.save_every", "4", "--resume", "--train.micro_batch", "7"))
    assert largest_difference(tmp_path / "continued", tmp_path / "whole") < 1e-5


def test_a_frozen_encoder_runs_once_per_row(folder: Path, tmp_path: Path, encoded: dict[str, int]) -> None:
    """Of 12 rows in pieces of 5: one pass of the frozen encoder, two of the other, which is tried on 2 x 16 texts first."""
    train(tiny_config(folder, tmp_path / "run", "--image.freeze", "true", "--train.micro_batch", "5", "--train.steps", "2"))
    assert encoded == {"image": 24, "text": 48 + 32}


def test_lost_processes_are_an_error(tmp_path: Path) -> None:
    """The environment that `accelerate launch --cpu --num_processes 2` gives to the one process that it starts."""
    given = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    done = python(str(SCRIPT), "--run_dir", str(tmp_path), env=given)
    assert done.returncode == 2
    assert done.stderr.startswith("error: accelerate launch was asked for several processes but started one")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["MEGATRON_LM", "DEEPSPEED"])
def test_launches_that_spread_weights_in_other_ways_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match=f"the launcher asks for {name}"):
        train(tiny_config(folder, tmp_path / "run"))


def test_a_launch_with_fsdp_is_train_fsdp(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch --use_fsdp` sets it."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert as_launched(tiny_config(folder, tmp_path / "run")).train.fsdp
    assert os.environ["ACCELERATE_USE_FSDP"] == "false", "Accelerate must not spread them too"


def test_spread_weights_do_not_go_with_fp16(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.fsdp does not work with train\.precision fp16"):
        train(tiny_config(folder, tmp_path / "run", "--train.fsdp", "true", "--train.precision", "fp16"))


def test_spread_weights_of_one_process_are_whole(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tiny_config(folder, tmp_path / "run", "--train.fsdp", "true"))
    assert "train.fsdp has no effect: there is one process" in caplog.text
    train(tiny_config(folder, tmp_path / "whole"))
    assert largest_difference(tmp_path / "run", tmp_path / "whole") == 0


class TestImageData:
    """What data settings do to a method of images, on the digits."""

    @pytest.fixture
    def digits(self, tmp_path: Path) -> Config:
        path = tmp_path / "digits.yaml"
        path.write_text(
            "method: {name: simclr}\n"
            "image: {encoder: {name: small_cnn, args: {image_size: 8, channels: 1, feature_dim: 16}}}\n"
            "data: {train: {name: digits}}\n"
            "train: {batch_size: 16, steps: 2, threads: 1}\n"
        )
        return load_config(path, ["--run_dir", str(tmp_path / "run")])

    def test_labels_reach_the_loss_as_ids(self, digits: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(SimCLR, "positives", "labels")
        with patch.object(SimCLR, "loss", autospec=True, side_effect=SimCLR.loss) as loss:
            train(digits)
        assert loss.call_count == 2
        for _, embeddings, batch in (call.args for call in loss.call_args_list):
            assert embeddings.ids.tolist() == embeddings.all_ids.tolist() == batch.labels.tolist()
            assert not torch.equal(batch.labels, batch.ids)

    def test_data_without_labels_are_refused(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(CLIP, "positives", "labels")
        config = tiny_config(folder, tmp_path / "run")
        for start in (train, diagnose):
            with pytest.raises(UserError, match="method clip needs labels, and the training data have none"):
                start(config)
        assert not (tmp_path / "run" / "config.yaml").exists()

    def test_views_that_the_method_does_not_have(self, digits: Config) -> None:
        config = dataclasses.replace(digits, data=dataclasses.replace(digits.data, views={"c": ViewConfig()}))
        for start in (train, diagnose):
            with pytest.raises(UserError, match=r"data\.views: unknown image view 'c'.*a, b"):
                start(config)

    def test_a_share_of_the_labels(self, digits: Config) -> None:
        sizes = {}
        for amount in (0.1, 0.5, 3.0):
            config = dataclasses.replace(digits, data=dataclasses.replace(digits.data, labels=amount))
            source, _ = build_training_data(config)
            sizes[amount] = np.bincount(present(source.labels))
        whole = np.bincount(present(build_training_data(digits)[0].labels))
        assert sizes[0.1].tolist() == [round(0.1 * n) for n in whole]
        assert sizes[0.5].tolist() == [round(0.5 * n) for n in whole]
        assert sizes[3.0].tolist() == [3] * 10

    def test_samples_per_class(self, digits: Config) -> None:
        with patch.object(SimCLR, "loss", autospec=True, side_effect=SimCLR.loss) as loss:
            train(dataclasses.replace(digits, data=dataclasses.replace(digits.data, samples_per_class=4)))
        labels = [call.args[2].labels.tolist() for call in loss.call_args_list]
        assert [sorted(np.unique(step, return_counts=True)[1].tolist()) for step in labels] == [[4, 4, 4, 4]] * 2

    def test_samples_per_class_of_data_without_labels(self, folder: Path, tmp_path: Path) -> None:
        config = tiny_config(folder, tmp_path / "run", "--data.samples_per_class", "4")
        for start in (train, diagnose):
            with pytest.raises(UserError, match=r"data\.samples_per_class needs labels"):
                start(config)

    def test_a_method_without_a_temperature(self, digits: Config) -> None:
        plain = dataclasses.replace(
            digits,
            method=ComponentConfig(name="barlow_twins"),
            evaluate=(EvaluatorConfig(name="knn", label="digits", data=digits.data.train),),
        )
        train(plain)
        run_dir = Path(present(plain.run_dir))
        assert "temperature" not in read_log(run_dir / "metrics.jsonl")[-1]
        model = mmcl.load_model(run_dir)
        assert model.logit_scale is None
        with pytest.raises(UserError, match="trained without a temperature"):
            model.probs(np.eye(2), np.eye(2))
        diagnose(plain)
        tuned = dataclasses.replace(digits, init=str(plain.run_dir), image=None)
        assert build_method(tuned).logit_scale == build_method(digits).logit_scale, "the method's own, where init has none"
