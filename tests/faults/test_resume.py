"""A killed and resumed run ends like an uninterrupted one: same bits, same samples, each step in the log once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import timm  # noqa: F401  (so that no child needs to import it)
import torch
from safetensors.torch import load_file

from mmcl.config import Config, SourceConfig
from mmcl.engine.log import read_log
from mmcl.runs.embedding.job import EmbeddingJob
from mmcl.runs.embedding.runners import run_embedding_job
from tests.faults.runs import KILLED, STEPS, before_step, final_state, kill, output, run, samples, tiny_run

Uninterrupted = Callable[..., Config]
WORKERS = (0, 2, 1, 3)


def resumed(image_folder: Path, run_dir: Path, number: int, *flags: str) -> Config:
    """The configuration of a start: all but the first resume, each with another number of loader processes."""
    resume = ("--resume",) if number else ()
    return tiny_run(image_folder, run_dir, *flags, *resume, "--data.workers", str(WORKERS[number % len(WORKERS)]))


def killed_and_resumed(image_folder: Path, run_dir: Path, world: int, kills: Iterable[int], *flags: str) -> Config:
    """Kill a run when step k begins, while a checkpoint may still be on its way to the disk; resume, kill again; then end."""
    number = 0
    for number, step in enumerate(kills, 1):
        config = resumed(image_folder, run_dir, number - 1, *flags)
        assert run(config, world, before_step(step, kill)) == [KILLED] * world
    config = resumed(image_folder, run_dir, number, *flags)
    assert run(config, world) == [0] * world
    return config


@pytest.mark.parametrize(
    ("world", "kills"),
    [
        (1, (1, 4, 8)),
        pytest.param(1, range(1, STEPS + 1), marks=pytest.mark.long),
        (2, (3,)),
        pytest.param(2, (2, 3, 6), marks=pytest.mark.long),
        pytest.param(3, (4,), marks=pytest.mark.long),
        pytest.param(3, (3, 4, 7), marks=pytest.mark.long),
    ],
    ids=["1 process", "every step", "2 processes", "2 processes, often", "3 processes", "3 processes, often"],
)
def test_resume_is_bit_exact(
    world: int, kills: list[int], image_folder: Path, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    config = killed_and_resumed(image_folder, tmp_path / "run", world, kills)
    assert final_state(config) == final_state(uninterrupted(world))
    assert samples(config, world) == samples(uninterrupted(world), world)
    assert [row["step"] for row in read_log(tmp_path / "run/metrics.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.long
def test_queue_and_teacher_continue_where_they_were(image_folder: Path, tmp_path: Path) -> None:
    mixing = "mixed: 20, mixed_with_query: 6, hardest: 16, mix_start: 0.3"
    flags = ("--text", "null", "--method.name", "moco", "--method.args", f"{{queue: 48, bn_groups: 2, {mixing}}}")
    whole = tiny_run(image_folder, tmp_path / "whole", *flags)
    assert run(whole, 2) == [0, 0]
    config = killed_and_resumed(image_folder, tmp_path / "run", 2, (3, 6), *flags)
    assert final_state(config) == final_state(whole)
    assert any("queue" in key for key in final_state(config))


@pytest.mark.parametrize("worlds", [pytest.param((1, 3), marks=pytest.mark.long), (3, 2, 1)], ids=str)
def test_another_number_of_processes_is_the_same_run(
    worlds: tuple[int, ...], image_folder: Path, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    """The same samples in the same order and the same learning rates to the bit, losses and weights but for rounding."""
    flags = ("--text.encoder.args.dropout", "0")
    for number, world in enumerate(worlds[:-1]):
        config = resumed(image_folder, tmp_path / "run", number, *flags)
        assert run(config, world, before_step(3 * number + 4, kill)) == [KILLED] * world
    config = resumed(image_folder, tmp_path / "run", len(worlds) - 1, *flags)
    assert run(config, worlds[-1]) == [0] * worlds[-1]
    assert f"changed on resume: processes: {worlds[-2]} -> {worlds[-1]}\n" in output(config)
    whole = uninterrupted(1, *flags)
    ours, expected = (read_log(Path(c.run_dir or "") / "metrics.jsonl") for c in (config, whole))
    assert [row["lr"] for row in ours] == [row["lr"] for row in expected]
    for name in ("loss", "gradient_norm"):  # Adam would forgive a gradient that is half as large
        assert [row[name] for row in ours] == pytest.approx([row[name] for row in expected], rel=1e-5)
    weights, reference = (load_file(Path(c.run_dir or "") / "model/model.safetensors") for c in (config, whole))
    assert max((weights[key] - reference[key]).abs().max().item() for key in reference) < 1e-5
    last = worlds[-1]
    assert samples(config, last).items() <= samples(whole, 1).items()


def test_a_batch_larger_than_the_data_is_the_same_run_too(image_folder: Path, tmp_path: Path) -> None:
    """25 samples: what two processes can share is what one takes."""
    configs = [
        tiny_run(image_folder, tmp_path / str(world), "--train.batch_size", "64", "--train.steps", "2") for world in (1, 2)
    ]
    for world, config in enumerate(configs, 1):
        assert run(config, world) == [0] * world
    assert samples(configs[0], 1) == samples(configs[1], 2)
    assert len(samples(configs[0], 1)[1]) == 24


@pytest.mark.parametrize(
    ("world", "kills", "layout"),
    [
        (1, (1, 5), ()),
        pytest.param(2, (4,), (), marks=pytest.mark.long),
        pytest.param(3, (6,), (), marks=pytest.mark.long),
        pytest.param(2, (3,), ("--train.fsdp", "true"), marks=pytest.mark.long),
    ],
    ids=["1", "2", "3", "2 spread"],
)
def test_adapters_resume_bit_for_bit(
    world: int,
    kills: tuple[int, ...],
    layout: tuple[str, ...],
    image_folder: Path,
    uninterrupted: Uninterrupted,
    tmp_path: Path,
) -> None:
    """With groups and an average of the weights. The checkpoints hold adapters alone; the weights below are loaded from
    `init` at every start."""
    from_init = [flag for name in ("image", "text") for flag in (f"--{name}.encoder", "null", f"--{name}.head", "null")]
    adapted = ("--image.adapt", "{name: dora, args: {rank: 2}}", "--text.adapt", "{args: {rank: 3, dropout: 0.3}}")
    more = ("--optim.groups", "[{match: head, lr: 0.01}, {match: '^text[.]', scale: 0.5}]", "--train.ema", "0.9")
    flags = ("--init", str(uninterrupted(1).run_dir), *from_init, *adapted, *layout, *more, "--train.micro_batch", "3")
    whole = tiny_run(image_folder, tmp_path / "whole", *flags)
    assert run(whole, world) == [0] * world
    config = killed_and_resumed(image_folder, tmp_path / "run", world, kills, *flags)
    assert final_state(config) == final_state(whole)
    assert not [key for key in final_state(config) if key.endswith("original") or "token_embedding" in key]
    assert any(key.startswith("average") for key in final_state(config))
    models = [load_file(Path(c.run_dir or "") / "model/model.safetensors") for c in (config, whole)]
    assert all(torch.equal(models[0][key], value) for key, value in models[1].items())


@pytest.mark.parametrize(
    ("world", "kills", "layout"),
    [(1, (1, 5), ()), pytest.param(2, (4,), ("--train.fsdp", "true"), marks=pytest.mark.long)],
    ids=["1", "2 spread"],
)
def test_anchors_resume_bit_for_bit(
    world: int,
    kills: tuple[int, ...],
    layout: tuple[str, ...],
    image_folder: Path,
    uninterrupted: Uninterrupted,
    tmp_path: Path,
) -> None:
    """The anchor is the start of the run, not the weights that a resume begins with."""
    from_init = [flag for name in ("image", "text") for flag in (f"--{name}.encoder", "null", f"--{name}.head", "null")]
    anchors = ("--train.anchor.l2_sp", "50", "--train.anchor.features", "2", "--optim.weight_decay", "0")
    memory = ("--train.checkpoint_activations", "true", "--train.micro_batch", "3")
    rest = ("--image.freeze", "true", "--train.ema", "0.9", *memory, *layout)
    flags = ("--init", str(uninterrupted(1).run_dir), *from_init, *anchors, *rest)
    whole = tiny_run(image_folder, tmp_path / "whole", *flags)
    assert run(whole, world) == [0] * world
    config = killed_and_resumed(image_folder, tmp_path / "run", world, kills, *flags)
    assert final_state(config) == final_state(whole)
    assert "feature_distance" in final_state(config)["metrics"]


@pytest.mark.parametrize(
    ("world", "kills", "layout"),
    [
        (1, (1, 5), ("--train.distillation.targets", "neighbors", "--train.distillation.temperature", "0.1")),
        pytest.param(2, (4,), ("--train.fsdp", "true"), marks=pytest.mark.long),
        pytest.param(3, (2, 6), (), marks=pytest.mark.long),
    ],
    ids=["1 neighbors", "2 spread", "3"],
)
def test_stored_teachers_resume_bit_for_bit(
    world: int,
    kills: tuple[int, ...],
    layout: tuple[str, ...],
    image_folder: Path,
    uninterrupted: Uninterrupted,
    tmp_path: Path,
) -> None:
    """With prefixes, micro-batches, samples held out, batches of clusters of the same rows, and a first kill before the rows
    were ever read by a step."""
    data, shards = SourceConfig(path=str(image_folder)), tmp_path / "shards"
    job = EmbeddingJob(data=data, model=str(uninterrupted(1).run_dir), folder=shards, shard_rows=10, device="cpu")
    run_embedding_job(job, workers=1)
    taught = ("--data.embeddings", json.dumps([str(shards)]), "--train.distillation.weight", "0.6", "--data.holdout", "0.2")
    hard = ("--data.hard_batches", f"{{embeddings: {shards}, cluster: 4, skip: 2}}")
    flags = (*taught, *hard, *layout, "--train.matryoshka.dims", "[4, 8]", "--train.micro_batch", "3")
    whole = tiny_run(image_folder, tmp_path / "whole", *flags)
    assert run(whole, world) == [0] * world
    config = killed_and_resumed(image_folder, tmp_path / "run", world, kills, *flags)
    assert final_state(config) == final_state(whole)
    assert "distillation_loss" in final_state(config)["metrics"]
    assert samples(config, world) == samples(whole, world)
    assert "hard batches: clusters of 4 samples with a mean cosine of" in output(whole)


SIZES = "{embed_dim: 16, depth: 2, num_heads: 2, patch_size: 4}"
FEWER = (
    *("--image.encoder", f"{{name: timm, args: {{name: test_vit, image_size: 16, model_args: {SIZES}}}}}"),
    *("--train.fewer_tokens.patches", "0.5", "--train.fewer_tokens.finish", "0.25"),
)
"""A vision transformer that sees half of the patches in six steps, and all in the last two."""
SMALLER = (*FEWER, "--train.fewer_tokens.image_size", "8")


@pytest.mark.parametrize(
    ("world", "kills", "seen", "layout"),
    [
        (1, (3, 7), SMALLER, ("--train.micro_batch", "5")),
        pytest.param(2, (7,), FEWER, ("--train.fsdp", "true", "--train.micro_batch", "3"), marks=pytest.mark.long),
        pytest.param(2, (5,), SMALLER, ("--train.fsdp", "true"), marks=pytest.mark.long),
        pytest.param(3, (6,), FEWER, ("--train.checkpoint_activations", "true"), marks=pytest.mark.long),
    ],
    ids=["1, of smaller images", "2 spread", "2 spread, of smaller images", "3"],
)
def test_fewer_tokens_resume_bit_for_bit(
    world: int, kills: tuple[int, ...], seen: tuple[str, ...], layout: tuple[str, ...], image_folder: Path, tmp_path: Path
) -> None:
    """Across the step from which on all is seen."""
    whole = tiny_run(image_folder, tmp_path / "whole", *seen, *layout)
    assert run(whole, world) == [0] * world
    some = "2 of 4 patches of images of 8 x 8 pixels until step 6, whole ones of full size"
    said = some if seen == SMALLER else "8 of 16 patches of an image until step 6, all of them"
    assert f"sees {said} in the last 2 steps" in output(whole)
    config = killed_and_resumed(image_folder, tmp_path / "run", world, kills, *seen, *layout)
    assert final_state(config) == final_state(whole)


SPREAD = ("--train.fsdp", "true")
"""Weights, gradients and moments spread over the processes."""


MOMENTUM, AVERAGES = "{name: momentum_clip, args: {queue: 24, queue_start: 0.2}}", "{name: sogclr}"
"""Methods with a teacher and queues, and with an average for every sample."""


@pytest.mark.long
@pytest.mark.parametrize(("world", "kills", "method"), [(2, (6,), MOMENTUM), (2, (5,), AVERAGES), (3, (4,), MOMENTUM)])
def test_spread_weights_resume_bit_for_bit(
    world: int, kills: tuple[int, ...], method: str, image_folder: Path, tmp_path: Path
) -> None:
    """With prefixes, where the method has them, micro-batches and an evaluation of uneven shares on the way."""
    evaluated = ("--data.holdout", "0.3", "--evaluate", "[{name: retrieval, label: held_out, every: 3}]")
    rest = ("--text.encoder.args.layers", "2", "--train.micro_batch", "2")
    prefixes = ("--train.matryoshka.dims", "[4, 8]") if method == MOMENTUM else ()
    flags = (*SPREAD, "--method", method, *evaluated, *rest, *prefixes)
    whole = tiny_run(image_folder, tmp_path / "whole", *flags)
    assert run(whole, world) == [0] * world
    config = killed_and_resumed(image_folder, tmp_path / "run", world, kills, *flags)
    assert final_state(config) == final_state(whole)
    assert ("loss_4" in final_state(config)["metrics"]) == bool(prefixes)
    assert f"{world} processes on cpu, 1 thread each, the weights spread over them" in output(config)


@pytest.mark.parametrize("more", [(), FEWER], ids=["all tokens", "fewer"])
def test_a_run_may_change_how_its_weights_lie(
    more: tuple[str, ...], image_folder: Path, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    """Spread over three processes, whole in one, spread over two: the losses, norms and exported weights of a run in one."""
    flags = (*more, "--text.encoder.args.dropout", "0", "--optim.clip", "0.5")
    starts = [(3, SPREAD), (1, ()), (2, SPREAD)]
    for number, (world, layout) in enumerate(starts):
        config = resumed(image_folder, tmp_path / "run", number, *flags, *layout)
        if number < 2:
            assert run(config, world, before_step(3 * number + 3, kill)) == [KILLED] * world
        else:
            assert run(config, world) == [0] * world
    whole = uninterrupted(1, *flags)
    ours, expected = (read_log(Path(c.run_dir or "") / "metrics.jsonl") for c in (config, whole))
    for name in ("loss", "gradient_norm"):
        assert [row[name] for row in ours] == pytest.approx([row[name] for row in expected], rel=1e-5)
    weights, reference = (load_file(Path(c.run_dir or "") / "model/model.safetensors") for c in (config, whole))
    assert max((weights[key] - reference[key]).abs().max().item() for key in reference) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("method", [(), ("--image", "null", "--method.name", "simcse")], ids=["clip", "a tower used twice"])
def test_spread_weights_in_mixed_precision(method: tuple[str, ...], image_folder: Path, tmp_path: Path) -> None:
    """Processes compute what they would with whole weights; only sums of gradients are taken in another order."""
    low = (*method, "--train.precision", "bf16", "--text.encoder.args.layers", "2")
    layouts = {"whole": low, "spread": (*low, *SPREAD), "exact": (*low, *SPREAD, "--train.precision", "fp32")}
    logs = {}
    for name, flags in layouts.items():
        config = tiny_run(image_folder, tmp_path / name, *flags)
        assert run(config, 2) == [0, 0]
        logs[name] = read_log(tmp_path / name / "metrics.jsonl")
    for key in ("loss", "gradient_norm"):
        assert [row[key] for row in logs["spread"]] == pytest.approx([row[key] for row in logs["whole"]], rel=2e-2)
        assert logs["spread"][0][key] == pytest.approx(logs["whole"][0][key], rel=1e-4)
    assert logs["spread"][0]["loss"] != logs["exact"][0]["loss"], "it was bfloat16"


@pytest.mark.long
def test_the_best_of_a_spread_run_is_exported(image_folder: Path, tmp_path: Path) -> None:
    score = ("--train.keep_best", "held_out/text_to_image_mean_rank", "--train.export", "best")
    evaluated = ("--data.holdout", "0.3", "--evaluate", "[{name: retrieval, label: held_out, every: 1}]")
    config = tiny_run(image_folder, tmp_path / "run", *SPREAD, *score, *evaluated)
    assert run(config, 2) == [0, 0]
    best = json.loads((tmp_path / "run/model/config.json").read_text())
    steps = best["provenance"]["steps"]
    exported = load_file(tmp_path / "run/model/model.safetensors")
    shards = [load_file(tmp_path / f"run/checkpoints/step-{steps:07d}/model.shard-{n}-of-2.safetensors") for n in (1, 2)]
    for key, value in exported.items():
        assert torch.equal(value, torch.cat([shard[f"towers.{key}"] for shard in shards if f"towers.{key}" in shard])), key
