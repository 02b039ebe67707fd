"""A warm interpreter, which has imported what commands need and forks a child for each of them.

`python("-m", "mmcl", "list")` is `subprocess.run([sys.executable, "-m", "mmcl", "list"])` without the seconds in which Python
imports torch: a process of its own with its own streams, folder, environment and modules, which ends as a command does. The
warm interpreter has one thread, which is checked before every fork: the pools of OpenMP, Arrow and others do not survive one.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]

IMPORTED = (
    "mmcl.cli.main",
    "mmcl.runs.doctor",
    "mmcl.runs.run",
    "mmcl.evaluate.reporting.figures",
    "matplotlib.backends.backend_agg",
    "pandas",
    "torch._dynamo",
)
"""Modules that most commands import, together with all that these import."""


@dataclass
class Child:
    """A command that runs.

    Attributes:
        words: those behind `python`.
        pid: the process, to which a test may send signals.
        ends: where its exit code comes.
        said: what it prints to standard output and standard error; empty if that goes elsewhere.
    """

    words: Sequence[str]
    pid: int
    ends: socket.socket
    said: tuple[IO[str], IO[str]]

    def wait(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run` returns. A process that takes longer than `timeout` seconds is killed, which is an error."""
        with self.ends:
            self.ends.settimeout(timeout)
            try:
                code = int(self.ends.recv(100))
            except TimeoutError:
                os.kill(self.pid, signal.SIGKILL)
                raise
            finally:
                output, errors = map(_read, self.said)
        return subprocess.CompletedProcess(self.words, code, output, errors)


def python(*words: str, timeout: float = 120, **start_args: Any) -> subprocess.CompletedProcess[str]:
    """Runs `python WORDS` to its end; see `start`."""
    return start(*words, **start_args).wait(timeout)


def launch(world: int, *words: str, env: Mapping[str, str] | None = None, **start_args: Any) -> list[Child]:
    """Starts `python WORDS` in `world` processes with the environment that torchrun gives to each."""
    return [start(*words, env={**(env or {}), **ranks}, **start_args) for ranks in environments(world)]


def environments(world: int) -> list[dict[str, str]]:
    """The environment in which a launcher starts each of `world` processes on this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(world)]


def start(
    *words: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Child:
    """Starts `python WORDS`.

    Args:
        words: `-m` and a module, `-c` and code, or a script; and arguments.
        cwd: where it runs.
        env: what its environment has beside that of this process; OMP_NUM_THREADS is 1 if it is given nowhere.
        stdout: descriptor of its output; None collects the output for `Child.wait`.
        stderr: likewise.
    """
    command = {"words": words, "cwd": str(cwd or Path.cwd()), "env": {**os.environ, **(env or {})}}
    said = _file(), _file()
    streams = [file.fileno() if given is None else given for given, file in zip((stdout, stderr), said, strict=True)]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, Path(os.devnull).open() as nothing:
        socket.send_fds(_server(), [json.dumps(command).encode()], [nothing.fileno(), *streams, theirs.fileno()])
    return Child(words, int(ours.recv(100)), ours, said)


def _file() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8")


def _read(file: IO[str]) -> str:
    with file:
        file.seek(0)
        return file.read()


@functools.cache
def _server() -> socket.socket:
    """The warm interpreter, started when it is used first. It ends when this process closes its end of the socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
    server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **one_thread}, pass_fds=[theirs.fileno()])
    theirs.close()
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Forks a child for each command. Returns the command in the child, and None when all is done."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    pid, ends = key.data
                    with ends, contextlib.suppress(BrokenPipeError):  # nobody waits
                        ends.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    continue
                message, descriptors, *_ = socket.recv_fds(connection, 2**20, 4)
                if not message:
                    return None
                threads = len(os.listdir("/proc/self/task"))
                assert threads == 1, f"the warm interpreter has {threads} threads: what it imports must start none"
                if (pid := os.fork()) == 0:
                    connection.close()
                    for number, descriptor in enumerate(descriptors[:3]):
                        os.dup2(descriptor, number)
                    for descriptor in descriptors:
                        os.close(descriptor)
                    command: dict[str, Any] = json.loads(message)
                    return command
                for descriptor in descriptors[:3]:
                    os.close(descriptor)
                ends = socket.socket(fileno=descriptors[3])
                ends.send(str(pid).encode())
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, ends))


def _run(words: list[str], cwd: str, env: dict[str, str]) -> None:
    """What Python does when it starts, and the command."""
    import torch

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update({"OMP_NUM_THREADS": "1", **env})
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        by_line = number == 2 or os.isatty(number)
        style = {"buffering": 1 if by_line else -1, "encoding": before.encoding, "errors": before.errors, "closefd": False}
        setattr(sys, name, open(number, "w" if number else "r", **style))  # noqa: SIM115
    option, *rest = words
    folder = {"-m": cwd, "-c": ""}.get(option, str(Path(option).resolve().parent))
    given = [str(Path(path).resolve()) for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [folder, *given, *(path for path in sys.path[1:] if path not in given)]
    if option == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    sys.modules["triton"] = None  # type: ignore[assignment]  # for GPUs; the end of a fork looks to its bindings like a leak
    for module in IMPORTED:
        importlib.import_module(module)
    del sys.modules["triton"]
    gc.freeze()  # or every child would copy the memory of all modules at its end
    if given := _serve(socket.socket(fileno=int(sys.argv[1]))):
        _run(**given)
