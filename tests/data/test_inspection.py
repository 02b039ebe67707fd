"""Every problem of the data is found, and all counts equal those of a loop over the samples."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmcl.data.inspection import inspect_source
from mmcl.data.open import open_source
from tests.data.tars import pairs, picture, write_tar
from tests.narrow import present


def test_counts_of_the_digits() -> None:
    source = open_source("digits")
    found = inspect_source(source)
    assert found.findings == []
    assert found.sides.tolist() == [[8, 8]] * len(source)
    assert found.repeated_images == len(source) - len({np.asarray(source[i].image).tobytes() for i in range(len(source))})
    counts = np.bincount(present(source.labels)).tolist()
    assert found.classes == dict(zip(present(source.class_names), counts, strict=True))
    assert found.to_dict()["captions"] == 0


def test_lengths_and_repetitions(tmp_path: Path) -> None:
    members = {**pairs(0, 4), "0002.png": picture(1), "0003.txt": b"gray 0\nabc"}
    write_tar(tmp_path / "a.tar", members)
    found = inspect_source(open_source("auto", str(tmp_path / "a.tar"), str(tmp_path)), decoded=True)
    assert found.findings == []
    assert found.caption_lengths.tolist() == [6, 13, 6, 13, 6, 13, 6, 3]
    assert (found.repeated_captions, found.repeated_images) == (1, 1)
    facts = found.to_dict()
    assert facts["caption_characters"]["most"] == 13
    assert sum(facts["width"]["histogram"]["counts"]) == facts["images"] == 4
    text = found.to_text()
    assert "repeated captions" in text
    assert "unusable" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("decoded", [False, True])
def test_findings(decoded: bool, tmp_path: Path) -> None:
    whole, noise = picture(), io.BytesIO()
    Image.effect_noise((64, 64), 99).save(noise, "PNG")
    spoilt = {"bad.png": b"<html>", "cut.png": noise.getvalue()[:1000], "x.png": whole, "y.txt": b"no image"}
    spoilt |= {"long.txt": b"a" * 30_000}
    write_tar(tmp_path / "a.tar", {**pairs(0, 3), **spoilt, "cut.txt": b"cut", "bad.txt": b"bad", "long.png": whole})
    path = write_tar(tmp_path / "b.tar", pairs(3, 6))
    path.write_bytes(path.read_bytes()[: 4 * 512 * 2])
    source = open_source("auto", str(tmp_path), str(tmp_path))
    found = inspect_source(source, decoded=decoded).findings
    expected = ["b.tar: ends at byte 4096", "a.tar, bad: is a web page"]
    expected += ["a.tar, cut: cannot be decoded"] if decoded else []
    expected += ["a.tar, long: the caption has 30000 characters", "a.tar, x: has no caption", "a.tar, y: has no image"]
    assert len(found) == len(expected)
    for line, part in zip(found, expected, strict=True):
        assert part in line


def test_bits_that_rot_without_a_trace(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pairs(0, 3))
    source = open_source("auto", str(path), str(tmp_path))
    time, raw = path.stat().st_mtime_ns, bytearray(path.read_bytes())
    raw[raw.index(b"gray 1") + 5] = ord("7")
    path.write_bytes(bytes(raw))
    os.utime(path, ns=(time, time))
    (line,) = inspect_source(source).findings
    assert "differ from its index" in line


def test_any_kind_of_image(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    found = inspect_source(open_source("folder", str(tmp_path)))
    assert found.sides.tolist() == [[3, 2]]
    assert len(found.findings) == 1
    assert "b.png: the file is empty" in found.findings[0]
