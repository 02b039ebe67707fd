"""`mmcl finetune` from the command line: what it says before and after, and one line for every mistake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmcl.cli.main import main
from mmcl.config import load_config
from mmcl.runs.run import train
from tests.engine.tiny import make_folder, tiny_config
from tests.faults.runs import small_vocabulary


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """squares/ and runs/start."""
    folder = tmp_path_factory.mktemp("place")
    make_folder(folder / "squares")
    with small_vocabulary():
        train(tiny_config(folder / "squares", folder / "runs/start", "--train.steps", "1"))
        yield folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")


def test_from_the_choice_to_what_was_gained(capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run writes nothing. The run of what it prints is the same, and its verdict opens with what was gained and lost."""
    words = ["finetune", "squares", "--init", "runs/start", "--keep", "squares", "--run_dir", "runs/first"]
    words += ["--train.epochs", "2", "--optim.lr", "1e-3"]
    assert main([*words, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert not Path("runs/first").exists()
    assert "data      25 pairs: 20 to train on, 5 pairs held out for the report" in said
    printed = said.partition("FILE.yaml\n")[2].partition("\ntry next")[0]
    Path("mine.yaml").write_text(printed)
    assert "mmcl finetune squares --init runs/start --preset full --keep squares --run_dir runs/first" in said
    assert main(words) == 0
    (gained,) = (part for part in capsys.readouterr().out.strip().split("\n\n") if part.startswith("Fine-tuning "))
    assert "Old, squares: " in " ".join(gained.split())
    assert all(len(line) <= 80 for line in gained.splitlines())
    mine, ran = load_config("mine.yaml"), load_config("runs/first/config.yaml")
    assert (mine.run_dir, mine.evaluate, mine.optim, mine.data) == (ran.run_dir, ran.evaluate, ran.optim, ran.data)
    assert main(words) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["squares"], "--init is missing, as in mmcl finetune photos/ --init runs/clip_emoji"),
        ([], "is missing, as in mmcl finetune photos/"),
        (["squares", "--init", "runs/strat"], "runs/strat: no such run; did you mean runs/start?"),
        (["squares", "--init", "squares"], "squares: "),
        (["runs/start", "--init", "runs/start"], "runs/start: is a run directory, not data"),
        (["gone", "--init", "runs/start"], "gone: no such file or folder"),
        (["squares", "--init", "runs/start", "--preset", "laura"], "did you mean lora?"),
        (["squares", "--init", "runs/start", "--keep", "gone"], "gone: no such file or folder"),
        (["squares", "--init", "runs/start", "--keep", "eval/emojis.yaml"], "eval/emojis.yaml"),
        (["squares", "--init", "runs/start", "--optim.rl", "1"], "--optim.rl: unknown setting; did you mean --optim.lr?"),
        (["squares", "--init", "runs/start", "--data.holdout", "2"], "data.holdout is 2"),
        (["squares", "--init", "runs/start", "--train.batch_size", "many"], "--train.batch_size"),
        (
            ["squares", "--init", "runs/start", "--keep", "squares", "--evaluate", "[]"],
            "--keep and --evaluate exclude each other",
        ),
    ],
)
def test_mistakes(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert not Path("runs/finetune_full").exists()


def test_a_launcher_is_told_to_train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["finetune", "squares", "--init", "runs/start"]) == 2
    assert "start the configuration that it prints with your launcher" in capsys.readouterr().err
