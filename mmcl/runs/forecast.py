"""What a fine-tuning will train, how much memory and time it will take, and how many pairs test it; said before it starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmcl.config.shipped import shipped_config, summary
from mmcl.engine.precision import settle_precision
from mmcl.engine.process_settings import processor_settings
from mmcl.interop.device import find_device
from mmcl.runs.finetuning import HELD_OUT, Choice
from mmcl.runs.footprint import free_bytes, measure
from mmcl.runs.memory import format_size
from mmcl.runs.plan import Plan, make_plan
from mmcl.runs.warnings import find_warnings
from mmcl.terminal import counted, printable_line, wrapped


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Facts of a run before it starts.

    Attributes:
        start: the model that it starts from, in words.
        preset: what the preset does, in words.
        data: training and held-out samples, in words.
        old: labels of the old data.
        tensors, all_tensors: numbers of trained tensors and of all.
        parameters, all_parameters: numbers of trained parameters and of all.
        steps, batch, epochs: length of the run.
        epoch_seconds: expected duration of an epoch, without reading the images.
        needed: expected bytes of a step.
        free: bytes that are free on the device; None if unknown.
        device: its type.
        micro_batch: pairs that are encoded at a time; None for the whole batch.
        warnings: what a run of the configuration also warns of when it starts, one line each.
        shortage: a warning of too little memory, or nothing.
    """

    start: str
    preset: str
    data: str
    old: tuple[str, ...]
    tensors: int
    all_tensors: int
    parameters: int
    all_parameters: int
    steps: int
    batch: int
    epochs: float
    epoch_seconds: float
    needed: int
    free: int | None
    device: str
    micro_batch: int | None
    warnings: tuple[str, ...]
    shortage: tuple[str, ...]

    def to_text(self, width: int, *, with_warnings: bool = True) -> str:
        """Format the facts, one per line and no line wider than `width`; without the warnings of a run that is to follow."""
        share = self.parameters / self.all_parameters
        pieces = f", {self.micro_batch} pairs at a time" if self.micro_batch else ""
        free = f"; {format_size(self.free)} are free" if self.free is not None else ""
        duration = format_seconds(self.epoch_seconds * self.epochs)
        lines = {
            "start": self.start,
            "preset": self.preset,
            "data": self.data,
            "old data": ", ".join(self.old) or "none, so that what is forgotten is not measured (--keep DATA)",
            "trained": f"{self.tensors:,} of {self.all_tensors:,} tensors, {self.parameters / 1e6:.3g} M of "
            f"{self.all_parameters / 1e6:.4g} M parameters ({share:.1%})",
            "length": f"{counted(self.steps, 'step')} of {self.batch:,} = {counted(round(self.epochs), 'epoch')}, about "
            f"{format_seconds(self.epoch_seconds)} each and {duration} in all",
            "memory": f"about {format_size(self.needed)} for a step{free} ({self.device}){pieces}",
        }
        rows = [wrapped(f"{name:<10}{printable_line(line)}", width, indent=" " * 10) for name, line in lines.items()]
        warnings = (*(self.warnings if with_warnings else ()), *self.shortage)
        return "\n".join([*rows, *(wrapped(f"warning: {printable_line(one)}", width, indent="  ") for one in warnings)])


def forecast(choice: Choice) -> tuple[Choice, Forecast]:
    """Plan a fine-tuning, measure a step, and choose how many pairs are encoded at a time.

    Returns:
        The choice with its `train.micro_batch`, unless a flag has set it, and the facts.

    Raises:
        UserError: training would refuse the configuration.
    """
    with processor_settings(choice.config.train.threads):
        return _forecast(choice)


def _forecast(choice: Choice) -> tuple[Choice, Forecast]:
    device = find_device()
    plan = make_plan(settle_precision(choice.config), 1)
    warnings = find_warnings(plan)
    tensors = [(p.numel(), p.requires_grad) for p in plan.method.parameters()]
    free, footprint = free_bytes(device), measure(plan, device)
    batch = plan.facts.global_batch
    micro = choice.config.train.micro_batch
    if micro is None and free is not None:
        micro = footprint.pairs_at_a_time(batch, free)
    encoded = min(micro or batch, batch)
    found = Forecast(
        start=_start(choice),
        preset=f"{choice.preset}: {summary(shipped_config(f'finetune/{choice.preset}'))}",
        data=_data(choice, plan),
        old=tuple(dict.fromkeys(one.label for one in choice.config.evaluate if one.keep)),
        tensors=sum(learns for _, learns in tensors),
        all_tensors=len(tensors),
        parameters=sum(n for n, learns in tensors if learns),
        all_parameters=sum(n for n, _ in tensors),
        steps=plan.facts.total_steps,
        batch=batch,
        epochs=plan.order.epochs(plan.facts.total_steps),
        epoch_seconds=plan.facts.steps_per_epoch * footprint.step_seconds(batch, micro),
        needed=footprint.bytes(encoded),
        free=free,
        device=_device(device),
        micro_batch=micro if micro is not None and micro < batch else None,
        warnings=tuple(warnings),
        shortage=tuple(footprint.shortage(encoded, free, "take --preset lora or last_blocks, or a smaller model")),
    )
    return choice.with_micro_batch(micro), found


def format_seconds(seconds: float) -> str:
    """Format a duration: 0.2 s, 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _start(choice: Choice) -> str:
    towers = choice.model.towers
    encoders = " + ".join(tower.encoder_name for tower in towers.values())  # type: ignore[misc]
    parameters = sum(p.numel() for p in towers.parameters())
    return f"{choice.config.init}: {encoders}, {parameters / 1e6:.4g} M parameters"


def _data(choice: Choice, plan: Plan) -> str:
    held = next((len(task.source) for task in plan.tasks if task.name == HELD_OUT), 0)
    held_out = f"{counted(held, 'pair')} held out for the report" if held else "none held out"
    return f"{counted(choice.pairs, 'pair')}: {len(plan.source):,} to train on, {held_out}"


def _device(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu, {counted(torch.get_num_threads(), 'thread')}"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
