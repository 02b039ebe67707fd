"""The README from its first line to its last, in an empty folder and with an installed package."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mmcl.cli.main import main
from tests.documentation import snippets
from tests.documentation.snippets import blocks_of, servers_that_end, shortened

README = Path(__file__).parents[2] / "README.md"


def lines_of(page: Path) -> list[str]:
    """The lines of the shell that are run."""
    blocks = [block for block in blocks_of(page) if block.language == "bash" and not block.needs_more]
    return [line for block in blocks for line in block.text.splitlines() if line.strip()]


@pytest.mark.long  # `.ci/run` does it with an environment of its own; `test_pages.py` runs the README in the clone
def test_the_readme_runs_in_an_empty_folder_with_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """In a process of its own that finds the unpacked wheel, and the clone nowhere."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, snippets.__file__, str(README)],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert re.findall(r"(?m)^\$ (.*)$", done.stdout) == lines_of(README)


def next_lines(printed: str) -> list[str]:
    """The commands below "try next" that name what is there."""
    (below,) = re.findall(r"(?s)\ntry next\n(.*)", printed)
    return [line.strip() for line in below.splitlines() if line.startswith("  mmcl ") and not re.search(r"\b[A-Z]{5,}\b", line)]


@pytest.mark.usefixtures("few_tokens")
def test_what_a_run_says_to_try_next_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the default run, and after one on images of one's own, which searches all of them."""
    monkeypatch.chdir(tmp_path)
    assert main(shortened(["train"])) == 0
    printed = capsys.readouterr().out
    assert "knows emoji drawings, not photos" in printed
    lines = next_lines(printed)
    assert [line.split()[1] for line in lines] == ["search", "serve", "example", "classify"]
    with servers_that_end():
        for line in lines:
            assert main(shlex.split(line)[1:]) == 0, line
    capsys.readouterr()
    held_out = "[{name: retrieval, label: held_out}]"
    words = ["train", "clip_finetune", "--data.train.path", "photos/", "--data.holdout", "0.25", "--train.steps", "1"]
    assert main([*words, "--train.threads", "1", "--evaluate", held_out]) == 0
    line, page = next_lines(capsys.readouterr().out)
    with servers_that_end():
        assert main(shlex.split(page)[1:]) == 0
    assert "24 images at http://127.0.0.1:" in capsys.readouterr().out
    assert main([*shlex.split(line)[1:], "--top-k", "100", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 24


HITS = {"a red apple": r"\bapple\b", "a crying face": r"\bcrying\b"}
"""What the caption of the best hit holds, by the query of a command that is shown to newcomers."""


@pytest.mark.long  # minutes: the default configuration is trained as it is shipped
@pytest.mark.timeout(3600)
def test_the_queries_that_newcomers_are_shown_find_what_they_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train"]) == 0
    lines = [*lines_of(README), *next_lines(capsys.readouterr().out)]
    assert main(["example", "photos"]) == 0
    searches = [line for line in dict.fromkeys(lines) if line.startswith("mmcl search ")]
    assert len(searches) >= 2
    for line in searches:
        words = shlex.split(line)[1:]
        capsys.readouterr()
        assert main([*words, "--json"]) == 0
        assert re.search(HITS[words[2]], json.loads(capsys.readouterr().out)[0]["caption"]), line
    capsys.readouterr()
    for line in (line for line in dict.fromkeys(lines) if line.startswith("mmcl classify photos/")):
        words = shlex.split(line)[1:]
        assert main([*words, "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row["labels"][0]["label"] == Path(row["image"]).stem, line
