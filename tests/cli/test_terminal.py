"""No verb prints control sequences from the names and captions of the data."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from mmcl.cli.exit import exit_cleanly
from mmcl.cli.main import main
from mmcl.cli.output import printed_log
from mmcl.cli.train import train
from mmcl.evaluate.reporting import tables
from tests.engine.tiny import COLORS, YAML

EVIL = "\x1b]52;c;cm0=\x07\x1b[2J\x9b31m\u202egpj.exe\u2066\r\b\u2028\x7f\n  1   0.999  fake"
"""Fills the clipboard, clears the screen, turns red, runs backwards, overwrites, deletes, and fakes a line."""
SAFE = "".join(f"\\u{ord(c):04x}" if c in "\x1b\x07\x9b\u202e\u2066\r\b\u2028\x7f\n" else c for c in EVIL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with captions in a table, the same in a folder for each class, and one of two that is broken."""
    place = tmp_path_factory.mktemp("hostile")
    for folder in (f"captions/{EVIL}", *(f"classes{EVIL}/{color}{EVIL}" for color in COLORS)):
        (place / folder).mkdir(parents=True)
    with (place / "captions" / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for color, value in COLORS.items():
            for number in range(4):
                image = Image.new("RGB", (16, 16), tuple(max(0, one - 8 * number) for one in value))
                image.save(place / "captions" / EVIL / f"{color}{number}.png")
                image.save(place / f"classes{EVIL}" / f"{color}{EVIL}" / f"{number}{EVIL}.png")
                rows.writerow([f"{EVIL}/{color}{number}.png", f"{color} {number} {EVIL}"])
    (place / "captions" / f"left out{EVIL}.he\x1bic").touch()
    (place / "broken").mkdir()
    (place / "broken" / f"{EVIL}.png").write_bytes(b"<html>")
    (place / "broken" / "whole.png").write_bytes((place / "captions" / EVIL / "red0.png").read_bytes())
    (place / "clip.yaml").write_text(YAML)
    return place


def run_of(place: Path) -> str:
    return str(place / f"run{EVIL}")


def is_obeyed(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in "\u200e\u200f\u202e\u2066"


def checked(said: bytes) -> str:
    """What was printed. Fails for a character that a terminal obeys, or a line that a name faked."""
    text = said.decode("utf-8")
    assert {character for character in text if is_obeyed(character)} <= {"\n"}
    assert not [line for line in text.split("\n") if line.startswith("  1   0.999")]
    return text


@pytest.fixture(scope="module", autouse=True)
def trained(place: Path) -> bytes:
    """What training printed; the runs are there for the other tests."""
    evaluate = json.dumps([{"name": "retrieval", "label": f"held out {EVIL}"}])
    words = ["--data.train.path", str(place / "captions"), "--data.holdout", "0.3", "--evaluate", evaluate]
    words += ["--run_dir", run_of(place), "--train.steps", "2"]
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors), printed_log():
        train(str(place / "clip.yaml"), *words)
        assert main(["embed", str(place / "captions"), "--model", run_of(place), "--out", str(place / "rows")]) == 0
    warnings = re.findall(r"warning: [^\r\n]*", errors.getvalue())  # between what progress bars draw
    return "\n".join([said.getvalue(), *warnings]).encode()


def test_training(trained: bytes) -> None:
    said = checked(trained)
    assert f"run{SAFE}/model" in said
    assert "".join(f"retrieval, held out {SAFE}".split()) in "".join(said.split())
    assert f"left out{SAFE}.he\\u001bic" in said


VERBS = {
    "classify": ("classify", "{image}", "--labels", f"red{EVIL}", "blue", "--model", "{run}"),
    "classify in part": ("classify", "{broken}", "{image}", "--labels", f"red{EVIL}", "blue", "--model", "{run}"),
    "search": ("search", "{run}", "red", "--images", "{captions}"),
    "search for texts": ("search", "{run}", "red", "--images", "{captions}", "--target", "texts"),
    "search in part": ("search", "{run}", "--image", "{image}", "--images", "{place}/broken"),
    "eval": ("eval", "{run}"),
    "zero-shot": ("eval", "zero-shot", "--model", "{run}", "--data", "{classes}", "--out", "{place}/out"),
    "compare": ("compare", "{run}", "{run}", "--models", "trained", "untrained"),
    "embed": ("embed", "{place}/broken", "--model", "{run}", "--out", "{place}/{evil}.parquet"),
    "mine": ("mine", "{captions}", "--rows", "{place}/rows", "--out", "{place}/{evil}.jsonl", "--relative_margin", "-9"),
    "index": ("data", "index", "{captions}"),
    "verify": ("data", "verify", "{place}/broken"),
    "stats": ("data", "stats", "{captions}"),
    "stats of classes": ("data", "stats", "{classes}"),
    "preview": ("data", "preview", "{classes}", "{place}/{evil}.png"),
    "doctor": ("doctor", "{place}/clip.yaml", "--data.train.path", "{captions}"),
    "list": ("list",),
}
NAMELESS = {"stats of classes", "list"}
WITHOUT_JSON = {"index", "preview"}


def printed(place: Path, words: tuple[str, ...], capfdbinary: pytest.CaptureFixture[bytes]) -> tuple[int, str, str]:
    names = {"image": place / "captions" / EVIL / "red0.png", "broken": place / "broken" / f"{EVIL}.png", "place": place}
    names |= {"captions": place / "captions", "classes": place / f"classes{EVIL}"}
    capfdbinary.readouterr()
    try:
        code = main([word.format(**names, run=run_of(place), evil=EVIL) for word in words])
    except SystemExit as stopped:
        code = int(str(stopped.code))
    said = capfdbinary.readouterr()
    return code, checked(said.out), checked(said.err)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb(verb: str, place: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    code, out, err = printed(place, VERBS[verb], capfdbinary)
    assert code == (1 if " in part" in verb or verb in ("verify", "embed") else 0), err
    assert verb in NAMELESS or "\\u202e" in out + err, "it says something foreign"
    if verb in WITHOUT_JSON:
        return
    code_again, out, err = printed(place, (*VERBS[verb], "--json"), capfdbinary)
    assert code_again == code
    assert json.loads(out) or code


@pytest.mark.parametrize(
    "words",
    [
        (EVIL,),
        ("classify", f"--{EVIL}"),
        ("classify", EVIL, "--labels", "a", "--model", "{run}"),
        ("classify", "{broken}", "--labels", "a", "--model", "{run}"),
        ("classify", "{image}", "--labels", EVIL, EVIL, "--model", "{run}"),
        ("classify", "{image}", "--labels", "a", "--template", EVIL, "--model", "{run}"),
        ("search", EVIL, "red"),
        ("search", "{run}", "red", "--images", EVIL),
        ("eval", EVIL),
        ("eval", "knn", "--model", "{run}", "--data", EVIL),
        ("eval", "knn", "--model", "{run}", "--data", "{captions}", "--bank", "{classes}"),
        ("compare", EVIL, "{run}"),
        ("data", "verify", EVIL),
        ("data", EVIL, "{captions}"),
        ("data", "stats", "{classes}", "--args", f"{{{{split: {json.dumps(EVIL)}}}}}"),
        ("doctor", "{place}/clip.yaml", f"--{EVIL}", "1"),
        ("doctor", EVIL),
        ("list", EVIL),
    ],
)
def test_a_mistake(words: tuple[str, ...], place: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    code, out, err = printed(place, words, capfdbinary)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_bug_is_reported_and_logged_safely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["mmcl", f"caf\udce9{EVIL}"])
    nothing: dict[str, int] = {}
    assert exit_cleanly(lambda: nothing[EVIL], debug=True) == 70
    assert "KeyError" in checked(capfdbinary.readouterr().err)
    (log,) = tmp_path.glob("mmcl-*.log")
    assert r"caf\udce9\u001b]52" in checked(log.read_bytes())


def test_a_table_with_foreign_names_is_aligned() -> None:
    text = tables.text([("title", ["metric", "trained"], [[f"a{EVIL}", "1.000"], ["b", "2.000"]])], ())
    assert len({line.rindex("  ") for line in checked(text.encode()).split("\n")[1:]}) == 1


def test_pages_show_codes_too(place: Path) -> None:
    pages = [*(Path(run_of(place)) / "report").glob("report.*"), *(place / "out").glob("report.*")]
    assert len(pages) == 4
    for page in pages:
        text = page.read_text("utf-8")
        assert "\\u202e" in text
        assert {character for character in text if is_obeyed(character)} <= {"\n"}, page.name
