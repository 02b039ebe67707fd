"""The library logs and never prints: its log can be silenced and routed, and cannot control a terminal."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mmcl.cli.exit import exit_cleanly
from mmcl.cli.output import printed_log
from mmcl.engine.collapse import logger as of_a_module
from mmcl.logging import get_logger, note
from mmcl.runs.run import say_if_busy

EVIL = "a\x1b]52;c;AA==\x07\nwarning: fake\u202e"
SAFE = "a\\u001b]52;c;AA==\\u0007\\u000awarning: fake\\u202e"

FROM_PYTHON = """
import logging
from mmcl.logging import get_logger, note
{setup}
logger = get_logger("mmcl.engine.trainer")
logger.info("information")
logger.warning("100% bad")
note(logger, "a decision")
"""


def from_python(setup: str = "") -> tuple[str, str]:
    """Standard output and error of a program that uses the library."""
    done = subprocess.run([sys.executable, "-c", FROM_PYTHON.format(setup=setup)], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """The output of a foreign handler with its own format for the logger "mmcl"."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s|%(levelname)s|%(message)s"))
    logging.getLogger("mmcl").addHandler(handler)
    yield stream
    logging.getLogger("mmcl").removeHandler(handler)


def test_without_a_set_up_warnings_appear_and_information_does_not() -> None:
    assert from_python() == ("", "100% bad\na decision\n")


def test_it_can_be_silenced() -> None:
    assert from_python('logging.getLogger("mmcl").setLevel(logging.CRITICAL)') == ("", "")


def test_it_can_be_shown_in_full() -> None:
    lines = ["INFO:mmcl.engine.trainer:information", "WARNING:mmcl.engine.trainer:100% bad"]
    assert from_python("logging.basicConfig(level=logging.INFO)")[1].splitlines()[:2] == lines


def test_a_handler_gets_the_module_the_level_and_safe_text(stream: io.StringIO) -> None:
    of_a_module.warning("%s of %d", EVIL, 3)
    assert stream.getvalue() == f"mmcl.engine.collapse|WARNING|{SAFE} of 3\n"


def test_a_traceback_is_safe(stream: io.StringIO) -> None:
    try:
        raise ValueError(EVIL)
    except ValueError:
        of_a_module.exception("a bug")
    assert "Traceback" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_the_command_line_prints_lines_as_they_are_and_names_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    with printed_log():
        of_a_module.info(f"plain {EVIL}")
        of_a_module.warning("bad")
        note(of_a_module, "chosen")
        logging.getLogger("mmcl.of_a_plug_in").error(EVIL)  # a logger that escapes nothing itself
    of_a_module.info("after it")
    said = capsys.readouterr()
    assert said.out == f"plain {SAFE}\n"
    assert said.err == f"warning: bad\nnote: chosen\nerror: {SAFE}\n"


def test_warnings_on_a_terminal_are_broken_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "the configuration has an encoder that is not used, because " + "the model to start from has its own"
    with printed_log():
        of_a_module.warning(line)
        assert capsys.readouterr().err == f"warning: {line}\n", "a file has messages in one line"
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "60")
        of_a_module.warning(line)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()) == f"warning: {line}"


def test_a_command_prints_the_log_of_what_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_cleanly(lambda: of_a_module.info("one of a run")) == 0
    assert capsys.readouterr().out == "one of a run\n"


def test_processes_but_the_first_log_warnings_alone(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("mmcl"), "level", logging.INFO)
    logger = get_logger("mmcl.of_a_rank")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        logger.info(f"information of {rank}")
        note(logger, f"decision of {rank}")
        logger.warning(f"trouble of {rank}")
    said = [line.rpartition("|")[2] for line in stream.getvalue().splitlines()]
    assert said == ["information of 0", "decision of 0", "trouble of 0", "trouble of 1"]


def test_a_busy_machine_is_named_where_threads_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmcl")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for threads, load, is_said in ((2, 4.1, True), (2, 4.0, False), (1, 9.0, False)):
        caplog.clear()
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        say_if_busy(threads)
        assert ("(load 4 on 2 cores): --train.threads 1 is faster" in caplog.text) == is_said
