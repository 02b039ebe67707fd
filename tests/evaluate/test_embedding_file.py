"""Embeddings from a file are evaluated like those of the model that wrote them, and errors name the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.errors import UserError
from mmcl.evaluate import CachedModel, Report, Task, compare, run
from mmcl.evaluate.embedding_file import stored_task, write_embeddings
from mmcl.testing.patterns import PatternModel, PatternSource
from tests.narrow import present

ARGS: dict[str, dict[str, Any]] = {"knn": {"ks": [1, 5]}, "retrieval": {"examples": 0}}
NAMES = ["retrieval", "zero_shot", "knn", "linear_probe"]
SOURCE, BANK = PatternSource(36, seed=0), PatternSource(60, seed=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("embeddings")
    for name, source in (("test", SOURCE), ("train", BANK)):
        write_embeddings(folder / f"{name}.parquet", source, CachedModel(PatternModel()))
    return folder / "test.parquet", folder / "train.parquet"


def direct(name: str) -> Report:
    task = Task("test", SOURCE, BANK, baselines=False)
    return run([(name, ARGS.get(name, {}))], [CachedModel(PatternModel())], [task])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_the_numbers_of_its_model(name: str, files: tuple[Path, Path]) -> None:
    model, task = stored_task(*files)
    found = run([(name, ARGS.get(name, {}))], [CachedModel(model)], [task])
    expected = {metric.key: metric.value for metric in direct(name).metrics}
    assert {metric.key: metric.value for metric in found.metrics} == pytest.approx(expected)
    assert found.provenance == direct(name).provenance
    # The file says of which data it is, so that it can be compared with a report of the model itself.
    assert all(one.difference == 0 for one in compare(found, direct(name)).differences)


def test_a_file_keeps_the_groups_of_its_images(tmp_path: Path) -> None:
    grouped, path = PatternSource(36, seed=0), tmp_path / "e.parquet"
    grouped.groups = np.arange(36) // 3 + 2**62
    write_embeddings(path, grouped, CachedModel(PatternModel()))
    groups = present(stored_task(path)[1].source.groups)
    assert (groups[:, None] == groups).tolist() == (grouped.groups[:, None] == grouped.groups).tolist()
    assert stored_task(write(tmp_path / "plain.parquet", kind=["image"], embedding=[[1.0]]))[1].source.groups is None
    missing = write(tmp_path / "a.parquet", kind=["image", "image"], embedding=[[1.0], [2.0]], group=["x", None])
    with pytest.raises(UserError, match=r"a\.parquet: group, row 2: no group; fill in the cell, or remove the row"):
        stored_task(missing)


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_any_writer_will_do_captions_may_be_several(tmp_path: Path) -> None:
    """Plain lists, texts as ids, no names: two images, the first with two captions, the second with one."""
    path = write(
        tmp_path / "e.parquet",
        id=["a", "b", "b", "a", "a"],
        kind=["image", "image", "text", "text", "text"],
        embedding=[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.9, 0.3], [0.1, 1.0]],
    )
    model, task = stored_task(path)
    report = run([("retrieval", {"ks": [1], "examples": 0})], [CachedModel(model)], [task])
    assert report["text_to_image_R@1"] == pytest.approx(1 / 3)
    assert report["image_to_text_R@1"] == pytest.approx(0)
    assert report["text_to_image_tied"] == 0


def test_a_class_that_only_the_bank_has(tmp_path: Path) -> None:
    rows = np.eye(3).tolist()
    bank = write(tmp_path / "bank.parquet", kind=["image"] * 3, label=["x", "y", "z"], embedding=rows)
    test = write(tmp_path / "test.parquet", kind=["image"] * 2, label=["z", "y"], embedding=[rows[2], rows[0]])
    model, task = stored_task(test, bank)
    assert run([("knn", {"ks": [1]})], [CachedModel(model)], [task])["knn1_top1"] == 0.5


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"kind": ["image"]}, "no column 'embedding'"),
        ({"embedding": [[1.0]]}, "no column 'kind'"),
        ({"kind": ["photo"], "embedding": [[1.0]]}, "row 1: kind is 'photo'"),
        ({"kind": ["text"], "embedding": [[1.0]]}, "no row of kind 'image'"),
        ({"kind": ["image"] * 2, "embedding": [[1.0], [1.0, 2.0]]}, "of one length"),
        ({"kind": ["image"] * 2, "embedding": [[1.0], None]}, "of one length"),
        ({"kind": ["image"], "embedding": ["1 2"]}, "lists of numbers"),
        (
            {"kind": ["image", "text", "text"], "name": ["", "a", "a"], "id": [1, 1, 1], "embedding": [[1.0], [1.0], [2.0]]},
            "two different",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_named(columns: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        stored_task(write(tmp_path / "e.parquet", **columns))


def test_what_a_file_lacks_for_an_evaluator_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "e.parquet", kind=["image"] * 2, label=[0, 1], embedding=[[1.0], [2.0]])
    model, task = stored_task(path)
    for name, lack in (("knn", "give --bank"), ("retrieval", "text tower"), ("zero_shot", "text tower")):
        with pytest.raises(UserError, match=lack):
            run([(name, {})], [CachedModel(model)], [task])
    columns = {"kind": ["image", "image", "class"], "label": ["x", "y", "x"], "embedding": [[1.0], [2.0], [3.0]]}
    model, task = stored_task(write(tmp_path / "classes.parquet", **columns))
    with pytest.raises(UserError, match="no row of kind 'class' is for 'y'"):
        run([("zero_shot", {})], [CachedModel(model)], [task])
