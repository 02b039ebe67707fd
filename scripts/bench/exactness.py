"""Distance of each toolkit's gradient from that of the whole batch, for layouts of processes and micro-batches.

Every toolkit's own loss gets the same CLIP model and the same 96 pairs, split in the same way, over gloo on one machine;
gradients are averaged over the processes, as DDP does. The truth is one batch in float64, in plain torch.

python scripts/bench/exactness.py --json exactness.json
"""

from __future__ import annotations

import argparse
import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from open_clip.loss import ClipLoss
from side_by_side import Row, row, write_json
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import contrastive_loss

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmcl.core.cached_backward import cached_backward, split_views  # noqa: E402
from mmcl.core.gather import gather_embeddings  # noqa: E402
from mmcl.encoders.tower import TowerSpec, build_tower  # noqa: E402
from mmcl.methods.clip import CLIP  # noqa: E402
from mmcl.types import Batch, Tokens  # noqa: E402
from tests.distributed.harness import run_processes  # noqa: E402

PAIRS = 96
LAYOUTS = {"1 process x 4 micro-batches": (1, 4), "2 processes": (2, 1), "4 processes": (4, 1), "2 processes x 4": (2, 4)}


def build_clip(dtype: torch.dtype) -> CLIP:
    """A small CLIP, always of the same weights."""
    torch.manual_seed(0)
    specs = {
        "image": TowerSpec(modality="image", encoder="small_cnn", encoder_args={"image_size": 8}, head="linear"),
        "text": TowerSpec(modality="text", encoder="small_text", encoder_args={"width": 32}, head="linear"),
    }
    return CLIP(nn.ModuleDict({name: build_tower(spec) for name, spec in specs.items()})).to(dtype)


def build_batch(dtype: torch.dtype) -> Batch:
    """96 different pairs of noise."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(PAIRS, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    ids = torch.randint(1000, (PAIRS, 6), generator=generator)
    row = torch.arange(PAIRS)
    return Batch({"image": image, "text": Tokens(ids, torch.ones_like(ids, dtype=torch.bool))}, row, row)


def step_mmcl(method: CLIP, batch: Batch, pieces: int, rank: int, world: int) -> None:
    """What the trainer does, between encoding and the reduction of the gradients."""
    cached_backward(
        method,
        split_views(batch.views, len(batch.ids) // pieces),
        loss=lambda rows: method.loss(gather_embeddings(rows, batch.ids), batch).loss,
        backward=lambda loss: (loss * world).backward(),
        seed=torch.manual_seed,
        loss_parameters=method.loss_parameters,
    )


def step_open_clip(method: CLIP, batch: Batch, pieces: int, rank: int, world: int, *, local: bool, grad: bool) -> None:
    """Its loss; with several pieces, as its trainer accumulates: features cached, then one whole loss for each piece."""
    loss = ClipLoss(local_loss=local, gather_with_grad=grad, rank=rank, world_size=world)
    parts = split_views(batch.views, len(batch.ids) // pieces)
    with torch.no_grad():
        cached = [method.encode(part) for part in parts]
    for number, part in enumerate(parts):
        rows = [*cached[:number], method.encode(part), *cached[number + 1 :]]
        image, text = (torch.cat([row[name] for row in rows]) for name in ("image", "text"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it gathers by a deprecated function
            loss(image, text, method.logit_scale).backward()


def step_transformers(method: CLIP, batch: Batch, pieces: int, rank: int, world: int) -> None:
    """CLIPModel's loss: no gathering, and the mean of the losses of the micro-batches, as its Trainer accumulates."""
    for part in split_views(batch.views, len(batch.ids) // pieces):
        rows = method.encode(part)
        logits = method.logit_scale * rows["text"] @ rows["image"].T
        ((contrastive_loss(logits) + contrastive_loss(logits.T)) / 2 / pieces).backward()


Step = Callable[[CLIP, Batch, int, int, int], None]
TOOLKITS: dict[str, Step] = {
    "mmcl": step_mmcl,
    "open_clip": functools.partial(step_open_clip, local=False, grad=False),
    "open_clip --local-loss": functools.partial(step_open_clip, local=True, grad=False),
    "open_clip --gather-with-grad": functools.partial(step_open_clip, local=False, grad=True),
    "open_clip --local-loss --gather-with-grad": functools.partial(step_open_clip, local=True, grad=True),
    "transformers": step_transformers,
}


def gradient(method: CLIP) -> dict[str, Tensor]:
    """Float64: all towers as one vector, and the temperature."""
    towers = torch.cat([p.grad.flatten() for p in method.towers.parameters() if p.grad is not None])
    assert method.log_scale.grad is not None
    return {"towers": towers.double(), "temperature": method.log_scale.grad.double().flatten()}


@functools.cache
def true_gradient() -> dict[str, Tensor]:
    method, batch = build_clip(torch.float64), build_batch(torch.float64)
    rows, target = method.encode(batch.views), torch.arange(PAIRS)
    logits_BB = method.log_scale.exp() * rows["image"] @ rows["text"].T
    ((F.cross_entropy(logits_BB, target) + F.cross_entropy(logits_BB.T, target)) / 2).backward()
    return gradient(method)


def gradients(rank: int, world: int, pieces: int) -> dict[str, dict[str, Tensor]]:
    """Every toolkit's gradient in one layout, in float32."""
    batch, share = build_batch(torch.float32), PAIRS // world
    local = slice(rank * share, (rank + 1) * share)
    mine = Batch({name: view[local] for name, view in batch.views.items()}, batch.ids[local], batch.index[local])
    method, found = build_clip(torch.float32), {}
    for name, step in TOOLKITS.items():
        if world == 1 and "--" in name:
            continue  # its flags are about processes
        method.zero_grad()
        step(method, mine, pieces, rank, world)
        found[name] = gradient(method)
        for tensor in found[name].values() if world > 1 else ():
            torch.distributed.all_reduce(tensor)
            tensor /= world
    return found


def measure(layout: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Toolkit -> measure -> value, for one layout."""
    world, pieces = layout
    truth = true_gradient()
    found = gradients(0, 1, pieces) if world == 1 else run_processes(world, gradients, pieces)[0]
    return {
        name: {
            "towers, relative error": relative_error(grads["towers"], truth["towers"]),
            "towers, cosine": float(F.cosine_similarity(grads["towers"], truth["towers"], dim=0)),
            "temperature, relative error": relative_error(grads["temperature"], truth["temperature"]),
        }
        for name, grads in found.items()
    }


def relative_error(value: Tensor, truth: Tensor) -> float:
    return float((value - truth).norm() / truth.norm())


def rows_of(case: str, measured: dict[str, dict[str, float]]) -> list[Row]:
    ours = measured["mmcl"]
    peers = [peer for peer in measured if peer != "mmcl"]
    return [row(case, key, "1", ours[key], peer, value) for peer in peers for key, value in measured[peer].items()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table: list[Row] = []
    print(f"{'':<30}{'toolkit':<44}{'towers':>12}{'(cosine)':>12}{'temperature':>13}")
    for case, layout in LAYOUTS.items():
        measured = measure(layout)
        table += rows_of(case, measured)
        for name, values in measured.items():
            towers, cosine, temperature = values.values()
            print(f"{case:<30}{name:<44}{towers:>12.1e}{cosine:>12.4f}{temperature:>13.1e}")
    write_json(options.json, "exactness", table)


if __name__ == "__main__":
    main()
