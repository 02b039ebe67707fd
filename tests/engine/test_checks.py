"""Errors before the first step, such as incomplete launches or views that no encoder accepts, and the files that they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmcl.config import Config, load_config
from mmcl.encoders.small_text import SmallText
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Report, Task
from mmcl.runs.build import build_method, image_views
from mmcl.runs.checks import check_views
from mmcl.runs.doctor import diagnose
from mmcl.runs.run import train
from tests.engine.tiny import YAML, make_folder, tiny_config


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "asks for 2 processes (WORLD_SIZE=2 RANK=0) without MASTER_ADDR and MASTER_PORT"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "asks for 2 processes (WORLD_SIZE=2) without RANK"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two, which is not a number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE=, which is not a number"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "WORLD_SIZE=2 RANK=2, which is impossible"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0, which is impossible"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1, which is not a number"),
    ],
)
def test_half_a_launch_is_named(
    environment: dict[str, str], said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        train(tiny_config(folder, tmp_path / "run"))
    assert said in str(refused.value)
    assert "use `accelerate launch` or `torchrun`, or unset" in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_one_process_trains_in_one_precision_and_then_in_another(tmp_path: Path) -> None:
    for number, precision in enumerate(("fp32", "bf16", "fp32")):
        flags = ("--data.views", "{}", "--train.precision", precision, "--run_dir", str(tmp_path / str(number)))
        train(two_sizes(tmp_path, CNN, *flags))
    assert len(list(tmp_path.glob("*/model/config.json"))) == 3


BATCH_NORM = ("--image.head", "{name: mlp, args: {embed_dim: 16}}", "--train.steps", "1")


@pytest.mark.parametrize(
    ("flags", "processes", "said"),
    [
        (("--train.batch_size", "1"), 1, "train.batch_size leaves one sample in a pass"),
        (("--train.batch_size", "2"), 2, "set train.batch_size to 4 or more"),
        (("--train.micro_batch", "1"), 1, "set train.micro_batch to 2 or more, or take encoders and heads without batch norm"),
        (("--train.micro_batch", "1"), 1, r"without batch norm \(image\.head\)"),
    ],
)
def test_a_batch_norm_with_single_samples_is_refused(
    flags: tuple[str, ...], processes: int, said: str, folder: Path, tmp_path: Path
) -> None:
    config = tiny_config(folder, tmp_path / "run", *BATCH_NORM, *flags)
    with pytest.raises(UserError, match=said):
        diagnose(config, processes)
    if processes == 1:
        with pytest.raises(UserError, match=said):
            train(config)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("samples", "processes", "said"), [(1, 1, "have 1 sample,"), (3, 2, "have 3 samples,")])
def test_too_few_samples_for_a_batch_norm_are_named_as_the_cause(
    samples: int, processes: int, said: str, folder: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    lines = (folder / "captions.csv").read_text().splitlines()[: 1 + samples]
    (few / "captions.csv").write_text("\n".join(lines))
    for line in lines[1:]:
        name = line.partition(",")[0]
        (few / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match=f"the training data {said} and a batch norm needs two in each process: give more data"):
        diagnose(tiny_config(few, tmp_path / "run", *BATCH_NORM), processes)


def test_a_batch_that_leaves_an_odd_row_trains(folder: Path, tmp_path: Path) -> None:
    train(tiny_config(folder, tmp_path / "run", *BATCH_NORM, "--train.batch_size", "13", "--train.micro_batch", "4"))
    diagnose(tiny_config(folder, tmp_path / "other", "--train.micro_batch", "1"))  # and without a norm, single rows do


@pytest.mark.parametrize("place", ["a/b/run", "run"])
def test_a_run_that_is_refused_leaves_no_folder(place: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        train(tiny_config(tmp_path / "nowhere", tmp_path / place))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_run_dir_that_cannot_be_written_is_refused_first(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run"), tmp_path / ("a" * 300)):
        with pytest.raises(UserError, match=r"^run_dir "):
            train(tiny_config(folder, place))


def two_sizes(tmp_path: Path, encoder: str, *flags: str) -> Config:
    path = tmp_path / "views.yaml"
    path.write_text(
        "method: {name: simclr}\n"
        f"image: {{encoder: {encoder}}}\n"
        "data: {train: {name: digits}, crop: {scale: [0.5, 1]}, views: {b: {size: 96}}}\n"
        "train: {batch_size: 16, steps: 2, threads: 1}\n"
    )
    return load_config(path, ["--run_dir", str(tmp_path / "run"), *flags])


CNN = "{name: small_cnn, args: {image_size: 8, channels: 1, feature_dim: 16}}"


@pytest.mark.parametrize("start", [train, diagnose])
def test_a_view_that_the_encoder_cannot_take_is_named_before_training(start: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"view 'b': the image encoder small_cnn cannot take its images of 1 x 96 x 96 \("):
        start(two_sizes(tmp_path, CNN))
    assert not (tmp_path / "run").exists()


def test_sizes_that_an_augmentation_gives_count(tmp_path: Path) -> None:
    crop = "[{name: crop, args: {size: 32}}]"
    with pytest.raises(UserError, match="view 'a': the image encoder small_cnn cannot take its images of 1 x 32 x 32"):
        diagnose(two_sizes(tmp_path, CNN, "--data.augment", crop))


def test_texts_are_tried_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise IndexError("index out of range in self")

    monkeypatch.setattr(SmallText, "forward", refuse)
    with pytest.raises(UserError, match=r"view 'text': the text encoder small_text cannot take its texts \(index out of range"):
        diagnose(tiny_config(folder, tmp_path / "run"))


def test_trying_the_views_changes_nothing(tmp_path: Path) -> None:
    config = two_sizes(tmp_path, CNN, "--data.views", "{}")
    method = build_method(config)
    state, modes = {k: v.clone() for k, v in method.state_dict().items()}, [m.training for m in method.modules()]
    drawn = torch.get_rng_state()
    check_views(config, method, image_views(config, method))
    assert all(torch.equal(state[key], value) for key, value in method.state_dict().items())
    assert [m.training for m in method.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("name", ["checkpoints", "features", "model", "report"])
def test_a_file_where_a_run_makes_a_folder_is_refused_first(name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    with pytest.raises(UserError, match=f"^run_dir: .*{name} is a file"):
        train(tiny_config(folder, tmp_path / "run"))


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "bad_samples.jsonl", ".lock"])
def test_a_folder_where_a_run_writes_a_file_is_refused_first(name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"^run_dir: .*{name}: this is a folder"):
        train(tiny_config(folder, tmp_path / "run"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--method.args.temperature", "0"), r"method\.args\.temperature is 0: give a number above 0"),
        (("--method.args.image_temperature", "-1"), r"method\.args\.image_temperature is -1: give a number above 0"),
        (("--method.args.temperature", "warm"), "method: temperature of method 'clip' must be a number, not 'warm'"),
        (("--method.args.hard_negatives", "maybe"), "hard_negatives of method 'clip' must be true or false, not 'maybe'"),
        (("--image.encoder.args.feature_dim", "[8, 9]"), r"must be a whole number, not \[8, 9\]"),
        (("--text.encoder.args.heads", "0"), "text encoder 'small_text' cannot be built with .*heads: 0"),
        (
            ("--image.encoder.args.feature_dim", "wide"),
            "feature_dim of .* 'small_cnn' must be a whole number, not 'wide'",
        ),
        (
            ("--data.augment", "[{name: affine, args: {rotation: x}}]"),
            "rotation of augmentation 'affine' must be a number, not 'x'",
        ),
    ],
)
def test_an_argument_with_which_nothing_can_be_built_is_named(
    flags: tuple[str, ...], said: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        diagnose(tiny_config(folder, tmp_path / "run", *flags))


def test_more_processes_than_rows_of_a_batch(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size 12 cannot be split over 13 processes"):
        diagnose(tiny_config(folder, tmp_path / "run"), processes=13)


def test_an_evaluator_that_its_data_do_not_suit_is_refused_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    unfit = [{"name": "retrieval", "label": "a"}, {"name": "knn", "label": "b"}, {"name": "sts", "label": "c"}]
    config = evaluated(folder, tmp_path, unfit, "--data.holdout", "0.2")
    for refuse in (train, diagnose):
        with pytest.raises(UserError) as refused:
            refuse(config)
        assert "evaluate.1, knn: the training data of b: " in str(refused.value)
        assert "evaluate.2, sts: c: has no scores" in str(refused.value)
        assert "evaluate.0" not in str(refused.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_six_images_end_in_a_report(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "few")
    lines = (folder / "captions.csv").read_text().splitlines()
    (folder / "captions.csv").write_text("\n".join(lines[:7]) + "\n")
    usual = [{"name": name, "label": "held out"} for name in ("retrieval", "embedding_map", "geometry")]
    report = train(evaluated(folder, tmp_path, usual, "--data.holdout", "0.1")).report
    assert {row.evaluator for row in report.metrics} == {"retrieval"}
    assert any("no map" in note for note in report.notes)
    assert report.failures == ()
    assert (tmp_path / "run" / "report" / "report.html").is_file()


def test_non_finite_embeddings_cost_neither_the_run_nor_the_other_scores(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(model: CachedModel, task: Task) -> Report:
        raise UserError("image_emb has 5 rows that are not finite")

    monkeypatch.setitem(EVALUATORS._entries, "geometry", lost)
    asked = [{"name": "geometry", "label": "a", "every": 4}, {"name": "retrieval", "label": "b", "every": 4}]
    report = train(evaluated(folder, tmp_path, asked, "--data.holdout", "0.2")).report
    assert {row.evaluator for row in report.metrics} == {"retrieval"}
    assert any(line.startswith("geometry, a, trained: image_emb has 5 rows") for line in report.failures)
    assert "geometry of a: not evaluated: image_emb has 5 rows" in caplog.text
    assert "b/text_to_image_R@1" in (tmp_path / "run" / "metrics.jsonl").read_text()


def evaluated(folder: Path, tmp_path: Path, evaluators: list[dict[str, Any]], *flags: str) -> Config:
    path = tmp_path / "evaluated.yaml"
    path.write_text(YAML + "evaluate:\n" + "".join(f"  - {json.dumps(evaluator)}\n" for evaluator in evaluators))
    return load_config(path, ["--data.train.path", str(folder), "--run_dir", str(tmp_path / "run"), *flags])
