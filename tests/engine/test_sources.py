"""Runs on shards and on mixtures: the counters in the log, resume in the middle, and data that changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmcl.config import Config, load_config
from mmcl.engine.log import read_log
from mmcl.errors import UserError
from mmcl.runs.build_data import build_order, build_training_data, check_data
from mmcl.runs.run import train
from mmcl.testing.toys import toy_method
from tests.data.servers import serve
from tests.data.tars import write_tar
from tests.engine.test_run import same_tensors
from tests.engine.tiny import YAML
from tests.narrow import present


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    """The same images in three shards."""
    pictures = sorted(folder.glob("*.png"))
    for number in range(3):
        members: dict[str, bytes] = {}
        for picture in pictures[number::3]:
            color, size = picture.stem.split("_")
            members |= {picture.name: picture.read_bytes(), f"{picture.stem}.txt": f"a {size} {color} square".encode()}
        write_tar(tmp_path / "shards" / f"{number:03}.tar", members)
    return tmp_path / "shards"


def configuration(tmp_path: Path, name: str, data: str, *flags: str) -> Config:
    path = tmp_path / "a.yaml"
    path.write_text(YAML.replace("data: {", f"data: {{root: {tmp_path}, {data}, "))
    words = ["--run_dir", str(tmp_path / name), "--train.steps", "20", "--train.save_every", "9", *flags]
    return load_config(path, words)


def test_twenty_steps_from_shards_stopped_in_the_middle(shards: Path, tmp_path: Path) -> None:
    data = f'train: {{path: "{shards}/{{000..002}}.tar"}}'
    train(configuration(tmp_path, "whole", data))
    log = read_log(tmp_path / "whole" / "metrics.jsonl")
    assert len(log) == 20
    assert log[-1]["loss"] < log[0]["loss"]
    stopped = tmp_path / "stopped"
    train(configuration(tmp_path, "stopped", data, "--train.save_every", "4"))
    for folder in stopped.glob("checkpoints/step-*"):
        if int(folder.name.split("-")[1]) != 16:
            folder.rename(stopped / folder.name)
    train(configuration(tmp_path, "stopped", data, "--resume", "--data.workers", "2"))
    assert same_tensors(*(tmp_path / name / "model" / "model.safetensors" for name in ("whole", "stopped")))


def test_twenty_steps_of_a_mixture(shards: Path, folder: Path, tmp_path: Path) -> None:
    parts = f"mix: {{shards: {{path: {shards}, weight: 3}}, files: {{path: {folder}, weight: 1}}}}"
    train(configuration(tmp_path, "mixed", parts))
    rows = read_log(tmp_path / "mixed" / "metrics.jsonl")
    for row in rows:
        assert row["shown/shards"] + row["shown/files"] == 12 * row["step"]
    assert rows[-1]["shown/files"] == pytest.approx(60, abs=10)
    with pytest.raises(UserError, match=r"data\.mix\.files\.weight: 1\.0 -> 2\.0"):
        train(configuration(tmp_path, "mixed", parts.replace("weight: 1", "weight: 2"), "--resume"))
    write_tar(shards / "003.tar", {"a.png": b"", "a.txt": b"one more"})
    with pytest.raises(UserError, match="the training data changed"):
        train(configuration(tmp_path, "mixed", parts, "--resume"))


def test_a_server_with_faults_changes_nothing(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("mmcl.files.remote_filesystem.PAUSE", 0.001)
    flags = ("--train.steps", "3", "--data.cache", "false")
    with serve(shards) as server:
        server.drop_every = 3
        places = {"local": f"{shards}/{{000..002}}.tar", "remote": f"{server.url}/{{000..002}}.tar"}
        for name, place in places.items():
            data = f'train: {{path: "{place}", args: {{cache_gb: 0}}}}'
            train(configuration(tmp_path, name, data, *flags, "--data.workers", "2" if name == "remote" else "0"))
        assert len(server.requests()) > 25, "images were read by range: the last shard alone has a copy"
    assert same_tensors(*(tmp_path / name / "model" / "model.safetensors" for name in places))


def test_a_mixture_with_a_part_held_out(shards: Path, folder: Path, tmp_path: Path) -> None:
    parts = f"mix: {{shards: {{path: {shards}}}, files: {{path: {folder}, epochs: 2}}}}, holdout: 0.3"
    evaluation = ("--evaluate", "[{name: retrieval, label: held_out}]", "--train.steps", "2")
    result = train(configuration(tmp_path, "held", parts, *evaluation))
    assert any(metric.metric == "text_to_image_R@1" for metric in result.report.metrics)


TEMPLATES = '["a photo of a {}.", "the digit {}"]'


def test_labels_teach_through_templates(tmp_path: Path) -> None:
    data = f"train: {{name: digits, args: {{fold: train}}}}, templates: {TEMPLATES}, holdout: 0"
    config = configuration(tmp_path, "digits", data, "--train.steps", "3")
    source, _ = build_training_data(config)
    name = present(source.class_names)[present(source[0].label)]
    assert source[0].captions == (f"a photo of a {name}.", f"the digit {name}")
    train(config)
    assert len(read_log(tmp_path / "digits" / "metrics.jsonl")) == 3


def test_of_labeled_images_some_of_every_class_are_held_out(tmp_path: Path) -> None:
    """Captions that are made of labels are equal within a class, and do not keep its images together."""
    data = f"train: {{name: digits, args: {{fold: train}}}}, templates: {TEMPLATES}, holdout: 0.2"
    rest, held_out = map(present, build_training_data(configuration(tmp_path, "digits", data)))
    assert {*present(rest.labels)} == {*present(held_out.labels)} == {*range(10)}
    assert len(held_out) == round(0.2 * (len(rest) + len(held_out)))
    assert held_out[0].captions[0].startswith("a photo of a "), "the held-out images have captions, too"
    assert (present(held_out.ids) == present(held_out.labels)).all()


def test_templates_without_use(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.templates is not used"):
        train(configuration(tmp_path, "a", f"train: {{path: {folder}}}, templates: {TEMPLATES}"))
    with pytest.raises(UserError, match="needs one"):
        train(configuration(tmp_path, "a", "train: {name: digits}, templates: [a digit]"))
    for picture in folder.glob("red_*.png"):
        (tmp_path / "plain").mkdir(exist_ok=True)
        (tmp_path / "plain" / picture.name).write_bytes(picture.read_bytes())
    with pytest.raises(UserError, match=r"data\.templates needs labels"):
        train(configuration(tmp_path, "a", f"train: {{path: {tmp_path}/plain}}, templates: {TEMPLATES}"))


def test_captions_by_weight(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"image": str(picture), "captions": [f"{word} {picture.stem}" for word in ("a", "no", "the")]}
        for picture in sorted(folder.glob("*.png"))
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = f"train: {{path: {tmp_path}/pairs.jsonl}}, caption_weights: [1, 0, 3], holdout: 0.3"
    for source in map(present, build_training_data(configuration(tmp_path, "weighted", data))):
        assert [source.caption(0, draw / 100).split()[0] for draw in range(100)] == ["a"] * 25 + ["the"] * 75
    train(configuration(tmp_path, "weighted", data))
    with pytest.raises(UserError, match=r"data\.caption_weights is .*: give null or numbers of 0 or more"):
        configuration(tmp_path, "a", data.replace("[1, 0, 3]", "[1, -1]"))
    with pytest.raises(UserError, match=r"data\.caption_weights is not used: method clip reads no captions"):
        check_data(configuration(tmp_path, "a", data), toy_method("simclr"), source)


def test_truncated_texts_are_counted(folder: Path, tmp_path: Path) -> None:
    pictures = sorted(folder.glob("*.png"))
    words = [("word " * 100 if number % 3 == 0 else f"image {number}") for number in range(len(pictures))]
    rows = [{"image": str(picture), "caption": text} for picture, text in zip(pictures, words, strict=True)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = configuration(tmp_path, "cut", f"train: {{path: {tmp_path}/pairs.jsonl}}", "--train.log_every", "1")
    train(config)
    source, _ = build_training_data(config)
    order = build_order(config, source)
    for row in read_log(tmp_path / "cut" / "metrics.jsonl"):
        assert row["truncated_texts"] == (order.rows(row["step"] - 1)[1] % 3 == 0).sum()


def test_broken_shards_are_reported_at_the_start(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = shards / "002.tar"
    path.write_bytes(path.read_bytes()[:4096])
    train(configuration(tmp_path, "broken", f"train: {{path: {shards}}}", "--train.steps", "1"))
    assert "1 of 3 shards broken" in caplog.text
