"""The files around the code agree with it: commands, Python versions, the version of mmcl."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import mmcl
from tests.conftest import SLOW

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ["3.11", "3.12", "3.13"]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "command"), [("ci", ".ci/run"), ("lowest", ".ci/run lowest"), ("long", ".ci/run long")])
def test_a_workflow_runs_what_anyone_can_run(name: str, command: str) -> None:
    (job,) = read(f".github/workflows/{name}.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [command]
    modes = re.findall(r"(?m)^    (\w+)\)$", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    assert (command.split()[1:] or ["quick"])[0] in modes


def test_every_python_that_is_promised_is_tested() -> None:
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    named = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if ":: 3." in line]
    assert named == PYTHONS
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_a_form_asks_for_the_version_and_the_diagnosis(name: str) -> None:
    labels = [part["attributes"]["label"] for part in read(f".github/ISSUE_TEMPLATE/{name}.yml")["body"]]
    assert {"mmcl --version", "mmcl doctor CONFIG"} <= set(labels)


def test_the_citation_is_of_this_version() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == mmcl.__version__ == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["authors"] == [{"name": "The mmcl developers"}]


def test_the_menu_lists_every_target_and_its_paths_exist() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (phony,) = re.findall(r"(?m)^\.PHONY: (.*)$", text)
    assert [line.split()[1] for line in listed.splitlines()] == phony.split()
    assert all((ROOT / "tests" / folder).is_dir() for folder in SLOW)


def test_commits_are_checked_by_the_tools_of_the_menu() -> None:
    lint = subprocess.run(["make", "-n", "lint"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for hook in read(".pre-commit-config.yaml")["repos"][0]["hooks"]:
        assert " ".join(hook["entry"].split()[:2]) in lint
