"""No flag changes its name, type or default without a change of the golden file."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest

from mmcl.cli.main import _VERBS, main
from mmcl.config import Config, load_config
from mmcl.errors import UserError
from tests.cli.flags import FORMS, flags_of, listing, settings_of

GOLDEN = Path(__file__).with_name("golden_flags.txt")
RENEW = "where it is meant, `python -m tests.cli.flags > tests/cli/golden_flags.txt`, and a line in CHANGELOG.md"


def shown_by_help(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The flags at the beginning of a line."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*command.split()[1:], "--help"])
    text = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    return {flag.replace("_", "-") for flag in re.findall(r"(?m)^[│ ]*(?:-h, )?(--[a-z][\w.-]*)", text)} - {"--help"}


def test_the_flags_are_those_of_the_golden_file() -> None:
    found, expected = listing().splitlines(), GOLDEN.read_text(encoding="utf-8").splitlines()
    assert found == expected, "\n".join([RENEW, *difflib.unified_diff(expected, found, "golden", "now", lineterm="", n=0)])


def test_every_verb_is_in_it() -> None:
    assert {command.split()[1] for command in FORMS} == set(_VERBS)


@pytest.mark.parametrize("command", [command for command in FORMS if command not in ("mmcl train", "mmcl doctor")])
def test_the_parser_has_these_flags_and_no_others(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {name for name, _, _ in flags_of(FORMS[command]) if name.startswith("--")}
    assert shown_by_help(command, capsys, monkeypatch) == expected


def test_training_knows_every_setting() -> None:
    with pytest.raises(UserError, match="unknown key 'lrr'"):
        load_config("clip_emoji", ["--optim.lrr", "1"])
    refusals = []
    for name, _, _ in settings_of(Config):
        try:
            load_config("clip_emoji", [name, "null"])
        except UserError as error:  # null is not right for all
            refusals.append(str(error))
    assert [line for line in refusals if "unknown key" in line] == []
