"""Shipped configurations: found by name from any folder, and printed as a starting point for new ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import mmcl
from mmcl.cli.main import main
from mmcl.config import load_config
from mmcl.config.shipped import find_config, shipped_configs, summary
from mmcl.errors import UserError
from mmcl.runs.suite import load_suite

CONFIGS = shipped_configs()
RUNS = [name for name in CONFIGS if not name.startswith("eval/")]


def test_the_names_are_those_of_the_files() -> None:
    folder = Path(__file__).parents[1] / "configs"
    assert {*CONFIGS} == {str(file.relative_to(folder)).removesuffix(".yaml") for file in folder.rglob("*.yaml")}
    assert {"clip_emoji", "eval/emoji"} < {*CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_line_says_what_it_is(name: str) -> None:
    line = CONFIGS[name].read_text(encoding="utf-8").splitlines()[0]
    assert line == f"# {summary(CONFIGS[name])}"
    assert line.endswith("."), "a whole sentence"
    assert len(line) <= 130
    assert ".yaml" not in line


@pytest.mark.parametrize("name", RUNS)
def test_what_is_printed_is_the_same_configuration_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["config", name]) == 0
    Path("mine.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    mine, shipped = load_config("mine.yaml"), mmcl.load_config(name)
    assert (mine.run_dir, shipped.run_dir) == ("runs/mine", f"runs/{Path(name).name}")
    assert dataclasses.replace(mine, run_dir=None) == dataclasses.replace(shipped, run_dir=None)
    assert Path("mine.yaml").read_text(encoding="utf-8") == CONFIGS[name].read_text(encoding="utf-8")


def test_an_existing_file_comes_before_a_name_and_a_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "clip_emoji").mkdir()
    assert find_config("clip_emoji", beside=tmp_path) == CONFIGS["clip_emoji"]
    (tmp_path / "simclr_mnist").write_text("method: {name: clip}\n")
    assert find_config("simclr_mnist", beside=tmp_path) == tmp_path / "simclr_mnist"


def test_a_shipped_suite_is_found_by_name() -> None:
    assert load_suite([Path("eval/emoji")]).models == ("runs/clip_emoji",)


@pytest.mark.parametrize("name", ["simclr_mnst", "", "a" * 300, "\0", "no/such", "clip_emoji/", "eval", ".."])
def test_an_unknown_name_is_a_one_line_error(name: str, tmp_path: Path) -> None:
    top = tmp_path / "top.yaml"
    for read in (lambda: load_config(name), lambda: load_config(top), lambda: load_suite([Path(name)])):
        top.write_text(f"base: {name!r}\n")
        with pytest.raises(UserError) as error:
            read()
        assert "\n" not in str(error.value)
    if name == "simclr_mnst":
        with pytest.raises(UserError, match=r"top\.yaml: base: .*'simclr_mnst'; did you mean 'simclr_mnist'"):
            load_config(top)


def test_a_missing_file_suggests_the_shipped_name() -> None:
    with pytest.raises(
        UserError, match=r"there is no configuration .*configs/clip_emojis\.yaml; did you mean .*configs/clip_emoji\.yaml"
    ):
        load_config("configs/clip_emojis.yaml")


def test_list_configs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "configs"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "configs"
    assert [line.split(maxsplit=1) for line in lines] == [[name, summary(file)] for name, file in CONFIGS.items()]
