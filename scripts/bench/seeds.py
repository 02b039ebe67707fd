"""Trains a configuration with several seeds and prints each metric's mean and spread, next to the baselines of the same runs.

python scripts/bench/seeds.py configs/simclr_mnist.yaml --seeds 0 1 2 --json seeds.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


def run_seed(config: Path, seed: int, runs: Path, flags: list[str]) -> tuple[list[dict[str, Any]], float]:
    """One run in a process of its own: the rows of its metrics.json, and its wall time in seconds, start-up included."""
    run_dir = runs / f"{config.stem}-seed{seed}"
    started = time.perf_counter()
    command = [sys.executable, str(TRAIN), str(config), "--train.seed", str(seed), "--run_dir", str(run_dir), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((run_dir / "report" / "metrics.json").read_text()), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the run directories")
    parser.add_argument("--json", type=Path, help="write the table here")
    arguments, flags = parser.parse_known_args()

    results = [run_seed(arguments.config, seed, arguments.runs, flags) for seed in arguments.seeds]
    values: dict[tuple[str, str, str], list[float]] = {}
    for rows, _ in results:
        for row in rows:
            if row["value"] is not None:
                values.setdefault((row["data"], row["metric"], row["model"]), []).append(row["value"])

    table = []
    for (data, metric, model), found in values.items():
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        table.append({"case": f"{data} {metric} {model}", "mean": statistics.mean(found), "stdev": spread, "values": found})
        print(f"{data:<28} {metric:<28} {model:<12} {table[-1]['mean']:.4f} +- {spread:.4f}")
    seconds = [duration for _, duration in results]
    print(f"wall time: median {statistics.median(seconds):.0f} s of {len(seconds)} runs")
    if arguments.json:
        machine = f"{platform.machine()}, {platform.python_version()}"
        content = {"bench": "seeds", "machine": machine, "config": arguments.config.name, "seconds": seconds, "rows": table}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
