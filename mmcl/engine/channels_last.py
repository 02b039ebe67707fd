"""Channels-last memory for the convolutions of image encoders (`train.channels_last`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmcl.encoders.tower import ImageEncoder, Tower
from mmcl.errors import UserError


class ChannelsLast:
    """Context in which pixels and the weights of convolutions of image encoders, including those of teachers, lie in
    channels-last memory: the values of all channels of a pixel side by side, as kernels of convolutions read them.

    The weights are converted in place, on construction, and back on exit. Checkpoints are written in the usual layout.

    Args:
        method: with its towers.
    """

    def __init__(self, method: nn.Module):
        self._encoders = [tower.encoder for tower in method.modules() if isinstance(tower, Tower) and has_convolutions(tower)]
        self._hooks = [encoder.register_forward_pre_hook(_channels_last) for encoder in self._encoders]
        self._convert(torch.channels_last)

    def __enter__(self) -> ChannelsLast:
        return self

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._convert(torch.contiguous_format)

    def _convert(self, layout: torch.memory_format) -> None:
        for encoder in self._encoders:
            encoder.to(memory_format=layout)


def check_channels_last(method: nn.Module, *, fsdp: bool) -> None:
    """Raise UserError where `train.channels_last` has no effect or cannot work."""
    if fsdp:
        raise UserError(
            "train.channels_last does not work with train.fsdp, whose shards have a layout of their own: set one to false"
        )
    towers = [tower for tower in method.modules() if isinstance(tower, Tower)]
    if not any(map(has_convolutions, towers)):
        names = ", ".join(tower.encoder_name for tower in towers)
        raise UserError(
            f"train.channels_last has no effect, because no encoder has convolutions beyond that of its patches ({names}): "
            "set it to false"
        )


def has_convolutions(tower: Tower) -> bool:
    """Return True for an image encoder with more than one convolution of images: the only one of a transformer makes its
    patches."""
    return isinstance(tower.encoder, ImageEncoder) and sum(isinstance(m, nn.Conv2d) for m in tower.encoder.modules()) > 1


def _channels_last(encoder: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.ndim == 4 else x for x in inputs
    )
