"""When `train` returns, the model exists for every process, and no process waits for one that has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import mmcl
import mmcl.runs.run as engine
from mmcl.config import Config
from mmcl.errors import UserError
from mmcl.interop.save import save_model
from mmcl.runs.run import train
from tests.faults import runs
from tests.faults.runs import KILLED, kill, output, tiny_run


def then_load(fault: Callable[[], Any]) -> runs.Fault:
    """After training every process loads the model; the first does something to its writing before."""

    def prepare(rank: int) -> None:
        def trained(config: Config) -> Any:
            result = train(config)
            print(f"width {mmcl.load_model(result.run_dir).embed_dim}")
            return result

        def saved(*args: Any, **kwargs: Any) -> None:
            fault()
            save_model(*args, **kwargs)

        patch.object(runs, "train", trained).start()
        patch.object(engine, "save_model", saved).start()

    return prepare


def fail() -> None:
    raise UserError("the disk is full")


def fail_otherwise() -> None:
    raise ZeroDivisionError("division by zero")


def launch(image_folder: Path, tmp_path: Path, fault: Callable[[], Any]) -> tuple[Config, list[int | None]]:
    config = tiny_run(image_folder, tmp_path / "run", "--train.steps", "1")
    return config, runs.run(config, world=2, fault=then_load(fault))


def test_the_model_is_there_for_every_process(image_folder: Path, tmp_path: Path) -> None:
    config, codes = launch(image_folder, tmp_path, lambda: time.sleep(2))
    assert codes == [0, 0]
    assert [output(config, rank).splitlines()[-1] for rank in (0, 1)] == ["width 16", "width 16"]


@pytest.mark.parametrize("fault", [fail, fail_otherwise])
def test_nobody_waits_for_a_first_process_that_failed(fault: Callable[[], Any], image_folder: Path, tmp_path: Path) -> None:
    config, codes = launch(image_folder, tmp_path, fault)
    said = {"fail": "the disk is full", "fail_otherwise": "division by zero"}[fault.__name__]
    assert codes[1] == 2
    assert codes[0] != 0
    assert output(config, 1).splitlines()[-1] == f"error: the first process failed: {said}"


def test_nobody_waits_for_a_first_process_that_is_gone(image_folder: Path, tmp_path: Path) -> None:
    config, codes = launch(image_folder, tmp_path, kill)
    assert codes == [KILLED, 2]
    assert output(config, 1).splitlines()[-1].startswith("error: another process of this run died")
