"""Small Parquet files that expand enormously are refused before allocation; files that are just compressible are read."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.data.open import open_source
from mmcl.data.sources.tables.table_file import open_table, read_table
from mmcl.errors import UserError
from mmcl.evaluate.embedding_file import stored_task
from mmcl.files import parquet

MEGABYTE = "x" * 10**6


def repeated(value: Any, rows: int, kind: pa.DataType | None = None) -> pa.Array:
    """A column of one value, which takes four bytes a row."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value], kind))


def lists(values: pa.Array, rows: int) -> pa.Array:
    return pa.ListArray.from_arrays(np.linspace(0, len(values), rows + 1).astype(np.int32), values)


def ragged(rows: int) -> pa.Array:
    """Short texts, but for a long one that most of the later rows repeat."""
    numbers = np.minimum(np.arange(rows) % 3, 2) * (np.arange(rows) > 100)
    return pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), pa.array(["a", "b", MEGABYTE]))


BOMBS: dict[str, Callable[[], dict[str, pa.Array]]] = {
    "one long text": lambda: {"text": repeated(MEGABYTE, 10_000)},
    "a long text after short ones": lambda: {"text": ragged(10_000)},
    "long texts in lists": lambda: {"text": lists(repeated(MEGABYTE, 10_000), 100)},
    "all in one row": lambda: {"text": lists(repeated(MEGABYTE, 10_000), 1)},
    "lists of lists": lambda: {"text": lists(lists(repeated(MEGABYTE, 10_000), 1_000), 10)},
    "one image": lambda: {"image": repeated(MEGABYTE.encode(), 10_000), "text": repeated("a", 10_000)},
    "images in structures": lambda: {"image": pa.StructArray.from_arrays([repeated(b"0" * 10**6, 10_000)], ["bytes"])},
    "many short texts": lambda: {"text": repeated("a", 2_000_000)},
    "embeddings": lambda: {
        "kind": repeated("image", 1_000),
        "embedding": lists(pa.array(np.zeros(20_000_000, np.float32)), 1_000),
    },
}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[dict[str, pa.Array]], Path]:
    def write(columns: dict[str, pa.Array]) -> Path:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet", compression="zstd")
        return tmp_path / "a.parquet"

    return write


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_file_that_unpacks_thousandfold_is_refused_before_memory_is_taken(
    bomb: str, written: Callable[[dict[str, pa.Array]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "UNPACKED_BYTES", 2**26)
    path = written(BOMBS[bomb]())
    assert path.stat().st_size < 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reads: list[Callable[[], object]] = [
        lambda: read_table(path),
        lambda: open_table(path, path.parent),
        lambda: open_source("table", str(path), str(path.parent)),
        lambda: open_source("huggingface", str(path.parent), str(path.parent)),
    ]
    if "embedding" in bomb:
        reads.append(lambda: stored_task(path))
    for read in reads:
        with pytest.raises(UserError, match=r"a\.parquet: .* unpack to more than"):
            read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"


@pytest.mark.parametrize(
    "columns",
    [
        {"text": repeated("a photo of a cat", 2_000_000)},
        {"text": repeated(MEGABYTE, 100)},
        {"text": lists(repeated("a photo of a cat", 1_000_000), 200_000)},
        {"text": pa.nulls(1_000_000, pa.string())},
        {"text": pa.array([], pa.string())},
        {"text": pa.array(["a", "b"]), "more": pa.array([[], [{"b": "c"}]], pa.list_(pa.struct({"b": pa.string()})))},
        {"text": pa.array(["a", "b"]), "pairs": pa.array([[("a", "b")], []], pa.map_(pa.string(), pa.string()))},
    ],
)
def test_compressible_files_are_read(columns: dict[str, pa.Array], written: Callable[[dict[str, pa.Array]], Path]) -> None:
    table = read_table(written(columns))
    assert table["text"].combine_chunks().equals(pa.chunked_array([columns["text"]]).cast(table["text"].type).combine_chunks())


def test_large_files_may_unpack_to_more(
    written: Callable[[dict[str, pa.Array]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written({"text": pa.array([np.random.default_rng(number).bytes(48).hex() for number in range(2_000)])})
    monkeypatch.setattr(parquet, "UNPACKED_BYTES", 10**5)
    assert len(read_table(path)) == 2_000
    monkeypatch.setattr(parquet, "UNPACKED_FOLD", 1)
    with pytest.raises(UserError, match="unpack to more than"):
        read_table(path)


def test_a_footer_of_any_bytes_is_read_or_refused(written: Callable[[dict[str, pa.Array]], Path]) -> None:
    path = written({"text": pa.array(["a", "b"] * 50), "label": pa.array(range(100))})
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little")
    for at in range(len(content) - 8 - footer, len(content) - 4, 13):
        for byte in (0, 0x7F, 0x80, 0xFF):
            path.write_bytes(content[:at] + bytes([byte]) + content[at + 1 :])
            with suppress(UserError):
                assert len(read_table(path)) <= 2**24
