"""Duplicates against a full matrix, whatever the blocks; overlap; and the list that training reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mmcl.cli.main import main
from mmcl.core.near_pairs import equal_rows, near_pairs
from mmcl.data.names import rows_in_list
from mmcl.data.open import open_source
from mmcl.data.sample import Sample
from mmcl.errors import UserError
from mmcl.search import Index
from mmcl.search.duplicates import near_groups
from mmcl.search.memory_store import MemoryStore
from mmcl.testing.patterns import PatternModel, pattern


def unit(rows: np.ndarray) -> torch.Tensor:
    found = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(found.astype(np.float32))


def planted(seed: int, size: int, width: int = 8) -> torch.Tensor:
    """Rows of which many are equal, or near each other."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(size, width))
    rows[rng.integers(0, size, size // 3)] = rows[rng.integers(0, size, size // 3)]
    rows += 0.05 * rng.normal(size=rows.shape) * (rng.random((size, 1)) < 0.5)
    return unit(rows)


def by_matrix(vectors: torch.Tensor, threshold: float, rows: torch.Tensor) -> list[list[int]]:
    exact = vectors[rows].double()
    equal = (vectors[rows][:, None] == vectors[rows][None]).all(2)  # their cosine is 1 up to rounding
    near = coo_array(((exact @ exact.T >= threshold) | equal).numpy())
    _, label = connected_components(near, directed=False)
    groups: dict[int, list[int]] = {}
    for row, name in zip(rows.tolist(), label.tolist(), strict=True):
        groups.setdefault(name, []).append(row)
    return sorted(group for group in groups.values() if len(group) > 1)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 90),
    st.sampled_from([1, 3, 16, 64, 2048]),
    st.sampled_from([0.5, 0.9, 0.97, 1.0]),
)
def test_groups_are_those_of_the_full_matrix_whatever_the_block(seed: int, size: int, block: int, threshold: float) -> None:
    vectors = planted(seed, size)
    rows = torch.from_numpy(np.flatnonzero(np.random.default_rng(seed).random(size) < 0.8))
    for chosen in (torch.arange(size), rows):
        assert sorted(near_groups(vectors, threshold, chosen, block=block)) == by_matrix(vectors, threshold, chosen)


def test_every_pair_is_found_once() -> None:
    vectors = planted(1, 70)
    exact = vectors.double() @ vectors.double().T
    expected = {(i, j) for i in range(70) for j in range(i + 1, 70) if exact[i, j] >= 0.9}
    for block in (1, 7, 64, 512):
        parts = list(near_pairs(vectors, 0.9, block=block))
        found = [pair for i, j, _ in parts for pair in zip(i.tolist(), j.tolist(), strict=True)]
        assert len(found) == len(set(found))
        assert set(found) == expected


def test_equal_rows_and_a_chain() -> None:
    assert equal_rows(torch.ones(5000, 3)).tolist() == [0] * 5000
    assert near_groups(torch.ones(3000, 1), 0.97, torch.arange(3000)) == [list(range(3000))]
    angle = np.deg2rad([0, 10, 20, 30])
    chain = unit(np.stack([np.cos(angle), np.sin(angle)], axis=1))
    assert near_groups(chain, np.cos(np.deg2rad(11)), torch.arange(4)) == [[0, 1, 2, 3]]
    index = Index(MemoryStore([Sample(str(n), None) for n in range(4)], chain.numpy(), chain.numpy()[:0]))
    (whole,) = index.duplicates(0.98)
    assert whole.lowest == pytest.approx(np.cos(np.deg2rad(30)))
    assert [len(group.ids) for group in index.duplicates(0.98, complete=True)] == [2, 2]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(pattern(number)).save(folder / f"{number}.png")
    Image.fromarray(pattern(0)).resize((16, 16), Image.Resampling.NEAREST).save(folder / "large.png")
    (folder / "sub" / "copy.png").write_bytes((folder / "1.png").read_bytes())
    return folder


def test_what_is_kept(photos: Path, tmp_path: Path) -> None:
    index = Index.build(photos, PatternModel(), out=tmp_path / "index")

    def paths(**options: object) -> list[list[str]]:
        return [[index.item(id).path for id in group.ids] for group in index.duplicates(**options)]  # type: ignore[arg-type]

    assert paths() == [["large.png", "0.png"], ["1.png", "sub/copy.png"]]
    assert paths(keep="first") == [["0.png", "large.png"], ["1.png", "sub/copy.png"]]
    assert paths(level="exact") == [["1.png", "sub/copy.png"]]
    assert paths(where='folder = ""') == [["large.png", "0.png"]]
    in_memory = Index.build(photos, PatternModel())
    assert in_memory.duplicates(level="exact") == index.duplicates(level="exact")
    for threshold in (0, 1.5, float("nan")):
        with pytest.raises(UserError, match="threshold"):
            index.duplicates(threshold)


def test_planted_leakage_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = unit(rng.normal(size=(500, 32))), unit(rng.normal(size=(100, 32)))
    test[::10] = unit(train[::50].numpy() + 0.01 * rng.normal(size=(10, 32)))
    names = [Sample(f"{n}.png", None) for n in range(500)]
    tests, trains = (Index(MemoryStore(names[: len(rows)], rows.numpy(), rows.numpy()[:0])) for rows in (test, train))
    found = tests.overlap(trains)
    assert [(tests.item(one).path, trains.item(two).path) for one, two, _ in found] == [
        (f"{10 * n}.png", f"{50 * n}.png") for n in range(10)
    ]
    other = Index(MemoryStore(names, train.numpy(), train.numpy()[:0], model="another"))
    with pytest.raises(UserError, match="two models"):
        tests.overlap(other)


def test_the_verb_changes_nothing_unless_asked(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, before = str(tmp_path / "index"), sorted(photos.rglob("*"))
    Index.build(photos, PatternModel(), out=place)
    assert main(["dedup", place]) == 0
    said = capsys.readouterr().out
    assert "2 duplicates in 2 groups, 33.3% of 6 images; nothing has been changed" in said
    assert max(map(len, said.splitlines())) <= 150
    assert sorted(photos.rglob("*")) == before
    assert main(["dedup", place, "--list", str(tmp_path / "kept.txt"), "--move_to", str(tmp_path / "aside")]) == 0
    assert (tmp_path / "kept.txt").read_text() == "1.png\n2.png\n3.png\nlarge.png\n"
    moved = sorted(path.relative_to(tmp_path / "aside").as_posix() for path in (tmp_path / "aside").rglob("*.png"))
    assert moved == ["0.png", "sub/copy.png"]
    assert sorted([*photos.rglob("*.png"), *(photos / name for name in moved)]) == [path for path in before if path.suffix]
    assert main(["dedup", place, "--move_to", str(tmp_path / "aside")]) == 2
    capsys.readouterr()
    assert main(["dedup", place, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["groups"]) == 2


def test_nothing_is_moved_over_another_file(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "index")
    Index.build(photos, PatternModel(), out=place)
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "0.png").write_text("mine")
    assert main(["dedup", place, "--move_to", str(tmp_path / "aside")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (photos / "sub" / "copy.png").exists()
    assert (tmp_path / "aside" / "0.png").read_text() == "mine"


def test_training_reads_the_list(photos: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("sub/copy.png\n3.png\n")
    source = open_source("folder", str(photos))
    (rows,) = rows_in_list([source], kept)
    assert sorted(Path(source[int(row)].name).name for row in rows) == ["3.png", "copy.png"]
    kept.write_text("3.png\nnone.png\n")
    with pytest.raises(UserError, match=r"kept\.txt: 1 line of 2 not in the data, the first 'none\.png'"):
        rows_in_list([source], kept)
    with pytest.raises(UserError, match="no such file"):
        rows_in_list([source], tmp_path / "nothing.txt")
