"""No flag changes its name, type or default without a change of the golden file."""

from __future__ import annotations

import difflib
import re
import shlex
from pathlib import Path

import pytest

from mmcl.cli.arguments import form_of
from mmcl.cli.main import VERBS, main
from mmcl.config import load_config
from mmcl.errors import UserError
from tests.cli.flags import FORMS, flags_of, listing, settings

GOLDEN = Path(__file__).with_name("golden_flags.txt")
RENEW = "where it is meant, `python -m tests.cli.flags > tests/cli/golden_flags.txt`, and a line in CHANGELOG.md"


def test_the_flags_are_those_of_the_golden_file() -> None:
    found, expected = listing().splitlines(), GOLDEN.read_text(encoding="utf-8").splitlines()
    assert found == expected, "\n".join([RENEW, *difflib.unified_diff(expected, found, "golden", "now", lineterm="", n=0)])


def test_every_verb_is_in_it() -> None:
    assert {command.split()[1] for command in FORMS} == set(VERBS)


def help_of(command: str, capsys: pytest.CaptureFixture[str], flag: str = "--help") -> list[str]:
    assert main([*command.split()[1:], flag]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("command", FORMS)
def test_the_help_names_every_argument(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    expected = {name for name, _, _ in flags_of(FORMS[command]) if name.startswith("--")}
    lines = help_of(command, capsys)
    if command != "mmcl train":
        rare = re.findall(r"--(?!help)\w+", "\n".join(lines).partition("more flags: ")[2])
        assert {name for line in lines for name in re.findall(r"^  (--\w+)", line)} | {*rare} == expected
    assert lines[0].startswith(f"usage: {command}")
    for line in lines:
        assert len(line) <= 80
    for name in expected:
        assert any(name in line for line in help_of(command, capsys, "--help_all"))


@pytest.mark.parametrize("command", ["mmcl", "mmcl data", "mmcl index", "mmcl eval map", *FORMS])
def test_the_help_fits_on_a_screen(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_of(command, capsys)
    assert len(lines) <= {"mmcl": 23, "mmcl train": 40}.get(command, 24)
    assert max(map(len, lines)) <= 80


def test_the_examples_of_the_help_name_flags_that_exist() -> None:
    for command, form in FORMS.items():
        for example in "\n".join(form_of(form).examples).replace("\\\n", " ").splitlines():
            words = shlex.split(example.partition("-m mmcl ")[2] or example.removeprefix("mmcl "))
            if not example.startswith(("mmcl", "torchrun")):
                continue
            verb = " ".join(["mmcl", words[0], *([words[1]] if words[0] in ("data", "index") else [])])
            verb = "mmcl eval knn" if words[0] == "eval" and "/" not in words[1] else verb
            verb = f"mmcl eval {words[1]}" if words[0] == "eval" and words[1] in ("suite", "mteb") else verb
            known = {name for name, _, _ in flags_of(FORMS[verb])} | {name for name, _, _ in settings()}
            assert {word for word in words if word.startswith("--")} <= known, (command, example)


@pytest.mark.parametrize("word", ["--top-k", "--top_k"])
def test_hyphens_and_underscores_are_the_same(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "nothing", "a cat", word, "one"]) == 2
    assert capsys.readouterr().err.startswith("error: --top_k: 'one' is not a whole number")


def test_training_knows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=re.escape("--optim.lrr: unknown setting; did you mean --optim.lr?")):
        load_config("clip_emoji", ["--optim.lrr", "1"])
    refusals = []
    for name, _, _ in settings():
        try:
            load_config("clip_emoji", [name, "null"])
        except UserError as error:  # null is not right for all
            refusals.append(str(error))
    assert [line for line in refusals if "unknown" in line] == []
    shown = "\n".join(help_of("mmcl train", capsys, "--help_all"))
    assert all(f"{name} " in shown or f"{name}\n" in shown for name, _, _ in settings())
