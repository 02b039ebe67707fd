"""Texts that occur several times among the rows of a process go through their encoder once.

Their features are equal wherever an encoder draws nothing and computes no row from others, so that values and gradients change
by rounding alone: the features of a text get the sum of the gradients of its rows. Names of classes, and captions of several
images, repeat; a text encoder then costs what its distinct texts cost.
"""

from __future__ import annotations

from typing import Any

import torch

from mmcl.encoders.tower import TextEncoder, Tower
from mmcl.methods.method import Method
from mmcl.types import Tokens, Views

_ROWS = 16
_TOLERANCE = 1e-4  # of the largest feature: far above rounding


class RepeatedTexts:
    """Find out which views of a method are of texts that may be encoded once, before the first step and unsharded.

    Args:
        method: its text encoders are tried in training mode; their buffers and the random generators are left as they were.
        device: where its weights are.
    """

    def __init__(self, method: Method, device: torch.device):
        texts = {name: method.tower(name) for name in method.views if isinstance(method.tower(name).encoder, TextEncoder)}
        is_eligible = {tower: tower.frozen or encodes_each_row_by_itself(tower, device) for tower in set(texts.values())}
        self.views = frozenset(name for name, tower in texts.items() if is_eligible[tower])

    def mark(self, views: Views) -> Views:
        """Mark the rows of these views whose texts are equal, see `Tokens.with_repeats`."""
        return {name: self._marked(view) if name in self.views else view for name, view in views.items()}

    @staticmethod
    def _marked(view: Any) -> Any:
        return view.with_repeats() if isinstance(view, Tokens) else view


@torch.no_grad()
def encodes_each_row_by_itself(tower: Tower, device: torch.device) -> bool:
    """Return whether the features of a text in training mode are the same in every row and in every company.

    They are not where the encoder draws random numbers, as dropout does, however rarely they matter; nor under batch norm.
    """
    encoder: Any = tower.encoder
    was_training, buffers = tower.training, [buffer.clone() for buffer in encoder.buffers()]
    tower.train()
    generator = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        before_drawing = generator.get_state()
        many, few = (
            encoder(encoder.tokenizer(["a"] * number + ["the other"] * (_ROWS - number)).to(device))[:number]
            for number in (_ROWS - 1, 1)
        )
        draws = not torch.equal(generator.get_state(), before_drawing)
    tower.train(was_training)
    for buffer, before in zip(encoder.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return not draws and bool((many - few).abs().max() <= _TOLERANCE * few.abs().max())
