"""Runs of a tiny model in processes forked from the warm test process, with faults injected by a test."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from tqdm.auto import tqdm

from mmcl.cli.exit import exit_cleanly
from mmcl.config import Config, load_config
from mmcl.encoders import tokenizers
from mmcl.engine.log import EVALUATION, read_log
from mmcl.engine.trainer import Trainer
from mmcl.runs.run import train

STEPS = 8
KILLED = -signal.SIGKILL

YAML = f"""
method: {{name: clip}}
image:
  encoder: {{name: small_cnn, args: {{image_size: 16, channels: 3, feature_dim: 16}}}}
  head: {{name: linear, args: {{embed_dim: 16}}}}
text:
  encoder: {{name: small_text, args: {{width: 8, layers: 1, heads: 2, dropout: 0.2}}}}
  head: {{name: linear, args: {{embed_dim: 16}}}}
data: {{augment: [{{name: affine, args: {{rotation: 10}}}}], cache: false}}
optim: {{lr: 1e-3}}
train: {{batch_size: 12, steps: {STEPS}, log_every: 1, save_every: 1, threads: 1, timeout_seconds: 20}}
"""

Fault = Callable[[int], None]
"""What is done in a child before it starts to train, given its rank: usually a patch that strikes later."""


@contextmanager
def small_vocabulary() -> Iterator[None]:
    """The first 200 of CLIP's 48,894 merges: a checkpoint of kilobytes, so that a run takes a third of the time."""
    with mock.patch.object(tokenizers, "_clip_merges", return_value=_few_merges()):
        yield


@functools.cache
def _few_merges() -> list[tuple[str, str]]:
    return tokenizers._clip_merges()[:200]


def tiny_run(image_folder: Path, run_dir: Path, *flags: str) -> Config:
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    path = run_dir.with_suffix(".yaml")
    path.write_text(YAML)
    return load_config(path, ["--data.train.path", str(image_folder), "--run_dir", str(run_dir), *flags])


def start(config: Config, world: int = 1, fault: Fault = lambda rank: None) -> list[ForkProcess]:
    """Starts a launch. What process N prints goes to `<run_dir>.rank-N.txt`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = mp.get_context("fork")
    children = [context.Process(target=_child, args=(rank, world, port, config, fault)) for rank in range(world)]
    for child in children:
        child.start()
    return children


def run(config: Config, world: int = 1, fault: Fault = lambda rank: None, seconds: float = 60) -> list[int | None]:
    """The exit codes of a launch, by rank; negative for a signal."""
    children = start(config, world, fault)
    for child in children:
        child.join(seconds)
    alive = [child for child in children if child.is_alive()]
    for child in alive:
        child.kill()
    assert not alive, f"{len(alive)} processes hang: {output(config)}"
    return [child.exitcode for child in children]


def output(config: Config, rank: int = 0) -> str:
    """What a process printed."""
    return Path(f"{config.run_dir}.rank-{rank}.txt").read_text()


def _child(rank: int, world: int, port: int, config: Config, fault: Fault) -> None:
    from accelerate.state import AcceleratorState, GradientState

    gc.freeze()  # or the process would copy the memory of all modules when it looks for garbage
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {key: str(value) for key, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    if world == 1:
        for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[key]
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared with the parent, who would wait for a child that was killed with it
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
    sys.stdout = sys.stderr = Path(f"{config.run_dir}.rank-{rank}.txt").open("a", buffering=1)  # noqa: SIM115
    _record_samples(_samples_file(config, rank, world))
    fault(rank)
    sys.exit(exit_cleanly(lambda: train(config)))


def _samples_file(config: Config, rank: int, world: int) -> Path:
    return Path(f"{config.run_dir}.samples-{rank}-of-{world}.jsonl")


def _record_samples(path: Path) -> None:
    original = Trainer._step

    def recording(self: Trainer, step: int, batch: Any) -> Any:
        with path.open("a") as file:
            file.write(json.dumps({"step": step, "index": batch.index.tolist()}) + "\n")
        return original(self, step, batch)

    Trainer._step = recording  # type: ignore[method-assign]


def before_step(number: int, strike: Callable[[Trainer], None], *, ranks: Sequence[int] | None = None) -> Fault:
    """Strikes when a step is about to begin, on all ranks or some."""

    def fault(rank: int) -> None:
        if ranks is not None and rank not in ranks:
            return
        original = Trainer._step

        def struck(self: Trainer, step: int, batch: Any) -> Any:
            if step == number:
                strike(self)
            return original(self, step, batch)

        Trainer._step = struck  # type: ignore[method-assign]

    return fault


def kill(trainer: Trainer | None = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(module: Any, name: str, call: int, *, before: bool = True) -> Callable[[], None]:
    """Kills the process at the n-th call of a function of the system, before it or after."""

    def fault() -> None:
        original, calls = getattr(module, name), []

        def deadly(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if before and len(calls) == call:
                kill()
            result = original(*args, **kwargs)
            if not before and len(calls) == call:
                kill()
            return result

        setattr(module, name, deadly)

    return fault


def samples(config: Config, world: int) -> dict[int, list[int]]:
    """The rows of the global batch, step by step; a step that was computed again must have had the same."""
    steps: dict[int, list[int]] = {}
    shares: list[dict[int, list[int]]] = []
    for rank in range(world):
        share: dict[int, list[int]] = {}
        for row in read_log(_samples_file(config, rank, world)):
            assert share.setdefault(row["step"], row["index"]) == row["index"]
        shares.append(share)
    for step in shares[0]:
        steps[step] = [index for share in shares for index in share[step]]
    return steps


def final_state(config: Config) -> dict[str, str]:
    """What two equal runs have in common to the bit: the tensors of the last checkpoint, and every line of the log."""
    folder = Path(config.run_dir or "") / "checkpoints" / f"step-{config.train.steps:07d}"
    found = {
        f"{file.stem}/{key}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for file in folder.glob("*.safetensors")
        for key, tensor in load_file(file).items()
    }
    rows = read_log(Path(config.run_dir or "") / "metrics.jsonl")
    times = ("samples_per_second", "data_wait", EVALUATION)
    lines = [{key: value for key, value in row.items() if key not in times} for row in rows]
    return {**found, "metrics": json.dumps(lines)}
