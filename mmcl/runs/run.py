"""A complete run: build, train, save the model, evaluate it against its baselines, report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmcl.config import Config, TowerConfig, to_dict, to_yaml
from mmcl.data.batches.loader import StepBatches
from mmcl.data.source import Source
from mmcl.encoders.adapters import merge_adapters
from mmcl.encoders.given import given_encoders
from mmcl.encoders.tower import GIVEN
from mmcl.engine.checkpoint import (
    Checkpoint,
    checkpoint_of_step,
    latest_checkpoint,
    load_average,
    load_weights,
    set_newer_aside,
)
from mmcl.engine.guards import run_on_first_process, waiting_long
from mmcl.engine.launch import as_launched, start
from mmcl.engine.live_evaluation import LiveEvaluation
from mmcl.engine.log import track_figures
from mmcl.engine.precision import attention_precision, settle_precision
from mmcl.engine.process_settings import freed_memory_kept, processor_settings
from mmcl.engine.run_lock import locked
from mmcl.engine.trainer import FitResult, Trainer
from mmcl.engine.weight_average import averaged_tensors
from mmcl.errors import UserError
from mmcl.evaluate import Report
from mmcl.files.atomic import write_file
from mmcl.interop.merge import merge
from mmcl.interop.model import Model, build_model
from mmcl.interop.peft import save_peft
from mmcl.interop.save import save_model
from mmcl.logging import get_logger
from mmcl.methods.method import Method
from mmcl.runs.build import build_method, class_names
from mmcl.runs.components import check_components
from mmcl.runs.evaluation import evaluate_trained, write_report
from mmcl.runs.frozen_features import FeatureBatches, store_features, stored_name
from mmcl.runs.hard_batches import store_clusters
from mmcl.runs.plan import Plan, make_plan
from mmcl.runs.resume import (
    compare,
    identify,
    read_identity,
    refuse_existing_run,
    saved_precision,
    without_start_settings,
    write_identity,
)
from mmcl.runs.stored_teachers import store_rows
from mmcl.runs.towers import with_given_encoders
from mmcl.runs.warnings import find_warnings
from mmcl.terminal import counted

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = get_logger(__name__)

_BUSY = 2
"""Load per core above which several threads are slower than one: measured at 4, 1.3 times the time and twice the work."""


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        run_dir: directory with all results.
        report: the evaluation; empty on all processes but the first, and if nothing was evaluated.
    """

    run_dir: Path
    report: Report


def train(config: Config, *, towers: Mapping[str, nn.Module] | None = None) -> RunResult:
    """Train, save and evaluate a model as described by a configuration. Every process of a launch calls this.

    After SIGTERM or SIGUSR1 it saves a checkpoint at the end of the step and returns without a model or a report.

    Args:
        config: configuration of the run.
        towers: your own encoders, used instead of those that the configuration names: "image", a module from pixels, float32
            [B, C, H, W] in [0, 1], to features [B, F]; "text", a module from `mmcl.types.Tokens` to features [B, F]. A copy of
            each is trained with the head of the configuration. They cannot be rebuilt by name, so pass them to
            `mmcl.load_model` and to a resumed run, too.

    Progress is shown as a bar on standard error and logged at level INFO to the logger "mmcl". Python hides this level by
    default; `logging.basicConfig(level=logging.INFO)` shows it. Warnings are always shown.

    Raises:
        UserError: the user can fix the error; raised before training if it can be detected by then.

    Example:
        >>> from mmcl.config import load_config
        >>> flags = ["--train.steps", "1", "--evaluate", "[]", "--run_dir", "runs/one_step"]
        >>> train(load_config("simclr_digits", flags)).run_dir.as_posix()
        'runs/one_step'
    """
    with given_encoders(towers):
        return _launched(with_given_encoders(config, towers or {}))


def _launched(config: Config) -> RunResult:
    check_components(config)
    run_dir = Path(config.run_dir or "runs/unnamed")
    config = settle_precision(as_launched(config), saved_precision(run_dir) if config.resume else None)
    accelerator = start(config, str(run_dir))
    attention = attention_precision(config.train.precision, accelerator.device)
    lock = locked(run_dir) if accelerator.is_main_process else nullcontext()
    with processor_settings(config.train.threads), attention, lock:
        return _train(config, run_dir, accelerator)


def _train(config: Config, run_dir: Path, accelerator: Accelerator) -> RunResult:
    checkpoint = _checkpoint_to_continue(run_dir, config, accelerator)
    plan = make_plan(config, accelerator.num_processes)
    identity, differences = _identity(plan, run_dir, checkpoint, accelerator)
    batches = _batches(plan, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _open_run_dir(run_dir, plan.config, checkpoint, identity)
        _say_what_starts(plan, accelerator, checkpoint)
        for difference in differences:
            logger.info(f"changed on resume: {difference}")
        for warning in find_warnings(plan):
            logger.warning(warning)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("mmcl", config={"config": to_yaml(plan.config)})
    result = _fit(plan, batches, accelerator, checkpoint, identity)
    del batches  # and the decoded images with them
    report = Report()
    if result.is_complete:
        report = _finish(plan, run_dir, accelerator, result)
    elif accelerator.is_main_process:
        logger.warning(f"stopped by a signal after step {result.step} of {plan.facts.total_steps}; continue with --resume")
    accelerator.end_training()
    return RunResult(run_dir, report)


def _fit(
    plan: Plan, batches: FeatureBatches, accelerator: Accelerator, checkpoint: Checkpoint | None, identity: dict[str, Any]
) -> FitResult:
    """Run the training steps."""
    steps = plan.facts.total_steps
    evaluation = LiveEvaluation(plan.config, accelerator, plan.method, plan.tasks, total_steps=steps)
    trainer = Trainer(
        plan.config,
        accelerator,
        plan.method,
        batches,
        plan.order,
        evaluation,
        total_steps=steps,
        identity=identity,
        teachers=[one.teacher for one in plan.teachers],
    )
    with freed_memory_kept() if accelerator.device.type == "cpu" else nullcontext():
        return trainer.fit(checkpoint)


def _finish(plan: Plan, run_dir: Path, accelerator: Accelerator, result: FitResult) -> Report:
    """Write the model in the first process, and evaluate it in all. Returns the report; an empty one in all but the first."""
    config = plan.config
    with waiting_long():
        model, exported = _trained_model(plan, run_dir, accelerator, result)
    run_on_first_process(accelerator, lambda: _save_model(plan, run_dir, model, exported))
    if not config.evaluate:
        return Report()
    with waiting_long():
        report = evaluate_trained(config, model, plan.tasks)
    run_on_first_process(accelerator, lambda: _publish(report, run_dir, accelerator, result.step))
    return report


def _trained_model(plan: Plan, run_dir: Path, accelerator: Accelerator, result: FitResult) -> tuple[Model, dict[str, Any]]:
    """Return the model to export, and a description of its weights. The first process writes its adapters."""
    config, method = plan.config, plan.method
    if config.train.fsdp:
        method = build_method(config)  # whole again
        method.configure(plan.facts)
    exported = _choose_weights(config, run_dir, method.to(accelerator.device), result)
    if config.train.alpha == 1 and accelerator.is_main_process:
        _write_adapters(plan.asked, run_dir, method)
    merge_adapters(method.towers)
    model = build_model(method)
    if config.train.alpha < 1:
        model, exported["alpha"] = _mean_with_start(config, model, plan.source), config.train.alpha
    return model, exported


def _save_model(plan: Plan, run_dir: Path, model: Model, exported: dict[str, Any]) -> None:
    config, source = plan.config, plan.source
    provenance = {"config": to_dict(config), **exported, "data_fingerprint": source.fingerprint}
    save_model(
        run_dir / "model",
        model.towers,
        logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
        embedding=model.embedding,
        class_names=class_names(config, plan.method, source),
        matryoshka_dims=config.train.matryoshka.dims,
        provenance=provenance,
    )
    given = ", ".join(f"'{name}': MODULE" for name in model.towers if model.towers[name].spec.encoder == GIVEN)  # type: ignore[union-attr]
    if given:
        logger.info(f"this model cannot be rebuilt by name: mmcl.load_model({str(run_dir)!r}, towers={{{given}}})")
    if not config.evaluate:
        logger.info(f"not evaluated, as the configuration names no evaluator; the model is in {run_dir}/model")


def _publish(report: Report, run_dir: Path, accelerator: Accelerator, step: int) -> None:
    """Write the report, and give its metrics and figures to the trackers."""
    write_report(report, run_dir)
    trained = [metric for metric in report.metrics if metric.model == "trained" and metric.value is not None]
    accelerator.log({f"{metric.data}/{metric.metric}": metric.value for metric in trained}, step=step)
    if accelerator.trackers:
        track_figures(accelerator, step, {**report.figures, **report.draw_examples()})


def _mean_with_start(config: Config, trained: Model, source: Source) -> Model:
    """Return the mean of the initial and the trained weights, see `train.alpha`."""
    start = build_method(config).to(trained.device)
    merge_adapters(start.towers)
    alpha = config.train.alpha
    logger.info(f"the exported weights are {alpha:g} of the trained ones and {1 - alpha:g} of {config.init}")
    return merge([build_model(start), trained], [1 - alpha, alpha], statistics=source)


def _write_adapters(config: Config, run_dir: Path, method: Method) -> None:
    """Write the adapters of encoders of transformers for peft, beside the merged model."""
    for name, tower in method.towers.items():
        asked: TowerConfig | None = getattr(config, name)
        if asked is None or asked.adapt is None or tower.encoder_name != "transformers":
            continue
        if any(part.startswith(f"{name} ") for part in method.from_init):
            base = config.init.removeprefix("hf:") if config.init and config.init.startswith("hf:") else None
        else:
            base = asked.encoder.args.get("name") if asked.encoder else None
        try:
            save_peft(run_dir / "adapters" / name, tower, base=base)  # type: ignore[arg-type]
        except UserError as error:
            logger.warning(f"the adapters of the {name} tower are only in the merged model: {error}")
            continue
        logger.info(f"the adapters of the {name} tower, for peft, are in {run_dir}/adapters/{name}")


def _choose_weights(config: Config, run_dir: Path, method: Method, result: FitResult) -> dict[str, Any]:
    """Load the weights to export if the method does not hold them. Returns a description of them.

    Raises:
        UserError: their checkpoint is damaged.
    """
    best, ema = result.best, config.train.ema
    if best.metric is not None:
        logger.info(f"best {best.metric}: {best.value} at step {best.step} of {result.step}")
    exported: dict[str, Any] = {"export": "last", "steps": result.step}
    if config.train.export == "best":
        if best.step is None or best.value is None:
            logger.warning("no score was finite, so the last weights are exported")
        else:
            exported = {"export": "best", "steps": best.step, "score": {best.metric: best.value}}
    if config.train.fsdp or ema is not None or exported["steps"] != result.step:
        checkpoint = checkpoint_of_step(run_dir / "checkpoints", exported["steps"])
        load_weights(checkpoint, method)
        if ema is not None and load_average(checkpoint, averaged_tensors(method)):
            exported["ema"] = ema
    return exported


def _checkpoint_to_continue(run_dir: Path, config: Config, accelerator: Accelerator) -> Checkpoint | None:
    """Return the checkpoint to resume from; None for a new run.

    Raises:
        UserError: the run directory contains a run and `resume` is not set, `resume` is set and there is nothing to resume, or
            the processes see different checkpoints.
    """
    exists = (run_dir / "config.yaml").exists()
    if not config.resume:
        refuse_existing_run(run_dir)
        return None
    checkpoint = latest_checkpoint(run_dir / "checkpoints")
    if checkpoint is None and (not exists or any((run_dir / "checkpoints").glob("step-*"))):
        raise UserError(f"{run_dir} has no checkpoint to resume from: start without --resume, in another --run_dir")
    step = checkpoint.step if checkpoint else 0  # stopped before the first checkpoint
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise UserError(f"{run_dir}: the processes see different checkpoints, of steps {steps}; put it where all see the same")
    return checkpoint


def _identity(
    plan: Plan, run_dir: Path, checkpoint: Checkpoint | None, accelerator: Accelerator
) -> tuple[dict[str, Any], list[str]]:
    """Return what the run depends on, and how this differs from the saved run.

    Raises:
        UserError: the differences do not allow the run to continue.
    """
    config = plan.config
    identity = identify(plan, accelerator)
    if not config.resume:
        return identity, []
    saved = read_identity(run_dir, checkpoint)
    differences = compare(saved, identity, config)
    # Without `verify_data` the saved value is not computed again; it is still valid.
    identity["all_images"] = identity["all_images"] or saved.get("all_images")
    return identity, differences


def _open_run_dir(run_dir: Path, config: Config, checkpoint: Checkpoint | None, identity: dict[str, Any]) -> None:
    if checkpoint:
        set_newer_aside(checkpoint)
    write_identity(run_dir, identity)  # written before the configuration, so every folder with one can be compared
    write_file(run_dir / "config.yaml", to_yaml(without_start_settings(config)))


def _batches(plan: Plan, accelerator: Accelerator) -> FeatureBatches:
    config, method = plan.config, plan.method
    if plan.hard_batches:
        store_clusters(plan.hard_batches, plan.source, accelerator)
    frozen = store_features(config, method, plan.source, accelerator)
    share = config.train.batch_size // accelerator.num_processes
    text: Any = method.towers["text"].encoder if "text" in method.towers else None
    batches = StepBatches(
        plan.source,
        plan.order,
        images={} if "image" in frozen else plan.views,
        # Texts are always read, because samples with equal captions are positives.
        texts=[view for view, kind in method.views.items() if kind == "text"],
        tokenizer=text.tokenizer if text else None,
        cache=config.data.cache,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        by_length=(config.train.micro_batch or share) < share,
        augment_on=config.data.augment_on,
        progress=accelerator.is_main_process,
        stored={
            **store_rows(plan.teachers, plan.source, Path(config.run_dir or ""), accelerator),
            **{stored_name(kind): features.rows for kind, features in frozen.items()},
        },
        caption_ids=frozen["text"].caption_ids if "text" in frozen else None,
        fewer=plan.fewer,
    )
    return FeatureBatches(batches, {view: kind for view, kind in method.views.items() if kind in frozen})


def _say_what_starts(plan: Plan, accelerator: Accelerator, checkpoint: Checkpoint | None) -> None:
    config, order, steps = plan.config, plan.order, plan.facts.total_steps
    parameters = sum(p.numel() for p in plan.method.parameters() if p.requires_grad)
    device = accelerator.device.type
    each = " each" if accelerator.num_processes > 1 else ""
    threads = f", {counted(torch.get_num_threads(), 'thread')}{each}" if device == "cpu" else ""
    logger.info(f"{config.method.name}: {parameters / 1e6:.2f} M parameters, {order.size:,} samples an epoch")
    logger.info(f"{counted(steps, 'step')} of {order.batch_size} = {order.epochs(steps):.1f} epochs, {config.train.precision}")
    if plan.method.from_init:
        logger.info(f"starting from {config.init}: {', '.join(plan.method.from_init)}")
    for teacher in plan.teachers:
        logger.info(teacher.describe())
    if plan.fewer:
        logger.info(f"the image encoder sees {plan.fewer.describe()}")
    spread = ", the weights spread over them" if config.train.fsdp and accelerator.num_processes > 1 else ""
    logger.info(
        f"{accelerator.num_processes} process{'es' if accelerator.num_processes > 1 else ''} on {device}{threads}{spread}"
    )
    if device == "cpu":
        say_if_busy(torch.get_num_threads())
    logger.info(f"continuing from {checkpoint.path}" if checkpoint else f"writing to {config.run_dir}")


def say_if_busy(threads: int) -> None:
    """Threads that share cores with other programs wait for each other in every operation."""
    cores, load = os.cpu_count() or 1, 0.0
    with suppress(AttributeError, OSError):  # not on Windows
        load = os.getloadavg()[0]
    if threads > 1 and load > _BUSY * cores:
        logger.info(f"the machine is busy (load {load:.0f} on {cores} cores): --train.threads 1 is faster")
