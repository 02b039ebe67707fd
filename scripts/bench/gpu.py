"""What only a GPU can tell: the loss, whole training runs, resume and a large batch, next to open_clip, in eight minutes.

`loss`: forward and backward pass of CLIP's loss by size and by the precision of its products, with its peak of memory and the
times that it makes the host wait. `trainer`: images per second of ViT-B/32 at 224 x 224 in bf16, and the memory at its peak.
`resume`: whether a run that continues from a checkpoint ends with the weights of one that was never stopped. `large batch`: one
step of the towers with 65,536 pairs in micro-batches.

Sections come in this order, each begins only within --seconds, and the JSON file is written after each. Without a GPU nothing
is run; `--tiny` runs the same code with small sizes on the CPU, whose figures say nothing.

python scripts/bench/gpu.py --json gpu.json
python scripts/bench/gpu.py --tiny
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib
import json
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from side_by_side import Case, Row, as_line, measure_sides, row, write_json
from torch.nn.functional import normalize
from train import BEYOND, WARM_UP, Measured, Meter, configuration, run_mmcl, write_pairs

from mmcl.config import Config
from mmcl.core.cached_backward import cached_backward
from mmcl.core.info_nce import symmetric_info_nce
from mmcl.encoders import open_clip as encoders
from mmcl.engine.transfer import views_on

PRECISIONS = ("fp32", "tf32", "bf16")
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of everything, whole or tiny."""

    device: str
    losses: tuple[int, ...]
    dim: int
    arch: str
    batch: int
    steps: int
    workers: int
    precision: str
    large: int
    micro: int
    resumed: tuple[str, ...]


WHOLE = Sizes("cuda", (1024, 8192, 32768), 1024, "ViT-B-32", 1024, 24, 12, "bf16", 65_536, 1024, ("fp32", "bf16", "fp16"))
TINY = Sizes("cpu", (64, 128), 32, "vit 77", 16, 2, 1, "fp32", 64, 16, ("fp32",))


def synchronized(sizes: Sizes) -> None:
    if sizes.device == "cuda":
        torch.cuda.synchronize()


def peak(sizes: Sizes) -> float:
    """MiB allocated on the device at most since the last call."""
    if sizes.device != "cuda":
        return 0.0
    found = torch.cuda.max_memory_allocated() / MIB
    torch.cuda.reset_peak_memory_stats()
    return found


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Context in which matrix products have this precision: TF32 for "tf32" alone."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    yield
    torch.set_float32_matmul_precision(before)


def losses(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Time, memory and waits of CLIP's loss next to open_clip's."""
    theirs: Any = importlib.import_module("open_clip.loss").ClipLoss()
    for count in sizes.losses:
        ids = torch.arange(count, device=sizes.device)
        sides: dict[str, Callable[..., Any]] = {
            "mmcl": lambda a, b, scale, ids=ids: symmetric_info_nce(a, b, id_N=ids, scale=scale) / 2,
            "open_clip": lambda a, b, scale: theirs(a, b, scale),
        }
        for precision in PRECISIONS:
            found = {side: loss_of(sizes, count, precision, function) for side, function in sides.items()}
            for measure, unit in (("time", "ms"), ("memory", "MiB"), ("waits", "")):
                ours, other = (found[side][measure] for side in sides)
                yield row(f"loss {count}x{sizes.dim} {precision}", measure, unit, ours, "open_clip ClipLoss", other)


def loss_of(sizes: Sizes, count: int, precision: str, function: Callable[..., Any]) -> dict[str, float]:
    rng = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (
        normalize(torch.randn(count, sizes.dim, generator=rng), dim=1).to(sizes.device, dtype).requires_grad_()
        for _ in range(2)
    )
    scale = torch.tensor(14.3, device=sizes.device, requires_grad=True)

    def step() -> float:
        synchronized(sizes)
        started = time.perf_counter()
        function(a, b, scale).backward()
        synchronized(sizes)
        return 1000 * (time.perf_counter() - started)

    with products(precision):
        try:
            step()
            before = peak(sizes)
            seconds = [step() for _ in range(5)]
        except torch.OutOfMemoryError:
            return dict.fromkeys(("time", "memory", "waits"), float("inf"))
        return {"time": statistics.median(seconds), "memory": max(before, peak(sizes)), "waits": waits_of(sizes, step)}


def waits_of(sizes: Sizes, step: Callable[[], float]) -> float:
    """Warnings of synchronizing operations in a step."""
    if sizes.device != "cuda":
        return 0.0
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    return float(sum("synchroniz" in str(one.message) for one in told))


def trainers(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Images per second of whole runs, each in a process of its own."""
    units = {"images": "1/s", "memory": "MiB"}
    case = Case(f"trainer {sizes.arch} {sizes.batch}", units, "open_clip")
    sides, peer = measure_sides(case, 1, ["--folder", str(folder), *(["--tiny"] if sizes is TINY else [])])
    for measure, unit in units.items():
        other = sides["peer"][0][measure] if "peer" in sides else None
        yield row(case.name, measure, unit, sides["mmcl"][0][measure], peer, other)


def run_config(sizes: Sizes, folder: Path, steps: int) -> Config:
    config = configuration("vit 77", folder, steps)
    data = dataclasses.replace(config.data, workers=sizes.workers)
    precision: Any = sizes.precision
    train = dataclasses.replace(config.train, batch_size=sizes.batch, precision=precision)
    return dataclasses.replace(config, data=data, train=train)


def one_side(sizes: Sizes, side: str, folder: Path) -> dict[str, Any]:
    """One side of `trainers`, in this process."""
    config, meter = run_config(sizes, folder, WARM_UP + sizes.steps + BEYOND), Meter(sizes.steps)
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):
        try:
            if side == "mmcl":
                run_mmcl(dataclasses.replace(config, run_dir=f"{scratch}/run"))
            else:
                run_open_clip(sizes, config, folder, Path(scratch))
        except Measured:
            return {"images": 1000 * sizes.batch / meter.found["wall"], "memory": peak(sizes)}
        except ModuleNotFoundError as error:
            return {"missing": error.name}
    raise SystemExit(f"gpu: {side} made {meter.done} steps, too few")


def run_open_clip(sizes: Sizes, config: Config, folder: Path, scratch: Path) -> None:
    open_clip: Any = importlib.import_module("open_clip")
    main: Any = importlib.import_module("open_clip_train.main")
    open_clip.add_model_config(folder / "vit 77.json")
    precision = "amp_bf16" if sizes.precision == "bf16" else sizes.precision
    main.main(
        [
            *("--model", "vit 77", "--dataset-type", "csv", "--train-data", str(folder / "pairs.csv"), "--csv-separator", ","),
            *("--csv-img-key", "image", "--csv-caption-key", "caption", "--batch-size", str(sizes.batch)),
            *("--workers", str(sizes.workers), "--epochs", "1", "--precision", precision, "--warmup", "10"),
            *("--lr", str(config.optim.lr), "--device", sizes.device, "--logs", str(scratch), "--name", "open_clip"),
        ]
    )


def resumes(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """1 where a run that continued from its checkpoint wrote the same model, bit for bit."""
    for precision in sizes.resumed:
        with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):
            config = run_config(dataclasses.replace(sizes, precision=precision, batch=64), folder, 6)
            train = dataclasses.replace(config.train, save_every=3)
            whole, again = Path(scratch, "whole"), Path(scratch, "again")
            run_mmcl(dataclasses.replace(config, train=train, run_dir=str(whole)))
            shutil.copytree(whole, again)
            shutil.rmtree(again / "model")
            shutil.rmtree(max((again / "checkpoints").iterdir()))
            run_mmcl(dataclasses.replace(config, train=train, run_dir=str(again), resume=True))
            same = all(
                file.read_bytes() == (again / "model" / file.name).read_bytes()
                for file in (whole / "model").glob("*.safetensors")
            )
        yield row(f"resume {precision}", "same bits", "", float(same))


def large_batch(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """A step of the towers, from bytes on the host to gradients, in micro-batches."""
    shape = json.loads((folder / "vit 77.json").read_text())
    image: Any = encoders.image_encoder(config=shape).to(sizes.device)
    text: Any = encoders.text_encoder(config=shape).to(sizes.device)
    side, rng = shape["vision_cfg"]["image_size"], torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (sizes.micro, 3, side, side), generator=rng, dtype=torch.uint8)
    captions = text.tokenizer([f"caption number {number}" for number in range(sizes.micro)])
    piece = {"image": pixels, "text": captions}
    if sizes.device == "cuda":
        piece = {name: view.pin_memory() for name, view in piece.items()}
    ids, scale = torch.arange(sizes.large, device=sizes.device), torch.tensor(14.3, device=sizes.device)

    def encode(views: Any) -> dict[str, torch.Tensor]:
        with torch.autocast(sizes.device, torch.bfloat16):
            return {"image": image(views["image"]), "text": text(views["text"])}

    def loss(rows: Any) -> torch.Tensor:
        a, b = (normalize(rows[name].float(), dim=1) for name in ("image", "text"))
        return symmetric_info_nce(a, b, id_N=ids, scale=scale) / 2

    peak(sizes)
    synchronized(sizes)
    started = time.perf_counter()
    cached_backward(
        encode,
        [piece] * (sizes.large // sizes.micro),
        loss=loss,
        backward=torch.Tensor.backward,
        seed=torch.manual_seed,
        prepare=lambda views: views_on(sizes.device, views),
    )
    synchronized(sizes)
    case = f"large batch {sizes.large}"
    yield row(case, "time", "s", time.perf_counter() - started)
    yield row(case, "memory", "MiB", peak(sizes))


SECTIONS: dict[str, Callable[[Sizes, Path], Iterator[Row]]] = {
    "loss": losses,
    "trainer": trainers,
    "resume": resumes,
    "large batch": large_batch,
}


def prepare(sizes: Sizes, folder: Path) -> None:
    """Writes images and a table of enough rows for all steps, and the model."""
    if (folder / "hf").exists():
        return
    pairs, side = (256, 32) if sizes is TINY else (3072, 256)
    write_pairs(folder, pairs, side)
    with (folder / "pairs.csv").open(newline="", encoding="utf-8") as file:
        header, *found = csv.reader(file)
    needed = sizes.batch * (WARM_UP + sizes.steps + BEYOND)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        for number in range(max(needed, len(found))):
            image, caption = found[number % len(found)]
            table.writerow([image, f"{caption}, number {number // len(found)}"])
    if sizes.arch in importlib.import_module("open_clip").list_models():
        shape = importlib.import_module("open_clip").get_model_config(sizes.arch)
        (folder / "vit 77.json").write_text(json.dumps(shape))


def main() -> None:
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--sections", nargs="+", choices=sorted(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=420, help="no section begins later")
    parser.add_argument("--folder", type=Path, help="images, captions and models, made once")
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--cases", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("mmcl", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = TINY if arguments.tiny else WHOLE
    folder = arguments.folder or Path("runs/bench/gpu_tiny" if arguments.tiny else "runs/bench/gpu")
    if arguments.side:
        print(json.dumps(one_side(sizes, arguments.side, folder)))
        return
    if sizes.device == "cuda" and not torch.cuda.is_available():
        print("not run: there is no GPU; --tiny runs the same code on the CPU")
        return
    machine = torch.cuda.get_device_name() if sizes.device == "cuda" else "CPU, tiny sizes: the figures say nothing"
    print(f"{machine}, torch {torch.__version__}")
    prepare(sizes, folder)
    rows: list[Row] = []
    for name in arguments.sections:
        if time.perf_counter() - started > arguments.seconds:
            print(f"{name}: not run, after {arguments.seconds:g} s")
            continue
        for found in SECTIONS[name](sizes, folder):
            rows.append(found | {"device": machine})
            print(as_line(rows[-1]), flush=True)
        write_json(arguments.json, "gpu", rows)


if __name__ == "__main__":
    main()
