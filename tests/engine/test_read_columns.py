"""Columns that nothing would read are refused before a run or an evaluation; those of a held-out share are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmcl.cli.main import main
from mmcl.data.derived.mixture import Mixture
from mmcl.data.open import open_source
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS
from mmcl.runs.doctor import diagnose
from mmcl.runs.plan import make_plan
from mmcl.runs.read_columns import READ_AS, check_training_columns
from mmcl.runs.run import train
from mmcl.runs.suite import load_suite
from mmcl.runs.warnings import find_warnings
from tests.engine.tiny import make_folder, tiny_config

HELD_OUT = ("--data.holdout", "0.4", "--train.steps", "1")
ASKED = "{name: prompt_pairs, label: held out, args: {criterion: null}}"
NOT_USED = r"^{}args\.target_columns is not used: {}"
COLUMNS = {"target_columns": "[red]", "score_column": "near", "positive_column": "other", "negative_column": "wrong"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose captions file answers whether a square is red, and whether it is dark, and has further texts."""
    folder = make_folder(tmp_path_factory.mktemp("data") / "squares")
    header, *lines = (folder / "captions.csv").read_text().splitlines()
    rows = [f"{line},{int(line.startswith('red'))},{n % 2},{n},square {n},circle {n}" for n, line in enumerate(lines)]
    (folder / "captions.csv").write_text("\n".join([f"{header},red,dark,near,other,wrong", *rows]))
    return folder


def source(path: Path, columns: str = "[red, dark]", name: str = "auto") -> str:
    return f"{{name: {name}, path: {path}, args: {{target_columns: {columns}}}}}"


@pytest.mark.parametrize("start", [train, diagnose])
def test_answers_that_training_does_not_read_are_refused(start: Callable[..., object], folder: Path, tmp_path: Path) -> None:
    retrieval = "[{name: retrieval, label: held out}]"
    for flags in ((), ("--evaluate", retrieval, *HELD_OUT)):
        with pytest.raises(UserError, match=NOT_USED.format(r"data\.train\.", "training does not read it; remove it, or set")):
            start(tiny_config(folder, tmp_path / "run", *flags, "--data.train.args", "{target_columns: [red]}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argument", READ_AS)
def test_a_column_is_refused_where_neither_the_method_nor_an_evaluator_reads_it(
    argument: str, folder: Path, tmp_path: Path
) -> None:
    def check(evaluator: str, *views: str) -> None:
        column = ("--data.train.args", f"{{{argument}: {COLUMNS[argument]}}}")
        config = tiny_config(folder, tmp_path / "run", *HELD_OUT, *column, "--evaluate", f"[{{name: {evaluator}, label: a}}]")
        check_training_columns(config, {"image", "text", *views})

    readers = [name for name in EVALUATORS if READ_AS[argument] in getattr(EVALUATORS[name], "reads", ())]
    with pytest.raises(UserError, match=rf"^data\.train\.args\.{argument} is not used: .*evaluate {readers[0]}"):
        check("retrieval")
    for name in readers:
        check(name)
    if argument in ("positive_column", "negative_column"):
        check("retrieval", argument.removesuffix("_column"))


def test_a_negative_column_is_for_methods_with_such_a_view(folder: Path, tmp_path: Path) -> None:
    table = ("--data.train.path", str(folder / "captions.csv"), "--data.train.args", "{negative_column: wrong}")
    with pytest.raises(UserError, match="with its settings, clip has no view 'negative'; change them"):
        diagnose(tiny_config(folder, tmp_path / "run", *table))
    diagnose(tiny_config(folder, tmp_path / "run", *table, "--method.args.hard_negatives", "true"))


def test_negatives_that_a_usual_name_finds_and_nothing_reads_are_warned_of(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "mined.csv"
    table.write_text((folder / "captions.csv").read_text().replace("wrong", "negative", 1))
    flags = ("--data.train.path", str(table), "--data.train.args", f"{{image_root: {folder}}}")

    said = "the data have texts that are negatives of the captions, and clip reads none"

    def warned(*more: str) -> bool:
        found = find_warnings(make_plan(tiny_config(folder, tmp_path / "run", *flags, *more), 1))
        return any(one.startswith(said) for one in found)

    assert warned()
    assert not warned("--method.args.hard_negatives", "true")
    assert not warned(*HELD_OUT, "--evaluate", "[{name: pairs, label: held out}]")


def test_scores_of_a_mixture_are_those_of_every_part(folder: Path) -> None:
    def part(**args: str) -> Source:
        return open_source("table", str(folder / "captions.csv"), args=args)

    scored = part(positive_column="other", score_column="near")
    assert Mixture({"a": scored, "b": scored}).scores == pytest.approx([*range(25), *range(25)])
    assert Mixture({"a": scored, "b": part()}).scores is None


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
    with pytest.raises(UserError, match=NOT_USED.format(r"data\.mix\.a\.", "training does not read it")):
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
        with pytest.raises(UserError, match=NOT_USED.format(rf"evaluate\.0\.{field}\.", "no evaluator of these data reads it")):
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


@pytest.mark.parametrize("argument", READ_AS)
@pytest.mark.parametrize(
    "command",
    [
        ["embed", "{table}", "--model", "{folder}", "--out", "{folder}/rows", "--data_args"],
        ["mine", "{table}", "--rows", "{folder}", "--out", "{folder}/mined.parquet", "--data_args"],
        ["data", "curate", "{table}", "--rows", "{folder}", "--out", "{folder}/doubtful.parquet", "--args"],
        ["merge", "{folder}", "{table}", "--out", "{folder}/merged", "--statistics", "{table}", "--statistics_args"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_commands_that_ask_no_evaluator_refuse_them_all(
    argument: str, command: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part.format(table=folder / "captions.csv", folder=folder) for part in command]
    assert main([*given, f"{{{argument}: {COLUMNS[argument]}}}"]) == 2
    assert f"{given[-1]}: {argument} is not used: only training and evaluators read it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["merge", "a", "b", "--out", "{folder}/merged", "--statistics_args", "{{fold: 1}}"], "goes with --statistics:"),
        (["eval", "knn", "--model", "a", "--data", "{folder}", "--bank_args", "{{fold: 1}}"], "--bank_args goes with --bank:"),
    ],
)
def test_arguments_of_a_source_that_is_not_given_are_refused(
    command: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([part.format(folder=folder) for part in command]) == 2
    assert said in capsys.readouterr().err
