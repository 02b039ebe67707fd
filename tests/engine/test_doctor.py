"""The diagnosis states the actual sizes of a run, and exactly the warnings that apply."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mmcl.config import Config, load_config
from mmcl.engine.log import read_log
from mmcl.errors import UserError
from mmcl.methods.clip import CLIP
from mmcl.runs.doctor import Diagnosis, diagnose
from mmcl.runs.plan import fit_batch
from mmcl.runs.run import train
from mmcl.types import LossFacts
from tests.engine.tiny import make_folder, tiny_config


def look(folder: Path, *flags: str, processes: int = 1) -> Diagnosis:
    return diagnose(tiny_config(folder, folder.parent / "run", *flags), processes)


def test_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """25 images in batches of 12 over 2 processes; the widths are those of the tiny configuration."""
    monkeypatch.setattr(CLIP, "describe", lambda self, batch: LossFacts(first_loss=math.log(batch), negatives=batch - 1))
    found = look(folder, "--train.micro_batch", "4", "--optim.warmup", "0.25", "--image.freeze", "true", processes=2)
    assert (found.samples, found.global_batch, found.share, found.pieces) == (25, 12, 6, 2)
    assert (found.steps, found.warmup_steps) == (8, 2)
    assert found.epochs == pytest.approx(8 * 12 / 25)
    assert (found.first_loss, found.negatives) == (math.log(12), 11)
    # float32, 2 views: 16 wide, gradients too, local and gathered rows; and all scores, as they take no more than the rows
    assert found.loss_bytes == found.whole_bytes == 4 * 2 * (2 * 16 * (6 + 12) + 6 * 12)
    assert found.frozen_encoders == ("image",)
    assert found.trainable > 0 < found.frozen
    assert "2 x 6 in 2 micro-batches" in found.to_text()


def test_no_more_scores_are_kept_than_the_rows_take(folder: Path) -> None:
    """12 rows against 24, 2 wide: all scores would take four times as much."""
    width = [flag for tower in ("image", "text") for flag in (f"--{tower}.head.args.embed_dim", "2")]
    found = look(folder, "--train.batch_size", "24", *width, processes=2)
    rows, scores = 4 * 2 * 2 * (12 + 24), 4 * 2 * 12 * 24
    assert (found.loss_bytes, found.whole_bytes) == (3 * rows, 2 * rows + scores)


def test_the_first_loss_and_the_steps_are_those_of_the_run(folder: Path, tmp_path: Path) -> None:
    flags = ("--train.epochs", "1", "--train.steps", "null", "--method.args.temperature", "0.5")
    found = diagnose(tiny_config(folder, tmp_path / "run", *flags))
    train(tiny_config(folder, tmp_path / "run", *flags))
    rows = read_log(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == found.steps
    if found.first_loss is not None:
        assert rows[0]["loss"] == pytest.approx(found.first_loss, rel=0.5)


BATCH_NORM = ("--image.head", "{name: mlp, args: {embed_dim: 16}}")

WARNINGS = [
    ((), 1, ()),
    (("--train.batch_size", "400"), 1, ("larger than the 25 training samples; using 24",)),
    (("--train.batch_size", "13"), 2, ("13 is not a multiple of 2 processes",)),
    (("--train.micro_batch", "6"), 2, ("micro_batch 6 has no effect: a process has 6 pairs",)),
    (("--train.micro_batch", "5"), 2, ()),
    (BATCH_NORM, 1, ()),
    (BATCH_NORM, 2, ("depends on the number of processes",)),
    ((*BATCH_NORM, "--train.micro_batch", "5"), 1, ("depends on train.micro_batch",)),
    (("--train.batch_size", "1"), 1, ("a batch of 1 leaves no row a negative",)),
    (("--image.freeze", "true"), 1, ("in front of the frozen image encoder",)),
    (("--image.freeze", "true", "--data.augment", "[]"), 1, ()),
    (("--text.freeze", "true"), 1, ()),
    (("--train.precision", "fp16"), 1, ("fp16 needs an accelerator",)),
    (("--optim.warmup", "0.01"), 1, ("training starts at the full learning rate",)),
    (("--init", "runs/none", "--init_missing", "random"), 1, ("starting from random weights",)),
]


@pytest.mark.parametrize(("flags", "processes", "expected"), WARNINGS)
def test_warnings(folder: Path, flags: tuple[str, ...], processes: int, expected: tuple[str, ...]) -> None:
    flags = flags if "--optim.warmup" in flags else (*flags, "--optim.warmup", "0.25")
    found = look(folder, *flags, processes=processes).warnings
    assert len(found) == len(expected)
    assert all(part in warning for part, warning in zip(expected, found, strict=True))


@pytest.mark.parametrize("has_bf16", [True, False])
def test_emulated_bf16_is_warned_of(folder: Path, has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    found = look(folder, "--train.precision", "bf16", "--optim.warmup", "0.25").warnings
    expected = "train.precision bf16 is emulated on this processor, several times slower than fp32: use auto"
    assert list(found) == ([] if has_bf16 else [expected])


def test_repeated_captions_are_counted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "squares")
    file = folder / "captions.csv"
    file.write_text(file.read_text().replace("a tiny red square", "a small red square"))
    assert any("1 of 25 captions repeat another" in warning for warning in look(folder).warnings)


def digits(tmp_path: Path, *flags: str) -> Config:
    path = tmp_path / "digits.yaml"
    path.write_text(
        "image: {encoder: {name: small_cnn, args: {image_size: 8, channels: 1, feature_dim: 16}}}\n"
        "data: {train: {name: digits}}\n"
        "train: {steps: 100}\n"
    )
    return load_config(path, flags)


def test_the_batch_norm_of_a_predictor_counts(tmp_path: Path) -> None:
    for method, expected in (("byol", 1), ("simclr", 0)):
        warnings = diagnose(digits(tmp_path, "--method.name", method), processes=2).warnings
        assert sum("batch norm is the one exception" in warning for warning in warnings) == expected


def test_positives_that_are_too_rare(tmp_path: Path) -> None:
    """Ten classes of about equal size: eight samples have 0.8 others of a sample's class among them, 32 have 3.2."""
    for flags, expected in ((("8",), 1), (("32",), 0), (("8", "--data.samples_per_class", "2"), 0)):
        warnings = diagnose(digits(tmp_path, "--method.name", "supcon", "--train.batch_size", *flags)).warnings
        assert sum("a sample meets 0.80 others of its class" in warning for warning in warnings) == expected


@pytest.mark.parametrize("method", ["supcon", "triplet", "margin", "contrastive_pair"])
def test_batches_of_a_single_class_are_reported(tmp_path: Path, method: str) -> None:
    for batch, expected in (("8", 1), ("16", 0)):
        flags = ("--method.name", method, "--train.batch_size", batch, "--data.samples_per_class", "8")
        warnings = diagnose(digits(tmp_path, *flags)).warnings
        assert sum("every batch is of a single class" in warning for warning in warnings) == expected


def test_a_classifier_needs_no_negatives(tmp_path: Path) -> None:
    head = ("--image.head", "{name: linear, args: {embed_dim: 10}}")
    assert not diagnose(digits(tmp_path, "--method.name", "supervised", "--train.batch_size", "1", *head)).warnings


def test_a_run_logs_the_warnings(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tiny_config(folder, tmp_path / "run", *BATCH_NORM, "--train.micro_batch", "5", "--train.steps", "1"))
    assert "batch norm sees each micro-batch alone" in caplog.text


def test_what_training_refuses_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="unknown image encoder"):
        look(folder, "--image.encoder.name", "smal_cnn")
    with pytest.raises(UserError, match="the 24 that it becomes cannot be shared by 26 processes"):
        look(folder, "--train.batch_size", "400", processes=26)
    with pytest.raises(UserError, match="processes is 0"):
        look(folder, processes=0)


@pytest.mark.parametrize(("samples", "fitting"), [(63, 56), (40, 40), (8, 8), (7, 4), (3, 2), (1, 1)])
def test_a_batch_is_fitted_alike_whatever_the_layout(folder: Path, samples: int, fitting: int) -> None:
    config = tiny_config(folder, folder.parent / "run", "--train.batch_size", "64")
    for processes in (count for count in (1, 2, 4, 8) if count <= fitting):
        assert fit_batch(config, samples, processes).train.batch_size == fitting
    with pytest.raises(UserError, match=f"cannot be shared by 3 processes: set it to a multiple of 3 up to {samples}"):
        fit_batch(config, samples, 3)
