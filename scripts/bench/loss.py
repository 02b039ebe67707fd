"""Time and memory of the losses, forward and backward, next to those of other toolkits.

Cases are named as they are printed: `info_nce 8192x512` (both directions of CLIP; open_clip), `sigmoid 8192x512` (open_clip),
`nt_xent 2x4096x512` (lightly) and `one_way 8192x512` (sentence-transformers). Toolkits are taken where they are installed.

Every value is measured in a process of its own, mmcl and the other in turn, and is the median over the rounds. Memory is the
growth of the process's peak over the first forward and backward pass, inputs and imports not counted. Both must give the same
loss, or the bench stops.

python scripts/bench/loss.py --cases "info_nce 8192x*" "sigmoid 8192x512" --json loss.json
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from side_by_side import LONG, Case, Sides, add_arguments, compare, peak_memory, write_json

ROWS = [2**power for power in range(6, 17)]
DIMS = [256, 512]
SCALE, BIAS = 14.3, -8.0
PEERS = {
    "info_nce": "open_clip ClipLoss",
    "sigmoid": "open_clip SigLipLoss",
    "nt_xent": "lightly NTXentLoss",
    "one_way": "sentence-transformers MultipleNegativesRankingLoss",
}
MEASURES = {"time": "s", "memory": "MiB"}
# What is measured unless told otherwise: some minutes. Everything takes hours.
USUAL = [
    "info_nce 64x512",
    *(f"info_nce {rows}x512" for rows in (1024, 4096, 8192, 16384, 65536)),
    "info_nce 8192x256",
    "sigmoid 1024x512",
    "sigmoid 8192x512",
    "sigmoid 16384x512",
    "nt_xent 2x512x512",
    "nt_xent 2x4096x512",
    "one_way 8192x512",
]
# Small losses are timed for this long at least: a single one of a millisecond says little.
SECONDS = 0.5
# Logits, what comes of them, and their gradients: what a loss with whole matrices holds at its peak, at the least.
PEER_MATRICES = 3


def all_cases() -> list[str]:
    shapes = [(rows, dim) for rows in ROWS for dim in DIMS]
    return [f"{loss} {f'2x{rows // 2}' if loss == 'nt_xent' else rows}x{dim}" for loss in PEERS for rows, dim in shapes]


def parse(case: str) -> tuple[str, int, int]:
    """The loss, all rows of one side, and their width."""
    loss, shape = case.split()
    *rows, dim = map(int, shape.split("x"))
    return loss, rows[0] * rows[-1] if len(rows) == 2 else rows[0], dim


def our_loss(loss: str, count: int) -> Callable[..., Any]:
    torch: Any = importlib.import_module("torch")
    info_nce: Any = importlib.import_module("mmcl.core.info_nce")
    sigmoid: Any = importlib.import_module("mmcl.core.sigmoid")
    row = torch.arange(count)
    if loss == "info_nce":
        return lambda a, b, scale, bias: info_nce.symmetric_info_nce(a, b, id_N=row, scale=scale) / 2
    if loss == "sigmoid":
        return lambda a, b, scale, bias: sigmoid.sigmoid_loss(a, b, image_id_N=row, text_id_M=row, scale=scale, bias=bias)
    if loss == "one_way":
        return lambda a, b, scale, bias: info_nce.info_nce(a, b, query_id_N=row, key_id_M=row, scale=scale)

    def nt_xent(a: Any, b: Any, scale: Any, bias: Any) -> Any:
        z, view, every = torch.cat([a, b]), row[: count // 2].repeat(2), row
        return info_nce.info_nce(z, z, query_id_N=view, key_id_M=view, scale=SCALE, query_row_N=every, key_row_M=every)

    return nt_xent


def peer_loss(loss: str, count: int) -> Callable[..., Any]:
    """Raises ImportError where the toolkit is not installed."""
    if loss == "info_nce":
        clip = importlib.import_module("open_clip.loss").ClipLoss()
        return lambda a, b, scale, bias: clip(a, b, scale)
    if loss == "sigmoid":
        siglip = importlib.import_module("open_clip.loss").SigLipLoss()
        return lambda a, b, scale, bias: siglip(a, b, scale, bias)
    if loss == "nt_xent":
        nt_xent = importlib.import_module("lightly.loss").NTXentLoss(temperature=1 / SCALE)
        return lambda a, b, scale, bias: nt_xent(a, b)
    losses = importlib.import_module("sentence_transformers.sentence_transformer.losses")
    ranking = losses.MultipleNegativesRankingLoss(None, scale=SCALE)
    return lambda a, b, scale, bias: ranking.compute_loss_from_embeddings([a, b], None)


def measure(case: str, side: str, repeats: int) -> dict[str, Any]:
    """One side of one case, in this process: {"loss", "time", "memory"}, or {"missing": module}."""
    torch: Any = importlib.import_module("torch")
    loss_name, count, dim = parse(case)
    try:
        loss_of = our_loss(loss_name, count) if side == "mmcl" else peer_loss(loss_name, count)
    except ImportError as error:
        return {"missing": error.name}
    rng = torch.Generator().manual_seed(0)
    rows = count // 2 if loss_name == "nt_xent" else count
    a, b = (torch.nn.functional.normalize(torch.randn(rows, dim, generator=rng), dim=1).requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor(value, requires_grad=True) for value in (SCALE, BIAS))

    def step() -> float:
        loss = loss_of(a, b, scale, bias)
        loss.backward()
        return float(loss.detach())

    (torch.ones(64, 64, requires_grad=True) @ torch.ones(64, 64)).sum().backward()  # the libraries' own buffers
    before = peak_memory()
    started = time.perf_counter()
    value = step()
    first = time.perf_counter() - started
    memory = peak_memory() - before
    seconds: list[float] = []
    while first < LONG and (len(seconds) < repeats or sum(seconds) < SECONDS):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return {"loss": value, "time": statistics.median(seconds or [first]), "memory": memory}


def as_case(name: str, memory_limit: float) -> Case:
    loss, count, _ = parse(name)
    needed = PEER_MATRICES * count**2 * 4 / 2**30
    return Case(name, MEASURES, PEERS[loss], f"needs more than {needed:.0f} GiB" if needed > memory_limit else "")


def require_equal(case: str, sides: Sides) -> None:
    values = {found["loss"] for every in sides.values() for found in every}
    if max(values) - min(values) > 1e-4 * max(values):
        raise SystemExit(f"{case}: the losses differ: {sorted(values)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", nargs="+", default=USUAL, help='names or patterns of cases; by default a choice, "*" takes hours'
    )
    parser.add_argument("--repeats", type=int, default=2, help="timed runs per process, after one for the memory")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB; other toolkits are skipped where they need more")
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.cases[0], arguments.side, arguments.repeats)))
        return
    chosen = [case for case in all_cases() if any(fnmatch.fnmatch(case, pattern) for pattern in arguments.cases)]
    if not chosen:
        parser.error(f"no case is named like {' '.join(arguments.cases)}; there are: {', '.join(all_cases())}")
    cases = (as_case(case, arguments.memory) for case in chosen)
    table = compare(cases, arguments, ["--repeats", str(arguments.repeats)], require_equal)
    write_json(arguments.json, "loss", table)


if __name__ == "__main__":
    main()
