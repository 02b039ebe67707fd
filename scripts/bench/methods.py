"""Trains methods under one budget and one protocol, with several seeds, and prints one table, baselines included.

python scripts/bench/methods.py --data mnist --json methods.json
python scripts/bench/methods.py --data mnist --methods simclr byol --seeds 0 1 2 --epochs 2

A method is the name of a configuration, configs/NAME_mnist.yaml; its own evaluators give way to the same ones for all: k-NN,
a linear probe, and fine-tuning on 1 % of the labels. Trainings and evaluations are processes of their own; what is finished
is not repeated.
Unknown flags go to scripts/train.py. Seconds are from the start of the training to the saved model, memory is its peak.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from side_by_side import Row, row, write_json

from mmcl.config import load_config, to_yaml
from mmcl.data.open import open_source
from mmcl.evaluate import CachedModel, Task, run
from mmcl.interop.load import load_model
from mmcl.interop.model import build_model
from mmcl.runs.build import build_method

ROOT = Path(__file__).resolve().parents[2]
SOURCES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mnist": ("torchvision", {"dataset": "MNIST", "train": True}, {"dataset": "MNIST", "train": False}),
    "digits": ("digits", {"fold": "train"}, {"fold": "test"}),
}
# Of the fine-tuning; weaker than that of the training, where a digit need not stay readable.
AUGMENT = [
    {
        "name": "affine",
        "args": {"rotation": 15, "scale": [0.85, 1.15], "translation": 0.06, "shear": 12, "elastic": 0.04, "fill": 0.0},
    },
    {"name": "stroke", "args": {"p": 0.5, "strength": 0.6}},
]
PROTOCOL: list[tuple[str, dict[str, Any]]] = [
    ("knn", {"ks": [5]}),
    ("linear_probe", {}),
    ("few_label", {"amounts": [0.01], "augment": AUGMENT}),
]
# The configurations are those of MNIST: the digits are a quarter of the width.
DIGITS_FLAGS = ("--data.train", "{name: digits, args: {fold: train}}", "--image.encoder.args.image_size", "16")


def known_methods() -> list[str]:
    return sorted(path.stem.removesuffix("_mnist") for path in (ROOT / "configs").glob("*_mnist.yaml"))


def command_of(method: str, data: str) -> list[str]:
    """The arguments of scripts/train.py without seed and folder."""
    own = ROOT / "configs" / f"{method}_{data}.yaml"
    config = own if own.exists() else ROOT / "configs" / f"{method}_mnist.yaml"
    if not config.exists():
        raise SystemExit(f"methods: no configuration of {method!r}; there are {', '.join(known_methods())}")
    flags = DIGITS_FLAGS if data == "digits" and config != own else ()
    return [str(config), *flags, "--evaluate", "[]"]


def once(result: Path, command: list[str], compute: Callable[[], Any]) -> Any:
    """What `compute` gives, or gave to an earlier call of this bench with the same settings."""
    settings = to_yaml(load_config(command[0], command[1:]))
    if result.exists():
        found = json.loads(result.read_text())
        if found["settings"] != settings:
            raise SystemExit(f"methods: {result.parent} was made with other settings; remove it, or give another --runs")
        return found["value"]
    value = compute()
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"settings": settings, "value": value}) + "\n")
    return value


def train(command: list[str], run_dir: Path) -> dict[str, float]:
    """One training in a process of its own: its costs by name of the measure."""
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
    return {"seconds": ended - started, "MB": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)}


def evaluate(command: list[str], data: str, run_dir: Path | None) -> list[dict[str, Any]]:
    """The rows of the protocol's report: of a trained model, or without a folder of the untrained one and of the baselines."""
    source, bank_args, test_args = SOURCES[data]
    bank, test = (open_source(source, args=args) for args in (bank_args, test_args))
    model = load_model(str(run_dir)) if run_dir else build_model(build_method(load_config(command[0], command[1:])))
    task = Task(data, test, bank, baselines=run_dir is None)
    report = run(PROTOCOL, [CachedModel(model, "trained" if run_dir else "untrained")], [task])
    rows: list[dict[str, Any]] = json.loads(report.to_json())
    return rows


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in a process of its own: a child's peak memory counts from that of its parent, which stays small."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def baselines(runs: Path, data: str) -> list[dict[str, Any]]:
    """What every method has in common: the untrained net, pixels and their components, chance."""
    command = command_of("simclr", data)
    result = runs / f"baselines-{data}" / "evaluation.json"
    found: list[dict[str, Any]] = once(result, command, lambda: apart(evaluate, command, data, None))
    return found


def one_run(method: str, seed: int, flags: list[str], runs: Path, data: str) -> dict[str, float]:
    """Costs and scores of a method with a seed, by name of the measure."""
    command = [*command_of(method, data), *flags, "--train.seed", str(seed)]
    folder = runs / f"{method}-{data}-seed{seed}"
    costs: dict[str, float] = once(folder / "training.json", command, lambda: train(command, folder))
    rows = once(folder / "evaluation.json", command, lambda: apart(evaluate, command, data, folder))
    return costs | {row["metric"]: row["value"] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(SOURCES), default="mnist")
    parser.add_argument("--methods", nargs="+", default=known_methods(), help="default: all that have a configuration on MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, help="the budget of every method; default: that of its configuration")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"), help="folder for the run directories")
    parser.add_argument("--json", type=Path, help="write the table here")
    arguments, flags = parser.parse_known_args()
    budget = ["--train.epochs", str(arguments.epochs)] if arguments.epochs else []

    values = {(row["model"], row["metric"]): [row["value"]] for row in baselines(arguments.runs, arguments.data)}
    for method, seed in itertools.product(arguments.methods, arguments.seeds):
        found = one_run(method, seed, [*budget, *flags], arguments.runs, arguments.data)
        for measure, value in found.items():
            values.setdefault((method, measure), []).append(value)
        print(f"{method}, seed {seed}: {', '.join(f'{key} {value:.5g}' for key, value in found.items())}", flush=True)
    print_table(values)
    print(f"the runs are in {arguments.runs}")
    write_json(arguments.json, "methods", json_rows(values))


def print_table(values: dict[tuple[str, str], list[float]]) -> None:
    """A markdown table: a row for each case, with the mean and the deviation over the seeds."""
    measures = list(dict.fromkeys(measure for _, measure in values))
    print(f"| | {' | '.join(measures)} |\n|---|{'---|' * len(measures)}")
    for case in dict.fromkeys(case for case, _ in values):
        print(f"| {case} | {' | '.join(cell(values.get((case, measure), [])) for measure in measures)} |")


def cell(found: list[float]) -> str:
    if not found:
        return ""
    digits = 4 if max(found) <= 1 else 0
    spread = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.{digits}f}{spread}"


def json_rows(values: dict[tuple[str, str], list[float]]) -> list[Row]:
    rows = []
    for (case, measure), found in values.items():
        raw = values.get(("raw pixels", measure))
        unit = measure if measure in ("seconds", "MB") else "share"
        compared = row(case, measure, unit, statistics.mean(found), "raw pixels", statistics.mean(raw) if raw else None)
        rows.append(compared | {"stdev": statistics.stdev(found) if len(found) > 1 else None, "values": found})
    return rows


if __name__ == "__main__":
    main()
