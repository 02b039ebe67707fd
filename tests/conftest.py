"""A process with one thread (or MMCL_TEST_THREADS), from which the multi-process tests fork; what it starts has one too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

THREADS = os.environ.get("MMCL_TEST_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", THREADS)  # before numpy and torch are imported

import torch  # noqa: E402
import torch._dynamo  # noqa: E402  # by every optimizer otherwise, for seconds in each process that a test forks

# A busy machine is slow, which is not a failure.
settings.register_profile("mmcl", deadline=None)
settings.load_profile("mmcl")


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(int(THREADS))


@pytest.fixture(autouse=True, scope="session")
def _caches_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["MMCL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.setdefault("MMCL_DATA_ROOT", str(tmp_path_factory.mktemp("root")))


@pytest.fixture(autouse=True)
def _no_flushed_denormals() -> None:
    """A run in this process has set it; hypothesis needs denormal numbers."""
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
