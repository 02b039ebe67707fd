"""The ledger of claims: methods that are said to give more for the same compute, tried on the default run.

A claim is a training with the method beside one without it. Both see equally many samples, unless the claim is about their
number; R@1 is the mean of both directions on a vendor that neither has seen. The encoders' operations are counted on one batch
by torch and multiplied by three, for the backward pass, and by the number of steps; those of a stored teacher are not counted:
it is a default run. Beside a claim stand its controls: what the same run gives without the method.

By default the vendor is Noto, held out of the training data to choose settings. `--fold test` trains on all three vendors and
tests on the fourth. Where the steps of a run differ, each kind is counted. A ratio is that of the means over the seeds; its
interval is Student's, of the ratios of runs with equal seeds. A claim holds if the ratio reaches what it asks. Claims that need
other data or machines are listed with the reason.

`aligned` trains heads on two frozen encoders, for the time alone: features and training of 5,000 pairs, and an epoch beside
one that trains the encoders too.

`tokens` has no training: a step of `clip_emoji_vit`, and the image tower in it, on half of the patches beside one on all; on
images of half the side beside those of full size; and the latter of `clip_emoji`, whose tower is convolutional.

`texts that repeat` has no training: the text tower encodes a batch in which a tenth of the texts are distinct, once with every
row of its own and once with each text encoded once.

python scripts/bench/claims.py --fold test --json claims.json
python scripts/bench/claims.py --claims sogclr --seeds 0 1 --epochs 10

Every training is a process of its own; what is finished is not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from published import ALL_PATCHES, CLAIMS, ROWS, UNTESTED, Claim, Flags, Run
from side_by_side import Row, row, write_json
from torch.utils.flop_counter import FlopCounterMode
from trainings import apart, once

from mmcl import TruncatedModel, load_model
from mmcl.config import Config, load_config, to_yaml
from mmcl.data.batches.fewer_tokens import FewerTokens
from mmcl.data.batches.loader import StepBatches
from mmcl.data.names import names_of
from mmcl.data.open import open_source
from mmcl.encoders.tower import Tower
from mmcl.engine.log import read_log
from mmcl.engine.optim import build_optimizer
from mmcl.engine.repeated_texts import RepeatedTexts
from mmcl.engine.transfer import views_on
from mmcl.evaluate import CachedModel, Task, run
from mmcl.evaluate.measures.statistics import over_runs
from mmcl.files.digest import digest
from mmcl.runs.embedding.job import EmbeddingJob
from mmcl.runs.embedding.runners import run_embedding_job
from mmcl.runs.plan import Plan, make_plan
from mmcl.runs.run import train
from mmcl.types import Embeddings, Input, Tokens

TESTED, PAIRS = 1906, 5000
FOLDS: dict[str, tuple[Flags, dict[str, object]]] = {
    "held_out": (
        ("--data.train.args.vendors", "[openmoji, fluent]", "--data.train.args.fold", "all"),
        {"fold": "all", "vendors": ["noto"]},
    ),
    "test": ((), {"split": "unseen_style", "fold": "test"}),
}
"""By name: flags of the training, and arguments of the data that it is tested on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", nargs="+", choices=[*CLAIMS, *TIMED], default=[*CLAIMS, *TIMED])
    parser.add_argument("--fold", choices=list(FOLDS), default="held_out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, help="of every run, instead of its own; halved where a claim halves them")
    parser.add_argument("--precision", default="fp32", help="of every training; fp32 by default")
    parser.add_argument("--without_controls", action="store_true", help="train the claims alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench_claims"), help="folder for the runs")
    parser.add_argument("--json", type=Path, help="write the table here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a process that has started threads cannot be forked: the children would wait for them

    table = []
    for name in arguments.claims:
        table += TIMED[name](arguments) if name in TIMED else tried(name, CLAIMS[name], arguments)
    for claim, reason in UNTESTED.items():
        print(f"{claim}: not testable here, {reason}")
    write_json(arguments.json, "claims", table)


def tried(name: str, claim: Claim, arguments: argparse.Namespace) -> list[Row]:
    """Trains what a claim needs, and prints its lines of the ledger."""
    print(f"\n{name}: {claim.published}")
    own, beside = scores(claim.own, arguments), scores(claim.beside, arguments)
    rows = [compared(name, claim.own, own, claim.beside, beside, arguments)]
    if claim.asked is not None:
        ratio = rows[0]["ratio"]
        rows[0]["verdict"] = (
            "holds" if ratio >= claim.asked else f"does not hold at this scale: {ratio:.3f} of {claim.asked:g} asked"
        )
        print(f"  {rows[0]['verdict']}")
    for control, run_of_it in () if arguments.without_controls else claim.controls.items():
        rows.append(compared(control, run_of_it, scores(run_of_it, arguments), claim.beside, beside, arguments))
    return rows


def compared(name: str, own: Run, ours: list[float], beside: Run, theirs: list[float], arguments: argparse.Namespace) -> Row:
    """A line of the table: R@1 of both, the ratio with its interval, and the ratio of the encoders' operations."""
    flops = [encoder_flops(one, arguments) for one in (own, beside)]
    if not all(theirs):
        raise SystemExit(f"{name}: a run beside it has learned nothing (R@1 is 0); give more --epochs")
    ratios = over_runs([a / b for a, b in zip(ours, theirs, strict=True)], TESTED, within=(0.0, 100.0))
    interval = "" if ratios.low is None else f" [{ratios.low:.3f}, {ratios.high:.3f}]"
    found = row(name, "R@1", "share", statistics.mean(ours), "without", statistics.mean(theirs))
    print(
        f"  {name:<28} R@1 {found['mmcl']:.3f} beside {found['peer_value']:.3f}: ratio {found['ratio']:.3f}{interval}, "
        f"{flops[0] / flops[1]:.3f} of the operations",
        flush=True,
    )
    return found | {"values": ours, "low": ratios.low, "high": ratios.high, "flops": flops[0], "peer_flops": flops[1]}


def config_of(one: Run, seed: int, arguments: argparse.Namespace) -> Config:
    """The configuration of a run; `--epochs` stands for the length that is shipped, of which a run may take a share."""
    rows = str(rows_folder(seed, arguments)) if one.reads_rows else ROWS
    given = [flag.replace(ROWS, rows) for flag in one.flags]
    flags = [*FOLDS[arguments.fold][0], *given, "--evaluate", "[]", "--train.seed", str(seed)]
    flags += ["--train.threads", str(arguments.threads), "--train.precision", arguments.precision]
    if arguments.epochs:
        share = epochs_of(one.config, one.flags) / epochs_of(one.config, ())
        flags += ["--train.epochs", str(share * arguments.epochs)]
    return load_config(one.config, flags)


def epochs_of(config: str, flags: Flags) -> float:
    epochs = load_config(config, list(flags)).train.epochs
    assert epochs is not None
    return epochs


def scores(one: Run, arguments: argparse.Namespace) -> list[float]:
    """R@1 of every seed. A run is trained once, whatever claims need it, and tested once at each width."""
    found = []
    for seed in arguments.seeds:
        if one.reads_rows:
            write_rows(seed, arguments)
        settings, folder = trained_once(one, seed, arguments)
        found.append(once(Path(f"{folder}-{one.dim or 'full'}.json"), settings, apart, tested, one, arguments, folder))
    return found


def trained_once(one: Run, seed: int, arguments: argparse.Namespace) -> tuple[str, Path]:
    """Trains a run unless it is done; its settings and folder."""
    settings, folder = to_yaml(config_of(one, seed, arguments)), run_folder(one, seed, arguments)
    once(Path(f"{folder}.json"), settings, apart, trained, one, seed, arguments, folder)
    return settings, folder


def run_folder(one: Run, seed: int, arguments: argparse.Namespace) -> Path:
    runs: Path = arguments.runs
    return runs / f"{arguments.fold}-{digest(to_yaml(config_of(one, seed, arguments)))[:12]}"


def rows_folder(seed: int, arguments: argparse.Namespace) -> Path:
    return Path(f"{run_folder(Run(), seed, arguments)}-rows")


def write_rows(seed: int, arguments: argparse.Namespace) -> None:
    """Writes the embeddings of the training data by the default run, unless they are there."""
    _, teacher = trained_once(Run(), seed, arguments)
    data = config_of(Run(), seed, arguments).data.train
    job = EmbeddingJob(data=data, model=str(teacher), folder=rows_folder(seed, arguments), device="cpu")
    apart(partial(run_embedding_job, job, workers=1))


def trained(one: Run, seed: int, arguments: argparse.Namespace, folder: Path) -> float:
    """Trains a run, or the rest of one that was stopped; its seconds."""
    started = time.perf_counter()
    train(dataclasses.replace(config_of(one, seed, arguments), run_dir=str(folder), resume=(folder / "checkpoints").is_dir()))
    return time.perf_counter() - started


def tested(one: Run, arguments: argparse.Namespace, folder: Path) -> float:
    """R@1 of a trained run, the mean of both directions."""
    model = load_model(folder, device="cpu")
    source = open_source("emoji", args=FOLDS[arguments.fold][1])
    encoder = model if one.dim is None else TruncatedModel(model, one.dim)
    report = run([("retrieval", {})], [CachedModel(encoder)], [Task("test", source, baselines=False, figures=False)])
    return statistics.mean(report[f"{way}_R@1"] or 0.0 for way in ("text_to_image", "image_to_text"))


def encoder_flops(one: Run, arguments: argparse.Namespace) -> float:
    """Operations of all encoders in a run that is trained, whose folder has its order, forward and backward."""
    seed = arguments.seeds[0]
    plan = make_plan(dataclasses.replace(config_of(one, seed, arguments), run_dir=str(run_folder(one, seed, arguments))), 1)
    batches, steps = batches_of(plan, plan.fewer), plan.facts.total_steps
    border = plan.fewer.until if plan.fewer else 0
    lengths = {0: border, border: steps - border}  # of the two kinds of steps, by the first of each
    total = 0.0
    for first, length in lengths.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            plan.method.encode(views_on("cpu", batches[min(first, steps - 1)].views))
        total += 3.0 * float(counter.get_total_flops()) * length
    return total


def batches_of(plan: Plan, fewer: FewerTokens | None) -> StepBatches:
    text: Any = plan.method.tower("text").encoder
    images, tokenizer = plan.views, text.tokenizer
    return StepBatches(plan.source, plan.order, images=images, texts=["text"], tokenizer=tokenizer, fewer=fewer)


def frozen_encoders(arguments: argparse.Namespace) -> list[Row]:
    """Seconds of a training of heads on two frozen encoders, features included, and of an epoch beside one with the encoders,
    in which every fifth step is logged.

    The encoders are those of the two runs that `align_emoji` names, after a step: their weights do not change the time.
    """
    runs: Path = arguments.runs
    flags = ["--evaluate", "[]", "--train.threads", str(arguments.threads)]
    for name in ("simclr_emoji", "simcse_emoji"):
        if not (runs / name / "model").is_dir():
            train(load_config(name, [*flags, "--train.steps", "1", "--run_dir", str(runs / name)]))
    flags += ["--image.encoder.args.model", str(runs / "simclr_emoji"), "--text.encoder.args.model", str(runs / "simcse_emoji")]
    few = runs / "5000.txt"
    few.write_text("".join(f"{name}\n" for name in islice(names_of(open_source("emoji", args={"fold": "train"})), PAIRS)))
    flags += ["--data.keep", str(few), "--train.log_every", "5"]
    trained_too = ("--image.freeze", "false", "--text.freeze", "false", "--train.epochs", "2", "--train.micro_batch", "256")
    seconds, epoch = apart(timed, load_config("align_emoji", [*flags, "--run_dir", str(runs / "aligned")]))
    _, whole_epoch = apart(timed, load_config("align_emoji", [*flags, *trained_too, "--run_dir", str(runs / "unfrozen")]))
    rows = [
        row("aligned", "features and training", "s", seconds, "asked", 60.0),
        row("aligned", "epoch", "s", epoch, "with the encoders", whole_epoch),
    ]
    print(f"aligned: {seconds:.1f} s in all (asked: at most 60)")
    print(f"aligned: an epoch {epoch:.3f} s beside {whole_epoch:.1f} s: {epoch / whole_epoch:.4f} (asked: at most 0.05)")
    return rows


def timed(config: Config) -> tuple[float, float]:
    """Seconds of a run from its start to its model, and of an epoch of its steps."""
    shutil.rmtree(config.run_dir or "", ignore_errors=True)
    started = time.perf_counter()
    run_dir = train(config).run_dir
    seconds = time.perf_counter() - started
    rates = [one["samples_per_second"] for one in read_log(run_dir / "metrics.jsonl") if "samples_per_second" in one]
    return seconds, PAIRS / statistics.median(rates)


STEPS_WITH_FEWER = {
    "half of the patches": ("clip_emoji_vit", ()),
    "half of the side": ("clip_emoji_vit", (*ALL_PATCHES, "--train.fewer_tokens.image_size", "20")),
    "half of the side, convolutions": ("clip_emoji", ("--train.fewer_tokens.image_size", "20")),
}
"""By name: a configuration and flags."""


def steps_with_fewer_tokens(_: argparse.Namespace) -> list[Row]:
    """Processor time of a step, reading and optimizer included, and of the image tower alone; the two kinds take turns."""
    return [found for name, (config, flags) in STEPS_WITH_FEWER.items() for found in timed_steps(name, config, flags)]


def timed_steps(name: str, config: str, flags: Flags) -> list[Row]:
    plan = make_plan(load_config(config, list(flags)), 1)
    kinds = {"fewer": batches_of(plan, plan.fewer), "all": batches_of(plan, None)}
    optimizer = build_optimizer(plan.method.train(), plan.config.optim)
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(8):
        for kind, batches in kinds.items():
            started = time.process_time()
            batch = batches[number]
            views = views_on("cpu", batch.views)
            rows = plan.method.encode(views)
            plan.method.loss(Embeddings(rows, rows, batch.ids, batch.ids, all_index=batch.index), batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.setdefault(("step", kind), []).append(time.process_time() - started)
            tower_seconds = processor_seconds(plan.method.tower("image"), views["image"])
            seconds.setdefault(("image tower", kind), []).append(tower_seconds)
    found = []
    for part in ("step", "image tower"):
        fewer, whole = (statistics.median(seconds[part, kind][2:]) for kind in kinds)
        found.append(row(name, part, "s", fewer, "all", whole))
        print(f"{name}: {part} {fewer:.3f} s beside {whole:.3f} s, {whole / fewer:.2f} x as fast", flush=True)
    return found


def texts_that_repeat(_: argparse.Namespace) -> list[Row]:
    """The text tower's operations, forward and backward, and processor time, where a tenth of 512 texts are distinct."""
    plan = make_plan(load_config("clip_emoji", []), 1)
    tower, text = plan.method.tower("text"), [f"a photo of number {number % 51}" for number in range(512)]
    encoder: Any = tower.encoder
    tokens: Tokens = encoder.tokenizer(text)
    repeated = tokens.with_repeats()
    if "text" not in RepeatedTexts(plan.method, torch.device("cpu")).views:
        raise SystemExit("texts that repeat: the engine would encode each row by itself")
    flops, seconds, rows = {}, {}, []
    for name, given in (("mmcl", repeated), ("each row", tokens)):
        with FlopCounterMode(display=False) as counter:
            gradient_of(tower, given)
        flops[name] = float(counter.get_total_flops())
        seconds[name] = statistics.median(processor_seconds(tower, given) for _ in range(5))
    for measure, unit, found in (("operations", "", flops), ("processor", "s", seconds)):
        rows.append(row("texts that repeat", measure, unit, found["mmcl"], "each row by itself", found["each row"]))
        print(f"texts that repeat: {rows[-1]['ratio']:.3f} of the {measure} (asked: at most 0.15)")
    return rows


def gradient_of(tower: Tower, inputs: Input) -> None:
    tower.zero_grad()
    tower(inputs).square().sum().backward()


def processor_seconds(tower: Tower, inputs: Input) -> float:
    started = time.process_time()
    gradient_of(tower, inputs)
    return time.process_time() - started


TIMED = {"aligned": frozen_encoders, "texts": texts_that_repeat, "tokens": steps_with_fewer_tokens}
"""What is not trained to be tested, by name."""


if __name__ == "__main__":
    main()
