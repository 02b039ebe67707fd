"""`target_columns` that nothing would read are refused before a run or an evaluation; those of a held-out share are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmcl.cli.main import main
from mmcl.errors import UserError
from mmcl.runs.doctor import diagnose
from mmcl.runs.run import train
from mmcl.runs.suite import load_suite
from tests.engine.tiny import make_folder, tiny_config

HELD_OUT = ("--data.holdout", "0.4", "--train.steps", "1")
ASKED = "{name: prompt_pairs, label: held out, args: {criterion: null}}"
NOT_USED = r"^{}args\.target_columns is not used: {}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose captions file answers whether a square is red, and whether it is dark."""
    folder = make_folder(tmp_path_factory.mktemp("data") / "squares")
    header, *lines = (folder / "captions.csv").read_text().splitlines()
    rows = [f"{line},{int(line.startswith('red'))},{n % 2}" for n, line in enumerate(lines)]
    (folder / "captions.csv").write_text("\n".join([f"{header},red,dark", *rows]))
    return folder


def source(path: Path, columns: str = "[red, dark]", name: str = "auto") -> str:
    return f"{{name: {name}, path: {path}, args: {{target_columns: {columns}}}}}"


@pytest.mark.parametrize("start", [train, diagnose])
def test_answers_that_training_does_not_read_are_refused(start: Callable[..., object], folder: Path, tmp_path: Path) -> None:
    retrieval = "[{name: retrieval, label: held out}]"
    for flags in ((), ("--evaluate", retrieval, *HELD_OUT)):
        with pytest.raises(UserError, match=NOT_USED.format(r"data\.train\.", "training reads no answers; remove it, or set")):
            start(tiny_config(folder, tmp_path / "run", *flags, "--data.train.args", "{target_columns: [red]}"))
    assert not (tmp_path / "run").exists()


def test_answers_of_the_share_that_is_held_out_are_evaluated(folder: Path, tmp_path: Path) -> None:
    flags = (*HELD_OUT, "--data.train.args", "{target_columns: [dark]}", "--evaluate", f"[{ASKED}]")
    result = train(tiny_config(folder, tmp_path / "run", *flags))
    assert {one.model for one in result.report.metrics if one.metric == "pair_auroc"} == {"trained", "untrained", "chance"}


def test_answers_of_a_mixture_are_those_of_every_part(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)

    def mixed(columns: str, *flags: str) -> object:
        mix = f"{{a: {source(folder)[:-1]}, weight: 1}}, b: {source(other, columns)[:-1]}, weight: 1}}}}"
        return diagnose(
            tiny_config(folder, tmp_path / "run", "--data.train.path", "null", "--data.mix", mix, *HELD_OUT, *flags)
        )

    asked = ("--evaluate", f"[{ASKED}]")
    mixed("[dark, red]", *asked)
    with pytest.raises(UserError, match=NOT_USED.format(r"data\.mix\.a\.", "training reads no answers")):
        mixed("[red, dark]")
    with pytest.raises(UserError, match=r"^data\.mix\.b\.args\.target_columns differ from those of data\.mix\.a \(dark, red\)"):
        mixed("[dark]", *asked)
    with pytest.raises(UserError, match=r"^data\.mix\.b\.args\.target_columns is missing, unlike those of data\.mix\.a"):
        mixed("[]", *asked)


@pytest.mark.parametrize("columns", ["red", "[red, red]", "[7]", "[[red]]", "{red: 1}", "true", "null"])
def test_what_is_no_list_of_columns_is_one_line(columns: str, folder: Path, tmp_path: Path) -> None:
    for more in ((), (*HELD_OUT, "--evaluate", f"[{ASKED}]")):
        with pytest.raises(UserError, match="target_columns") as refused:
            diagnose(tiny_config(folder, tmp_path / "run", "--data.train.args", f"{{target_columns: {columns}}}", *more))
        assert "\n" not in str(refused.value)


def test_no_columns_are_nothing_to_refuse(folder: Path, tmp_path: Path) -> None:
    diagnose(tiny_config(folder, tmp_path / "run", "--data.train.args", "{target_columns: []}"))


def test_answers_of_data_that_no_evaluator_asks_are_refused(folder: Path, tmp_path: Path) -> None:
    retrieval = f"{{name: retrieval, label: a, data: {source(folder)}}}"
    pairs = f"{{name: prompt_pairs, label: a, data: {source(folder)}, args: {{criterion: null}}}}"
    banked = f"{{name: geometry, label: a, data: {{path: {folder}}}, bank: {source(folder)}}}"
    for evaluators, field in ((retrieval, "data"), (banked, "bank")):
        with pytest.raises(UserError, match=NOT_USED.format(rf"evaluate\.0\.{field}\.", "no evaluator of these data asks")):
            diagnose(tiny_config(folder, tmp_path / "run", "--evaluate", f"[{evaluators}]"))
    diagnose(tiny_config(folder, tmp_path / "run", "--evaluate", f"[{retrieval}, {pairs}]"))  # one opens them for both
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"models: [m]\nevaluate: [{retrieval}]")
    with pytest.raises(UserError, match=r"suite\.yaml: evaluate\.0\.data\.args\.target_columns is not used"):
        load_suite([suite])


def test_mmcl_eval_refuses_answers_that_its_evaluator_does_not_ask_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--model", str(folder), "--data", str(folder)]
    columns = "{target_columns: [red]}"
    for flags, said in (
        (["retrieval", *data, "--data_args", columns], "--data_args: target_columns is not used"),
        (["prompt-pairs", *data, "--bank", str(folder), "--bank_args", columns], "--bank_args: target_columns is not used"),
    ):
        assert main(["eval", *flags]) == 2
        assert said in capsys.readouterr().err
