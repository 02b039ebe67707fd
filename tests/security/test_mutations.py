"""Damage to a file is reported in one line or has no effect; it neither exhausts memory nor ends a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def read_damaged(folder: Path, seed: int, count: int) -> str:
    """What `tests.security.mutations` prints, in a process whose memory is limited."""
    command = [sys.executable, "-m", "tests.security.mutations", str(folder), str(seed), str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_damage_is_read_or_refused_in_a_line(tmp_path: Path) -> None:
    assert read_damaged(tmp_path, 0, 1) == ""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_much_damage_is_read_or_refused_in_a_line(tmp_path: Path) -> None:
    assert read_damaged(tmp_path, 1, 400) == ""
