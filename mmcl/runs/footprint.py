"""Memory and time of a training step, measured on a few pairs before the run, and the memory that is free."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mmcl.config import Config
from mmcl.data.batches.fewer_tokens import FewerTokens
from mmcl.engine.precision import attention_precision
from mmcl.runs.checks import two_images
from mmcl.runs.fewer_tokens import first_patches
from mmcl.runs.frozen_features import has_fixed_inputs
from mmcl.runs.memory import Memory, count_memory, format_size
from mmcl.runs.plan import Plan
from mmcl.runs.stored_inputs import stored_inputs
from mmcl.types import Features, Views

_PAIRS, _MOST, _SECONDS = 4, 256, 0.2
"""Pairs that are encoded to measure, at first and at most, and the duration of a pass from which on there are enough."""
_READ = 64
"""Captions among which the longest are taken."""
_SPARE = 1.25
"""Factor for buffers within a step, which exist besides what the backward pass needs."""
_ONE_MORE_PASS = 4 / 3
"""Factor of a step for another forward pass, where a backward pass takes as long as two."""
_SHARE = 0.6
"""Share of the free memory that a step may take; the rest is for decoded images, the evaluation and other programs."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What a step needs.

    Attributes:
        memory: bytes of weights and their copies, which do not grow with the batch.
        weights_are_there: whether the weights are in the memory already, as on a CPU, so that a step needs only what is added.
        per_pass: bytes that a pass keeps for the backward pass whatever the batch, such as adapted weights.
        per_pair: bytes for each pair that is encoded at a time.
        seconds: of one forward and backward pass, for each pair; the mean over the run where its steps differ.
    """

    memory: Memory
    weights_are_there: bool
    per_pass: int
    per_pair: int
    seconds: float

    def bytes(self, pairs: int) -> int:
        """Memory of a step that encodes this number of pairs at a time."""
        weights = 0 if self.weights_are_there else self.memory.weights
        return weights + self.memory.added + self.per_pass + pairs * self.per_pair

    def pairs_at_a_time(self, batch: int, free: int) -> int | None:
        """Largest power of two of pairs for which a step takes at most 60 % of the free memory; None if the batch fits."""
        room = _SHARE * free - self.bytes(0)
        if batch * self.per_pair <= room:
            return None
        fitting = max(1, int(room // max(1, self.per_pair)))
        return 1 << fitting.bit_length() - 1

    def shortage(self, pairs: int, free: int | None, fix: str) -> list[str]:
        """Return a warning if a step that encodes this number of pairs at a time needs more than is free, else nothing."""
        if free is None or self.bytes(pairs) <= free:
            return []
        return [f"a step needs {format_size(self.bytes(pairs))}, and {format_size(free)} are free: {fix}"]

    def step_seconds(self, batch: int, micro_batch: int | None) -> float:
        """Duration of a step; micro-batches cost one more forward pass, about a third."""
        in_pieces = micro_batch is not None and micro_batch < batch
        return batch * self.seconds * (_ONE_MORE_PASS if in_pieces else 1)


def measure(plan: Plan, device: torch.device) -> Footprint:
    """Encode a few black images and the longest of the first captions, forward and backward, on a device.

    The method of the plan is moved there; its weights do not change.
    """
    method = plan.method.to(device).train()
    fewer = plan.fewer
    largest = fewer if fewer and fewer.until == fewer.steps else None  # what the steps see that need the most memory
    few, _ = _passed(method, _inputs(plan, _PAIRS // 2, device, largest), plan.config)  # also allocates what stays
    pairs = _PAIRS
    while True:
        many, seconds = _passed(method, _inputs(plan, pairs, device, largest), plan.config)
        if seconds > _SECONDS or 2 * pairs > min(_MOST, plan.facts.global_batch):
            break
        pairs *= 2
    per_pair = max(0, many - few) / (pairs - _PAIRS // 2)
    if fewer and not largest:
        _, in_most = _passed(method, _inputs(plan, pairs, device, fewer), plan.config)
        share = fewer.until / fewer.steps
        seconds = share * in_most + (1 - share) * seconds
    if plan.config.train.anchor.features:  # a forward pass through the frozen start
        seconds *= _ONE_MORE_PASS
    return Footprint(
        memory=count_memory(plan),
        weights_are_there=device.type == "cpu",
        per_pass=int(max(0, many - pairs * per_pair)),
        per_pair=int(_SPARE * per_pair),
        seconds=seconds / pairs,
    )


def _passed(method: nn.Module, views: Views, config: Config) -> tuple[int, float]:
    """Run a forward and a backward pass. Returns the bytes kept in between, without weights, and the seconds."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*method.parameters(), *method.buffers())}
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            kept += storage.nbytes()
        return tensor

    device = next(method.parameters()).device
    start = time.monotonic()
    dtype = _DTYPES.get(config.train.precision)
    with (
        torch.random.fork_rng(devices=[]),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
        attention_precision(config.train.precision, device),
        saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        rows = method(views)
    total = sum(value.float().sum() for value in rows.values() if value.requires_grad)
    if isinstance(total, Tensor):
        total.backward()
    method.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return kept, time.monotonic() - start


def _inputs(plan: Plan, count: int, device: torch.device, fewer: FewerTokens | None) -> Views:
    """Return inputs of every view; of images all, or what is seen in the steps with fewer tokens."""
    found: dict[str, Any] = {}
    stored = stored_inputs(plan.source)
    for name, kind in plan.method.views.items():
        if kind in stored:
            found[name] = Features(torch.zeros(count, plan.method.tower(name).encoder.feature_dim, device=device))
            continue
        if kind == "image":
            view = fewer.views.get(name, plan.views[name]) if fewer else plan.views[name]
            image_BCHW = two_images(view, plan.config.train.seed)[:1].repeat(count, 1, 1, 1).to(device)
            found[name] = first_patches(image_BCHW, fewer.counts[name]) if fewer and fewer.counts else image_BCHW
        else:
            found[name] = _longest_texts(plan, name, count).to(device)
        tower = plan.method.tower(name)
        if tower.frozen and has_fixed_inputs(kind, plan.config, plan.source):
            with torch.no_grad():
                found[name] = tower.features(found[name])  # which a run computes once
    return found


def _longest_texts(plan: Plan, view: str, count: int) -> Any:
    encoder: Any = plan.method.tower(view).encoder
    rows = range(min(len(plan.source), _READ))
    texts = sorted((caption for row in rows for caption in plan.source[row].captions), key=len)[-count:] or ["a photo"]
    return encoder.tokenizer((texts * count)[:count])


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device, for this process; None if it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    found = [value for value in (_free_on_linux(), _free_in_container()) if value is not None]
    return min(found, default=None)


def _free_on_linux() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    facts = {line.partition(":")[0]: line.split() for line in lines}
    return 1024 * int(facts["MemAvailable"][1]) if "MemAvailable" in facts else None


def _free_in_container() -> int | None:
    """Memory below the limit of the control group, version 2, if there is one."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return int(limit) - int(used) if limit.isdecimal() else None
