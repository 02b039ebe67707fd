"""AdamW with weight decay on matrices only."""

from __future__ import annotations

import torch
from torch import nn

from mmcl.config import OptimConfig

# Embeddings of positions and classes are vectors that happen to be stored as a matrix.
_POSITION_NAMES = ("position", "pos_emb", "class_embedding", "cls_token", "class_token", "relative_position_bias_table")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms, scalars, nor to position and class embeddings."""
    return parameter.ndim > 1 and not any(part in name for part in _POSITION_NAMES)


def build_optimiser(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019) over the parameters that require a gradient, in two groups: with and without decay."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
    device = next(iter(named))[1].device.type
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=device in ("cpu", "cuda"))
