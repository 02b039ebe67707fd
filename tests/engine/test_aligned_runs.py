"""Heads on two frozen encoders, trained on pictures or on stored rows of them: the same training, and models that are whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import mmcl
from mmcl.cli.main import main
from mmcl.config import Config, SourceConfig, load_config
from mmcl.data.sources.embeddings.source import EmbeddingSource
from mmcl.data.sources.folders.source import FolderSource
from mmcl.engine.log import read_log
from mmcl.errors import UserError
from mmcl.interop.export.exporting import export
from mmcl.runs.embedding.job import EmbeddingJob
from mmcl.runs.embedding.runners import run_embedding_job
from mmcl.runs.plan import make_plan
from mmcl.runs.run import train
from tests.data.embeddings import write_pairs
from tests.encoders import tiny
from tests.engine.test_frozen_features import losses
from tests.engine.test_stored_teachers import DAMAGED, embedded
from tests.engine.tiny import make_folder, tiny_config
from tests.faults.runs import STEPS, before_step, final_state, kill, run
from tests.narrow import present

ALIGNED = """
method: {{name: clip, args: {{temperature: 0.2}}}}
image: {{encoder: {{name: {encoder}{image}}}, freeze: true, head: {{name: linear, args: {{embed_dim: 8}}}}}}
text: {{encoder: {{name: {encoder}{text}}}, freeze: true, head: {{name: linear, args: {{embed_dim: 8}}}}}}
optim: {{lr: 1.0e-2}}
train: {{batch_size: 12, steps: 8, log_every: 1, threads: 1}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """squares/ with two captions each; the runs a/ and b/, b without an image tower of that width; rows of them."""
    root = tmp_path_factory.mktemp("aligned")
    folder = make_folder(root / "squares")
    lines = (folder / "captions.csv").read_text().splitlines()
    more = [f"{line.partition(',')[0]},square number {number}" for number, line in enumerate(lines[1:])]
    (folder / "captions.csv").write_text("\n".join([*lines, *more]) + "\n")
    train(tiny_config(folder, root / "a", "--train.steps", "2"))
    narrow = ("--text.head.args.embed_dim", "6", "--image.head.args.embed_dim", "6", "--train.seed", "3")
    train(tiny_config(folder, root / "b", "--train.steps", "2", *narrow))
    embedded(folder, str(root / "a"), root / "rows-a")
    embedded(folder, str(root / "b"), root / "rows-b")
    return root


def aligned(
    place: Path, run_dir: Path, *flags: str, encoder: str = "embeddings_of", image: str = "a", text: str = "b"
) -> Config:
    models = {kind: f", args: {{model: {place / name}}}" for kind, name in (("image", image), ("text", text))}
    path = run_dir.with_suffix(".yaml")
    path.write_text(ALIGNED.format(encoder=encoder, **models if encoder == "embeddings_of" else {"image": "", "text": ""}))
    return load_config(path, ["--run_dir", str(run_dir), *flags])


def of_pictures(place: Path, run_dir: Path, *flags: str, **options: Any) -> Config:
    return aligned(place, run_dir, "--data.train.path", str(place / "squares"), *flags, **options)


def of_rows(place: Path, run_dir: Path, *flags: str, image: str = "rows-a", text: str = "rows-b", **options: Any) -> Config:
    data = f"{{path: {place / image}, args: {{texts: {place / text}}}}}"
    return aligned(place, run_dir, "--data.train", data, *flags, **options)


def heads(run_dir: Path) -> dict[str, np.ndarray]:
    return {name: t.numpy() for name, t in load_file(run_dir / "model/model.safetensors").items() if ".head." in name[:12]}


def test_rows_and_pictures_train_the_same_model_and_it_is_whole(place: Path, tmp_path: Path, encoded: dict[str, int]) -> None:
    """Of two models; captions are drawn, and each is encoded once, of 25 images and 50 captions, besides a blank one of each by
    which a loaded model is tried."""
    train(of_pictures(place, tmp_path / "pictures"))
    assert encoded == {"image": 2 + 25, "text": 2 + 50}
    train(of_rows(place, tmp_path / "rows"))
    assert encoded == {"image": 4 + 25, "text": 4 + 50}
    assert losses(tmp_path / "rows") == pytest.approx(losses(tmp_path / "pictures"), rel=1e-5)
    assert losses(tmp_path / "rows")[-1] < losses(tmp_path / "rows")[0]
    first, second = heads(tmp_path / "pictures"), heads(tmp_path / "rows")
    assert [array.shape for array in first.values()] == [(8, 16), (8, 6)]
    for name, array in first.items():
        np.testing.assert_allclose(array, second[name], atol=1e-5)
    whole, source = mmcl.load_model(tmp_path / "rows"), FolderSource(str(place / "squares"), None)
    a, b = mmcl.load_model(place / "a"), mmcl.load_model(place / "b")
    texts = [source[index].captions[0] for index in range(25)]
    for found, of_start, head in (
        (whole.encode_image(source), a.encode_image(source), second["image.head.weight"]),
        (whole.encode_text(texts), b.encode_text(texts), second["text.head.weight"]),
    ):
        np.testing.assert_allclose(found, unit(of_start.astype(np.float64) @ head.T.astype(np.float64)), atol=1e-5)
    rows = EmbeddingSource(str(place / "rows-a"), None, texts=str(place / "rows-b"))
    np.testing.assert_allclose(whole.encode_image(rows), whole.encode_image(source), atol=1e-5)
    np.testing.assert_allclose(whole.encode_text([rows[index].captions[0] for index in range(25)]), found, atol=1e-5)


def test_models_of_two_libraries(place: Path, tmp_path: Path) -> None:
    """Images by transformers and texts by open_clip, from pictures and from rows; and texts by a model without images."""
    folders = {name: tmp_path / name for name in ("open_clip", "clip", "bert")}
    folders["open_clip"].mkdir()
    config = tiny.open_clip_config("clip", folders["open_clip"])
    tiny.open_clip_model(config, "clip", folders["open_clip"] / "open_clip_model.safetensors")
    described = {"model_cfg": config, "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}}
    (folders["open_clip"] / "open_clip_config.json").write_text(json.dumps(described))
    for kind in ("clip", "bert"):
        tiny.transformers_model(kind, folders[kind])
    image, text = f"hf:{folders['clip']}", f"open_clip:local-dir:{folders['open_clip']}"
    flags = ("--image.encoder.args.model", image, "--text.encoder.args.model", text)
    train(of_pictures(place, tmp_path / "pictures", *flags))
    for name, model in (("images", image), ("texts", text)):
        embedded(place / "squares", model, tmp_path / name)
    train(of_rows(place, tmp_path / "rows", *flags, image=str(tmp_path / "images"), text=str(tmp_path / "texts")))
    assert losses(tmp_path / "rows") == pytest.approx(losses(tmp_path / "pictures"), rel=1e-4)
    whole, head = mmcl.load_model(tmp_path / "rows"), heads(tmp_path / "rows")
    shown, said = place / "squares/red_tiny.png", "a tiny red square"
    for found, start, weight in (
        (whole.encode_image(shown), mmcl.load_model(image).encode_image(shown), head["image.head.weight"]),
        (whole.encode_text(said), mmcl.load_model(text).encode_text(said), head["text.head.weight"]),
    ):
        np.testing.assert_allclose(found, unit(start @ weight.T), atol=1e-4)
    bert = f"{{name: transformers, args: {{name: {folders['bert']}}}}}"
    train(of_pictures(place, tmp_path / "bert_run", "--text.encoder", bert, "--image.encoder.args.model", image))
    kept = [path.name.partition("-")[0] for path in (tmp_path / "bert_run/features").iterdir()]
    assert sorted(kept) == ["image", "text"]
    assert mmcl.load_model(tmp_path / "bert_run").encode_text(said).shape == (1, 8)


def unit(rows: np.ndarray) -> np.ndarray:
    normalized: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normalized


def test_a_model_of_rows_alone_is_evaluated_on_rows_and_says_what_it_cannot_do(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With everything that a run may have: an average, prefixes, micro-batches, evaluations on held-out rows."""
    flags = ("--train.ema", "0.5", "--train.matryoshka", "{dims: [4]}", "--train.micro_batch", "5", "--data.holdout", "0.3")
    every = "[{name: retrieval, label: rows, every: 4}, {name: geometry, label: rows}]"
    report = train(of_rows(place, tmp_path / "run", *flags, "--evaluate", every, encoder="rows")).report
    assert {row.model for row in report.metrics} >= {"trained", "untrained", "chance"}
    assert not report.failures
    assert any("rows/text_to_image_R@1" in row for row in map(json.dumps, read_log(tmp_path / "run/metrics.jsonl")))
    model = mmcl.load_model(tmp_path / "run")
    rows = EmbeddingSource(str(place / "rows-a"), None, texts=str(place / "rows-b"))
    assert model.encode_image(rows, dim=4).shape == (25, 4)
    line = "this model takes stored rows of 16 numbers in place of images, .*train with image.encoder embeddings_of"
    with pytest.raises(UserError, match=line):
        model.encode_image(str(place / "squares/red_tiny.png"))
    with pytest.raises(UserError, match="this model takes stored rows of 6 numbers in place of texts"):
        model.encode_text("a red square")
    words = ["eval", "retrieval", "--model", str(tmp_path / "run"), "--data", str(place / "rows-a"), "--json"]
    texts = ["--data_args", f"{{texts: {place / 'rows-b'}}}"]
    capsys.readouterr()
    assert main([*words, *texts]) == 0
    assert "text_to_image_R@1" in capsys.readouterr().out
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "the stored rows of texts were written by another model" in said
    assert main(["eval", str(tmp_path / "run")]) == 0
    with pytest.raises(UserError, match="the image tower takes stored rows, and has nothing to export that encodes images"):
        export(model, to="onnx", out=tmp_path / "graph")
    data = SourceConfig(path=str(place / "rows-a"), args={"texts": str(place / "rows-b")})
    job = EmbeddingJob(data=data, model=str(tmp_path / "run"), folder=tmp_path / "again", device="cpu")
    done = present(run_embedding_job(job, workers=1).done)
    assert (done.images, done.texts, done.bad) == (25, 50, 0), "rows of the heads, from those of the encoders"
    other = ["eval", "retrieval", "--model", str(place / "a"), "--data", str(place / "rows-a")]
    assert main(other) == 2
    assert "the data have stored rows in place of images, which the encoder small_cnn cannot read" in capsys.readouterr().err


def test_a_classifier_of_rows(place: Path, tmp_path: Path) -> None:
    """Classes by their rows, and probes; without rows of the classes, one line."""
    for color in ("red", "green"):
        (tmp_path / "classes" / color).mkdir(parents=True)
        for picture in (place / "squares").glob(f"{color}_*.png"):
            shutil.copy(picture, tmp_path / "classes" / color)
    embedded(tmp_path / "classes", str(place / "a"), tmp_path / "of-classes")
    train(of_rows(place, tmp_path / "run", text="rows-a", encoder="rows"))
    model, source = mmcl.load_model(tmp_path / "run"), EmbeddingSource(str(tmp_path / "of-classes"), None)
    report = mmcl.evaluate.run(
        [("zero_shot", {}), ("knn", {"ks": [1]})],
        [mmcl.evaluate.CachedModel(model)],
        [mmcl.evaluate.Task("classes", source, source)],
    )
    assert {row.model for row in report.metrics if row.metric == "zero_shot_top1"} >= {"trained", "chance"}
    assert {row.model for row in report.metrics if row.metric == "knn1_top1"} >= {"trained", "stored rows"}
    with pytest.raises(UserError, match="in place of texts"):
        mmcl.evaluate.run(
            [("zero_shot", {"templates": ["a {}"]})],
            [mmcl.evaluate.CachedModel(model)],
            [mmcl.evaluate.Task("classes", source)],
        )


@pytest.mark.parametrize("of", ["rows", "pictures"])
def test_processes_pieces_and_a_kill_change_nothing(of: str, place: Path, tmp_path: Path) -> None:
    """Two processes that are killed and continue are one process to rounding; one that is killed is the same to the bit."""
    made = of_rows if of == "rows" else of_pictures
    flags = ("--train.save_every", "2", "--train.ema", "0.9", "--data.workers", "0")
    one = made(place, tmp_path / "one", *flags)
    killed = made(place, tmp_path / "killed", *flags)
    assert run(one) == [0]
    assert run(killed, fault=before_step(5, lambda trainer: kill())) != [0]
    assert run(replace(killed, resume=True)) == [0]
    assert final_state(killed) == final_state(one)
    two = made(place, tmp_path / "two", *flags, "--train.micro_batch", "4")
    assert run(two, world=2) == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert len(losses(tmp_path / "one")) == STEPS


@pytest.mark.parametrize("case", [case for case in DAMAGED if "caption" not in case and "image" not in case])
def test_damaged_rows_are_one_line_before_training(
    case: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they are copied; the copy is read whatever becomes of the folder."""
    damage, message = DAMAGED[case]
    monkeypatch.setenv("MMCL_DATA_ROOT", str(tmp_path / "root"))
    shutil.copytree(place / "rows-a", tmp_path / "rows-a")
    damage(tmp_path / "rows-a")
    if case == "no folder":
        message = "rows-a: no such file or folder"
    if case in ("a first shard that is none", "not a number", "another width"):
        message = "is missing or damaged; write it again"
    with pytest.raises(UserError, match=message) as caught:
        train(of_rows(place, tmp_path / "run", image=str(tmp_path / "rows-a"), encoder="rows"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_what_does_not_fit_is_one_line_before_training(place: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(place / "squares", fewer)
    (fewer / "red_tiny.png").unlink()
    lines = [line for line in (fewer / "captions.csv").read_text().splitlines() if "red_tiny" not in line]
    (fewer / "captions.csv").write_text("\n".join(lines) + "\n")
    embedded(fewer, str(place / "b"), tmp_path / "rows-fewer")
    embedded(place / "squares", str(place / "a"), tmp_path / "features", features=True)
    write_pairs(tmp_path / "pairs.parquet")
    table = f"{{name: embeddings, path: {tmp_path / 'pairs.parquet'}, args: {{image_column: picture, text_column: words}}}}"
    mixed = f"{{a: {{path: {place / 'rows-a'}}}, b: {{path: {place / 'squares'}}}}}"
    rows, run_dir = {"encoder": "rows"}, tmp_path / "run"
    cases: list[tuple[Config, str]] = [
        (
            of_rows(place, run_dir, text=str(tmp_path / "rows-fewer"), **rows),
            "was made from other data than .*rows-a; run `mmcl",
        ),
        (
            of_rows(place, run_dir, text=str(tmp_path / "features"), **rows),
            "has no embeddings of texts; embed with a model that",
        ),
        (of_rows(place, run_dir, image="rows-b"), "of images were written by another model .* than the model was made for"),
        (of_rows(place, run_dir, image=str(tmp_path / "features")), r"by another model \(features of \w{8}\) than the model"),
        (of_rows(place, run_dir, "--image.freeze", "false"), "image.freeze: stored rows stand for the images, so the encoder"),
        (of_rows(place, run_dir, "--image.encoder.args", "{width: 7}", **rows), "have 16 numbers, and the image tower takes 7"),
        (of_rows(place, run_dir, "--data.augment", "[{name: hflip}]", **rows), "data.augment has no effect: stored rows stand"),
        (of_rows(place, run_dir, "--data.crop", "{}", **rows), "data.crop has no effect: stored rows stand"),
        (of_pictures(place, run_dir, encoder="rows"), "the image encoder 'rows' needs the width of its rows"),
        (
            of_pictures(place, run_dir, "--image.encoder.args", "{width: 16}", "--text.encoder.args", "{width: 6}", **rows),
            "take the",
        ),
        (of_pictures(place, run_dir, image="gone"), "gone"),
        (aligned(place, run_dir, "--data.train", table), "of images have 4 numbers, and the image tower takes 16"),
        (aligned(place, run_dir, "--data.train", "{}", "--data.mix", mixed, **rows), "data.mix: stored rows stand for images"),
        (
            tiny_config(place / "squares", run_dir, "--data.train", f"{{path: {place / 'rows-a'}}}", "--data.augment", "[]"),
            "which the encoder small_cnn cannot read: take image.encoder rows, or embeddings_of",
        ),
    ]
    for config, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            make_plan(config, 1)
        assert "\n" not in str(caught.value)


def test_rows_of_any_origin(tmp_path: Path) -> None:
    """The run takes the widths from the table, and the doctor reads it."""
    write_pairs(tmp_path / "pairs.parquet", 40)
    args = {"image_column": "picture", "text_column": "words", "caption_column": "caption"}
    data = json.dumps({"name": "embeddings", "path": str(tmp_path / "pairs.parquet"), "args": args})
    config = aligned(tmp_path, tmp_path / "run", "--data.train", data, encoder="rows")
    train(config)
    saved = load_config(tmp_path / "run/config.yaml")
    assert [tower.encoder.args["width"] for tower in (saved.image, saved.text) if tower and tower.encoder] == [4, 3]
    assert main(["doctor", str(tmp_path / "run.yaml"), "--data.train", data, "--run_dir", str(tmp_path / "other")]) == 0
