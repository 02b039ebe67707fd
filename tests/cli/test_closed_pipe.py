"""Every verb exits quietly when its reader has closed the pipe, as in `mmcl list | head -1`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmcl.cli.exit import NO_READER, USER_ERROR, exit_cleanly
from mmcl.cli.main import VERBS
from mmcl.runs.run import train
from tests.engine.tiny import make_folder, tiny_config

IMAGE = "squares/red_tiny.png"
COMMANDS = [
    ["--help"],
    ["--version"],
    ["train", "tiny.yaml", "--data.train.path", "squares", "--run_dir", "second", "--train.steps", "1"],
    ["train", "--help"],
    ["classify", IMAGE, "--labels", "red", "blue", "--model", "run"],
    ["search", "run", "red", "--images", "squares"],
    ["embed", "squares", "--model", "run", "--out", "out.parquet"],
    ["eval", "run"],
    ["compare", "run", "run"],
    ["merge", "run", "run/model", "--out", "merged"],
    ["list"],
    ["config", "clip_emoji"],
    ["doctor", "tiny.yaml", "--data.train.path", "squares"],
    ["data", "verify", "squares"],
    ["example", "photos"],
    ["watch", "run"],
    ["completion", "bash"],
]

# One interpreter imports everything; each command is a child of it that ends as a command does, Python's own end included.
CHILDREN = """
import json, os, sys
import mmcl.cli.main, mmcl.runs.doctor, mmcl.runs.run
commands, streams = json.loads(sys.argv[1]), sys.argv[2].split()
for words in commands:
    sys.stdout.flush()
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    sys.exit()
read, write = os.pipe()
os.close(read)
for stream in streams:
    os.dup2(write, getattr(sys, stream).fileno())
sys.exit(mmcl.cli.main.main(words))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    folder = make_folder(place / "squares")
    evaluation = ("--data.holdout", "0.3", "--evaluate", "[{name: retrieval, label: held_out}]")
    train(tiny_config(folder, place / "run", *evaluation, "--train.steps", "1"))
    return place


def codes(commands: list[list[str]], streams: str, place: Path) -> tuple[list[int], str]:
    words = [sys.executable, "-c", CHILDREN, json.dumps(commands), streams]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=280, check=True)
    return [int(line) for line in done.stdout.split()], done.stderr


def test_every_verb_is_here() -> None:
    assert {command[0] for command in COMMANDS} >= {*VERBS}


def test_every_verb_ends_quietly(place: Path) -> None:
    found, said = codes(COMMANDS, "stdout", place)
    assert dict(zip(map(str, COMMANDS), found, strict=True)) == {str(command): NO_READER for command in COMMANDS}
    complaints = [line for line in said.splitlines() if re.search("Traceback|Exception ignored|[Ee]rror|Broken", line)]
    assert not complaints  # besides them there is the progress of training


def test_an_error_without_a_reader_keeps_its_code(place: Path) -> None:
    assert codes([["list", "bogus"], ["search", "none", "red"]], "stdout stderr", place) == ([USER_ERROR, USER_ERROR], "")


def test_another_broken_pipe_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    assert exit_cleanly(broken) == 70
    assert "Broken pipe" in capsys.readouterr().err
