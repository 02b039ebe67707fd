"""Diagnosis of a run before it starts: its sizes, its expected first loss, and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmcl.config import Config, TowerConfig
from mmcl.core.cached_backward import split_views
from mmcl.encoders.adapters import adapters
from mmcl.encoders.tower import Tower
from mmcl.engine.compilation import compiled_in_words
from mmcl.engine.parameter_groups import ParameterGroup, group_parameters
from mmcl.engine.precision import precision_in_words, settle_precision
from mmcl.engine.schedule import warmup_steps
from mmcl.interop.device import find_device
from mmcl.methods.method import Method
from mmcl.runs.footprint import Footprint, free_bytes, measure
from mmcl.runs.memory import format_size
from mmcl.runs.plan import make_plan
from mmcl.runs.warnings import find_warnings, warnings_of_captions, warnings_of_shared_images
from mmcl.terminal import counted, printable_line, shortened, terminal_width, wrapped

_INDENT = 14
"""Columns of the names of facts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupFacts:
    """A group of parameters with the same options.

    Attributes:
        name: what they are, in words.
        tensors, parameters: their numbers.
        learning_rate: peak learning rate.
        weight_decay: weight decay.
    """

    name: str
    tensors: int
    parameters: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """Sizes of a run, and warnings about it.

    Attributes:
        method: name of the method.
        samples: number of training samples.
        processes, global_batch: number of processes, and pairs per step over all processes.
        share: pairs per step in one process.
        pieces: number of micro-batches in which a process encodes its share.
        steps, epochs: length of the run.
        negatives: number of negatives per row; None if the method does not state it.
        first_loss: expected loss of an untrained model; None if the method does not state it.
        loss_bytes: float32 bytes of the embeddings, their gradients and stored scores (at most as many as embeddings) in one
            process; the other scores are computed tile by tile and not stored.
        whole_bytes: the same if all scores were stored.
        optimizer: name of the optimizer.
        learning_rate, muon_learning_rate: peak learning rates; the second is None without Muon.
        warmup_steps: number of warm-up steps.
        probe_steps: number of steps in which only what follows the last blocks is trained, see `optim.probe`.
        trainable, frozen: numbers of parameters.
        fewer_tokens: what the encoder sees of an image until when, in words; "" if it sees all in every step.
        frozen_encoders: names of the towers with frozen encoders, as in "image", or "image: 6 blocks" or "image: all below the
            last 2 blocks" for a part.
        adapters: of each tower that has some, the number of adapters, their parameters, and the share of the encoder that these
            are, in words.
        precision: precision of the encoders and of products of matrices, in words.
        compiled: what is compiled, in words; "" without `train.compile`.
        footprint: bytes of weights, gradients, optimizer state, copies and activations of one process. Those of activations
            are measured on a few samples.
        encoded: samples that one process encodes at a time.
        needed: bytes of a step in one process.
        free: bytes that are free on the device; None if unknown.
        device: its type.
        advice: what would save memory of activations, in words.
        groups: groups of parameters with the same options.
        warnings: one line each.
    """

    method: str
    samples: int
    processes: int
    global_batch: int
    share: int
    pieces: int
    steps: int
    epochs: float
    negatives: int | None
    first_loss: float | None
    loss_bytes: int
    whole_bytes: int
    optimizer: str
    learning_rate: float
    muon_learning_rate: float | None
    warmup_steps: int
    probe_steps: int
    fewer_tokens: str
    trainable: int
    frozen: int
    frozen_encoders: tuple[str, ...]
    adapters: tuple[str, ...]
    precision: str
    compiled: str
    footprint: Footprint
    encoded: int
    needed: int
    free: int | None
    device: str
    advice: str
    groups: tuple[GroupFacts, ...]
    warnings: tuple[str, ...]

    def to_text(self) -> str:
        """Format the diagnosis, one finding per line."""
        names = f" ({', '.join(self.frozen_encoders)})" if self.frozen_encoders else ""  # A frozen teacher is not an encoder.
        locked = f", {self.frozen / 1e6:.2f} M frozen{names}" if self.frozen else ""
        pieces = f" in {self.pieces} micro-batches" if self.pieces > 1 else ""
        muon = f", Muon {self.muon_learning_rate:g}," if self.muon_learning_rate is not None else ""
        lines = {
            "method": f"{self.method}, {self.trainable / 1e6:.2f} M parameters learn{locked}",
            "data": f"{self.samples:,} samples",
            "length": f"{counted(self.steps, 'step')} = {self.epochs:.1f} epochs",
            "global batch": f"{self.global_batch:,} = {self.processes} x {self.share:,}{pieces}",
            "negatives": f"{self.negatives:,} per row" if self.negatives is not None else "not known",
            "first loss": f"about {self.first_loss:.3f}" if self.first_loss is not None else "not known",
            "precision": self.precision,
            "loss memory": f"{format_size(self.loss_bytes)} a process ({format_size(self.whole_bytes)} with all scores stored)",
            "learning rate": f"{self.learning_rate:g} ({self.optimizer}){muon} "
            f"after {counted(self.warmup_steps, 'step')} of warm-up",
        }
        if self.compiled:
            lines["compiled"] = self.compiled
        lines |= self._memory_lines()
        if self.fewer_tokens:
            lines["fewer tokens"] = self.fewer_tokens
        if self.probe_steps:
            lines["probe"] = f"the blocks and embeddings of the encoders join after {counted(self.probe_steps, 'step')}"
        rows = [
            (one.name, f"{one.tensors:,}", f"{one.parameters:,}", f"{one.learning_rate:.3g}", f"{one.weight_decay:g}")
            for one in self.groups
        ]
        header = ("trained", "tensors", "parameters", "lr", "decay")
        return "\n".join(
            [
                *(wrapped(f"{name:<{_INDENT}}{line}", terminal_width(), indent=" " * _INDENT) for name, line in lines.items()),
                *_columns([header, *rows]),
                *(wrapped(f"warning: {printable_line(warning)}", terminal_width()) for warning in self.warnings),
            ]
        )

    def _memory_lines(self) -> dict[str, str]:
        """What needs how much memory; the last line is the sum."""
        memory, one = self.footprint.memory, self.footprint
        lines = {"weights": f"{format_size(memory.weights)}, with gradients and optimizer {format_size(memory.training)} more"}
        if self.adapters:
            lines["adapters"] = f"{'; '.join(self.adapters)}: {format_size(memory.adapters)} of these"
        copies = {"moving average": memory.average, "anchors": memory.anchors}
        if any(copies.values()):
            lines["copies"] = ", ".join(f"{name} {format_size(size)}" for name, size in copies.items() if size)
        always = f" and {format_size(one.per_pass)} for any number" if one.per_pass else ""
        in_all = format_size(one.per_pass + self.encoded * one.per_pair)
        lines["activations"] = (
            f"about {format_size(one.per_pair)} a sample{always}, {in_all} for {self.encoded:,} at a time{self.advice}"
        )
        free = f"; {format_size(self.free)} are free" if self.free is not None else ""
        besides = " besides the weights" if one.weights_are_there else ""
        lines["memory"] = f"about {format_size(self.needed)} for a step{besides}{free} ({self.device})"
        return lines


def diagnose(config: Config, processes: int = 1) -> Diagnosis:
    """Examine a configuration as if launched on `processes` processes; reads the data but does not train.

    Raises:
        UserError: training would refuse the configuration before building anything, or there are fewer samples than processes.
    """
    plan, device = make_plan(settle_precision(config), processes), find_device()
    config, method, facts = plan.config, plan.method, plan.facts
    batch, steps = facts.global_batch, facts.total_steps
    said = method.describe(batch)
    share = batch // processes
    width = method.tower(next(iter(method.views))).embed_dim
    rows = batch if processes == 1 else batch + share
    embedding_bytes = 4 * rows * len(method.views) * width
    scores_bytes = 4 * share * batch * len(method.views)
    frozen = tuple(filter(None, (_frozen_part(name, getattr(config, name), tower) for name, tower in method.towers.items())))  # type: ignore[arg-type]
    numbers = [(p.numel(), p.requires_grad) for p in method.parameters()]
    warnings = [*find_warnings(plan), *warnings_of_captions(plan), *warnings_of_shared_images(plan)]
    free, footprint = free_bytes(device), measure(plan, device)
    encoded = min(config.train.micro_batch or share, share)
    return Diagnosis(
        method=config.method.name,
        samples=len(plan.source),
        processes=processes,
        global_batch=batch,
        share=share,
        pieces=len(split_views({"rows": torch.empty(share)}, config.train.micro_batch)),
        steps=steps,
        epochs=plan.order.epochs(steps),
        negatives=said.negatives,
        first_loss=said.first_loss,
        loss_bytes=2 * embedding_bytes + min(embedding_bytes, scores_bytes),
        whole_bytes=2 * embedding_bytes + scores_bytes,
        optimizer=config.optim.name,
        learning_rate=config.optim.lr,
        muon_learning_rate=config.optim.muon_lr,
        warmup_steps=warmup_steps(steps, config.optim.warmup),
        probe_steps=round(config.optim.probe * steps),
        fewer_tokens=plan.fewer.describe() if plan.fewer else "",
        trainable=sum(n for n, learns in numbers if learns),
        frozen=sum(n for n, learns in numbers if not learns),
        frozen_encoders=frozen,
        adapters=tuple(filter(None, (_adapters(name, tower) for name, tower in method.towers.items()))),  # type: ignore[arg-type]
        precision=precision_in_words(config.train),
        compiled=compiled_in_words(method) if config.train.compile else "",
        footprint=footprint,
        encoded=encoded,
        needed=footprint.bytes(encoded),
        free=free,
        device=device.type,
        advice=_advice(config, method),
        groups=tuple(map(_facts, group_parameters(method, config.optim))),
        warnings=(*warnings, *footprint.shortage(encoded, free, _what_fits(footprint, encoded, free or 0))),
    )


def _frozen_part(name: str, config: TowerConfig | None, tower: Tower) -> str:
    """Name the frozen part of an encoder; "" if there is none."""
    if tower.frozen or config is None or not config.freeze:
        return name if tower.frozen else ""
    count = counted(abs(config.freeze), "block")
    return f"{name}: {count}" if config.freeze > 0 else f"{name}: all below the last {count}"


def _advice(config: Config, method: Method) -> str:
    if config.train.checkpoint_activations:
        return "; only inputs of blocks are kept, and the rest is computed again (one more pass)"
    if any(True for _ in adapters(method)):
        return "; as in full training, see checkpoint_activations and micro_batch"
    return ""


def _what_fits(footprint: Footprint, encoded: int, free: int) -> str:
    fitting = footprint.pairs_at_a_time(encoded, free)
    if fitting is not None and footprint.bytes(fitting) <= free:
        return f"set train.micro_batch to {fitting}, which changes no gradient"
    return "freeze a part, take adapters (image.adapt, text.adapt), or a smaller model"


def _adapters(name: str, tower: Tower) -> str:
    """Describe the adapters of a tower; "" if it has none."""
    found = list(adapters(tower.encoder))
    if not found:
        return ""
    size = sum(p.numel() for _, adapter in found for p in adapter.parameters())
    below = sum(p.numel() for p in tower.encoder.parameters()) - size
    return f"{name} {len(found)} ({size / 1e6:.2g} M, {size / below:.1%})"


def _facts(group: ParameterGroup) -> GroupFacts:
    return GroupFacts(
        name=group.name,
        tensors=len(group.parameters),
        parameters=sum(parameter.numel() for parameter in group.parameters),
        learning_rate=group.lr,
        weight_decay=group.weight_decay,
    )


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows as lines as wide as a terminal: numbers to the right, names before them cut off if they are too long."""
    names, *numbers = zip(*rows, strict=True)
    columns = [[cell.rjust(max(map(len, column))) for cell in column] for column in numbers]
    room = terminal_width() - sum(len(column[0]) + 2 for column in columns)
    short = [shortened(printable_line(name), room) for name in names]
    width = max(map(len, short))
    return ["  ".join([name.ljust(width), *cells]) for name, *cells in zip(short, *columns, strict=True)]
