"""A process with one thread (or MMCL_TEST_THREADS), from which the multi-process tests fork; what it starts has one too."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING
from unittest import mock

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import torch

THREADS = os.environ.get("MMCL_TEST_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", THREADS)  # before numpy and torch are imported

# A busy machine is slow, which is not a failure. A change is tested on what its parent was; the long tier looks for more.
settings.register_profile("mmcl", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)
settings.load_profile("mmcl")


SLOW = {"browser", "cli", "distributed", "documentation", "embedding", "engine", "faults", "interop"}
"""Folders whose tests start commands, training runs or several processes."""


MANY = {"search", "security", "serve"}
"""Folders of short tests which together take a minute."""


BLANK = {"cli", "documentation", "embedding", "engine", "faults", "interop", "test_house.py"}
"""Folders and files not about figures; tests/evaluate and tests/search draw them, and `.ci/run` those of whole runs."""


TRACE = {"documentation", "export", "test_compilation.py", "test_compiled.py", "test_modules.py", "test_publish.py"}
"""Folders and files whose tests trace graphs in their own process: torch may then start threads that no fork survives."""


def pytest_collection() -> None:
    """Not at the top: the process that hands out the tests to workers, and waits for them, collects none and needs no torch."""
    import torch._dynamo  # noqa: F401  # by every optimizer otherwise, for seconds in each process that a test forks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `pytest -m "not slow"` leaves out, which is these folders and the long tier, and puts the tests in order.

    What traces graphs comes last, as many others fork processes in which gradients are computed. Of the rest, slow ones come
    first, so that no process ends long after the others.
    """
    folder = Path(__file__).parent
    parts = {path: set(path.relative_to(folder).parts) for path in {item.path for item in items}}
    for item in items:
        if item.get_closest_marker("long") or SLOW & parts[item.path]:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: (bool(TRACE & parts[item.path]), item.get_closest_marker("slow") is None))
    for item in items:
        if MANY & parts[item.path]:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What is there by now stays to the end: garbage is looked for in what the tests make."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or triton's bindings take what is left at the end for a leak


@pytest.fixture(autouse=True, scope="module")
def _blank_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """In `BLANK`, the figures of a report are composed as ever and not drawn, which is half of the time of a short run."""
    if not BLANK & set(request.path.parts):
        yield
        return
    from matplotlib.figure import Figure
    from PIL import Image

    def save(figure: Figure, file: IO[bytes], **_: object) -> None:
        Image.new("L", figure.canvas.get_width_height(), 255).save(file, "PNG")

    with mock.patch.object(Figure, "savefig", save):
        yield


@pytest.fixture(autouse=True, scope="session")
def _caches_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["MMCL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.setdefault("MMCL_DATA_ROOT", str(tmp_path_factory.mktemp("root")))


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
    import torch

    return torch.Generator().manual_seed(0)
