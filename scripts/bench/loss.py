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
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS = [2**power for power in range(10, 17)]
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
    *(f"info_nce {rows}x512" for rows in (1024, 4096, 8192, 16384, 65536)),
    "info_nce 8192x256",
    "sigmoid 1024x512",
    "sigmoid 8192x512",
    "sigmoid 16384x512",
    "nt_xent 2x512x512",
    "nt_xent 2x4096x512",
    "one_way 8192x512",
]
# Steps of more than this many seconds are timed once, the first: noise is small beside them, and patience ends.
LONG = 20.0
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
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    value = step()
    first = time.perf_counter() - started
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = []
    for _ in range(repeats if first < LONG else 0):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return {"loss": value, "time": statistics.median(seconds or [first]), "memory": memory}


def in_own_process(case: str, side: str, repeats: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--cases", case, "--side", side, "--repeats", str(repeats)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def compare(case: str, rounds: int, repeats: int, memory_limit: float) -> list[dict[str, Any]]:
    """The rows of one case, a measure each."""
    loss, count, _ = parse(case)
    peer = PEERS[loss]
    needed = PEER_MATRICES * count**2 * 4 / 2**30
    sides = ["mmcl", "peer"]
    if needed > memory_limit:
        sides, peer = ["mmcl"], f"{peer} (skipped: needs more than {needed:.0f} GiB)"
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(rounds):
        if number and results["mmcl"][0]["time"] > LONG:
            break
        for side in list(sides):
            found = in_own_process(case, side, repeats)
            if "missing" in found:
                sides.remove(side)
                peer = f"{peer} (skipped: {found['missing']} is not installed)"
            else:
                results[side].append(found)
    values = {found["loss"] for side in sides for found in results[side]}
    if max(values) - min(values) > 1e-4 * max(values):
        raise SystemExit(f"{case}: the losses differ: {sorted(values)}")
    table = []
    for name, unit in MEASURES.items():
        medians = {side: statistics.median(found[name] for found in results[side]) for side in sides}
        ours, theirs = medians["mmcl"], medians.get("peer")
        row = {"case": case, "measure": name, "unit": unit, "mmcl": ours, "peer": peer, "peer_value": theirs}
        table.append({**row, "ratio": ours / theirs if theirs else None})
    return table


def show(row: dict[str, Any]) -> str:
    theirs, ratio = ("-" if row[key] is None else f"{row[key]:.3f}" for key in ("peer_value", "ratio"))
    return f"{row['case']:<22} {row['measure']:<7} {row['mmcl']:>10.3f} {theirs:>10} {row['unit']:<4} {ratio:>7}  {row['peer']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", nargs="+", default=USUAL, help='names or patterns of cases; by default a choice, "*" takes hours'
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes per case and side")
    parser.add_argument("--repeats", type=int, default=2, help="timed runs per process, after one for the memory")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB; other toolkits are skipped where they need more")
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--side", choices=("mmcl", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.cases[0], arguments.side, arguments.repeats)))
        return
    chosen = [case for case in all_cases() if any(fnmatch.fnmatch(case, pattern) for pattern in arguments.cases)]
    if not chosen:
        parser.error(f"no case is named like {' '.join(arguments.cases)}; there are: {', '.join(all_cases())}")
    table = []
    print(f"{'case':<22} {'measure':<7} {'mmcl':>10} {'peer':>10} {'unit':<4} {'ratio':>7}")
    for case in chosen:
        for row in compare(case, arguments.rounds, arguments.repeats, arguments.memory):
            table.append(row)
            print(show(row), flush=True)
    if arguments.json:
        machine = f"{platform.machine()}, {platform.python_version()}"
        arguments.json.write_text(json.dumps({"bench": "loss", "machine": machine, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
