"""Stored teachers of a run: which row is read for what, the mixed loss, and what is refused. Exactness: `tests/distributed`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

import mmcl
from mmcl.config import Config, DistillationConfig, SourceConfig
from mmcl.data.stored_rows import StoredRows
from mmcl.engine.log import read_log
from mmcl.engine.stored_teachers import DistilledLoss, StoredTeacher, check_teachers, is_teachable
from mmcl.engine.transfer import views_on
from mmcl.errors import UserError
from mmcl.methods import METHODS
from mmcl.runs import stored_shards
from mmcl.runs.embedding.job import EmbeddingJob
from mmcl.runs.embedding.runners import run_embedding_job
from mmcl.runs.plan import Plan, make_plan
from mmcl.runs.run import _batches, train
from mmcl.search.shards.files import DONE, read_shard
from mmcl.search.shards.plan import read_plan
from mmcl.testing.toys import embed, toy_batch, toy_method
from mmcl.types import Tokens
from tests.engine.tiny import tiny_config

ROWS, WIDTH = 25, 16
TAUGHT = ("--train.distillation.weight", "0.4")
NEIGHBORS = ("--train.distillation.targets", "neighbors", "--train.distillation.temperature", "0.1")


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Path:
    """The squares, each with two captions and some with a third."""
    copy = folder.parent / "pairs"
    shutil.copytree(folder, copy)
    lines = (copy / "captions.csv").read_text().splitlines()
    more = [f"{line.partition(',')[0]},square number {number}" for number, line in enumerate(lines[1:])]
    more += [f"{line.partition(',')[0]},third of {number}" for number, line in enumerate(lines[1::3])]
    (copy / "captions.csv").write_text("\n".join([*lines, *more]) + "\n")
    return copy


@pytest.fixture(scope="module")
def model(pairs: Path) -> str:
    return str(train(tiny_config(pairs, pairs.parent / "teacher", "--train.steps", "2")).run_dir)


@pytest.fixture(scope="module")
def shards(pairs: Path, model: str) -> Path:
    return embedded(pairs, model, pairs.parent / "shards")


def embedded(data: Path, model: str, folder: Path, **options: Any) -> Path:
    job = EmbeddingJob(data=SourceConfig(path=str(data)), model=model, folder=folder, shard_rows=8, device="cpu", **options)
    run_embedding_job(job, workers=1)
    return folder


def given(*folders: Path) -> tuple[str, str]:
    return "--data.embeddings", json.dumps([str(one) for one in folders])


class Alone:
    """What a run needs of Accelerate where there is one process."""

    num_processes, process_index, is_main_process, device = 1, 0, True, torch.device("cpu")


def plan_of(data: Path, run_dir: Path, *flags: str) -> Plan:
    return make_plan(tiny_config(data, run_dir, *TAUGHT, *flags), 1)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--data.holdout", "0.3"),
        ("--train.micro_batch", "3"),
        ("--data.workers", "0", "--data.caption_weights", "[1, 3, 1]"),
    ],
    ids=["all", "held out", "by length", "weighted captions"],
)
def test_a_row_is_that_of_the_image_and_of_the_caption_drawn(
    options: tuple[str, ...], pairs: Path, model: str, shards: Path, tmp_path: Path
) -> None:
    """Against the teacher itself, which encodes what the batch shows."""
    plan = plan_of(pairs, tmp_path / "run", *given(shards), *options)
    teacher, batches = mmcl.load_model(model), _batches(plan, Alone())
    captions: dict[int, set[str]] = {}
    for step in range(12):
        batch = batches[step]
        shown, tokens = [plan.source[index] for index in batch.index.tolist()], batch.views["text"]
        assert isinstance(tokens, Tokens)
        images = teacher.encode_image([sample.required_image() for sample in shown])
        texts = []
        for sample, row, mask in zip(shown, tokens.ids, tokens.mask, strict=True):
            of_own = [plan.method.tower("text").encoder.tokenizer([one]) for one in sample.captions]  # type: ignore[operator]
            [text] = [c for c, own in zip(sample.captions, of_own, strict=True) if own.ids[0].tolist() == row[mask].tolist()]
            texts.append(text)
            captions.setdefault(int(batch.index[len(texts) - 1]), set()).add(text)
        expected = {"image": images, "text": teacher.encode_text(texts)}
        for kind, rows in expected.items():
            np.testing.assert_allclose(batch.stored[f"{shards}/{kind}"].numpy(), rows, atol=2e-6)
    assert any(len(drawn) > 1 for drawn in captions.values())


def logged(config: Config) -> dict[str, Any]:
    """What a run writes of its last step."""
    last: dict[str, Any] = read_log(train(config).run_dir / "metrics.jsonl")[-1]
    assert last["loss"] == pytest.approx(0.6 * last["method_loss"] + 0.4 * last["distillation_loss"], rel=1e-5)
    return last


def test_the_loss_is_the_published_one(pairs: Path, shards: Path, tmp_path: Path) -> None:
    flags = (*given(shards), "--train.steps", "1", "--method.args", "{temperature: 0.2}")
    plan = plan_of(pairs, tmp_path / "run", *flags)
    teacher, batch = plan.teachers[0].teacher, _batches(plan, Alone())[0]
    with torch.no_grad():
        rows = plan.method.train().encode(views_on("cpu", batch.views))
        student = rows["image"].double() @ rows["text"].double().T / 0.2
    image, text = (batch.stored[f"{shards}/{kind}"].double() for kind in ("image", "text"))
    logits = teacher.scale * image @ text.T
    both = [
        F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean")
        for ours, theirs in ((student, logits), (student.T, logits.T))
    ]
    found = logged(tiny_config(pairs, tmp_path / "trained", *TAUGHT, *flags))["distillation_loss"]
    assert found == pytest.approx(float(sum(both) / 2), rel=1e-4)


def test_rows_are_read_once_and_resumed_runs_read_none(pairs: Path, shards: Path, tmp_path: Path) -> None:
    flags = (*TAUGHT, *given(shards))
    with mock.patch.object(stored_shards, "read_shard", wraps=read_shard) as read:
        train(tiny_config(pairs, tmp_path / "run", *flags, "--train.steps", "2"))
        assert [call.args[2] for call in read.call_args_list] == [0, 1, 2, 3]
        train(tiny_config(pairs, tmp_path / "run", *flags, "--train.steps", "2", "--resume"))
        assert read.call_count == 4


def test_a_run_does_not_continue_with_other_rows(pairs: Path, shards: Path, model: str, tmp_path: Path) -> None:
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(shards, moved)
    train(tiny_config(pairs, run_dir, *TAUGHT, *given(shards), "--train.steps", "2"))
    train(tiny_config(pairs, run_dir, *TAUGHT, *given(moved), "--train.steps", "2", "--resume"))
    other = embedded(pairs, model, tmp_path / "other", dtype="float16")
    with pytest.raises(UserError, match="cannot be continued with other rows of teachers: restore the folders"):
        train(tiny_config(pairs, run_dir, *TAUGHT, *given(other), "--train.steps", "2", "--resume"))
    with pytest.raises(UserError, match=r"train\.distillation\.weight"):
        train(
            tiny_config(pairs, run_dir, "--train.distillation.weight", "0.5", *given(shards), "--train.steps", "2", "--resume")
        )


def test_float16_stays_float16_in_the_files(pairs: Path, model: str, tmp_path: Path) -> None:
    half = embedded(pairs, model, tmp_path / "half", dtype="float16")
    batches = _batches(plan_of(pairs, tmp_path / "run", *given(half)), Alone())
    assert {rows.dtype for rows in batches[0].stored.values()} == {torch.float16}
    assert logged(tiny_config(pairs, tmp_path / "trained", *TAUGHT, *given(half)))["step"] == 8


def test_folders_of_one_model_are_one_teacher_of_a_mixture(
    pairs: Path, folder: Path, model: str, shards: Path, tmp_path: Path
) -> None:
    other = embedded(folder, model, tmp_path / "other")
    mix = ("--data.train", "{}", "--data.mix", f"{{a: {{path: {folder}}}, b: {{path: {pairs}}}}}")
    config = mixed(pairs, tmp_path / "run", mix, given(shards, other))
    plan = make_plan(config, 1)
    assert [one.teacher.name for one in plan.teachers] == [str(shards)]
    batches, teacher = _batches(plan, Alone()), mmcl.load_model(model)
    for step in range(4):
        batch = batches[step]
        images = teacher.encode_image([plan.source[index].required_image() for index in batch.index.tolist()])
        np.testing.assert_allclose(batch.stored[f"{shards}/image"].numpy(), images, atol=2e-6)
    with pytest.raises(UserError, match=rf"the model of {other} has no rows of the 25 samples like .*; give their folder, too"):
        make_plan(mixed(pairs, tmp_path / "run", mix, given(other)), 1)


def mixed(data: Path, run_dir: Path, mix: tuple[str, ...], folders: tuple[str, str]) -> Config:
    config = tiny_config(data, run_dir, *TAUGHT, *folders)
    parts: Any = mmcl.config.load_config(data.parent / "tiny.yaml", ["--data.mix", mix[-1], "--run_dir", str(run_dir)])
    return replace(config, data=replace(config.data, train=SourceConfig(), mix=parts.data.mix))


def test_several_teachers_and_one_of_images_alone(pairs: Path, model: str, shards: Path, tmp_path: Path) -> None:
    features = embedded(pairs, model, tmp_path / "features", features=True)
    flags = (*given(shards, features), "--train.distillation.temperature", "0.1")
    plan = plan_of(pairs, tmp_path / "run", *flags)
    assert [(one.teacher.has_text, one.teacher.scale, one.width) for one in plan.teachers] == [(True, 10, 16), (False, 10, 32)]
    assert logged(tiny_config(pairs, tmp_path / "trained", *TAUGHT, *flags, *NEIGHBORS[:2]))["step"] == 8
    simclr = ("--method.name", "simclr", "--text", "null", "--method.args", "{temperature: 0.5}")
    assert logged(tiny_config(pairs, tmp_path / "simclr", *TAUGHT, *flags, *simclr))["step"] == 8


def test_a_teacher_of_images_leaves_out_the_sample_itself() -> None:
    """In a loop over the queries; a sample that the batch shows twice is left out twice."""
    method = toy_method("clip")
    batch = toy_batch(method, 6)
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows[5] = rows[2]
    batch = replace(batch, index=torch.tensor([0, 1, 2, 3, 4, 2]), stored={"one/image": rows})
    teacher = StoredTeacher(name="one", scale=3.0, bias=None, has_text=False)
    embeddings = embed(method, batch)
    output = DistilledLoss(method, [teacher], DistillationConfig(weight=1.0))(embeddings, batch)
    student, unit = embeddings.local["image"].detach(), F.normalize(rows, dim=1)
    scale, total = 1 / 0.07, 0.0
    for i in range(6):
        others = batch.index != batch.index[i]
        target = (3.0 * unit[others] @ unit[i]).softmax(0)
        log = (scale * student[others] @ student[i]).log_softmax(0)
        total += float((target * (target.log() - log)).sum()) / 6
    assert float(output.loss.detach()) == pytest.approx(total, rel=1e-7)
    torch.testing.assert_close(output.metrics["method_loss"], method.loss(embeddings, batch).loss.detach())


def test_captions_of_neighbors_are_positives_as_much_as_stored_rows_are_near() -> None:
    """In a loop over the queries of both directions, with one teacher of pairs and one of images."""
    method = toy_method("clip")
    batch, rng = toy_batch(method, 6), torch.Generator().manual_seed(1)
    widths = {"pairs/image": 3, "pairs/text": 4, "images/image": 5}
    stored = {name: torch.randn(6, width, generator=rng, dtype=torch.float64) for name, width in widths.items()}
    stored["pairs/image"][5] = stored["pairs/image"][2]
    batch = replace(batch, stored=stored)
    teachers = [
        StoredTeacher(name="pairs", scale=3.0, bias=-4.0, has_text=True),
        StoredTeacher(name="images", scale=5.0, bias=None, has_text=False),
    ]
    embeddings = embed(method, batch)
    output = DistilledLoss(method, teachers, DistillationConfig(weight=1.0, targets="neighbors"))(embeddings, batch)
    image, text = (embeddings.local[view].detach() for view in ("image", "text"))
    unit = {name: F.normalize(rows, dim=1) for name, rows in stored.items()}
    scales, total = {"pairs/image": 3.0, "pairs/text": 3.0, "images/image": 5.0}, 0.0
    for query, key in ((image, text), (text, image)):
        for i in range(6):
            target = torch.stack([(scale * unit[name] @ unit[name][i]).softmax(0) for name, scale in scales.items()]).mean(0)
            assert target.argmax() == i or (i == 5 and target[2] <= target[5])
            log = (key @ query[i] / 0.07).log_softmax(0)
            total += float((target * (target.log() - log)).sum()) / 12
    assert float(output.loss.detach()) == pytest.approx(total, rel=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_taught_or_refused(pairs: Path, tmp_path: Path, name: str) -> None:
    config, method = tiny_config(pairs, tmp_path / "run", *TAUGHT), toy_method(name)
    config = replace(config, method=replace(config.method, name=name))
    teacher = StoredTeacher(name="shards", scale=2.0, bias=-1.0, has_text=True)
    if is_teachable(method):
        check_teachers(config, method, [teacher])
        return
    with pytest.raises(UserError, match=rf"method {name} does not compare images by cosines and a temperature, as teachers do"):
        check_teachers(config, method, [teacher])


Damage = Callable[[Path], None]


def without_shard(folder: Path) -> None:
    (folder / read_plan(folder).file(1)).unlink()


def cut_off(folder: Path) -> None:
    (folder / read_plan(folder).file(0)).write_bytes(b"PAR1")


def without_list(folder: Path) -> None:
    (folder / DONE).unlink()


def changed(change: Callable[[pa.Table], pa.Table]) -> Damage:
    """Damage of the second shard."""

    def damage(folder: Path) -> None:
        path = folder / read_plan(folder).file(1)
        table = pq.read_table(path)
        pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)

    return damage


def with_rows(table: pa.Table, values: np.ndarray, mask: np.ndarray | None = None) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(values.ravel()), values.shape[1], mask=None if mask is None else pa.array(mask)
    )
    return table.set_column(table.column_names.index("embedding"), "embedding", column)


def with_nan(table: pa.Table) -> pa.Table:
    return with_rows(table, np.full((len(table), WIDTH), np.nan, np.float32))


def narrower(table: pa.Table) -> pa.Table:
    return with_rows(table, np.ones((len(table), WIDTH - 1), np.float32))


def other_captions(table: pa.Table) -> pa.Table:
    names = [
        f"{name}!" if kind == "text" else name
        for kind, name in zip(*(table[c].to_pylist() for c in ("kind", "name")), strict=True)
    ]
    return table.set_column(table.column_names.index("name"), "name", pa.array(names))


def unreadable(folder: Path) -> None:
    path = folder / read_plan(folder).file(1)
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    metadata[b"mmcl.shard"] = json.dumps({**json.loads(metadata[b"mmcl.shard"]), "bad": 1}).encode()
    mask = np.arange(len(table)) == 2
    pq.write_table(with_rows(table, np.ones((len(table), WIDTH), np.float32), mask).replace_schema_metadata(metadata), path)


DAMAGED: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "has no plan.json, so it is no folder of shards"),
    "not complete": (without_list, "is not complete; run the same `mmcl embed` again"),
    "a shard is missing": (without_shard, "is missing or damaged; write it again"),
    "a first shard that is none": (cut_off, "is damaged"),
    "not a number": (changed(with_nan), "its embeddings are damaged; delete it"),
    "another width": (changed(narrower), "has rows of 15 numbers, and the first shard of 16; delete it"),
    "other captions": (changed(other_captions), "has no row of the caption '.*': embed the training data again"),
    "an image that could not be read": (unreadable, "has no row of the image .*png: embed the training data again, or leave"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_rows_are_one_line_before_training(case: str, pairs: Path, shards: Path, tmp_path: Path) -> None:
    damage, message = DAMAGED[case]
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        train(tiny_config(pairs, tmp_path / "run", *TAUGHT, *given(copy)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/metrics.jsonl").exists()
    assert not list((tmp_path / "run").glob("features/teacher-*"))


def test_settings_and_data_that_do_not_fit_are_refused(
    pairs: Path, folder: Path, model: str, shards: Path, tmp_path: Path
) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(pairs, fewer)
    (fewer / "red_tiny.png").unlink()
    lines = [line for line in (fewer / "captions.csv").read_text().splitlines() if "red_tiny" not in line]
    (fewer / "captions.csv").write_text("\n".join(lines) + "\n")
    features = embedded(pairs, model, tmp_path / "features", features=True)
    again = tmp_path / "again"
    shutil.copytree(shards, again)
    cases: list[tuple[Path, tuple[str, ...], str]] = [
        (folder, (*TAUGHT, *given(shards)), "was made from another list of samples; run `mmcl embed` on the training data"),
        (fewer, (*TAUGHT, *given(shards)), "was made from 25 samples, not 24; run `mmcl embed` on the training data"),
        (pairs, (*TAUGHT, *given(shards, again)), "have the rows of one model for the same data; give one"),
        (pairs, (*TAUGHT, *given(features)), "have no temperature; set train.distillation.temperature"),
        (pairs, given(shards), r"data.embeddings is not used: set train.distillation.weight above 0, or remove it"),
        (pairs, TAUGHT, r"train.distillation.weight has no effect without data.embeddings: give a folder of `mmcl embed`"),
        (
            pairs,
            ("--train.distillation.temperature", "0.1"),
            r"train.distillation.temperature has no effect without data.embeddings",
        ),
        (pairs, ("--train.distillation.weight", "1.5"), r"train.distillation.weight"),
        (pairs, NEIGHBORS[:2], r"train.distillation.targets has no effect without data.embeddings"),
        (pairs, (*TAUGHT, *given(shards), *NEIGHBORS[:2]), "neighbors, and train.distillation.temperature is missing: a model"),
        (
            pairs,
            (*TAUGHT, *given(shards), *NEIGHBORS, "--method.name", "simclr", "--text", "null"),
            "and teachers of simclr, which has no captions, compare images with images anyway: remove it",
        ),
        (
            pairs,
            (*TAUGHT, *given(shards), *NEIGHBORS, "--method.name", "siglip"),
            "neighbors, which a softmax can learn, and the sigmoids of siglip cannot; take method clip",
        ),
        (
            pairs,
            (*TAUGHT, *given(shards), "--method.name", "siglip"),
            "the sigmoids of siglip need a sigmoid teacher of images and captions, such as SigLIP, and .* has no bias",
        ),
        (
            pairs,
            (*TAUGHT, *given(shards), "--method.name", "simcse", "--image", "null"),
            "method simcse does not compare images by cosines and a temperature",
        ),
    ]
    for data, flags, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            make_plan(tiny_config(data, tmp_path / "run", *flags), 1)
        assert "\n" not in str(caught.value)


def test_rows_of_several_captions_follow_each_other(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.arange(12, dtype=np.float32).reshape(6, 2))
    np.save(tmp_path / "starts.npy", np.array([0, 1, 4]))
    stored = StoredRows(tmp_path / "rows.npy", tmp_path / "starts.npy")
    found = stored.read(np.array([2, 1, 1, 0]), np.array([1, 0, 2, 0]))
    assert found[:, 0].tolist() == [10, 2, 6, 0]
