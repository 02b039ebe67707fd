"""Files of weights and arrays that expand beyond their size are refused before allocation."""

from __future__ import annotations

import io
import json
import resource
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmcl.data.images.decode import decode
from mmcl.errors import UserError
from mmcl.files.untrusted import read_tensors

VALUES = 40_000_000
LIMIT = 100_000
"""Kilobytes of memory that a refusal may take; the files below would unpack to 160 MB and more."""


def saved(content: Any, *, packed: bool = False, **replaced: bytes) -> bytes:
    """What torch.save writes, compressed or with other parts. Made piece by piece: the tests look at the most memory ever."""
    made = io.BytesIO()
    with tempfile.TemporaryFile() as file:
        torch.save(content, file)
        with (
            zipfile.ZipFile(file) as whole,
            zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED if packed else 0, compresslevel=1) as archive,
        ):
            for name in whole.namelist():
                part = replaced.get(name.rpartition("/")[2].replace(".", "_"))
                with archive.open(name, "w") as out, whole.open(name) if part is None else io.BytesIO(part) as source:
                    shutil.copyfileobj(source, out)
    return made.getvalue()


def overlapping() -> bytes:
    """A directory that lists one storage many times."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"}.")
        archive.writestr("a/data/0", bytes(10**6))
        archive.filelist += [archive.filelist[-1]] * 1_000
    return file.getvalue()


def sparse() -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**6, 10**6), check_invariants=True)


TORCH_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "compressed": (lambda: saved({"w": torch.empty(VALUES)}, packed=True), "unpack to"),
    "compressed a little": (lambda: saved({"w": torch.rand(10)}, packed=True), "unpack to|is compressed"),
    "overlapping members": (overlapping, "unpack to"),
    "one value, repeated": (lambda: saved({"w": torch.zeros(1).expand(10**12)}), "the file is too small"),
    "no values": (lambda: saved({"w": torch.zeros(10**12, device="meta")}), "sparse, quantized or without values"),
    "sparse": (lambda: saved({"w": sparse()}), "sparse, quantized or without values"),
    "a long bytearray": (
        lambda: saved({"w": torch.zeros(1)}, data_pkl=b"\x80\x02c__builtin__\nbytearray\nJ\0\0\0\x40\x85R."),
        "more than tensors",
    ),
    "an old file with a long bytearray": (lambda: b"\x80\x02c__builtin__\nbytearray\nJ\0\0\0\x40\x85R.", "more than tensors"),
}


def refused_within_bounds(read: Callable[[], Any], message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message):
        read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LIMIT


@pytest.mark.parametrize("kind", TORCH_FILES)
def test_torch_files(kind: str, tmp_path: Path) -> None:
    make, message = TORCH_FILES[kind]
    (tmp_path / "a.pt").write_bytes(make())
    refused_within_bounds(lambda: read_tensors(tmp_path / "a.pt"), rf"a\.pt: .*({message})")


def test_a_storage_shorter_than_the_pickle_says_is_not_read_beyond_its_end(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"w": torch.arange(200.0)}, file)
    with zipfile.ZipFile(file) as archive:
        pickled = archive.read("archive/data.pkl")
    assert pickled.count(b"K\xc8") == 2, "the length of the storage, and the shape"
    forged = pickled.replace(b"K\xc8", b"J" + struct.pack("<i", 2_000_000))
    (tmp_path / "a.pt").write_bytes(saved({"w": torch.arange(200.0)}, data_pkl=forged))
    refused_within_bounds(lambda: read_tensors(tmp_path / "a.pt"), r"a\.pt: the weights cannot be read")


def test_what_torch_saves_is_read_bit_for_bit(tmp_path: Path) -> None:
    base = torch.rand(3, 4)
    content = {"a": base, "part": base[1:], "transposed": base.T, "row": torch.ones(1, 3).expand(50, 3), "none": torch.ones(0)}
    for number, old in enumerate((False, True)):
        torch.save(content, tmp_path / f"{number}.pt", _use_new_zipfile_serialization=not old)
        read = read_tensors(tmp_path / f"{number}.pt")
        assert all(torch.equal(read[name], content[name]) for name in content)


def header(content: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(content)) + content + data


def entry(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        header(json.dumps({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}).encode(), bytes(8)),
        header(json.dumps({"a": entry([2], 8, 16)}).encode(), bytes(16)),
        header(json.dumps({"a": entry([2], 0, 8)}).encode(), bytes(9)),
        header(json.dumps({"a": entry([10**12], 0, 8)}).encode(), bytes(8)),
        header(json.dumps({"a": entry([2**32, 2**32], 0, 0)}).encode()),
        header(json.dumps({"a": entry([-1], 0, 8)}).encode(), bytes(8)),
        header(json.dumps({"a": entry([2], 8, 0)}).encode(), bytes(8)),
        header(b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
        header(b"\xff\xfe{}"),
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 100_000_000) + b"{}",
        b"\x01\x02",
        b"",
    ],
)
def test_headers_of_safetensors_that_lie(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    refused_within_bounds(lambda: read_tensors(tmp_path / "a.safetensors"), r"a\.safetensors: damaged")


def npy(shape: tuple[int, ...], dtype: str = "<u2", data: bytes = b"") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def npz(start: bytes, zeros: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("a.npy", "w") as member:
        member.write(start)
        for _ in range(zeros // 10**6):
            member.write(bytes(10**6))
    return stream.getvalue()


ARRAYS: list[tuple[Callable[[], bytes], str]] = [
    (lambda: npy((10**6, 10**6)), "more values than the limit"),
    (lambda: npy((2**32, 2**32)), "more values than the limit"),
    (lambda: npy((-1, 4)), "more values than the limit"),
    (lambda: npy((1,), "|V500000000", bytes(10)), "no numbers"),
    (lambda: npz(npy((1,), "|S200000000"), 2 * 10**8), "more than the limit"),
    (lambda: npz(npy((1, 1)), 2 * 10**8), "more than the limit"),
    (lambda: npz(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2 * 10**8), 2 * 10**8), "more than the limit"),
    (lambda: npz(b""), "cannot be read"),
    (lambda: b"PK\x03\x04", "cannot be read"),
]


@pytest.mark.parametrize(("make", "message"), ARRAYS)
def test_arrays_of_images(make: Callable[[], bytes], message: str) -> None:
    content = make()
    refused_within_bounds(lambda: decode(content, max_pixels=10**6), message)


def test_arrays_of_weights(tmp_path: Path) -> None:
    from mmcl.encoders.open_clip_weights import load_towers

    (tmp_path / "a.npz").write_bytes(npz(npy((VALUES,), "<f4"), 4 * VALUES))
    refused_within_bounds(lambda: load_towers(tmp_path / "a.npz", {}), r"a\.npz: has .* bytes that unpack to")
