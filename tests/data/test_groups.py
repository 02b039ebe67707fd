"""Groups, such as patients: their column in tables, and splits that keep them whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from mmcl.data.captions import text_hash
from mmcl.data.derived.mixture import Mixture
from mmcl.data.derived.subset import Subset, split_source
from mmcl.data.identity import identity_of
from mmcl.data.open import open_source
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.evaluate import CachedModel
from mmcl.evaluate.embedding_file import write_embeddings
from mmcl.testing.patterns import PatternModel, PatternSource
from tests.data.files import write_image, write_table
from tests.narrow import present

ROWS = [{"image": f"{n}.png", "caption": "no finding" if n % 3 else "nodule", "patient": n // 5} for n in range(40)]
BY_PATIENT = {"group_column": "patient"}


def groups(source: Source) -> list[int]:
    return list(present(source.groups).tolist())


def table(folder: Path, rows: list[dict[str, Any]], name: str = "a.csv") -> str:
    folder.mkdir(exist_ok=True)
    write_table(folder / name, rows)
    return str(folder / name)


def with_images(folder: Path, rows: list[dict[str, Any]], name: str = "captions.csv") -> str:
    for row in rows:
        write_image(folder / row["image"])
    table(folder, rows, name)
    return str(folder)


@pytest.mark.parametrize("kind", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "folder", "huggingface"])
def test_every_kind_of_table_has_the_same_groups(kind: str, tmp_path: Path) -> None:
    path, name = tmp_path / "data", "table"
    if kind == "folder":
        name, _ = kind, with_images(path, ROWS)
    elif kind == "huggingface":
        name = kind
        Dataset.from_list(ROWS).save_to_disk(path)
    else:
        path = Path(table(path, ROWS, kind))
    source = open_source(name, str(path), str(tmp_path), BY_PATIENT)
    assert groups(source) == [text_hash(str(n // 5)) for n in range(40)]
    plain = open_source(name, str(path), str(tmp_path))
    assert plain.groups is None
    assert source.fingerprint != plain.fingerprint
    assert identity_of(source) != identity_of(plain)


def test_stored_embeddings_have_the_groups_of_their_file(tmp_path: Path) -> None:
    rows = np.eye(4, dtype=np.float32).tolist()
    columns = {"picture": rows, "words": rows, "patient": ["x", "y", "x", "y"]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    args = {"image_column": "picture", "text_column": "words"}
    path = str(tmp_path / "rows.parquet")
    source = open_source("embeddings", path, str(tmp_path), args | BY_PATIENT)
    assert groups(source) == [text_hash(name) for name in "xyxy"]
    assert open_source("embeddings", path, str(tmp_path), args).groups is None
    own = PatternSource(12, seed=0)
    own.groups = np.arange(12) // 4
    write_embeddings(tmp_path / "e.parquet", own, CachedModel(PatternModel()))
    written = groups(open_source("embeddings", str(tmp_path / "e.parquet"), str(tmp_path)))
    assert written == [text_hash(str(n // 4)) for n in range(12)]
    pq.write_table(pa.table(columns | {"patient": ["x", None, "x", "y"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="patient, image 2: no group; fill in the cell, or remove the row"):
        open_source("embeddings", path, str(tmp_path), args | BY_PATIENT)


def test_rows_of_one_image_have_its_group(tmp_path: Path) -> None:
    rows = [{"image": one[0], "caption": f"c{n}", "who": one[1]} for n, one in enumerate(["ax", "by", "ax", "by", "cx"])]
    source = open_source("table", table(tmp_path, rows), None, {"group_column": "who"})
    assert groups(source) == [text_hash("x"), text_hash("y"), text_hash("x")]
    assert "other" not in source.usage[0].to_text(), "the column is used"


@pytest.mark.parametrize(
    ("change", "args", "message"),
    [
        ({}, {"group_column": "pateint"}, r"no column 'pateint' for `group_column`; it has image, caption, patient"),
        ({"patient": ""}, BY_PATIENT, r"patient.*row 8"),
        ({"image": "0.png"}, BY_PATIENT, r"row 8.*a second group; an image belongs to one"),
    ],
    ids=["no column", "an empty cell", "two groups of an image"],
)
@pytest.mark.parametrize("kind", ["table", "folder"])
def test_what_is_wrong_is_named(change: dict[str, Any], args: dict[str, str], message: str, kind: str, tmp_path: Path) -> None:
    rows = [row | change if number == 7 else row for number, row in enumerate(ROWS)]
    path = with_images(tmp_path, rows) if kind == "folder" else table(tmp_path, rows)
    with pytest.raises(UserError, match=message) as error:
        open_source(kind, path, None, args)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_table_has_no_groups(tmp_path: Path) -> None:
    write_image(tmp_path / "plain" / "a.png")
    with pytest.raises(UserError, match="no captions file in it, and so no column 'patient' for `group_column`"):
        open_source("folder", str(tmp_path / "plain"), None, BY_PATIENT)
    write_image(tmp_path / "coco" / "a.png")
    (tmp_path / "coco" / "captions.json").write_text('{"a.png": "a caption"}')
    with pytest.raises(UserError, match=r"captions\.json: has no columns, and so none for `group_column`"):
        open_source("folder", str(tmp_path / "coco"), None, BY_PATIENT)


def test_a_broken_row_is_its_own_group(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("image,caption,patient\na.png,one,x\nb.png\nc.png\nd.png,two,x\n")
    found = groups(open_source("table", str(path), None, BY_PATIENT))
    assert found[0] == found[3] == text_hash("x")
    assert len(set(found)) == 3


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_no_split_divides_a_group_whatever_the_order_of_the_rows(share: float, seed: int, tmp_path: Path) -> None:
    sides = []
    for order in (range(40), np.random.default_rng(seed).permutation(40)):
        source = open_source("table", table(tmp_path, [ROWS[n] for n in order]), None, BY_PATIENT)
        rest, held = split_source(source, share, seed)
        sides.append([set(groups(rest)), set(groups(held))])
        assert len(rest) + len(held) == 40
        assert len(held) in (5, round(share * 40))
    assert sides[0] == sides[1]
    assert not sides[0][0] & sides[0][1]


def test_the_share_is_told_in_groups(tmp_path: Path) -> None:
    source = open_source("table", table(tmp_path, ROWS), None, BY_PATIENT)
    rest, held = split_source(source, 0.05, seed=0)
    assert len(held) == 5
    assert rest.warnings[-1] == ("data.holdout 0.05 of 40 samples is 2, and 5 are held out: samples of one group stay together")
    alone = open_source("table", table(tmp_path, [row | {"patient": "x"} for row in ROWS]), None, BY_PATIENT)
    with pytest.raises(UserError, match=r"data\.holdout 0\.5 of 40 samples with 1 group leaves an empty part"):
        split_source(alone, 0.5, seed=0)


def test_groups_that_datasets_share_are_held_out_of_both_or_of_none(tmp_path: Path) -> None:
    paths = table(tmp_path, ROWS[:25]), table(tmp_path, ROWS[15:] + [row | {"patient": "new"} for row in ROWS[:3]], "b.csv")
    one, other = (open_source("table", path, None, BY_PATIENT) for path in paths)
    for seed in range(5):
        parts = [
            split_source(first, 0.3, seed, beside=[present(second.groups)]) for first, second in ((one, other), (other, one))
        ]
        rest, held = ({group for pair in parts for group in groups(pair[side])} for side in (0, 1))
        assert not rest & held
        assert len(held) + len(rest) == 9


def test_derived_sources_keep_groups(tmp_path: Path) -> None:
    source = open_source("table", table(tmp_path, ROWS), None, BY_PATIENT)
    plain = open_source("table", table(tmp_path, ROWS[:4], "b.csv"))
    assert groups(Subset(source, np.array([9, 0]))) == [text_hash("1"), text_hash("0")]
    mixed = groups(Mixture({"a": source, "b": plain, "c": source}))
    assert mixed[:40] == mixed[44:] == groups(source)
    assert len(set(mixed[40:44])) == 4, "a sample of a part without groups is its own"
    assert not set(mixed[40:44]) & set(mixed[:40])
    assert Mixture({"b": plain}).groups is None
