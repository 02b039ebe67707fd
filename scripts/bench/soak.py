"""Kills one small run again and again, at random moments, and compares what it ends with. Then what safety costs.

python scripts/bench/soak.py --kills 100 --json soak.json

Every start has a random number of loader processes. Half of the runs stay with one process and must end with the same bits as
the run that was never killed; the other half take one or two processes at random, and must end within 1e-5 of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import load_file

from mmcl.config import load_config
from mmcl.data.order import Order
from mmcl.engine import trainer
from mmcl.engine.run import train
from mmcl.engine.trainer import Trainer
from mmcl.rng import permutation
from tests.engine.tiny import make_folder
from tests.faults.runs import ending, run, start, tiny_run, words

DEFAULT = Path(__file__).resolve().parents[2] / "configs" / "clip_emoji.yaml"


def kill_again_and_again(kills: int, folder: Path) -> dict[str, float]:
    """Returns how many kills there were, how many runs they hit, and how far those ended from the run without kills."""
    pictures = make_folder(folder / "squares")
    # Dropout draws by process: it is on only where the number of processes stays.
    dropout = {True: ("--text.encoder.args.dropout", "0"), False: ()}
    train(tiny_run(pictures, folder / "warm", "--train.steps", "1"))
    expected = {elastic: tiny_run(pictures, folder / f"whole-{elastic}", *dropout[elastic]) for elastic in (False, True)}
    seconds = time.perf_counter()
    for config in expected.values():
        assert run(config) == [0]
    seconds = (time.perf_counter() - seconds) / 2
    result = {"kills": 0, "runs": 0, "runs of one process with the same bits": 0, "runs of one process": 0, "difference": 0.0}
    while result["kills"] < kills:
        elastic = result["runs"] % 2 == 1
        run_dir = folder / f"run-{result['runs']}"
        flags: tuple[str, ...] = dropout[elastic]
        while True:
            config = tiny_run(pictures, run_dir, *flags, "--data.workers", str(random.choice((0, 0, 1, 2))))
            children = start(config, random.choice((1, 2)) if elastic else 1)
            children[0].join(random.uniform(0.1, 1.2) * seconds if result["kills"] < kills else None)
            killed = children[0].is_alive()
            for child in children:
                child.kill() if killed else child.join(60)
                child.join()
            if not killed:
                assert [child.exitcode for child in children] == [0] * len(children), words(config)
                break
            result["kills"] += 1
            if (run_dir / "config.yaml").exists():
                flags = (*dropout[elastic], "--resume")
        result["runs"] += 1
        if elastic:
            ours, theirs = (load_file(Path(str(c.run_dir)) / "model/model.safetensors") for c in (config, expected[True]))
            far = max((ours[key] - theirs[key]).abs().max().item() for key in theirs)
            result["difference"] = max(result["difference"], far)
        else:
            result["runs of one process"] += 1
            result["runs of one process with the same bits"] += ending(config) == ending(expected[False])
    return result


def cost_of_safety(folder: Path, steps: int = 12) -> dict[str, float]:
    """Shares of a step of the default run that go to guards and order, and the seconds for which a checkpoint holds it up."""
    spent: dict[str, float] = {}

    def timed(owner: Any, name: str, row: str) -> None:
        honest: Callable[..., Any] = getattr(owner, name)

        def timing(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return honest(*args, **kwargs)
            finally:
                spent[row] = spent.get(row, 0.0) + time.perf_counter() - began

        setattr(owner, name, timing)

    for name in ("_sum_over_processes", "_is_finite", "_count_bad", "_save_is_due"):
        timed(Trainer, name, "guards")
    timed(Order, "rows", "order")
    timed(Trainer, "_step", "steps")
    timed(Trainer, "_save", "checkpoints")
    timed(trainer, "take_snapshot", "snapshots")
    flags = ["--run_dir", str(folder / "default"), "--evaluate", "[]", "--train.steps", str(steps), "--train.save_every", "4"]
    train(load_config(DEFAULT, flags))
    return {
        "guards, share of a step": spent["guards"] / spent["steps"],
        "order, share of a step": spent["order"] / spent["steps"],
        "checkpoint in the background, seconds that training waits": spent["checkpoints"] / 3,
        "of these for the copy": spent["snapshots"] / 3,
        "step, seconds": spent["steps"] / steps,
    }


def cost_of_a_permutation(n: int = 12_000_000) -> dict[str, float]:
    began = time.perf_counter()
    permutation(n, 0, 0)
    seconds = time.perf_counter() - began
    tracemalloc.start()
    permutation(n, 0, 0)
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return {"permutation of 12 M samples, seconds": seconds, "permutation of 12 M samples, MB": megabytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--json", type=Path, help="write the table here")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        found = kill_again_and_again(arguments.kills, Path(folder))
        found["seconds"] = time.perf_counter() - began
        found |= cost_of_a_permutation() | cost_of_safety(Path(folder))
    for name, value in found.items():
        print(f"{name:<60} {value:g}")
    if arguments.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
        rows = [{"case": "soak", "measure": name, "mmcl": value} for name, value in found.items()]
        arguments.json.write_text(json.dumps({"bench": "soak", "machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
