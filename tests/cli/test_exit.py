"""Every command ends with a defined exit code, and every error is reported in one line."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmcl.cli import exit as cli_exit
from mmcl.cli.exit import exit_cleanly
from mmcl.cli.main import main
from mmcl.errors import DamagedIndexError, UserError


def raising(error: BaseException) -> object:
    raise error


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a\nb"), 2, r"error: a b"),
        (DamagedIndexError("a"), 4, r"error: a"),
        (KeyboardInterrupt(), 130, r"interrupted"),
        (KeyError("width"), 70, r"error: this is a bug in mmcl \(KeyError: 'width'\); please report it .*\.log \(--debug.*\)"),
        (ValueError("a\n\nb" + "x" * 5000), 70, r"error: this is a bug in mmcl \(ValueError: a bx{280,290} \.\.\.\); .*"),
        (AssertionError(), 70, r"error: this is a bug in mmcl \(AssertionError\); .*"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), 70, r"error: this is a bug .*No such file.*"),
        (OSError(errno.ENOSPC, "No space left on device", "a.bin"), 2, r"error: No space left on device: a\.bin; make room"),
        (MemoryError(), 2, r"error: out of memory \(MemoryError\); give smaller batches.*"),
        (OutOfMemoryError("CUDA out of memory"), 2, r"error: out of memory \(.*CUDA out of memory\); .*"),
        (RuntimeError("DefaultCPUAllocator: can't allocate"), 2, r"error: out of memory .*"),
    ],
)
def test_every_exception_is_one_line(
    error: BaseException,
    code: int,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert exit_cleanly(lambda: raising(error)) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(line, said.err.removesuffix("\n"))
    assert len(list(tmp_path.iterdir())) == (code == 70)


def test_the_traceback_of_a_bug_is_kept_and_shown_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("mmcl.cli.list._registries", lambda: raising(ZeroDivisionError("division by zero")))
    assert main(["list"]) == 70
    [log] = tmp_path.iterdir()
    assert str(log) in capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in log.read_text()
    assert "in list_components" in log.read_text()
    assert main(["list", "--debug"]) == 70
    assert "in list_components" in capsys.readouterr().err
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert main(["list"]) == 70
    assert "in list_components" in capsys.readouterr().err, "where no log can be written, it is printed"


def mmcl(words: str) -> subprocess.CompletedProcess[str]:
    command = f"set -o pipefail; {sys.executable} -c 'import sys; from mmcl.cli.main import main; sys.exit(main())' {words}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("list | true", 141, ""),
        ("--help | true", 141, ""),
        ("list > /dev/full", 2, "error: No space left on device: the output; make room\n"),
        ("list >&-", 0, ""),
    ],
)
def test_an_output_without_a_reader(words: str, code: int, said: str) -> None:
    done = mmcl(words)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["search", "m", "a", "--top-k", "abc"], "--top_k"),
        (["search", "m", "a", "--top-k"], "--top_k"),
        (["search", "m", "a", "--target", "sounds"], "sounds"),
        (["search"], "MODEL"),
        (["bogus"], "bogus"),
        (["classify", "a.png", "--labls", "x"], "--labels"),
        (["list", "bogus"], "bogus"),
        (["data"], "index, verify"),
        (["data", "bogus", "x"], "bogus"),
        (["doctor"], "CONFIG"),
        (["doctor", "a.yaml", "--processes", "two"], "--processes"),
        (["eval"], "RUN"),
        (["eval", "knn", "--frog", "3"], "--frog"),
        (["embed", "x"], "--out"),
    ],
)
def test_a_command_line_that_is_not_understood_is_one_line(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert not re.search("[│─╭╰]", line)


def test_messages_of_all_processes_are_printed_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A launcher ends the others as soon as one has failed: they give it the time."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert exit_cleanly(lambda: raising(UserError("no such file"))) == 2
    assert slept == [cli_exit._PRECEDENCE_SECONDS]


def test_ctrl_c_ends_a_command_at_once() -> None:
    sleep = "print(1, flush=True); exit(exit_cleanly(lambda: time.sleep(60)))"
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a job in the background ignores it
    script = f"import time; {heard}; from mmcl.cli.exit import exit_cleanly; {sleep}"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout
        child.stdout.readline()
        time.sleep(0.2)
        os.kill(child.pid, signal.SIGINT)
        _, said = child.communicate(timeout=20)
    assert (child.returncode, said) == (130, "interrupted\n")
