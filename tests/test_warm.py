"""What a warm interpreter forks is what Python starts: the same arguments, streams, paths and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.warm import launch, python, start

pytestmark = pytest.mark.slow

SHOWN = """
import os, sys
print(sys.argv, os.getcwd(), os.environ["GIVEN"], __name__, sys.path[:3], sys.stdin.read())
for stream in (sys.stdin, sys.stdout, sys.stderr):
    print(stream.fileno(), stream.encoding, stream.errors, stream.line_buffering, stream.isatty(), file=sys.stderr)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("script.py", "module.py"):
        (tmp_path / name).write_text(SHOWN)
    return tmp_path


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "sys.exit('said at the end')", "1 / 0", "os.kill(os.getpid(), 9)"])
@pytest.mark.parametrize("form", [["-c", SHOWN], ["-m", "module"], ["script.py"]], ids=lambda form: form[0])
def test_a_command_is_one_of_python(form: list[str], end: str, place: Path) -> None:
    for name in ("script.py", "module.py"):
        (place / name).write_text(SHOWN + end)
    words = [*(word.replace(SHOWN, SHOWN + end) for word in form), "--flag", "a b"]
    environment = {"GIVEN": "here", "PYTHONPATH": f"{place}/first{os.pathsep}{place}/second"}
    real = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"} | environment
    expected = subprocess.run(
        [sys.executable, *words], cwd=place, env=real, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    found = python(*words, cwd=place, env=environment)
    assert (found.returncode, found.stdout) == (expected.returncode, expected.stdout)
    assert found.stderr.splitlines()[:3] == expected.stderr.splitlines()[:3]
    assert found.stderr.splitlines()[-1] == expected.stderr.splitlines()[-1]


def test_a_command_changes_nothing_for_the_next(tmp_path: Path) -> None:
    python("-c", "import os, sys, torch; os.environ['LEFT'] = '1'; sys.modules['left'] = sys; torch.set_num_threads(2)")
    left = python("-c", "import os, sys, torch; print('LEFT' in os.environ, 'left' in sys.modules, torch.get_num_threads())")
    assert left.stdout == "False False 1\n"


def test_signals_reach_a_command_and_one_that_hangs_is_killed() -> None:
    sleep = "import time; print(1, flush=True); time.sleep(60)"
    child = start("-c", sleep)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait().returncode == -signal.SIGTERM
    hanging = start("-c", sleep)
    with pytest.raises(TimeoutError):
        hanging.wait(timeout=0.2)
    for _ in range(200):
        if not Path(f"/proc/{hanging.pid}").exists():
            break
        time.sleep(0.1)
    else:
        pytest.fail("it is alive")


def test_a_launch_is_processes_that_find_each_other() -> None:
    code = "import torch.distributed as dist; dist.init_process_group('gloo'); print(dist.get_rank(), dist.get_world_size())"
    printed = [child.wait().stdout for child in launch(2, "-c", f"{code}; dist.destroy_process_group()")]
    assert [text.splitlines()[-1] for text in printed] == ["0 2", "1 2"]  # below what some versions of Gloo say
