"""Every output of every verb is checked before anything is read or computed; an impossible one is refused in one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mmcl.cli.exit import exit_cleanly
from mmcl.cli.main import main
from mmcl.cli.train import train

# The models and the data are not there: a line about them would mean that they were looked for first.
FILES = {
    "search --picture": ("search", "none", "a cat", "--images", "nowhere", "--picture", "{}.png"),
    "mine --out": ("mine", "nowhere", "--rows", "none", "--out", "{}.parquet"),
    "embed --out": ("embed", "nowhere", "--model", "none", "--out", "{}.parquet"),
    "card --out": ("card", "none", "--license", "mit", "--out", "{}.md"),
    "data stats --picture": ("data", "stats", "nowhere", "--picture", "{}.png"),
    "data preview OUT": ("data", "preview", "nowhere", "{}.png"),
}
FOLDERS = {
    "search --save": ("search", "none", "a cat", "--images", "nowhere", "--save", "{}"),
    "embed shards --out": ("embed", "nowhere", "--model", "none", "--out", "{}"),
    "eval --out": ("eval", "runs/none", "--out", "{}"),
    "eval knn --out": ("eval", "knn", "--model", "none", "--data", "nowhere", "--out", "{}"),
    "eval knn --embeddings --out": ("eval", "knn", "--embeddings", "none.parquet", "--out", "{}"),
    "eval suite --out": ("eval", "suite", "none.yaml", "--out", "{}"),
    "eval mteb --out": ("eval", "mteb", "none", "--tasks", "CIFAR10ZeroShot", "--out", "{}"),
    "export --out": ("export", "none", "--to", "own", "--out", "{}"),
    "push --out": ("push", "none", "me/a", "--license", "mit", "--dry_run", "--out", "{}"),
    "compare --out": ("compare", "none", "none", "--out", "{}"),
    "train --run_dir": ("train", "--run_dir", "{}"),
}
COMMANDS = {**FILES, **FOLDERS}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder").mkdir()
    for suffix in (".md", ".parquet", ".png"):
        (tmp_path / f"a-folder{suffix}").mkdir()
    monkeypatch.chdir(tmp_path)


def run(name: str, place: str) -> int:
    words = [word.format(place) for word in COMMANDS[name]]
    if words[0] != "train":
        return main(words)
    config = Path("none.yaml")
    config.write_text("method: {name: simclr}\nimage: {encoder: {name: small_cnn}}\ntrain: {steps: 1}\n")
    return exit_cleanly(lambda: train(str(config), "--data.train.path", "nowhere", *words[1:]))


def refused(name: str, place: str, capsys: pytest.CaptureFixture[str]) -> str:
    before = {path for path in Path().rglob("*") if path.name != "none.yaml"}
    assert run(name, place) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    flag = name.split()[-1]
    assert lines[0].startswith(f"error: {flag.removeprefix('--') if name.startswith('train') else flag} {place}")
    assert {path for path in Path().rglob("*") if path.name != "none.yaml"} == before
    return lines[0]


@pytest.mark.parametrize("place", ["missing/a", "a-file/a", "a-folder", "/proc/a", "a" * 300])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_written(name: str, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(name, place, capsys)


@pytest.mark.parametrize("place", ["a-file", "a-file/a", "/proc/a", "a" * 300])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_made(name: str, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(name, place, capsys)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mmcl.files.atomic.os.fsync", full)
    assert "No space left on device" in refused(name, "new", capsys)


# Without a suffix, embed writes a folder.
@pytest.mark.parametrize(
    ("name", "suffix"),
    [(name, suffix) for name in FILES for suffix in (".txt", ".h5", "") if (name, suffix) != ("embed --out", "")],
)
def test_a_suffix_that_is_not_written(name: str, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word.format("new").removesuffix(".png").removesuffix(".parquet").removesuffix(".md") for word in COMMANDS[name]]
    words = [f"{word}{suffix}" if word == "new" else word for word in words]
    assert main(words) == 2
    assert "give a file that ends in ." in capsys.readouterr().err


@pytest.mark.parametrize("verb", [("stats", "in.png", "--picture", "in.png"), ("preview", "./in.png", "in.png")])
def test_an_output_does_not_replace_what_is_read(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.png").write_text("mine")
    assert main(["data", *verb]) == 2
    assert "this is what is read" in capsys.readouterr().err
    assert Path("in.png").read_text() == "mine"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_that_can_be_written_is_left_as_it_was_after_another_mistake(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path for path in Path().rglob("*") if path.name != "none.yaml"}
    assert run(name, "new" if name in FILES else "new/er") == 2
    said = capsys.readouterr().err
    assert "none" in said or "nowhere" in said
    assert {path for path in Path().rglob("*") if path.name != "none.yaml"} == before
