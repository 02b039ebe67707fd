"""Every verb exits quietly when its reader has closed the pipe, as in `mmcl list | head -1`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmcl.cli.exit import NO_READER, USER_ERROR, exit_cleanly
from mmcl.cli.main import VERBS, main
from mmcl.runs.run import train
from tests.engine.tiny import make_folder, tiny_config
from tests.warm import python

IMAGE = "squares/red_tiny.png"
COMMANDS = [
    ["--help"],
    ["--version"],
    ["train", "tiny.yaml", "--data.train.path", "squares", "--run_dir", "second", "--train.steps", "1"],
    ["train", "--help"],
    ["classify", IMAGE, "--labels", "red", "blue", "--model", "run"],
    ["search", "run", "red", "--images", "squares"],
    ["serve", "run", "--port", "0"],
    ["embed", "squares", "--model", "run", "--out", "out.parquet"],
    ["mine", "squares", "--rows", "rows", "--out", "mined.jsonl"],
    ["eval", "run"],
    ["export", "run", "--to", "own", "--out", "exported"],
    ["card", "run", "--license", "mit", "--out", "card.md"],
    ["push", "run", "me/pushed", "--license", "mit", "--dry_run"],
    ["compare", "run", "run", "--models", "untrained", "trained"],
    ["finetune", "squares", "--init", "run", "--dry_run"],
    ["merge", "run", "run/model", "--out", "merged"],
    ["index", "build", "squares", "--model", "run", "--out", "squares.mmcl"],
    ["dedup", "squares.mmcl"],
    ["list"],
    ["config", "clip_emoji"],
    ["doctor", "tiny.yaml", "--data.train.path", "squares"],
    ["data", "verify", "squares"],
    ["example", "photos"],
    ["watch", "run"],
    ["completion", "bash"],
]
LONG = (
    "serve",
    "embed",
    "mine",
    "export",
    "card",
    "push",
    "finetune",
    "merge",
    "index",
    "dedup",
    "doctor",
    "classify",
    "compare",
    "data",
)
"""Verbs that take seconds and print by the same means as the others."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    folder = make_folder(place / "squares")
    evaluation = ("--data.holdout", "0.3", "--evaluate", "[{name: retrieval, label: held_out}]")
    train(tiny_config(folder, place / "run", *evaluation, "--train.steps", "1"))
    assert main(["embed", str(folder), "--model", str(place / "run"), "--out", str(place / "rows")]) == 0
    return place


@pytest.fixture
def no_reader() -> Iterator[int]:
    """A pipe whose reader has closed it."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def test_every_verb_is_here() -> None:
    assert {command[0] for command in COMMANDS} >= {*VERBS}


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, marks=[pytest.mark.long] if words[0] in LONG else [], id=" ".join(words)) for words in COMMANDS],
)
def test_a_verb_ends_quietly(words: list[str], place: Path, no_reader: int) -> None:
    done = python("-m", "mmcl", *words, cwd=place, stdout=no_reader)
    assert done.returncode == NO_READER, done.stderr
    complaints = [line for line in done.stderr.splitlines() if re.search("Traceback|Exception ignored|[Ee]rror|Broken", line)]
    assert not complaints  # besides them there is the progress of training


@pytest.mark.parametrize("streams", [("stderr",), ("stdout", "stderr")], ids=" and ".join)
@pytest.mark.parametrize("words", [["list", "bogus"], ["search", "none", "red"]], ids=" ".join)
def test_an_error_without_a_reader_keeps_its_code(
    words: list[str], streams: tuple[str, ...], place: Path, no_reader: int
) -> None:
    done = python("-m", "mmcl", *words, cwd=place, **dict.fromkeys(streams, no_reader))
    assert (done.returncode, done.stdout, done.stderr) == (USER_ERROR, "", "")


def test_another_broken_pipe_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    assert exit_cleanly(broken) == 70
    assert "Broken pipe" in capsys.readouterr().err
