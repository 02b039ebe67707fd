"""Answers to yes/no questions, in columns of tables of every kind."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from mmcl.data.derived.mixture import Mixture
from mmcl.data.derived.subset import Subset, split_source
from mmcl.data.identity import identity_of
from mmcl.data.open import open_source
from mmcl.data.source import Source
from mmcl.errors import UserError
from tests.data.files import write_image, write_table
from tests.narrow import present

ANSWERS = [[1, 0], [0, 1], [1, 1], [0, 0], [-1, 1]]
ROWS = [
    {"image": f"{n}.png", "caption": "a scan", "edema": ANSWERS[n % 5][0], "fracture": bool(ANSWERS[n % 5][1])}
    for n in range(20)
]
ARGS: dict[str, Any] = {"target_columns": ["edema", "fracture"]}


def table(folder: Path, rows: list[dict[str, Any]], name: str = "a.csv") -> str:
    folder.mkdir(exist_ok=True)
    write_table(folder / name, rows)
    return str(folder / name)


def opened(tmp_path: Path, rows: list[dict[str, Any]], kind: str, args: dict[str, Any]) -> Source:
    if kind == "folder":
        for name in {row["image"] for row in rows}:
            write_image(tmp_path / "data" / name)
        table(tmp_path / "data", rows, "captions.csv")
        return open_source(kind, str(tmp_path / "data"), None, args)
    if kind != "huggingface":
        return open_source("table", table(tmp_path / "data", rows, kind), str(tmp_path), args)
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    return open_source(kind, str(tmp_path / "data"), str(tmp_path), args)


@pytest.mark.parametrize("kind", ["a.csv", "a.jsonl", "a.parquet", "folder", "huggingface"])
def test_every_kind_of_table_has_the_same_answers(kind: str, tmp_path: Path) -> None:
    source = opened(tmp_path, ROWS, kind, ARGS)
    assert present(source.targets).tolist() == [ANSWERS[n % 5] for n in range(20)]
    assert list(source.target_names) == ["edema", "fracture"]
    assert "edema" not in source.usage[0].to_text(), "the column is used"
    plain = opened(tmp_path / "plain", ROWS, kind, {}) if kind == "huggingface" else opened(tmp_path, ROWS, kind, {})
    assert plain.targets is None
    assert source.fingerprint != plain.fingerprint
    assert identity_of(source) != identity_of(plain)
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.targets, present(source.targets))


def test_parts_of_a_source_have_their_answers(tmp_path: Path) -> None:
    source = opened(tmp_path, ROWS, "a.csv", ARGS)
    assert present(Subset(source, np.array([4, 1])).targets).tolist() == [ANSWERS[4], ANSWERS[1]]
    grouped = opened(tmp_path, [row | {"who": n} for n, row in enumerate(ROWS)], "a.csv", ARGS | {"group_column": "who"})
    rest, held = split_source(grouped, 0.25, seed=0)
    assert len(present(rest.targets)) == len(rest)
    assert present(held.targets).tolist() == [ANSWERS[n % 5] for n in held.indices]


@pytest.mark.parametrize("kind", ["a.csv", "folder"])
def test_rows_of_one_image_answer_together_and_empty_cells_are_unknown(kind: str, tmp_path: Path) -> None:
    answers = [("a", 1), ("b", ""), ("a", ""), ("b", 0), ("c", "")]
    rows = [{"image": f"{name}.png", "caption": f"c{n}", "edema": answer} for n, (name, answer) in enumerate(answers)]
    source = opened(tmp_path, rows, kind, {"target_columns": ["edema"]})
    assert present(source.targets).tolist() == [[1], [0], [-1]]


@pytest.mark.parametrize(
    ("change", "args", "message"),
    [
        ({}, ["oedema"], "no column 'oedema' for `target_columns`; it has image, caption, edema, fracture"),
        ({}, ["edema", "edema"], "target_columns has 'edema' twice"),
        ({}, "edema", "target_columns of data source '(table|folder)' must be a list"),
        ({"edema": "maybe"}, ["edema"], "edema, row 8: 'maybe' is not an answer; write 1, 0, or nothing if it is unknown"),
        ({"edema": 0.5}, ["edema"], "edema, row 8: '0.5' is not an answer"),
        ({"image": "0.png", "edema": 0}, ["edema"], "edema.* row 8 and another one answer differently for "),
    ],
)
@pytest.mark.parametrize("kind", ["a.csv", "folder"])
def test_what_is_wrong_is_named(change: dict[str, Any], args: Any, message: str, kind: str, tmp_path: Path) -> None:
    rows = [row | change if number == 7 else row for number, row in enumerate(ROWS)]
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path, rows, kind, {"target_columns": args})
    assert "\n" not in str(error.value)


def test_a_folder_without_a_table_has_no_answers(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="no captions file in it, and so no column 'edema' for `target_columns`"):
        open_source("folder", str(tmp_path), None, ARGS)
    (tmp_path / "captions.json").write_text('{"a.png": "a caption"}')
    with pytest.raises(UserError, match=r"captions\.json: has no columns, and so none for `target_columns`"):
        open_source("folder", str(tmp_path), None, ARGS)


def test_a_mixture_has_the_answers_that_all_its_parts_have(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / str(n)).mkdir()
    both, swapped, one, none = (
        opened(tmp_path / str(n), ROWS[: 3 + n], "a.csv", {"target_columns": names})
        for n, names in enumerate([["edema", "fracture"], ["fracture", "edema"], ["edema"], []])
    )
    mixture = Mixture({"a": both, "b": swapped})
    assert list(mixture.target_names) == ["edema", "fracture"]
    assert present(mixture.targets).tolist() == [*ANSWERS[:3], *ANSWERS[:4]]
    assert Mixture({"a": both, "b": one}).targets is None
    assert Mixture({"a": both, "b": none}).targets is None
