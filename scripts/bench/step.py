"""A training step of mmcl beside a plain one, on the same batch and in one process, for the models of train.py.

Whole trainings run one after the other, and a machine with other work is faster in one than in the next: `train.py` cannot tell
differences of a few percent there. Here every step of a run is followed, or preceded, by one of the plain loop: encode, a loss
by `cross_entropy`, backward and the same optimizer, without clipping, checks or log. Measured is processor time in one thread:
`step`, the median of each kind, and `more`, the median of what mmcl's takes beyond the plain one on the same batch, which is
also given as a share of that.

python scripts/bench/step.py --json step.json
python scripts/bench/step.py --models "vit*" --steps 200
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from side_by_side import Row, as_line, row, write_json
from train import CASES, WARM_UP, configuration, write_pairs
from train_peers import PLAIN, plain_step
from trainings import apart

from mmcl.engine.trainer import Trainer
from mmcl.runs.run import train
from mmcl.types import Batch

Pair = tuple[float, float]


def measure(model: str, folder: Path, steps: int) -> list[Pair]:
    """Processor seconds of mmcl's step and the plain one for every batch after the first."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    own, found = Trainer._step, []

    def both(trainer: Trainer, number: int, batch: Batch) -> None:
        def plain() -> None:
            optimizer = trainer.optimizer.optimizer
            optimizer.found_inf = None  # of mmcl's step, else the optimizer would heed it here too
            plain_step(trainer.method, batch, optimizer)

        def ours() -> None:
            own(trainer, number, batch)

        # By turns, as the first of them finds less of its data in the caches.
        spent = {step: seconds(step) for step in ((plain, ours) if number % 2 else (ours, plain))}
        found.append((spent[ours], spent[plain]))

    config = configuration(model, folder, WARM_UP + steps)
    with tempfile.TemporaryDirectory() as scratch, mock.patch.object(Trainer, "_step", both):
        train(dataclasses.replace(config, run_dir=f"{scratch}/run"))
    return found[WARM_UP:]


def seconds(step: Callable[[], None]) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def rows_of(model: str, pairs: list[Pair]) -> list[Row]:
    ours, plain = (1000 * statistics.median(kind) for kind in zip(*pairs, strict=True))
    more = 1000 * statistics.median(own - other for own, other in pairs)
    return [row(model, "step", "ms", ours, PLAIN, plain), row(model, "more", "ms", more, PLAIN, plain)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["*"], help="names or patterns of models; all by default")
    parser.add_argument("--steps", type=int, default=60, help="measured steps of each kind")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/train"), help="images, captions and models, made once")
    parser.add_argument("--json", type=Path, help="write the table here")
    arguments = parser.parse_args()
    chosen = [model for model in CASES if any(fnmatch.fnmatch(model, pattern) for pattern in arguments.models)]
    if not chosen:
        parser.error(f"no model is named like {' '.join(arguments.models)}; there are: {', '.join(CASES)}")
    if not (arguments.folder / "hf").exists():
        write_pairs(arguments.folder)
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    table: list[Row] = []
    print(f"{'model':<28} {'measure':<12} {'mmcl':>10} {'plain':>10} {'unit':<4} {'ratio':>7}")
    for model in chosen:
        for line in rows_of(model, apart(measure, model, arguments.folder, arguments.steps)):
            table.append(line)
            print(as_line(line), flush=True)
    write_json(arguments.json, "step", table)


if __name__ == "__main__":
    main()
