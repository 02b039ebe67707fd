"""`mmcl watch`: the curves of a finished, a stopped, an empty and a live run, in any terminal."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.cli.chart import line_chart
from mmcl.cli.main import main
from mmcl.engine.run_lock import is_locked
from mmcl.runs.run import train
from tests.engine.tiny import make_folder, tiny_config

FINITE = st.floats(-1e6, 1e6)


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("watched")
    evaluate = "[{name: retrieval, label: held_out, every: 2}]"
    flags = ("--data.holdout", "0.3", "--evaluate", evaluate, "--train.steps", "4")
    return train(tiny_config(make_folder(place / "squares"), place / "run", *flags)).run_dir


def make_run(folder: Path, *rows: Mapping[str, object], torn: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").touch()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    return folder


def watched(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert main(["watch", *map(str, words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) < 80 for line in lines[:-2])  # paths follow
    assert len(lines) < 24
    return lines


def test_a_finished_run_ends_with_where_they_are(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = watched(capsys, finished)
    assert lines[0] == f"{finished}: step 4 of 4, finished"[:79]
    logged = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    loss = [row["loss"] for row in logged if "loss" in row]
    assert lines[1] == f"loss {loss[-1]:.4g}"
    assert lines[2].split()[0] == f"{max(loss):.4g}"
    (score,) = [line for line in lines if line.startswith("held_out/")]
    name, value = score.split()
    assert float(value) == pytest.approx([row[name] for row in logged if name in row][-1], abs=1e-3)
    assert lines[-2:] == [f"finished: the model is in {finished}/model", f"report   {finished}/report/report.html"]


def test_a_stopped_run_with_a_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"step": step, "total_steps": 1000, "loss": 1 / step, "lr": None, "verdict": "x"} for step in (1, 10, 20)]
    lines = watched(capsys, make_run(Path("run"), *rows, torn='{"step": 30, "lo'), "--once")
    assert lines[0].endswith("step 20 of 1,000, stopped")
    assert lines[1] == "loss 0.05"
    assert lines[-1] == "stopped before its end: continue it with --resume"
    assert main(["watch", "run", "--metrics", "los"]) == 2
    assert "unknown metric 'los'; did you mean 'loss'?" in capsys.readouterr().err


def test_a_run_without_a_step_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("run"))
    assert watched(capsys, run)[0] == f"{run}: no step is logged yet"
    (run / "metrics.jsonl").unlink()
    assert watched(capsys, run)[0] == f"{run}: no step is logged yet"
    assert main(["watch", "none"]) == 2
    assert "none: no such run; `mmcl train` makes one" in capsys.readouterr().err


TRAINING = """
import json, sys
from pathlib import Path
from mmcl.engine.run_lock import locked
run = Path(sys.argv[1])
with locked(run):
    for line in sys.stdin:
        with (run / "metrics.jsonl").open("a") as file:
            file.write(line)
        print("written", flush=True)
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_live_run_is_followed_to_its_end(
    is_terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("run"))
    child = stack.enter_context(subprocess.Popen([sys.executable, "-c", TRAINING, str(run)], stdin=-1, stdout=-1, text=True))
    given, said = child.stdin, child.stdout
    assert given is not None
    assert said is not None
    rows = [{"step": step, "total_steps": 3, "loss": 4.0 - step} for step in (1, 2, 3)]

    def train_a_step(seconds: float) -> None:
        """What happens while the watching sleeps."""
        assert is_locked(run)
        if rows:
            print(json.dumps(rows.pop(0)), file=given, flush=True)
            assert said.readline() == "written\n"
            return
        (run / "model").mkdir()
        given.close()
        child.wait()

    print(json.dumps({"step": 0, "total_steps": 3, "loss": 9.0}), file=given, flush=True)
    said.readline()  # it has the lock
    output = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr("time.sleep", train_a_step)
    assert main(["watch", str(run)]) == 0
    drawn = re.findall(r"step (\d) of 3, (\w+)", output.getvalue())
    following = [("0", "training"), ("1", "training"), ("2", "training"), ("3", "evaluating")] if is_terminal else []
    assert drawn == [*following, ("3", "finished")]
    over = [int(count) for count in re.findall(r"\x1b\[(\d+)F\x1b\[J", output.getvalue())]
    height = output.getvalue().split("\x1b")[0].count("\n")
    assert over == [height] * len(following)
    assert output.getvalue().endswith(f"finished: the model is in {run}/model\n")


def test_ctrl_c_ends_the_watching_alone(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmcl.engine.run_lock.is_locked", lambda run: True)
    monkeypatch.setattr("time.sleep", interrupt)
    assert main(["watch", str(finished)]) == 0
    assert capsys.readouterr() == ("", "")


@given(st.lists(FINITE, min_size=1, max_size=50), st.integers(20, 100), st.integers(1, 12))
def test_a_chart_has_its_size_and_reaches_its_extremes(values: list[float], width: int, height: int) -> None:
    lines = line_chart(range(len(values)), values, width=width, height=height)
    assert len(lines) == height + 1
    assert max(map(len, lines)) <= width
    assert f"{min(values):.4g}" in lines[height - 1] or height == 1
    assert all(character == " " or "\u2800" < character <= "\u28ff" for line in lines[:-1] for character in line[12:])
    stars = line_chart(range(len(values)), values, width=width, height=height, encoding="ascii")
    assert [[character != " " for character in line[12:]] for line in stars[:-1]] == [
        [character != " " for character in line[12:]] for line in lines[:-1]
    ]
    assert "".join(stars).isascii()


def test_a_falling_line_falls_from_corner_to_corner() -> None:
    lines = line_chart([0, 100], [1.0, 0.0], width=52, height=10)
    cells = np.array([[character not in "\u2800 " for character in line.ljust(52)[12:]] for line in lines[:-1]])
    assert cells.any(0).all()
    assert np.abs(cells.argmax(0) - np.arange(40) / 4).max() <= 1
    assert lines[0].split()[0] == "1"
    assert lines[-2].split()[0] == "0"
    assert lines[-1].split() == ["0", "100"]


def test_a_level_line_and_a_single_point() -> None:
    for values in ([3.0], [3.0, 3.0, 3.0]):
        lines = line_chart(range(len(values)), values, width=40, height=5)
        assert [bool(line[12:].strip()) for line in lines[:-1]] == [False, False, True, False, False]
