"""A whole run: build, train, save the model, evaluate it next to its baselines, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmcl.config import Config, to_dict, to_yaml
from mmcl.data.batches.loader import StepBatches
from mmcl.data.batches.order import BatchOrder
from mmcl.data.source import Source
from mmcl.encoders.given import given_encoders
from mmcl.encoders.tower import GIVEN
from mmcl.engine.checkpoint import Checkpoint, checkpoint_of_step, latest_checkpoint, load_weights, set_newer_aside
from mmcl.engine.guards import done_by_the_first
from mmcl.engine.launch import as_launched, keep_freed_memory, start
from mmcl.engine.live_evaluation import LiveEvaluation
from mmcl.engine.run_lock import locked
from mmcl.engine.trainer import Ending, Trainer
from mmcl.errors import UserError
from mmcl.evaluate import Report, Task
from mmcl.files.atomic import write_file
from mmcl.interop.model import build_model
from mmcl.interop.save import save_model
from mmcl.methods.method import Method
from mmcl.runs.build import build_method, class_names, image_views, run_facts
from mmcl.runs.build_data import build_order, build_training_data
from mmcl.runs.checks import check_run
from mmcl.runs.components import check_components
from mmcl.runs.doctor import find_warnings, fit_batch
from mmcl.runs.evaluation import build_tasks, evaluate_run, write_report
from mmcl.runs.frozen_features import FeatureBatches, store_features
from mmcl.runs.resume import compare, identify, lasting, read_identity, write_identity
from mmcl.runs.towers import with_given_encoders
from mmcl.terminal import say

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind.

    Attributes:
        run_dir: where everything lies.
        report: the evaluation; empty on all processes but the first, and where nothing was evaluated.
    """

    run_dir: Path
    report: Report


def train(config: Config, *, towers: Mapping[str, nn.Module] | None = None) -> RunResult:
    """Trains, saves and evaluates a model as a configuration says. Every process of a launch calls this.

    After SIGTERM or SIGUSR1 it saves a checkpoint at the end of the step and returns without a model or a report.

    Args:
        config: the run.
        towers: encoders of your own in place of those that the configuration names: "image", a module from pixels, float32
            [B, C, H, W] in [0, 1], to features [B, F]; "text", one from `mmcl.types.Tokens` to [B, F]. A copy of each is
            trained under the head of the configuration. No name builds them again: give them to `mmcl.load_model` and to a
            resumed run, too.

    Raises:
        UserError: anything that the user can mend; before training where it can be known by then.
    """
    with given_encoders(towers):
        return _launched(with_given_encoders(config, towers or {}))


def _launched(config: Config) -> RunResult:
    check_components(config)
    config = as_launched(config)
    run_dir = Path(config.run_dir or "runs/unnamed")
    accelerator = start(config.train, str(run_dir))
    with locked(run_dir) if accelerator.is_main_process else nullcontext():
        return _train(config, run_dir, accelerator)


def _train(config: Config, run_dir: Path, accelerator: Accelerator) -> RunResult:
    checkpoint = _checkpoint_to_continue(run_dir, config, accelerator)
    is_main = accelerator.is_main_process
    source, held_out = build_training_data(config)
    tasks = build_tasks(config.evaluate, config.data.root, source, held_out)
    asked, config = config, fit_batch(config, len(source), accelerator.num_processes)
    method = build_method(config)
    check_run(config, method, source, tasks, accelerator.num_processes)
    order = build_order(config, source)
    facts = run_facts(config, order)
    total_steps = facts.total_steps
    method.configure(facts)
    identity, differences = _identity(config, run_dir, source, checkpoint, accelerator)
    batches = _batches(config, source, order, method, accelerator)
    accelerator.wait_for_everyone()
    if is_main:
        _open_run_dir(run_dir, config, checkpoint, identity)
        _say_what_starts(config, order, method, total_steps, accelerator, checkpoint)
        for difference in differences:
            say(f"changed on resume: {difference}")
        for warning in find_warnings(asked, method, source, accelerator.num_processes, total_steps):
            say(f"warning: {warning}")
    accelerator.wait_for_everyone()
    accelerator.init_trackers("mmcl", config={"config": to_yaml(config)})
    on_cpu = accelerator.device.type == "cpu"
    if on_cpu:
        keep_freed_memory(True)
    evaluation = LiveEvaluation(config, accelerator, method, tasks, total_steps=total_steps)
    trainer = Trainer(config, accelerator, method, batches, order, evaluation, total_steps=total_steps, identity=identity)
    ending = trainer.fit(checkpoint)
    del batches, trainer  # and the decoded pictures with them
    if on_cpu:
        keep_freed_memory(False)
    report = None
    if ending.is_complete:
        report = done_by_the_first(accelerator, lambda: _finish(config, run_dir, accelerator, method, source, tasks, ending))
    elif is_main:
        say(f"stopped by a signal after step {ending.step} of {total_steps}; continue with --resume")
    accelerator.end_training()
    return RunResult(run_dir, report or Report())


def _finish(
    config: Config,
    run_dir: Path,
    accelerator: Accelerator,
    method: Method,
    source: Source,
    tasks: Sequence[Task],
    ending: Ending,
) -> Report:
    """Writes the model, and evaluates it."""
    if config.train.fsdp:
        facts = run_facts(config, build_order(config, source))
        method = build_method(config)  # whole again
        method.configure(facts)
    exported = _choose_weights(config, run_dir, method.to(accelerator.device), ending)
    model = build_model(method)
    provenance = {"config": to_dict(config), **exported, "data_fingerprint": source.fingerprint}
    save_model(
        run_dir / "model",
        model.towers,
        logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
        embedding=model.embedding,
        class_names=class_names(config, method, source),
        provenance=provenance,
    )
    given = ", ".join(f"'{name}': MODULE" for name in model.towers if model.towers[name].spec.encoder == GIVEN)  # type: ignore[union-attr]
    if given:
        say(f"no name builds this model again: mmcl.load_model({str(run_dir)!r}, towers={{{given}}})")
    if not config.evaluate:
        return Report()
    report = evaluate_run(config, model, tasks)
    write_report(report, run_dir)
    return report


def _choose_weights(config: Config, run_dir: Path, method: Method, ending: Ending) -> dict[str, Any]:
    """Loads the weights that are to be exported, where the method does not hold them. Returns which they are.

    Raises:
        UserError: their checkpoint is damaged.
    """
    best = ending.best
    if best.metric is not None:
        say(f"best {best.metric}: {best.value} at step {best.step} of {ending.step}")
    exported: dict[str, Any] = {"export": "last", "steps": ending.step}
    if config.train.export == "best":
        if best.step is None or best.value is None:
            say("warning: no score was a number, so that the last weights are exported")
        else:
            exported = {"export": "best", "steps": best.step, "score": {best.metric: best.value}}
    if config.train.fsdp or exported["steps"] != ending.step:
        load_weights(checkpoint_of_step(run_dir / "checkpoints", exported["steps"]), method)
    return exported


def _checkpoint_to_continue(run_dir: Path, config: Config, accelerator: Accelerator) -> Checkpoint | None:
    """What to resume from; None for a new run.

    Raises:
        UserError: the run directory holds a run and `resume` is not set, it is set and there is nothing to resume, or the
            processes do not see the same.
    """
    exists = (run_dir / "config.yaml").exists()
    if exists and not config.resume:
        raise UserError(f"{run_dir} holds a run already: continue it with --resume, or give another --run_dir")
    if not config.resume:
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
    config: Config, run_dir: Path, source: Source, checkpoint: Checkpoint | None, accelerator: Accelerator
) -> tuple[dict[str, Any], list[str]]:
    """What the run depends on, and how that differs from what it depended on when it was stopped.

    Raises:
        UserError: it may not be continued so.
    """
    identity = identify(config, source, accelerator)
    if not config.resume:
        return identity, []
    saved = read_identity(run_dir, checkpoint)
    differences = compare(saved, identity, config)
    # Not computed again without `verify_data`, and no less true.
    identity["all_images"] = identity["all_images"] or saved.get("all_images")
    return identity, differences


def _open_run_dir(run_dir: Path, config: Config, checkpoint: Checkpoint | None, identity: dict[str, Any]) -> None:
    if checkpoint:
        set_newer_aside(checkpoint)
    write_identity(run_dir, identity)  # first: a folder with a configuration is a run, and every run can be compared
    write_file(run_dir / "config.yaml", to_yaml(lasting(config)))


def _batches(config: Config, source: Source, order: BatchOrder, method: Method, accelerator: Accelerator) -> FeatureBatches:
    files = store_features(config, method, source, accelerator)
    images = image_views(config, method)
    share = config.train.batch_size // accelerator.num_processes
    text: Any = method.towers["text"].encoder if "text" in method.towers else None
    batches = StepBatches(
        source,
        order,
        images={} if "image" in files else images,
        # Texts are read in any case: what belongs together goes by captions.
        texts=[view for view, kind in method.views.items() if kind == "text"],
        tokenizer=text.tokenizer if text else None,
        cache=config.data.cache,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        by_length=(config.train.micro_batch or share) < share,
        progress=accelerator.is_main_process,
    )
    return FeatureBatches(batches, {view: files[kind] for view, kind in method.views.items() if kind in files})


def _say_what_starts(
    config: Config, order: BatchOrder, method: Method, steps: int, accelerator: Accelerator, checkpoint: Checkpoint | None
) -> None:
    parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
    device = accelerator.device.type
    threads = f", {torch.get_num_threads()} threads each" if device == "cpu" else ""
    say(f"{config.method.name}: {parameters / 1e6:.2f} M parameters, {order.size:,} samples an epoch")
    say(f"{steps:,} steps of {order.batch_size} = {order.epochs(steps):.1f} epochs, {config.train.precision}")
    spread = ", the weights spread over them" if config.train.fsdp and accelerator.num_processes > 1 else ""
    say(f"{accelerator.num_processes} process{'es' if accelerator.num_processes > 1 else ''} on {device}{threads}{spread}")
    say(f"continuing from {checkpoint.path}" if checkpoint else f"writing to {config.run_dir}")
