"""Members of tar archives are located where the standard library finds them, and damage is reported."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.data.sources.shards.tar import BrokenTarError, _plain, members
from tests.data.tars import write_tar

CONTENT = {"a.txt": b"one", "long/" + "x" * 300 + ".txt": b"two" * 400, "ümläut.txt": b"", "b.txt": b"z" * 512}


def found(raw: bytes) -> list[tuple[str, bytes]]:
    return [(m.name, raw[m.offset : m.offset + m.size]) for m in members(io.BytesIO(raw), len(raw))]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_long_names_and_other_alphabets(format: int, tmp_path: Path) -> None:
    raw = write_tar(tmp_path / "a.tar", CONTENT, format=format).read_bytes()
    assert found(raw) == list(CONTENT.items())


def test_ustar_splits_long_names(tmp_path: Path) -> None:
    name = "d" * 90 + "/" + "n" * 60
    raw = write_tar(tmp_path / "a.tar", {name: b"x"}, format=tarfile.USTAR_FORMAT).read_bytes()
    assert found(raw) == [(name, b"x")]


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=150)


@given(st.dictionaries(NAMES, st.binary(max_size=600), max_size=4))
def test_as_the_standard_library(content: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", errors="surrogatepass") as tar:
        for name, raw in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    raw = buffer.getvalue()
    with tarfile.open(fileobj=io.BytesIO(raw), errors="surrogateescape") as tar:
        expected = [(info.offset_data, info.size) for info in tar]
    assert [(m.offset, m.size) for m in members(io.BytesIO(raw), len(raw))] == expected


@given(
    st.builds(tarfile.TarInfo, st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=120)),
    st.integers(0, 8**11),
    st.integers(0, 2**33),
    st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.XHDTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_LONGNAME]),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.none() | st.tuples(st.integers(0, 511), st.integers(0, 255)),
)
def test_a_header_is_what_the_library_says(
    info: tarfile.TarInfo, size: int, mtime: int, kind: bytes, format: Literal[0, 1, 2], damage: tuple[int, int] | None
) -> None:
    info.size, info.mtime, info.type = size, mtime, kind
    try:
        block = bytearray(info.tobuf(format)[-512:])
    except ValueError:  # too large a number, or too long a name, for this format
        return
    if damage:
        block[damage[0]] = damage[1]
    plain = _plain(bytes(block))
    if plain is not None:
        expected = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
        assert [(i.name, i.size, i.mtime, i.type) for i in (plain,)] == [
            (expected.name, expected.size, expected.mtime, expected.type)
        ]
    elif kind == tarfile.REGTYPE and damage is None and size < 8**11 and not info.name.endswith("/"):
        raise AssertionError("nearly every header is plain")


def test_links_devices_and_folders_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("../../etc/passwd")
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0
            tar.addfile(info)
        info = tarfile.TarInfo("last.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"ok"))
    assert found((tmp_path / "a.tar").read_bytes()) == [("last.txt", b"ok")]


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (3 * 512, "inside of the member at byte 1024"),
        (1024, "without the mark of an end"),
        (1024 + 100, "inside of a header"),
    ],
)
def test_every_cut_is_seen(cut: int, message: str, tmp_path: Path) -> None:
    """The library takes the second and the third for short archives."""
    raw = write_tar(tmp_path / "a.tar", {"a.txt": b"one", "b.txt": b"z" * 600}).read_bytes()
    with pytest.raises(BrokenTarError, match=message):
        found(raw[:cut])


def test_a_damaged_header(tmp_path: Path) -> None:
    raw = bytearray(write_tar(tmp_path / "a.tar", {"a.txt": b"one", "b.txt": b"two"}).read_bytes())
    raw[1024 + 3] ^= 1
    with pytest.raises(BrokenTarError, match="no header at byte 1024"):
        found(bytes(raw))
    with pytest.raises(BrokenTarError, match="not a tar file"):
        found(b"<html>" * 200)


def test_an_extended_header_without_end(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**33
    with pytest.raises(BrokenTarError, match="more than the limit"):
        found(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


@pytest.mark.parametrize(
    "records", [b"0 path=a\n", b"9999999999999999999999 a=b\n", b" path=a\n", b"-3 path=a\n", b"3 path", b"9 pathab\n"]
)
def test_damaged_extended_headers(records: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    raw = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")
    after = tarfile.TarInfo("y").tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(BrokenTarError, match="extended header at byte 0 is damaged"):
        found(raw + after + bytes(1024))
