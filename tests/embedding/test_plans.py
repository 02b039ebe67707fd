"""Nothing can be mixed into a folder of shards; damage is found, and a mistake is one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest

import mmcl
from mmcl.cli.main import main
from mmcl.config import SourceConfig
from mmcl.errors import UserError
from mmcl.runs.embedding.job import EmbeddingJob, ShardEncoder
from mmcl.runs.embedding.runners import run_embedding_job
from mmcl.runs.run import train
from mmcl.search.shards.files import DONE, read_shard, shard_table
from mmcl.search.shards.plan import PLAN, read_plan
from tests.embedding.conftest import ROWS, SHARD_ROWS, Bytes, content
from tests.engine.tiny import make_folder
from tests.faults.runs import tiny_run


@pytest.mark.parametrize(
    "damage", ["cut off", "another shard", *(pytest.param(one, marks=pytest.mark.long) for one in ("empty", "not parquet"))]
)
def test_a_damaged_shard_is_done_again(damage: str, job: EmbeddingJob, expected: Bytes) -> None:
    run_embedding_job(job, workers=1)
    path = job.folder / read_plan(job.folder).file(2)
    whole = path.read_bytes()
    other = (job.folder / read_plan(job.folder).file(1)).read_bytes()
    path.write_bytes({"cut off": whole[:-100], "empty": b"", "another shard": other, "not parquet": b"PAR1" * 9}[damage])
    run_embedding_job(job, workers=1)
    assert content(job.folder) == expected


def test_damage_behind_the_footer_is_found_when_it_is_read(job: EmbeddingJob) -> None:
    run_embedding_job(job, workers=1)
    plan = read_plan(job.folder)
    path = job.folder / plan.file(2)
    values = np.array(pq.read_table(path)["embedding"].to_pylist()[0], np.float32).tobytes()
    path.write_bytes(path.read_bytes().replace(values, np.full(len(values) // 4, np.nan, np.float32).tobytes()))
    with pytest.raises(UserError, match="embeddings are damaged; delete it"):
        read_shard(job.folder, plan, 2)


@pytest.fixture
def begun(job: EmbeddingJob) -> EmbeddingJob:
    ShardEncoder(job)
    return job


def other_model(job: EmbeddingJob, folder: Path) -> EmbeddingJob:
    train(tiny_run(make_folder(folder / "squares"), folder / "run", "--train.steps", "1", "--train.seed", "5"))
    return replace(job, model=str(folder / "run"))


def other_data(job: EmbeddingJob, folder: Path) -> EmbeddingJob:
    return replace(job, data=SourceConfig(path=str(make_folder(folder / "others"))))


def other_list(job: EmbeddingJob, folder: Path) -> EmbeddingJob:
    """As many samples, one with another caption."""
    shutil.copytree(str(job.data.path), folder / "others")
    table = folder / "others" / "captions.csv"
    table.write_text(table.read_text().replace("a tiny red", "a small red"))
    return replace(job, data=SourceConfig(path=str(folder / "others")))


REFUSED: dict[str, tuple[Callable[[EmbeddingJob, Path], EmbeddingJob], str]] = {
    "model": (other_model, r"another model or --dim \(\w{8}, not \w{8}\): give that one, or another --out"),
    "dim": (lambda job, _: replace(job, dim=2), r"another model or --dim \(\w{8}, not \w{8}\): give that one"),
    "rows": (other_data, r"another list of samples|26 samples, not 25"),
    "captions": (other_list, r"another list of samples \(\w{8}, not \w{8}\)"),
    "shard_rows": (lambda job, _: replace(job, shard_rows=5), "--shard_rows 4, not 5: give --shard_rows 4"),
    "features": (lambda job, _: replace(job, features=True), "the embeddings: leave out --features"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_plan_is_refused(name: str, begun: EmbeddingJob, tmp_path: Path) -> None:
    changed, message = REFUSED[name]
    other = changed(begun, tmp_path)
    with pytest.raises(UserError, match=message):
        run_embedding_job(other, workers=1)
    assert set(content(begun.folder)) == {PLAN}


def test_another_version_of_a_library_is_refused(begun: EmbeddingJob) -> None:
    with (
        mock.patch.object(np, "__version__", "1.2.3"),
        pytest.raises(UserError, match=r"numpy .*, not 1\.2\.3, and the last bits may differ: install numpy"),
    ):
        run_embedding_job(begun, workers=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2 is not known; a newer mmcl may read it"),
        ({"rows": 0}, "rows and shard_rows are at least 1"),
        ({"rows": "many"}, "rows must be a whole number, not 'many'"),
        ({"more": 1}, "unknown key 'more'"),
        (None, "not valid JSON"),
    ],
)
def test_a_damaged_plan_is_refused(change: dict[str, Any] | None, message: str, begun: EmbeddingJob) -> None:
    path = begun.folder / PLAN
    path.write_text(path.read_text()[:-20] if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        run_embedding_job(begun, workers=1)


@pytest.fixture
def _full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = os.fsync

    def full(descriptor: int) -> None:
        if ".parquet" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("_full_disk")
def test_a_full_disk_is_named_and_leaves_whole_files(job: EmbeddingJob) -> None:
    with pytest.raises(UserError, match=r"part-00000-of-00007\.parquet cannot be written \(No space left on device\)"):
        run_embedding_job(job, workers=1)
    assert set(content(job.folder)) == {PLAN}


def command(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


def test_the_command(job: EmbeddingJob, expected: Bytes, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["embed", str(job.data.path), "--model", job.model, "--out", str(job.folder), "--shard_rows", str(SHARD_ROWS)]
    assert command(*words, "--device", "cpu", "--workers", "1") == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "26 samples in 7 shards to do",
        f"26 images and 26 texts in 7 files in {job.folder}, complete (done.json)",
    ]
    assert printed.err.startswith("left out: ")
    assert "broken.png" in printed.err
    assert content(job.folder) == expected
    assert command(*words, "--device", "cpu", "--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(job.folder),
        "images": 26,
        "texts": 26,
        "bad": 1,
        "files": 7,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "e.parquet", "--shard_rows", "5"], "--shard_rows is of a folder of shards, and --out e.parquet is a file"),
        (["--out", "e.npy", "--workers", "2"], "--workers is of a folder of shards"),
        (["--out", "e.h5"], "--out e.h5: give a file that ends in .parquet or .csv or .npy, or a folder, without .h5"),
        (["--out", "shards", "--no_cache"], "--no_cache: a folder of shards uses no cache"),
        (["--out", "shards", "--shard_rows", "0"], "shard_rows"),
        (["--out", "shards", "--workers", "0"], "--workers must be at least 1, not 0"),
        (["--out", "shards", "--runner", "rya"], "--runner: unknown runner 'rya'; did you mean 'ray'?"),
        (["--out", "shards", "--runner", "torchrun"], "start it by torchrun"),
        (["--out", "held"], "--out held: holds notes.txt, and no shards; give a new folder"),
        (["--out", "images"], "--out images: holds images, such as a.png; give a folder of its own"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    words: list[str],
    message: str,
    job: EmbeddingJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, file in (("held", "notes.txt"), ("images", "a.png")):
        Path(name).mkdir()
        (Path(name) / file).touch()
    before = sorted(Path().rglob("*"))
    assert main(["embed", str(job.data.path), "--model", job.model, *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("stored", [None, {}, {"dtype": "float16", "narrow": "int8"}], ids=["memory", "disk", "narrow"])
def test_an_index_from_shards_is_that_of_the_data(stored: dict[str, Any] | None, job: EmbeddingJob, tmp_path: Path) -> None:
    run_embedding_job(job, workers=1)
    model = mmcl.load_model(job.model, device="cpu")
    built = mmcl.Index.build(str(job.data.path), model)
    out = None if stored is None else tmp_path / "squares.mmcl"
    with mock.patch.object(type(model), "encode_image", side_effect=AssertionError("nothing is encoded")):
        index = mmcl.Index.from_shards(job.folder, str(job.data.path), out=out, model_name=job.model, **(stored or {}))
    assert index.store.narrow == (stored or {}).get("narrow")
    assert len(index) == len(built) == ROWS - 1
    for text in ("a tiny red square", "a huge black square"):
        expected, found = built.search(text, top_k=5), index.search(text, top_k=5)
        assert [hit.path.name for hit in found] == [hit.path.name for hit in expected]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-3 if stored else 1e-5)
    assert index.search(text, target="texts", top_k=3)[0].caption == built.search(text, target="texts", top_k=3)[0].caption


@pytest.mark.parametrize("when", ["shards", "index"])
def test_a_width_may_be_cut_in_the_shards_or_in_the_index(when: str, job: EmbeddingJob, tmp_path: Path) -> None:
    """An index on disk of either opens with the whole model that it names, and finds what the model at that width finds."""
    small = mmcl.TruncatedModel(mmcl.load_model(job.model, device="cpu"), 2)
    built = mmcl.Index.build(str(job.data.path), small)
    dims = (2, None) if when == "shards" else (None, 2)
    run_embedding_job(replace(job, dim=dims[0]), workers=1)
    mmcl.Index.from_shards(job.folder, str(job.data.path), out=tmp_path / "a.mmcl", model_name=job.model, dim=dims[1])
    found, expected = (one.search("a tiny red square", top_k=5) for one in (mmcl.Index.open(tmp_path / "a.mmcl"), built))
    assert [hit.path.name for hit in found] == [hit.path.name for hit in expected]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)


def test_features_have_no_width_to_cut(job: EmbeddingJob) -> None:
    with pytest.raises(UserError, match="dim is a width of embeddings, and features are what comes before them"):
        run_embedding_job(replace(job, features=True, dim=2), workers=1)


def test_an_index_from_incomplete_or_other_shards_is_refused(begun: EmbeddingJob, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="7 of 7 files are missing; run the same `mmcl embed` again"):
        mmcl.Index.from_shards(begun.folder, str(begun.data.path))
    others = make_folder(tmp_path / "others")
    with pytest.raises(UserError, match="made from another list of samples"):
        mmcl.Index.from_shards(begun.folder, others)
    with pytest.raises(UserError, match=r"has no plan\.json"):
        mmcl.Index.from_shards(others, others)


def test_every_file_is_read_by_verify(job: EmbeddingJob, expected: Bytes, caplog: pytest.LogCaptureFixture) -> None:
    """One changed bit of an embedding is a valid file with another digest; before there is a list, only damage can be told."""
    run_embedding_job(job, workers=1)
    path = job.folder / read_plan(job.folder).file(2)
    whole = path.read_bytes()
    value = np.array(pq.read_table(path)["embedding"].to_pylist()[0], np.float32)
    changed = value.copy().view(np.int32)
    changed[0] ^= 1
    path.write_bytes(whole.replace(value.tobytes(), changed.tobytes()))
    run_embedding_job(job, workers=1)
    assert content(job.folder) != expected  # the footer is as it was
    run_embedding_job(job, workers=1, verify=True)
    assert content(job.folder) == expected
    assert [record.message for record in caplog.records if "damaged" in record.message] == [
        f"{path}: is damaged, and is written again"
    ]
    caplog.clear()
    run_embedding_job(job, workers=1, verify=True)
    assert not caplog.records
    (job.folder / DONE).unlink()
    path.write_bytes(whole.replace(value.tobytes(), np.full_like(value, np.nan).tobytes()))
    run_embedding_job(job, workers=1, verify=True)
    assert content(job.folder) == expected


def test_float16_halves_the_numbers(job: EmbeddingJob, tmp_path: Path) -> None:
    half = replace(job, dtype="float16", folder=tmp_path / "half")
    run_embedding_job(job, workers=1)
    run_embedding_job(half, workers=1)
    plan, wide = read_plan(half.folder), read_plan(job.folder)
    for number in range(plan.shards):
        one, other = read_shard(half.folder, plan, number)["embedding"], read_shard(job.folder, wide, number)["embedding"]
        assert one.type.value_type == "halffloat"
        pairs = zip(one.to_pylist(), other.to_pylist(), strict=True)
        assert all((a is None) == (b is None) and (a is None or np.allclose(a, b, atol=1e-3)) for a, b in pairs)
    with pytest.raises(UserError, match="was begun with --dtype float16, not float32: give --dtype float16"):
        run_embedding_job(replace(half, dtype="float32"), workers=1)
    index = mmcl.Index.from_shards(half.folder, str(job.data.path))
    np.testing.assert_allclose(np.linalg.norm(index.image_emb, axis=1), 1, atol=1e-6)


def test_numbers_too_large_for_float16_are_refused() -> None:
    columns: dict[str, list[Any]] = {"row": [0], "id": [0], "kind": ["image"], "label": [None], "name": ["a"]}
    assert shard_table(columns, np.array([[65504.0]]), [None], "float16")["embedding"].to_pylist() == [[65504.0]]
    with pytest.raises(UserError, match="too large for float16; give --dtype float32"):
        shard_table(columns, np.array([[7e4]]), [None], "float16")
