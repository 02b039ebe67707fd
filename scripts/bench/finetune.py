"""Ways of fine-tuning, on 200 pairs of a vendor that a model has never seen: what each gains there, and forgets elsewhere.

The start is the default run, trained here if its folder does not exist: of each seed another one, with other pairs. New data
are 800 other emoji of that vendor, old data 800 of the vendors that the start was trained on; R@1 is the mean of both
directions. All cases take equally many steps, with a fifth of the pairs held out. By these pairs alone, ranked among all 200,
the learning rate of each case is chosen, and the share alpha of the trained weights in the mean with the start (WiSE-FT): the
settings with the best mean reciprocal rank over all seeds. Neither new nor old test data choose anything.

Beside the trained weights (alpha 1) and the chosen mean, the table has the mean half way, and for each row the gain over the
start of the same seed: the mean difference, and its 95 % interval of Student over the seeds, which differ in all but the task.

python scripts/bench/finetune.py --json finetune.json
python scripts/bench/finetune.py --cases full lora --seeds 0 --steps 20

Every training is a process of its own; what is finished is not repeated. Memory is the peak of that process; disk is the last
checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import Row, peak_memory, row, write_json
from trainings import apart, once

from mmcl import load_model
from mmcl.config import Config, load_config, to_yaml
from mmcl.data.derived.subset import Subset
from mmcl.data.open import open_source
from mmcl.data.source import Source
from mmcl.engine.log import read_log
from mmcl.evaluate import CachedModel, Task, run
from mmcl.evaluate.measures.statistics import over_runs
from mmcl.interop.merge import merge
from mmcl.interop.model import Model
from mmcl.runs.build_data import build_training_data
from mmcl.runs.run import train

PAIRS, TESTED = 200, 800
ALPHAS = (0.25, 0.5, 0.75, 1.0)
FROZEN = ("--image.freeze", "true", "--text.freeze", "true")
CASES: dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "full": ("full", (), (3e-4, 1e-3)),
    "images alone": ("full", ("--text.freeze", "true"), (3e-4, 1e-3)),
    "last blocks": ("last_blocks", (), (3e-4, 1e-3)),
    "lora": ("lora", (), (1e-3, 3e-3)),
    "dora": ("lora", ("--image.adapt.name", "dora", "--text.adapt.name", "dora"), (1e-3, 3e-3)),
    "heads": ("full", FROZEN, (3e-4,)),
    "lit": ("lit", (), (3e-4, 1e-3)),
    "anchors": ("anchor", (), (3e-4, 1e-3)),
    "probe, then tune": ("probe_then_tune", (), (3e-4, 1e-3)),
}
"""By name: the preset, further flags, and the learning rates to choose from."""

Scores = dict[str, float]
Found = dict[str, Any]
"""Of a training: seconds, memory and disk, and under "held_out" the score of each mean with the start."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...: of the start, the pairs and the training")
    parser.add_argument("--steps", type=int, default=40, help="of every training, of 100 pairs each")
    parser.add_argument("--start", type=Path, help="the start of all seeds; default: the default run with each seed")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench_finetune"), help="folder for the runs")
    parser.add_argument("--json", type=Path, help="write the table here")
    arguments = parser.parse_args()

    seeds, runs = range(arguments.seeds), arguments.runs
    starts = {seed: arguments.start or start_of(runs, seed) for seed in seeds}
    before = [
        once(runs / f"start-seed{seed}.json", str(starts[seed]), apart, test, [starts[seed]], [1.0], seed) for seed in seeds
    ]
    print_rows("before", 0.0, 0.0, before)
    table = json_rows("before", before, before)
    for case in arguments.cases:
        rate, alpha = best(case, starts, arguments)
        for share in dict.fromkeys((1.0, 0.5, alpha)):
            name = f"{case}, alpha {share:g}{' (chosen)' if share == alpha else ''}"
            values = [tested(case, rate, share, seed, starts[seed], arguments) for seed in seeds]
            values = [own | gains(own, start) for own, start in zip(values, before, strict=True)]
            print_rows(name, rate, share, values)
            table += json_rows(name, values, before)
    write_json(arguments.json, "finetune", table)


def best(case: str, starts: Mapping[int, Path], arguments: argparse.Namespace) -> tuple[float, float]:
    """The learning rate and alpha that are best on the held-out pairs of all seeds."""
    found = {
        rate: [one_run(case, rate, seed, start, arguments)["held_out"] for seed, start in starts.items()]
        for rate in CASES[case][2]
    }
    scores = {
        (rate, alpha): statistics.mean(own[f"{alpha:g}"] for own in found[rate])
        for rate, alpha in itertools.product(found, ALPHAS)
    }
    print(f"  {case}, held out: {', '.join(f'{key[0]:g} x {key[1]:g}: {one:.4f}' for key, one in scores.items())}", flush=True)
    return max(scores, key=lambda key: scores[key])


def tested(case: str, rate: float, alpha: float, seed: int, start: Path, arguments: argparse.Namespace) -> Found:
    """The costs of a training, and what the mean with its start scores on new and old data."""
    found = one_run(case, rate, seed, start, arguments)
    run_dir = folder_of(case, rate, seed, arguments)
    file = run_dir.with_name(f"{run_dir.name}-alpha{alpha:g}.json")
    scored: Scores = once(file, "", apart, test, [start, run_dir], [1 - alpha, alpha], seed)
    return {**found, **scored}


def folder_of(case: str, rate: float, seed: int, arguments: argparse.Namespace) -> Path:
    runs: Path = arguments.runs
    return runs / f"{case.replace(', ', '_').replace(' ', '_')}-{rate:g}-{arguments.steps}-seed{seed}"


def one_run(case: str, rate: float, seed: int, start: Path, arguments: argparse.Namespace) -> Found:
    """The costs of a training, and the scores of its held-out pairs."""
    preset, flags, _ = CASES[case]
    run_dir = folder_of(case, rate, seed, arguments)
    pairs = write_pairs(arguments.runs / f"pairs{seed}", seed)
    config = load_config(
        f"finetune/{preset}",
        [
            *("--init", str(start), "--data.train.path", str(pairs), "--data.holdout", "0.2", "--evaluate", "[]"),
            *("--train.batch_size", "100", "--train.steps", str(arguments.steps), "--train.alpha", "1", "--train.threads", "1"),
            *("--optim.lr", str(rate), "--train.seed", str(seed), "--run_dir", str(run_dir), *flags),
        ],
    )
    found: Found = once(run_dir.with_name(f"{run_dir.name}.json"), to_yaml(config), apart, tune, config, start)
    return found


def tune(config: Config, start: Path) -> Found:
    """Train, and score the held-out pairs with the means of start and result."""
    run_dir = train(config).run_dir
    rates = [row["samples_per_second"] for row in read_log(run_dir / "metrics.jsonl") if "samples_per_second" in row]
    [*_, last] = sorted((run_dir / "checkpoints").glob("step-*"))
    found: Found = {
        "seconds a step": config.train.batch_size / statistics.median(rates),
        "memory": peak_memory(),
        "disk": sum(file.stat().st_size for file in last.iterdir()) / 2**20,
    }
    models = [load_model(place, device="cpu") for place in (start, run_dir)]
    pairs, held_out = build_training_data(config)
    assert held_out is not None
    means = {f"{alpha:g}": merge(models, [1 - alpha, alpha]) for alpha in ALPHAS}
    found["held_out"] = {name: rank_score(model, held_out, pairs) for name, model in means.items()}
    return found


def test(folders: list[Path], weights: list[float], seed: int) -> Scores:
    """The scores of a model, or of the mean of several."""
    models = [load_model(folder, device="cpu") for folder in folders]
    return scores(models[0] if len(models) == 1 else merge(models, weights), test_data(seed))


def start_of(runs: Path, seed: int) -> Path:
    """The folder of the default run with a seed, which is trained if it does not exist."""
    folder = runs / f"start{seed}"
    if not (folder / "model").is_dir():
        print(f"training the start of seed {seed}, which takes minutes", flush=True)
        train(load_config("clip_emoji", ["--train.seed", str(seed), "--evaluate", "[]", "--run_dir", str(folder)]))
    return folder


def rows_of_vendor(seed: int) -> tuple[Source, np.ndarray]:
    """The vendor that the start has never seen, and its rows in an order of their own for every seed.

    Of emoji with one image, such as a country's flag and its island's, one remains: none is in two parts of the data.
    """
    source = open_source("emoji", args={"split": "unseen_style", "fold": "test"})
    first: dict[bytes, int] = {}
    for index in range(len(source)):
        image = source[index].image
        assert isinstance(image, bytes)
        first.setdefault(image, index)
    return source, np.random.default_rng([seed, 1]).permutation(list(first.values()))


def test_data(seed: int) -> Mapping[str, Source]:
    source, order = rows_of_vendor(seed)
    old = open_source("emoji", args={"split": "unseen_style", "fold": "train"})
    return {
        "new": Subset(source, np.sort(order[PAIRS : PAIRS + TESTED])),
        "old": Subset(old, np.sort(np.random.default_rng([seed, 2]).permutation(len(old))[:TESTED])),
    }


def write_pairs(folder: Path, seed: int) -> Path:
    """200 pairs as a user has them: images, and captions.csv beside them."""
    if folder.is_dir():
        return folder
    source, order = rows_of_vendor(seed)
    stage = folder.with_name(f".{folder.name}")
    stage.mkdir(parents=True, exist_ok=True)
    with (stage / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number, index in enumerate(order[:PAIRS].tolist()):
            sample = source[index]
            assert isinstance(sample.image, bytes)
            (stage / f"{number:03}.png").write_bytes(sample.image)
            writer.writerow([f"{number:03}.png", sample.captions[0]])
    return stage.rename(folder)


def scores(model: Model, tests: Mapping[str, Source]) -> Scores:
    """R@1 on new and on old data, the mean of both directions."""
    found = {}
    for name, source in tests.items():
        task = Task(name, source, baselines=False, figures=False)
        report = run([("retrieval", {})], [CachedModel(model)], [task])
        found[name] = statistics.mean(report[f"{way}_R@1"] or 0.0 for way in ("text_to_image", "image_to_text"))
    return found


def rank_score(model: Model, held_out: Source, others: Source) -> float:
    """Mean reciprocal rank of the held-out pairs among all pairs, in both directions."""
    sources = (held_out, others)
    image_ND = np.concatenate([model.encode_image(source) for source in sources])
    text_ND = np.concatenate([model.encode_text([source[i].captions[0] for i in range(len(source))]) for source in sources])
    score_NN, count = image_ND @ text_ND.T, len(held_out)
    own_H = np.diagonal(score_NN)[:count]
    ranks = [1 + (score_NN[:count] > own_H[:, None]).sum(1), 1 + (score_NN[:, :count] > own_H).sum(0)]
    return float(np.mean([1 / rank for rank in ranks]))


GAINS = {"gain on new": "new", "gain on old": "old"}
UNITS = (
    {"new": "share", "old": "share"} | dict.fromkeys(GAINS, "share") | {"seconds a step": "s", "memory": "MiB", "disk": "MiB"}
)


def gains(own: Found, start: Scores) -> Found:
    """What the scores of a result are above those of its own start."""
    return {name: own[score] - start[score] for name, score in GAINS.items()}


def print_rows(case: str, rate: float, alpha: float, values: list[Found]) -> None:
    """A line of the table: mean and deviation over the seeds; of gains, mean and interval."""
    found = {measure: [own[measure] for own in values if measure in own] for measure in UNITS}
    cells = [gain_cell(own) if measure in GAINS else cell(own) for measure, own in found.items()]
    line = f"| {case:<34} | {f'{rate:g}':>6} | {f'{alpha:g}':>5} | {' | '.join(f'{one:>22}' for one in cells)} |"
    if case == "before":
        print(f"| {'case':<34} | {'lr':>6} | {'alpha':>5} | {' | '.join(f'{name:>22}' for name in UNITS)} |")
        print(f"|---|---|---|{'---|' * len(UNITS)}")
    print(line, flush=True)


def cell(found: list[float]) -> str:
    if not found:
        return ""
    digits = 3 if max(found) < 10 else 0
    spread = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.{digits}f}{spread}"


def gain_cell(found: list[float]) -> str:
    if not found:
        return ""
    one = over_runs(found, TESTED, within=(-1.0, 1.0))
    interval = "" if one.low is None else f" [{one.low:+.3f}, {one.high:+.3f}]"
    return f"{one.value:+.3f}{interval}"


def json_rows(case: str, values: list[Found], before: list[Scores]) -> list[Row]:
    rows = []
    for measure, unit in UNITS.items():
        own, start = ([one[measure] for one in ours if measure in one] for ours in (values, before))
        if own:
            peer = statistics.mean(start) if start else None
            compared = row(case, measure, unit, statistics.mean(own), "before" if start else "", peer)
            interval = over_runs(own, TESTED, within=(-1.0, 1.0)) if measure in GAINS else None
            bounds = {} if interval is None else {"low": interval.low, "high": interval.high}
            rows.append(compared | {"values": own} | bounds)
    return rows


if __name__ == "__main__":
    main()
