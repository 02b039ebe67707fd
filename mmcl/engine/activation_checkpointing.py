"""Activation checkpointing: the blocks of an encoder compute their activations again in the backward pass.

Every block is wrapped in the same way, whatever its library: libraries differ in what their own switch reaches, and some accept
it without any effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from mmcl.encoders.blocks import blocks
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError


class ActivationCheckpointing:
    """Wrap the blocks of every trained encoder, in place, so that only their inputs are stored for the backward pass (Chen et
    al., "Training Deep Nets with Sublinear Memory Cost", 2016).

    The gradient is the same: dropout draws the same masks again, and batch norms do not count a batch twice. Without gradients
    the blocks compute as before.

    Args:
        towers: name -> tower. Encoders that are wholly frozen store nothing and are left as they are.

    Raises:
        UserError: an encoder has no blocks.
    """

    def __init__(self, towers: Mapping[str, Tower]):
        check_blocks(towers)
        self._unused = {name for name, tower in towers.items() if is_trained(tower)}
        for name in self._unused:
            for block in blocks(towers[name].encoder):
                self._wrap(name, block)
            _disable_caches(towers[name].encoder)

    def check(self) -> None:
        """Raise UserError for an encoder whose blocks have not been called. Called after the first step."""
        for name in sorted(self._unused):
            raise UserError(
                f"train.checkpoint_activations: the {name} encoder takes the layers out of its blocks instead of calling them, "
                "so that they cannot compute their activations again; set it to false"
            )

    def _wrap(self, name: str, block: nn.Module) -> None:
        forward: Callable[..., Any] = block.forward

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._unused.discard(name)
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            versions = _versions(args, kwargs)

            def contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
                return nullcontext(), _recomputing(name, block, (args, kwargs), versions)

            # Positional, because the states of the generators of devices are kept for positional tensors alone.
            return checkpoint(
                lambda args, kwargs: forward(*args, **kwargs), args, kwargs, use_reentrant=False, context_fn=contexts
            )

        block.forward = wrapped


def check_blocks(towers: Mapping[str, Tower]) -> None:
    """Raise UserError for an encoder that is trained and has no blocks."""
    for name, tower in towers.items():
        if is_trained(tower) and not blocks(tower.encoder):
            raise UserError(
                f"train.checkpoint_activations: the {name} encoder {tower.encoder_name} has no blocks that could compute their "
                "activations again; set it to false, and train.micro_batch to save memory"
            )


def is_trained(tower: Tower) -> bool:
    """Return True if any part of an encoder is trained."""
    return any(parameter.requires_grad for parameter in tower.encoder.parameters())


def _disable_caches(encoder: nn.Module) -> None:
    """Turn off the cache of keys and values of decoders, to which a block would append again when it is computed again."""
    for module in encoder.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False


@contextmanager
def _recomputing(name: str, block: nn.Module, inputs: Any, versions: list[int]) -> Iterator[None]:
    """Context in which a block is computed again.

    Raises:
        UserError: its inputs have changed since, so that its outputs would be others.
    """
    if _versions(*inputs) != versions:
        raise UserError(
            f"train.checkpoint_activations: the {name} encoder changes the inputs of its {type(block).__name__} in place, so "
            "that it cannot be computed again; set it to false"
        )
    # Without running statistics a batch norm would store other tensors than before, so it gets copies to update.
    norms = [m for m in block.modules() if m.training and getattr(m, "track_running_stats", False)]
    kept = [(norm, dict(norm.named_buffers(recurse=False))) for norm in norms]
    for norm, buffers in kept:
        for key, buffer in buffers.items():
            setattr(norm, key, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in kept:
            for key, buffer in buffers.items():
                setattr(norm, key, buffer)


def _versions(args: Any, kwargs: Any) -> list[int]:
    """Return the number of changes in place of every tensor in the inputs of a block."""
    return [leaf._version for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
