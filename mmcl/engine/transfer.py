"""Copies of the inputs of a step to the device of the training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmcl.types import Features, ImagePatches, Repeats, Tokens, Unaugmented, Views


def views_on(device: torch.device | str, views: Views) -> Views:
    """Copy views to a device; the copies may still be in progress on return. Images of uint8 become float32 in [0, 1] there,
    so that a quarter of the bytes travels.

    On CUDA the copies have a stream of their own, so that they need not wait for the computations that were started before.
    """
    target = torch.device(device)
    with _copy_stream(target):
        moved = {name: view.to(target, non_blocking=True) for name, view in views.items()}
    if target.type == "cuda":
        computing = torch.cuda.current_stream(target)
        computing.wait_stream(_side_stream(target))
        for part in (part for view in moved.values() for part in _tensors(view)):
            part.record_stream(computing)  # its memory is not used again before these computations have ended
    return {name: _as_float(view) for name, view in moved.items()}


def _copy_stream(target: torch.device) -> AbstractContextManager[object]:
    """Context in which copies to a device are started in the stream of the copies."""
    return torch.cuda.stream(_side_stream(target)) if target.type == "cuda" else nullcontext()


@lru_cache
def _side_stream(target: torch.device) -> Any:
    return torch.cuda.Stream(target)


def _tensors(view: Any) -> list[Tensor]:
    """Return the tensors of a view."""
    if isinstance(view, ImagePatches):
        return [*_tensors(view.pixels), view.kept]
    names = {Repeats: ("first", "text"), Tokens: ("ids", "mask"), Features: ("rows",), Unaugmented: ("pixels",)}.get(type(view))
    tensors = [view] if names is None else [getattr(view, name) for name in names]
    repeats = getattr(view, "repeats", None)
    return tensors if repeats is None else [*tensors, *_tensors(repeats)]


def _as_float(view: Any) -> Any:
    """Return bytes of pixels as float32 in [0, 1], augmented where that is still to be done; others unchanged."""
    if isinstance(view, ImagePatches):
        return replace(view, pixels=_as_float(view.pixels))
    if isinstance(view, Unaugmented):
        return view.augment(view.pixels.float().div_(255), epoch=view.epoch, index=view.index)
    is_bytes = not isinstance(view, Tokens | Features) and not view.is_floating_point()
    return view.float().div_(255) if is_bytes else view
