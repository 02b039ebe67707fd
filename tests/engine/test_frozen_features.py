"""Features of a frozen encoder for fixed inputs are computed once, and training with them is the same."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from mmcl.config import Config
from mmcl.data.sources.folders.source import FolderSource
from mmcl.encoders.tokenizers import Tokenizer
from mmcl.engine.log import read_log
from mmcl.runs import run
from mmcl.runs.frozen_features import has_fixed_inputs
from mmcl.runs.run import train
from tests.engine.tiny import YAML, make_folder, run_script, tiny_config

FROZEN = ("--image.freeze", "true", "--text.freeze", "true", "--data.augment", "[]")


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_log(run_dir / "metrics.jsonl")]


def assert_same_model(a: Path, b: Path) -> None:
    """Up to rounding, which Adam enlarges; the weights have moved a thousand times as far."""
    first, second = (load_file(path / "model/model.safetensors") for path in (a, b))
    assert max((first[key] - second[key]).abs().max().item() for key in first) < 3e-5


def without_store(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run, "store_features", lambda *arguments: {})
        train(config)


def test_training_is_the_same_and_encodes_every_sample_once(
    folder: Path, tmp_path: Path, encoded: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 steps of 12 from 25 samples: 96 rows of each kind without the store."""
    train(tiny_config(folder, tmp_path / "stored", *FROZEN))
    assert encoded == {"image": 25, "text": 25}
    without_store(monkeypatch, tiny_config(folder, tmp_path / "encoded", *FROZEN))
    # Three samples are in a batch twice, where an epoch ends; equal texts are encoded once.
    assert encoded == {"image": 25 + 96, "text": 25 + 96 - 3}
    assert losses(tmp_path / "stored") == pytest.approx(losses(tmp_path / "encoded"), rel=1e-5)
    assert_same_model(tmp_path / "stored", tmp_path / "encoded")


def test_captions_are_tokenized_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of most images, one of them of two images: positives are those of the run that tokenizes in every step."""
    two = make_folder(tmp_path / "two")
    with (two / "captions.csv").open("a") as file:
        file.writelines(f"{image.name},a square of {image.stem.split('_')[0]}\n" for image in two.glob("*_[tsm]*.png"))
    flags = (*FROZEN, "--train.epochs", "4", "--train.batch_size", "20")
    seen: list[int] = []
    original = Tokenizer.arrays

    def counting(self: Tokenizer, texts: list[str]) -> Any:
        seen.append(len(texts))
        return original(self, texts)

    monkeypatch.setattr(Tokenizer, "arrays", counting)
    train(tiny_config(two, tmp_path / "stored", *flags, "--train.steps", "null"))
    assert sum(seen) == 2 + 40, "those that are stored, and two for the trial before the run"
    without_store(monkeypatch, tiny_config(two, tmp_path / "encoded", *flags, "--train.steps", "null"))
    assert sum(seen) >= 2 + 40 + 2 + 100
    assert losses(tmp_path / "stored") == pytest.approx(losses(tmp_path / "encoded"), rel=1e-5)


def test_captions_may_be_drawn_beside_stored_images(
    folder: Path, tmp_path: Path, encoded: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FolderSource.caption
    monkeypatch.setattr(FolderSource, "caption", lambda self, index, draw: f"{original(self, index, draw)} {draw:.1f}")
    train(tiny_config(folder, tmp_path / "run", *FROZEN[:2], *FROZEN[4:]))
    assert encoded["image"] == 25
    assert encoded["text"] > 80


@pytest.mark.long
def test_two_processes_store_the_same_features(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(YAML)
    words = (str(tmp_path / "tiny.yaml"), "--data.train.path", str(folder), *FROZEN, "--train.micro_batch", "4")
    done = run_script(*words, "--run_dir", str(tmp_path / "two"), processes=2)
    assert done.returncode == 0, done.stderr
    train(tiny_config(folder, tmp_path / "one", *FROZEN))
    one, two = (sorted((tmp_path / name / "features").rglob("*.npy")) for name in ("one", "two"))
    assert [path.parts[-2:] for path in one] == [path.parts[-2:] for path in two]
    assert [path.name for path in one] == ["rows.npy", "ids.npy", "rows.npy", "starts.npy"]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(np.load(a), np.load(b), rtol=1e-5, atol=1e-6)
    assert_same_model(tmp_path / "one", tmp_path / "two")


def test_a_resumed_run_finds_them(folder: Path, tmp_path: Path, encoded: dict[str, int]) -> None:
    flags = (*FROZEN, "--train.save_every", "4")
    train(tiny_config(folder, tmp_path / "run", *flags))
    whole = losses(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-0000008")
    train(tiny_config(folder, tmp_path / "run", *flags, "--resume"))
    assert encoded == {"image": 25, "text": 25}
    assert losses(tmp_path / "run") == whole


def test_the_key_depends_on_weights_and_data_but_not_on_the_head(folder: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other")
    (other / "captions.csv").write_text((other / "captions.csv").read_text().replace("a tiny", "a minute"))

    def names(number: int, data: Path, *flags: str) -> set[str]:
        run_dir = tmp_path / str(number)
        train(tiny_config(data, run_dir, *FROZEN, "--train.steps", "1", *flags))
        return {path.name for path in (run_dir / "features").iterdir()}

    first = names(0, folder)
    assert names(1, folder, "--optim.lr", "0.1") == first
    assert not names(2, folder, "--train.seed", "1") & first
    assert not names(3, other) & first


def test_an_unreadable_image_leaves_the_images_as_they_were(
    tmp_path: Path, encoded: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_folder(tmp_path / "squares")
    (folder / "red_tiny.png").write_bytes(b"not an image")
    train(tiny_config(folder, tmp_path / "run", *FROZEN, "--data.max_bad_fraction", "0.5"))
    assert "features of the frozen image encoder are not kept between epochs" in caplog.text
    assert encoded["image"] >= 96
    assert encoded["text"] == 25
    assert [path.name.split("-")[0] for path in (tmp_path / "run/features").iterdir()] == ["text"]
    assert (tmp_path / "run/bad_samples.jsonl").exists()


def test_what_is_drawn_is_not_fixed(folder: Path, tmp_path: Path) -> None:
    source = FolderSource(str(folder), None)
    config = tiny_config(folder, tmp_path, *FROZEN)
    assert has_fixed_inputs("image", config, source)
    assert has_fixed_inputs("text", config, source)
    assert not has_fixed_inputs("image", tiny_config(folder, tmp_path), source)
    assert not has_fixed_inputs("image", tiny_config(folder, tmp_path, *FROZEN, "--data.crop", "{scale: [0.5, 1.0]}"), source)

    class Drawing(FolderSource):
        def caption(self, index: int, draw: float) -> str:
            return super().caption(index, draw) + (" again" if draw < 0.1 else "")

    assert not has_fixed_inputs("text", config, Drawing(str(folder), None))
    two = make_folder(tmp_path / "two")
    with (two / "captions.csv").open("a") as file:
        file.write("red_tiny.png,another caption\n")
    assert has_fixed_inputs("text", config, FolderSource(str(two), None)), "one of those that are listed"


def test_a_full_disk_leaves_training_as_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is mapped before the disk has room for all of it would end the process later."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    train(tiny_config(folder, tmp_path / "run", *FROZEN, "--train.steps", "1"))
    assert caplog.text.count("features cannot be written (No space left on device)") == 2
    assert list((tmp_path / "run" / "features").iterdir()) == []
