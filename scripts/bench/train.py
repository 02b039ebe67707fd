"""Whole training runs next to other trainers and to a plain loop, with the same model, data and batch size, in float32.

Cases are named as they are printed, a model and a peer: `vit 77 open_clip`. Models: `vit 77` and `vit 16`, a small CLIP for
images of 32 x 32 with texts of up to so many tokens; `resnet 77`, one with a ModifiedResNet for 64 x 64; `hf`, a small CLIP in
transformers' form; `clip_emoji`, the default run; `simclr`, the net of configs/simclr_mnist.yaml. The images are the bundled
emoji. Peers are the trainers of open_clip, sentence-transformers (of `hf`) and lightly (its recipe of SimCLR); toolkits are
taken where they are installed.

The `plain loop` is the least that training takes: the same towers, the same batches in memory, the loss by `cross_entropy`, one
fused optimizer, and nothing else: no checks, no log, no loader. Freed memory is kept between its steps, as mmcl keeps it.

Everybody has one loader process, except the plain loop. Measured between two optimizer steps, all in one thread: `step`, the
processor time of the training process per step; `total`, that of its loader processes added; `wall`, the time by the clock; and
`memory`, the peak of the training process. Every value is measured in a process of its own, mmcl and the other in turn, and is
the median over the rounds. On a machine with other work, only the processor times hold.

python scripts/bench/train.py --json train.json
python scripts/bench/train.py --cases "vit*" "simclr*" --rounds 1
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import fnmatch
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from side_by_side import Case, add_arguments, compare, peak_memory, write_json
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from train_peers import PEERS, PLAIN

from mmcl.config import Config, from_dict, load_config

MEASURES = {"step": "ms", "total": "ms", "wall": "ms", "memory": "MiB"}
CASES = {
    "vit 77": (PLAIN, "open_clip"),
    "vit 16": (PLAIN, "open_clip"),
    "resnet 77": (PLAIN, "open_clip"),
    "hf": (PLAIN, "sentence-transformers"),
    "clip_emoji": (PLAIN,),
    "simclr": (PLAIN, "lightly"),
}
WARM_UP, BEYOND = 6, 4
"""Steps before the first that is measured, and after the last: until then the loader keeps its distance."""
PAIRS = 3072


@dataclasses.dataclass(frozen=True)
class Reading:
    """Seconds that the training process, its loader processes and the clock have counted so far."""

    own: float
    loaders: float
    clock: float

    @staticmethod
    def now() -> Reading:
        return Reading(time.process_time(), loader_seconds(), time.perf_counter())


def loader_seconds() -> float:
    """Processor seconds of the child processes, living or ended, on Linux: some trainers start new loaders for every epoch."""
    ended, ticks = os.times(), 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                ticks += int(fields[11]) + int(fields[12])
    return ended.children_user + ended.children_system + ticks / os.sysconf("SC_CLK_TCK")


class Measured(Exception):
    """Ends a training whose last measured step is done."""


class Meter:
    """Reads the clocks after two optimizer steps of any trainer, and ends it."""

    def __init__(self, steps: int):
        self.steps, self.done, self.depth = steps, 0, 0
        self.found: dict[str, float] = {}
        register_optimizer_step_pre_hook(self._enter)
        register_optimizer_step_post_hook(self._leave)

    def _enter(self, *_: object) -> None:
        self.depth += 1

    def _leave(self, *_: object) -> None:
        self.depth -= 1  # an optimizer may consist of others
        if self.depth:
            return
        self.done += 1
        if self.done == WARM_UP:
            self.start = Reading.now()
        if self.done == WARM_UP + self.steps:
            self._read(Reading.now())
            raise Measured

    def _read(self, end: Reading) -> None:
        own, loaders, clock = (
            1000 * (getattr(end, name) - getattr(self.start, name)) / self.steps for name in ("own", "loaders", "clock")
        )
        self.found = {"step": own, "total": own + loaders, "wall": clock, "memory": peak_memory()}


def configuration(model: str, folder: Path, steps: int) -> Config:
    """The run of mmcl: the models are those of open_clip and transformers, the data those of `write_pairs`."""
    train = {"steps": steps, "save_every": None, "threads": 1}
    if model in ("clip_emoji", "simclr"):
        shipped = load_config("clip_emoji" if model == "clip_emoji" else "simclr_mnist")
        data = dataclasses.replace(shipped.data, workers=1)
        if model == "simclr":
            data = dataclasses.replace(data, train=load_config("clip_emoji").data.train)
        shorter = dataclasses.replace(shipped.train, steps=steps, epochs=None, save_every=None, threads=1)
        return dataclasses.replace(shipped, data=data, train=shorter, evaluate=())
    head = {"name": "none"}
    if model == "hf":
        encoder: dict[str, Any] = {"name": "transformers", "args": {"name": str(folder / "hf")}}
    else:
        encoder = {"name": "open_clip", "args": {"config": json.loads((folder / f"{model}.json").read_text())}}
    given = {
        "method": {"name": "clip"},
        "image": {"encoder": encoder, "head": head},
        "text": {"encoder": encoder, "head": head},
        "data": {
            "train": {"name": "table", "path": str(folder / "pairs.csv"), "args": {"image_column": "image"}},
            "crop": {"scale": [0.9, 1.0], "ratio": [0.75, 1.3333]},
            "workers": 1,
        },
        "optim": {"lr": 1e-4, "warmup": 0.5},
        "train": {**train, "batch_size": 32 if model == "resnet 77" else 64},
        "evaluate": [],
    }
    return from_dict(Config, given, "train")


def write_pairs(folder: Path, pairs: int = PAIRS, side: int = 64) -> None:
    """Writes the first emoji as square images with a caption each, and the models."""
    from evaluate import save_clip

    from mmcl.data.images.decode import decode
    from mmcl.data.open import open_source

    (folder / "images" / "all").mkdir(parents=True)
    source = open_source("emoji", args={"split": "unseen_style", "fold": "train"})
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for number in range(pairs):
            sample = source[number]
            path = folder / "images" / "all" / f"{number:05}.png"
            decode(sample.required_image()).convert("RGB").resize((side, side)).save(path)
            table.writerow([path.resolve(), sample.captions[0]])
    text = {"vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
    vit = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 128, "head_width": 64}
    resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    for name, vision, length in (("vit 77", vit, 77), ("vit 16", vit, 16), ("resnet 77", resnet, 77)):
        shape = {"embed_dim": 128, "vision_cfg": vision, "text_cfg": {**text, "context_length": length}}
        (folder / f"{name}.json").write_text(json.dumps(shape))
    save_clip(str(folder / "hf"))


def run_mmcl(config: Config) -> None:
    from mmcl.runs.run import train

    train(config)


def measure(case: str, side: str, folder: Path, steps: int) -> dict[str, Any]:
    """One side of one case, in this process: the measures, or {"missing": module}."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, peer = split(case)
    config, meter = configuration(model, folder, WARM_UP + steps + BEYOND), Meter(steps)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        config = dataclasses.replace(config, run_dir=f"{scratch}/run")
        try:
            if side == "mmcl":
                run_mmcl(config)
            else:
                PEERS[peer](model, config, folder, Path(scratch))
        except Measured:
            return meter.found
        except ModuleNotFoundError as error:
            return {"missing": error.name}
    raise SystemExit(f"{case}: {peer if side == 'peer' else 'mmcl'} made {meter.done} steps, too few")


def split(case: str) -> tuple[str, str]:
    """The model and the peer of a case."""
    return next((model, peer) for model, peers in CASES.items() for peer in peers if case == f"{model} {peer}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["*"], help="names or patterns of cases; all by default")
    parser.add_argument("--steps", type=int, default=24, help="measured steps of each process")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/train"), help="images, captions and models, made once")
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.cases[0], arguments.side, arguments.folder, arguments.steps)))
        return
    known = [f"{model} {peer}" for model, peers in CASES.items() for peer in peers]
    chosen = [case for case in known if any(fnmatch.fnmatch(case, pattern) for pattern in arguments.cases)]
    if not chosen:
        parser.error(f"no case is named like {' '.join(arguments.cases)}; there are: {', '.join(known)}")
    if not (arguments.folder / "hf").exists():
        write_pairs(arguments.folder)
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    cases = [Case(case, MEASURES, split(case)[1]) for case in chosen]
    table = compare(cases, arguments, ["--steps", str(arguments.steps), "--folder", str(arguments.folder)])
    write_json(arguments.json, "train", table)


if __name__ == "__main__":
    main()
