"""`mmcl data`: index, verify, stats, preview."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmcl.cli.main import main
from mmcl.data.images.decode import decode
from tests.data.tars import pairs, write_tar
from tests.data.troubles import write_beside, write_listed


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "shards" / "0.tar", pairs(0, 8))


def run(*words: object) -> int:
    return main(["data", *map(str, words)])


def test_index(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("index", shard, "--root", tmp_path) == 0
    assert capsys.readouterr().out.startswith("8 samples, fingerprint ")
    assert len(list((tmp_path / "index").glob("*.arrow"))) == 1


def test_verify_exits_with_1_where_something_is_wrong(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", shard, "--root", tmp_path) == 0
    assert capsys.readouterr().out == "16 of 16 members used\n8 samples, 0 findings\n"
    write_tar(shard, {**pairs(0, 3), "0001.png": b"<html>"})
    with pytest.raises(SystemExit) as stopped:
        run("verify", shard, "--root", tmp_path)
    assert stopped.value.code == 1
    assert "0001: is a web page" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("verify", shard, "--root", tmp_path, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], len(found["findings"]), found["usage"][0]["used"]) == (3, 1, 6)


def test_verify_decodes_unless_told_otherwise(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 99).save(noise, "PNG")
    write_tar(shard, {**pairs(0, 3), "0001.png": noise.getvalue()[:2000]})
    with pytest.raises(SystemExit):
        run("verify", shard, "--root", tmp_path)
    assert "0001: cannot be decoded" in capsys.readouterr().out
    assert run("verify", shard, "--root", tmp_path, "--no_decode") == 0


def test_stats(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stats", shard, "--root", tmp_path, "--json", "--picture", tmp_path / "stats.png") == 0
    assert json.loads(capsys.readouterr().out)["captions"] == 16
    assert decode(tmp_path / "stats.png").width > 500
    assert run("stats", "digits") == 0
    assert "classes" in capsys.readouterr().out


def test_preview(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(shard, {**pairs(0, 3), "0001.png": b"<html>"})
    for data, args in ((shard, ()), ("digits", ("--count", "3"))):
        assert run("preview", data, tmp_path / "sheet.png", "--root", tmp_path, *args) == 0
        assert "3 of " in capsys.readouterr().out
        assert decode(tmp_path / "sheet.png").width > 500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stats", "nowhere"), "nowhere: no such file"),
        (("preview", "digits", "x.png", "--count", "0"), "--count is 0"),
        (("preview", "digits", "x.png", "--count", "1001"), "--count is 1001: give 1 to 1,000"),
    ],
)
def test_mistakes(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("write", [write_listed, write_beside])
def test_all_problems_of_a_folder_are_in_one_list(
    write: Callable[[Path], tuple[list[str], list[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, unused = write(tmp_path / "all")
    assert len(bad) >= 20
    with pytest.raises(SystemExit) as stopped:
        run("verify", tmp_path / "all", "--json")
    assert stopped.value.code == 1
    found = json.loads(capsys.readouterr().out)
    findings = found["findings"]
    left_out = [one for usage in found["usage"] for unused in usage["unused"].values() for one in unused["examples"]]
    for name in bad:
        assert sum(f"/{name}: " in line for line in findings) == 1, name
    assert len(findings) == len(bad), "and nothing else is wrong"
    for name in unused:
        assert any(name in one for one in left_out), name
    assert run("stats", tmp_path / "all") == 0
    assert " files used; not used: " in capsys.readouterr().out
    assert run("preview", tmp_path / "all", tmp_path / "sheet.png") == 0


def test_a_place_for_indices_that_is_a_file_is_one_line(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run("index", shard, "--root", tmp_path / "file") == 2
    assert "file/index cannot be used (Not a directory)" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
def test_a_seed_out_of_range(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("preview", "digits", "x.png", "--seed", seed) == 2
    assert f"--seed is {seed}" in capsys.readouterr().err


class TestAsAModelSees:
    """Data are looked at with the channels and the intensity of a run: what a run can read is not a finding."""

    @pytest.fixture
    def images(self, tmp_path: Path) -> Path:
        folder = tmp_path / "arrays"
        folder.mkdir()
        for number in range(3):
            np.save(folder / f"{number}.npy", np.full((6, 7, 5), number, np.float32))
        (folder / "list.csv").write_text("image,caption\n" + "".join(f"{n}.npy,text {n}\n" for n in range(3)))
        return folder / "list.csv"

    @pytest.mark.parametrize("verb", ["verify", "stats"])
    @pytest.mark.parametrize("intensity", ["[0, 3]", "{percentiles: [1, 99]}"])
    def test_of_a_run(self, verb: str, intensity: str, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(verb, images, "--channels", "5", "--intensity", intensity, "--json") == 0
        said = json.loads(capsys.readouterr().out)
        assert said.get("findings", []) == []
        assert verb == "verify" or said["width"]["most"] == 7

    def test_another_is_found(self, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for args in ((), ("--channels", "4", "--intensity", "[0, 3]"), ("--channels", "5")):
            with pytest.raises(SystemExit):
                run("verify", images, *args)
            assert "3 samples, 3 findings" in capsys.readouterr().out

    @pytest.mark.parametrize("given", ["[3, 0]", "12", "{percentiles: [1]}", "dark"])
    def test_an_invalid_intensity_is_refused(self, given: str, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("verify", images, "--intensity", given) == 2
        assert "--intensity: " in capsys.readouterr().err


def test_one_finding_is_singular(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("caption\nso\n" + "long" * 10_000)
    with pytest.raises(SystemExit):
        run("verify", tmp_path / "a.csv")
    assert capsys.readouterr().out.endswith("2 of 2 rows used\n2 samples, 1 finding\n")
