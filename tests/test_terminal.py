"""Printed text cannot control a terminal, and is otherwise unchanged."""

from __future__ import annotations

import ast
import io
import json
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.cli.output import say, show
from mmcl.errors import UserError
from mmcl.terminal import printable, printable_line, short_paths

PACKAGE = Path(__file__).parents[1] / "mmcl"
BIDI_CONTROLS = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""Unicode's property Bidi_Control, which Python does not provide."""


def is_obeyed(character: str) -> bool:
    """True if a terminal does something at a character other than to show it, or cannot be given it."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or ord(character) in BIDI_CONTROLS


def test_of_all_characters_exactly_those_that_are_obeyed_are_codes() -> None:
    changed = {character for character in map(chr, range(sys.maxunicode + 1)) if printable(character) != character}
    obeyed = {character for character in map(chr, range(sys.maxunicode + 1)) if is_obeyed(character)}
    assert changed == obeyed - {"\n", "\t"}
    assert all(printable_line(character) == f"\\u{ord(character):04x}" for character in obeyed)


@pytest.mark.parametrize(
    "text",
    [
        "👩‍🚀 👍🏽 🏳️‍🌈 ❤️ 1️⃣ 🇯🇵",
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # Scotland, of tag characters
        "cafe\u0301 क्‍ष می‌خواهم",
        "שלום עולם مرحبا",
        "猫 と 犬",
        r"C:\new\u202e",
    ],
)
def test_texts_stay_as_they_are(text: str) -> None:
    assert printable_line(text) == text


@settings(max_examples=40)
@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_printed_json_has_the_same_meaning(value: object) -> None:
    for ascii_alone in (True, False):
        assert json.loads(printable(json.dumps(value, ensure_ascii=ascii_alone, indent=1))) == value


@given(st.text(st.characters()))
def test_what_is_printable_stays_so(text: str) -> None:
    assert printable_line(printable_line(text)) == printable_line(text)
    assert len(printable_line(text).splitlines()) <= 1


def test_a_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\nb\r\x85\u2028c")
    show("one\ntwo\x1b[2J", error=True)
    said = capsys.readouterr()
    assert said.out == "a\\u000ab\\u000d\\u0085\\u2028c\n"
    assert said.err == "one\ntwo\\u001b[2J\n"


def test_an_error_names_a_file_by_its_characters_on_one_line() -> None:
    assert str(UserError("a\x1b]52;c;AA==\x07\u202e\r.png:\nbroken\r\n")) == r"a\u001b]52;c;AA==\u0007\u202e\u000d.png: broken"
    assert str(UserError("caf\udce9.png")) == r"caf\udce9.png"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_terminal_of_any_encoding_is_written_to(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    show(json.dumps("café 👍 猫\udce9", ensure_ascii=False))
    written = stream.buffer.getvalue().decode(encoding)
    assert json.loads(written) == "café 👍 猫\udce9"
    assert ("👍" in written) == (encoding == "utf-8")


PRINTING = {"print", "print_exc", "print_exception", "print_stack", "input", "warn", "showwarning"}
STREAMS = {"stdout", "stderr", "__stdout__", "__stderr__"}
OUTPUT = PACKAGE / "cli" / "output.py"


def prints(call: ast.AST) -> bool:
    """True for code that prints past the command line: `print(...)`, `sys.stderr.write(...)`, `warnings.warn(...)`."""
    if not isinstance(call, ast.Call):
        return False
    if isinstance(call.func, ast.Name):
        return call.func.id in PRINTING
    if not isinstance(call.func, ast.Attribute):
        return False
    written = isinstance(call.func.value, ast.Attribute) and call.func.value.attr in STREAMS
    return call.func.attr in PRINTING or (written and call.func.attr in ("write", "writelines"))


def imports_output(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmcl.cli")


def files_with(check: Callable[[ast.AST], bool]) -> set[Path]:
    return {path for path in PACKAGE.rglob("*.py") if any(map(check, ast.walk(ast.parse(path.read_text("utf-8")))))}


@pytest.mark.parametrize("code", ["print(1)", "traceback.print_exc()", "sys.stderr.write('')", "warnings.warn('')"])
def test_printing_is_recognized(code: str) -> None:
    assert any(map(prints, ast.walk(ast.parse(code))))


def test_only_the_command_line_prints() -> None:
    assert files_with(prints) == {OUTPUT}
    outside = {path for path in files_with(imports_output) if "cli" not in path.parts}
    assert outside == {PACKAGE / "__main__.py"}


PARTS = st.sampled_from(["", "a", "b", "runs", "experiments of this spring"])


@given(st.lists(st.lists(PARTS, min_size=1, max_size=5).map("/".join), max_size=6))
def test_short_paths_tell_paths_apart_and_no_shorter_ends_do(paths: list[str]) -> None:
    found = short_paths(paths)
    for path, short in zip(paths, found, strict=True):
        others = {other for other in paths if other != path}
        assert f"/{path}".endswith(f"/{short}")
        assert short not in {own for own, other in zip(found, paths, strict=True) if other != path}
        assert short == path or len(path) > 24
        _, slash, shorter = short.partition("/")
        if slash and len(path) > 24 and paths.count(path) == 1:
            assert any(f"/{other}".endswith(f"/{shorter}") for other in others)
