"""A package outside of the repository registers components of every kind, and every verb finds them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmcl.cli.main import main
from mmcl.config import load_config
from mmcl.errors import UserError
from mmcl.interop.load import load_model
from mmcl.interop.model_file import read_model_file
from mmcl.registry import Registry
from tests.warm import python

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
PLUGIN = "example_plugin"

YAML = """
method: {name: image_to_text, args: {temperature: 0.2}}
image:
  encoder: {name: blocks}
  head: {name: linear, args: {embed_dim: 8}}
text:
  encoder: {name: small_text, args: {width: 8, layers: 1, heads: 2}}
  head: {name: linear, args: {embed_dim: 8}}
data: {train: {name: colors}, augment: [{name: darken}]}
train: {batch_size: 12, steps: 8, log_every: 1, save_every: 1, threads: 1}
evaluate: [{name: spread, label: colors, data: {name: colors, args: {count: 9}}}]
run_dir: run
"""


def in_one_process(commands: list[list[str]], place: Path, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs commands one after the other in a Python of their own, which ends with the first code that is not 0."""
    script = (
        "import json, sys; from mmcl.cli.main import main; sys.exit(next(filter(None, map(main, json.loads(sys.argv[1]))), 0))"
    )
    return python("-c", script, json.dumps(commands), cwd=place, env={"PYTHONPATH": str(path), **environment}, timeout=250)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with one that has the entry point, as an installer leaves it."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "tests" / f"{PLUGIN}.py", site)
    info = site / f"{PLUGIN}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mmcl.plugins]\ntoy = {PLUGIN}\n")
    return site


@pytest.fixture(scope="module")
def killed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed on its way."""
    place = tmp_path_factory.mktemp("place")
    (place / "toy.yaml").write_text(YAML)
    done = in_one_process([["train", "toy.yaml"]], place, package, TOY_KILL_AT="7")
    assert done.returncode == -signal.SIGKILL, done.stderr
    return place


@pytest.fixture(scope="module")
def finished(killed: Path, package: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """It continues, and every verb uses its results."""
    Image.new("RGB", (16, 16), "red").save(killed / "red.png")
    commands = [
        ["train", "toy.yaml", "--resume"],
        ["eval", "run", "--json"],
        ["eval", "spread", "--model", "run", "--data", "colors", "--args", "{scale: 2.0}"],
        ["search", "run", "red 0", "--images", "red.csv"],
        ["search", "run", "red 0"],
        ["classify", "red.png", "--labels", "red", "blue", "--model", "run"],
        ["embed", "colors", "--model", "run", "--out", "colors.parquet"],
        ["data", "stats", "colors"],
        ["doctor", "toy.yaml"],
        ["list"],
    ]
    (killed / "red.csv").write_text("image,caption\nred.png,red\n")
    return killed, in_one_process(commands, killed, package)


def test_a_killed_run_continues_and_every_verb_finds_the_components(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    place, done = finished
    assert done.returncode == 0, done.stderr
    assert "continuing from" in done.stdout
    losses = [json.loads(line)["step"] for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses == list(range(1, 9))
    assert (place / "colors.parquet").is_file()
    listed = done.stdout[done.stdout.rindex("\nmethods\n") :].split()
    assert {"image_to_text", "blocks", "colors", "darken", "spread", "cosine_gap"} <= {*listed}


def test_the_model_names_its_plugin_and_does_not_import_it(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, _ = finished
    assert read_model_file(place / "run" / "model" / "config.json").plugins == (PLUGIN,)
    with pytest.raises(
        UserError, match=f"image encoder 'blocks' is of a plug-in that is not loaded .{PLUGIN}.: .*--plugins {PLUGIN}"
    ):
        load_model(place / "run")
    assert PLUGIN not in sys.modules


@pytest.mark.parametrize("named", [{"MMCL_PLUGINS": PLUGIN}, {"MMCL_PLUGINS": f" {PLUGIN} ,"}])
def test_a_plugin_that_is_named_needs_no_entry_point(named: dict[str, str], package: Path, tmp_path: Path) -> None:
    shutil.copy(package / f"{PLUGIN}.py", tmp_path)
    for words, environment in ((["list", "methods"], named), (["--plugins", PLUGIN, "list", "methods"], {})):
        done = in_one_process([words], tmp_path, tmp_path, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert "image_to_text" in done.stdout


CLASH = "from mmcl.methods import METHODS\nclass Mine: pass\nMETHODS.register('{}', Mine)\n"
BROKEN = {
    "raises.py": (
        "1 / 0\n",
        r"plug-in raises cannot be imported \(ZeroDivisionError: division by zero, .*raises\.py:1\); fix it",
    ),
    "needs.py": ("import no_such_module\n", r"plug-in needs cannot be imported \(ModuleNotFoundError: .*'no_such_module'"),
    "syntax.py": ("def\n", r"plug-in syntax cannot be imported \(SyntaxError: invalid syntax"),
    "clash.py": (CLASH.format("clip"), r"plug-in clash: method 'clip' is already registered by mmcl; choose another name"),
    "two.py": (f"import one\n{CLASH.format('mine')}", r"plug-in two: method 'mine' is already registered by two; choose"),
    "quits.py": ("raise SystemExit(3)\n", r"plug-in quits cannot be imported \(SystemExit: 3"),
}


@pytest.mark.parametrize("file", BROKEN)
def test_a_plugin_that_cannot_be_used_is_one_line(file: str, tmp_path: Path) -> None:
    text, line = BROKEN[file]
    (tmp_path / file).write_text(text)
    (tmp_path / "one.py").write_text(CLASH.format("mine"))
    done = in_one_process([["--plugins", file.removesuffix(".py"), "list"]], tmp_path, tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(f"error: {line}.*\n", done.stderr), done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("words", [["--plugins", "no_such.plugin", "list"], ["list", "--plugins=no_such"]])
def test_a_plugin_that_is_not_there_is_one_line(words: list[str], tmp_path: Path) -> None:
    done = in_one_process([words], tmp_path, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: plug-in no_such")
    assert done.stderr.endswith("is not found: install it, or put its folder on PYTHONPATH\n")


@pytest.mark.parametrize("words", [["--plugins"], ["--plugins=", "list"], ["list", "--plugins", "--json"]])
def test_plugins_without_a_module_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "--plugins needs the name of a module" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["plugins", "train.plugins", "image.encoder.plugins"])
def test_no_configuration_names_a_plugin(key: str, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(YAML)
    with pytest.raises(UserError, match="unknown setting"):
        load_config(tmp_path / "toy.yaml", [f"--{key}", "os"])


@pytest.mark.parametrize("plugins", [["os; rm -rf"], ["--x"], [""], ["a..b"], [1], ["\x1b[2J"]])
def test_a_model_with_an_invalid_plugin_name_is_damaged(
    plugins: object, finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    place, _ = finished
    shutil.copytree(place / "run" / "model", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "plugins": plugins}))
    with pytest.raises(UserError, match=r"is damaged: plugins are names of modules"):
        load_model(tmp_path / "model")


def test_an_entry_of_mmcl_has_no_plugin() -> None:
    registry = Registry("thing", {"own": "mmcl.errors:UserError"})
    registry.register("mine", UserError)
    assert (registry.plugin("own"), registry.plugin("mine"), registry.plugin("none")) == (None, "mmcl.errors", None)
