"""`mmcl train` as users start it: alone, with `python -m mmcl`, and with both launchers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmcl
from mmcl.cli.main import main
from mmcl.config.shipped import shipped_configs
from mmcl.engine.log import read_log
from tests.engine.tiny import YAML, make_folder
from tests.warm import python

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
ACCELERATE = ["-m", "accelerate.commands.launch"]
LAUNCHERS = {
    "python -m mmcl": (["-m", "mmcl"], 1),
    "accelerate launch -m mmcl": ([*ACCELERATE, "-m", "mmcl"], 1),
    "accelerate launch --multi_gpu -m mmcl": (
        [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "mmcl"],
        2,
    ),
    "torchrun -m mmcl": (["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "mmcl"], 2),
}

SINGLE, *LAUNCHED = LAUNCHERS


@pytest.fixture(autouse=True, scope="module")
def _small_vocabulary() -> None:
    """The processes that are launched have CLIP's, and this one is compared with them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    make_folder(place / "squares")
    (place / "tiny.yaml").write_text(f"{YAML}\nrun_dir: unused\n".replace("steps: 8", "steps: 2"))
    return place


# `.ci/run` starts the others, and the long tier compares them.
@pytest.mark.parametrize("launcher", [SINGLE, *(pytest.param(name, marks=pytest.mark.long) for name in LAUNCHED)])
def test_every_launcher_trains_the_same(launcher: str, place: Path) -> None:
    words, processes = LAUNCHERS[launcher]
    settings = ["tiny.yaml", "--data.train.path", "squares", "--run_dir", launcher]
    done = python(*words, "train", *settings, cwd=place)
    assert done.returncode == 0, done.stderr
    assert f"{processes} process{'es' if processes > 1 else ''} on" in done.stdout
    assert done.stdout.count(f"not evaluated, as the configuration names no evaluator; the model is in {launcher}/model") == 1
    alone = place / "alone"
    if not alone.exists():
        assert (
            main(
                [
                    "train",
                    *(str(place / word) if word in ("tiny.yaml", "squares") else word for word in settings[:-1]),
                    str(alone),
                ]
            )
            == 0
        )
    one, other = ([row["loss"] for row in read_log(folder / "metrics.jsonl")] for folder in (alone, place / launcher))
    assert len(one) == 2
    assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.long
def test_an_error_of_a_launch_is_printed_once(place: Path) -> None:
    command = [sys.executable, *LAUNCHERS["torchrun -m mmcl"][0], "train", "no_such_configuration"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert done.stderr.count("unknown configuration 'no_such_configuration'") == 1


def test_the_script_is_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "no_such_configuration"], capture_output=True, text=True, check=False)
    assert main(["train", "no_such_configuration"]) == done.returncode == 2
    assert capsys.readouterr().err == done.stderr


def test_help_shows_the_values_of_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    for name, steps, words in (
        ("clip_emoji", "85.0", []),
        ("simclr_digits", "60.0", []),
        ("clip_emoji", "7.0", ["--train.epochs", "7"]),
    ):
        for flag in ("--help", "--help_all"):
            assert main(["train", name, *words, flag]) == 0
            said = capsys.readouterr().out
            assert re.search(rf"--train.epochs[^-]*\[{re.escape(steps)}\]", said)


def test_the_complete_help_explains_the_arguments_of_the_components(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "clip_emoji", "--help_all"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"--method\.args\.temperature\s.*\[0\.0667\]", said, re.DOTALL)
    assert "--image.encoder.args.widths" in said
    assert "--data.mix.NAME.weight" in said
    for name in shipped_configs():
        if not name.startswith("eval/"):
            assert main(["train", name, "--help_all"]) == 0, name


@pytest.mark.parametrize("words", [("--help", "search"), ("help", "search"), ("search", "-h")], ids=" ".join)
def test_help_is_asked_for_before_the_verb_or_after_it(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("usage: mmcl search MODEL")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mmcl {mmcl.__version__}\n"
