"""Trains methods under one budget and one protocol, with several seeds, and prints one table, baselines included.

python scripts/bench/methods.py --data mnist --json methods.json
python scripts/bench/methods.py --data mnist --methods simclr byol --seeds 0 1 2 --epochs 2

A method is the name of a configuration, configs/NAME_mnist.yaml, or the path of any other, whose own evaluators then hold.
Every run is a process of its own; one that is finished is not repeated. Unknown flags go to scripts/train.py. Seconds are from
the start of the run to the saved model, memory is the peak of the process, evaluation included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TEST = {
    "mnist": "{name: torchvision, args: {dataset: MNIST, train: false}}",
    "digits": "{name: digits, args: {fold: test}}",
}
# The configurations are those of MNIST: the digits are a quarter of the width.
DIGITS_FLAGS = ("--data.train", "{name: digits, args: {fold: train}}", "--image.encoder.args.image_size", "16")


def protocol(data: str) -> str:
    """The evaluators of every method, as YAML."""
    evaluators = ("name: knn, args: {ks: [5]}", "name: linear_probe", "name: few_label, args: {amounts: [0.01]}")
    return f"[{', '.join(f'{{{evaluator}, label: {data}, data: {TEST[data]}}}' for evaluator in evaluators)}]"


def known_methods() -> list[str]:
    return sorted(path.stem.removesuffix("_mnist") for path in (ROOT / "configs").glob("*_mnist.yaml"))


def command_of(method: str, data: str) -> list[str]:
    """The arguments of scripts/train.py without seed and folder."""
    if method.endswith(".yaml"):
        return [method]
    own = ROOT / "configs" / f"{method}_{data}.yaml"
    config = own if own.exists() else ROOT / "configs" / f"{method}_mnist.yaml"
    if not config.exists():
        raise SystemExit(f"methods: no configuration of {method!r}; there are {', '.join(known_methods())}")
    flags = DIGITS_FLAGS if data == "digits" and config != own else ()
    return [str(config), *flags, "--evaluate", protocol(data)]


def train(command: list[str], run_dir: Path) -> dict[str, Any]:
    """One run in a process of its own, unless it is finished: seconds, peak memory in MB, rows of its report."""
    result = run_dir / "bench.json"
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        if found["command"] != command:
            raise SystemExit(f"methods: {run_dir} is of other settings; give another --runs")
        return found
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, str(ROOT / "scripts" / "train.py"), *command, "--run_dir", str(run_dir)]
    log = run_dir.with_suffix(".log")
    with log.open("w") as file:
        child = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"methods: {run_dir.name} failed: {log.read_text()[-2000:]}")
    started, ended = ((run_dir / name).stat().st_mtime for name in ("config.yaml", "model/config.json"))
    found = {
        "command": command,
        "seconds": ended - started,
        "peak_mb": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024),
        "metrics": json.loads((run_dir / "report" / "metrics.json").read_text()),
    }
    result.write_text(json.dumps(found) + "\n")
    return found


def measures(method: str, run: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], float]]:
    """(case, measure, unit) and value: of the trained model under the method's name, of the others under their own."""
    yield (method, "training", "s"), run["seconds"]
    yield (method, "peak memory", "MB"), run["peak_mb"]
    for row in run["metrics"]:
        if row["value"] is not None:
            case = method if row["model"] == "trained" else f"{method} {row['model']}" if _own(row) else row["model"]
            yield (case, f"{row['data']} {row['metric']}", "share"), row["value"]


def _own(row: dict[str, Any]) -> bool:
    """Whether a baseline depends on the method: its architecture, or the model that it started from."""
    return row["model"] in ("untrained", "before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(TEST), default="mnist")
    parser.add_argument("--methods", nargs="+", default=known_methods(), help="default: all that have a configuration on MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, help="the budget of every method; default: that of its configuration")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"), help="folder for the run directories")
    parser.add_argument("--json", type=Path, help="write the table here")
    arguments, flags = parser.parse_known_args()
    budget = ["--train.epochs", str(arguments.epochs)] if arguments.epochs else []

    values: dict[tuple[str, str, str], list[float]] = {}
    for method in arguments.methods:
        for seed in arguments.seeds:
            name = Path(method).stem
            command = [*command_of(method, arguments.data), *budget, *flags, "--train.seed", str(seed)]
            run = train(command, arguments.runs / f"{name}-{arguments.data}-seed{seed}")
            for key, value in measures(name, run):
                values.setdefault(key, []).append(value)
            print(f"{name}, seed {seed}: {run['seconds']:.0f} s", file=sys.stderr, flush=True)

    rows = []
    for (case, measure, unit), found in values.items():
        raw = values.get(("raw pixels", measure, unit))
        mean, peer = statistics.mean(found), statistics.mean(raw) if raw else None
        spread = statistics.stdev(found) if len(found) > 1 else None
        row = {"case": case, "measure": measure, "unit": unit, "mmcl": mean, "stdev": spread, "values": found}
        rows.append(row | {"peer": "raw pixels", "peer_value": peer, "ratio": mean / peer if peer else None})
    for row in sorted(rows, key=lambda row: (row["measure"], row["case"])):
        spread = "" if row["stdev"] is None else f" +- {row['stdev']:.4f}"
        print(f"{row['measure']:<42} {row['case']:<28} {row['mmcl']:.4f}{spread} {row['unit']}")
    if arguments.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        arguments.json.write_text(json.dumps({"bench": "methods", "machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
