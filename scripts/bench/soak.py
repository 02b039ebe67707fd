"""Kills small runs at random moments and compares their final states, and measures the cost of safety.

python scripts/bench/soak.py --kills 100 --json soak.json

Every start has a random number of loader processes. A kill comes at a random time, or at a random call of those that write a
checkpoint. Runs with a fixed number of processes, one or two, must end with the same bits as the run that was never killed;
elastic runs take one or two at every start, and must end within 1e-5 of it. When something is wrong, the folder stays.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from side_by_side import Row, row, write_json
from tqdm import tqdm

from mmcl.config import Config, load_config
from mmcl.data.batches.order import Order
from mmcl.engine import trainer
from mmcl.engine.checkpoint import Snapshot
from mmcl.engine.checkpoint_writer import write_checkpoint
from mmcl.engine.log import read_log
from mmcl.engine.trainer import Trainer
from mmcl.rng import permutation
from mmcl.runs.run import train
from tests.distributed.harness import run_processes
from tests.engine.tiny import make_folder
from tests.faults.runs import KILLED, Fault, final_state, kill_at, output, run, small_vocabulary, start, tiny_run

DEFAULT = Path(__file__).resolve().parents[2] / "configs" / "clip_emoji.yaml"
STEPS = 16
MOST_KILLS = 12
TOLERANCE = 1e-5
CALLS = {"fsync": (os, 5), "rename": (Path, 2), "unlink": (os, 3), "open": (Path, 12)}
"""What a checkpoint is written with, and about how often."""


class Failed(Exception):
    """A promise that was not kept."""


@dataclass
class Kind:
    """Runs that differ in nothing but when they are killed.

    Attributes:
        name: for the table.
        worlds: the numbers of processes to choose from at every start.
        flags: settings; dropout draws by process, so that elastic runs do without.
        whole: the run that is never killed, and the seconds that it took.
    """

    name: str
    worlds: tuple[int, ...]
    flags: tuple[str, ...] = ()
    whole: Config | None = None
    seconds: float = 0.0
    runs: int = 0
    kills: dict[str, int] = field(default_factory=lambda: {"by the clock": 0, "while a checkpoint is written": 0})
    difference: float = 0.0


def kill_again_and_again(kills: int, folder: Path) -> list[Row]:
    """Raises Failed at the first run that does not end as it should."""
    image_folder = make_folder(folder / "squares")
    train(tiny_run(image_folder, folder / "warm", "--train.steps", "1"))
    kinds = [
        Kind("one process", (1,)),
        Kind("two processes", (2,)),
        Kind("one or two processes", (1, 2), ("--text.encoder.args.dropout", "0")),
    ]
    for kind in kinds:
        kind.flags += ("--train.steps", str(STEPS))
        kind.whole = tiny_run(image_folder, folder / f"whole, {kind.name}", *kind.flags)
        began = time.perf_counter()
        if any(run(kind.whole, kind.worlds[0])):
            raise Failed(f"the run without kills failed: {output(kind.whole)}")
        kind.seconds = time.perf_counter() - began
        print(f"never killed, {kind.name}: {kind.seconds:.1f} s", flush=True)
    with tqdm(total=kills, unit=" kills", desc="killing") as bar:
        while bar.n < kills:
            kind = kinds[sum(kind.runs for kind in kinds) % len(kinds)]
            run_dir = folder / f"{kind.name}, run {kind.runs}"
            config = kill_one_run(kind, image_folder, run_dir, min(kills - int(bar.n), random.randint(4, MOST_KILLS)), bar)
            compare(kind, config)
            kind.runs += 1
            shutil.rmtree(run_dir)
    return [row for kind in kinds for row in rows_of(kind)]


def kill_one_run(kind: Kind, image_folder: Path, run_dir: Path, kills: int, bar: tqdm[Any]) -> Config:
    """Starts a run until it ends, killing it up to `kills` times."""
    resume: tuple[str, ...] = ()
    while True:
        workers = ("--data.workers", str(random.choice((0, 0, 1, 2))))
        config = tiny_run(image_folder, run_dir, *kind.flags, *workers, *resume)
        moment = random.choice([*kind.kills]) if kills else ""
        strike = random_strike() if moment.startswith("while") else lambda: None
        children = start(config, random.choice(kind.worlds), on_first_rank(strike))
        children[0].join(random.uniform(0.1, 1.2) * kind.seconds if moment == "by the clock" else 60)
        if alive := children[0].is_alive():
            for child in children:
                child.kill()
        for child in children:
            child.join(60)
        codes = [child.exitcode for child in children]
        if (alive and moment != "by the clock") or None in codes:
            raise Failed(f"a process hangs: {output(config)}")
        if codes[0] != KILLED:
            if any(codes):
                raise Failed(f"exit codes {codes}: {output(config)}")
            return config
        kind.kills[moment] += 1
        kills -= 1
        bar.update()
        resume = ("--resume",) if (run_dir / "config.yaml").exists() else ()


def random_strike() -> Callable[[], None]:
    """Death before or after one of the calls that write the next few checkpoints."""
    name, (owner, often) = random.choice([*CALLS.items()])
    return kill_at(owner, name, random.randint(1, 4 * often), before=random.random() < 0.5)


def on_first_rank(strike: Callable[[], None]) -> Fault:
    return lambda rank: strike() if rank == 0 else None


def compare(kind: Kind, config: Config) -> None:
    assert kind.whole is not None
    folders = [Path(str(c.run_dir)) for c in (config, kind.whole)]
    steps = [row["step"] for row in read_log(folders[0] / "metrics.jsonl")]
    if steps != list(range(1, STEPS + 1)):
        raise Failed(f"metrics.jsonl has the steps {steps}")
    ours, theirs = (load_file(folder / "model/model.safetensors") for folder in folders)
    kind.difference = max(kind.difference, *((ours[key] - theirs[key]).abs().max().item() for key in theirs))
    if len(kind.worlds) == 1 and final_state(config) != final_state(kind.whole):
        raise Failed(f"weights, optimizer or log differ from the run that was never killed, by up to {kind.difference:g}")
    if not kind.difference < TOLERANCE:
        raise Failed(f"the weights are {kind.difference:g} away from the run that was never killed")


def rows_of(kind: Kind) -> list[Row]:
    kills = [row("soak", f"{kind.name}: kills {moment}", "1", number) for moment, number in kind.kills.items()]
    return [
        row("soak", f"{kind.name}: runs, all of which ended as they should", "1", kind.runs),
        *kills,
        row("soak", f"{kind.name}: largest difference of a weight", "1", kind.difference),
    ]


def cost_of_safety(folder: Path, steps: int = 12) -> list[Row]:
    """Shares of a step of the default run that go to guards and order, and the seconds for which a checkpoint holds it up."""
    spent: dict[str, float] = {}

    def timed(owner: Any, name: str, key: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def timing(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent[key] = spent.get(key, 0.0) + time.perf_counter() - began

        setattr(owner, name, timing)

    for name in ("_record", "_settle"):
        timed(Trainer, name, "guards")
    timed(Order, "rows", "order")
    timed(Trainer, "_step", "steps")
    timed(Trainer, "_save", "checkpoints")
    timed(trainer, "take_snapshot", "snapshots")
    flags = ["--run_dir", str(folder / "default"), "--evaluate", "[]", "--train.steps", str(steps), "--train.save_every", "4"]
    train(load_config(DEFAULT, flags))
    return [
        row("guards", "share of a step", "1", spent["guards"] / spent["steps"]),
        row("order", "share of a step", "1", spent["order"] / spent["steps"]),
        row("checkpoint in the background", "training waits", "s", spent["checkpoints"] / 3),
        row("checkpoint in the background", "of these for the copy", "s", spent["snapshots"] / 3),
        row("step of the default run", "time", "s", spent["steps"] / steps),
    ]


def write_a_share(rank: int, world: int, folder: Path) -> tuple[float, float]:
    """Write a process's share of the 428 M parameters of ViT-L/14 and two moments: seconds, and those of the processor."""
    group: Any = dist.new_group(backend="gloo")
    weights = {str(number): torch.randn(1000 // world, 1000) for number in range(428)}
    moments = {
        f"{name}/{key}": torch.randn_like(weight) for name, weight in weights.items() for key in ("exp_avg", "exp_avg_sq")
    }
    began, work = time.perf_counter(), time.process_time()
    write_checkpoint(folder, Snapshot(1, weights, moments, shard=rank, shards=world), keep=1, group=group)
    return time.perf_counter() - began, time.process_time() - work


def cost_of_a_large_checkpoint(folder: Path) -> list[Row]:
    table = []
    for world in (1, 2):
        seconds, work = run_processes(world, write_a_share, folder / str(world))[0]
        shutil.rmtree(folder / str(world))
        table.append(row("checkpoint of ViT-L/14", f"writing, {world} processes", "s", seconds))
        table.append(row("checkpoint of ViT-L/14", f"processor time of the first, {world} processes", "s", work))
    return table


def cost_of_a_permutation(n: int = 12_000_000) -> list[Row]:
    began = time.perf_counter()
    permutation(n, 0, 0)
    seconds = time.perf_counter() - began
    tracemalloc.start()
    permutation(n, 0, 0)
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return [row("permutation of 12 M samples", *measured) for measured in (("time", "s", seconds), ("memory", "MB", megabytes))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="over all runs together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--json", type=Path, help="write the table here")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    torch.set_num_threads(1)
    folder, began = Path(tempfile.mkdtemp(prefix="soak-")), time.perf_counter()
    try:
        with small_vocabulary():
            table = kill_again_and_again(arguments.kills, folder)
    except Failed as failure:
        sys.exit(f"FAILED: {failure}\nseed {arguments.seed}; everything is still in {folder}")
    table.append(row("soak", "time", "s", time.perf_counter() - began))
    print("permutation", flush=True)
    table += cost_of_a_permutation()
    print("a large checkpoint", flush=True)
    table += cost_of_a_large_checkpoint(folder)
    print("guards, order and checkpoints in the default run", flush=True)
    table += cost_of_safety(folder)
    shutil.rmtree(folder)
    for line in table:
        print(f"{line['case']:<30} {line['measure']:<60} {line['mmcl']:>10.3g} {line['unit']}")
    write_json(arguments.json, "soak", table)


if __name__ == "__main__":
    main()
