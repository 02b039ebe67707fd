"""Learned positions for images of another size: the table is resampled for a forward pass, and the stored one is unchanged."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

Grid = tuple[int, int]
"""Numbers of positions down and across."""


def call_at_size(module: nn.Module, table: str, grid: Grid, patch: Grid, pixels_BCHW: Tensor) -> Any:
    """Call a module with images of another size, and with its table of positions resampled for it.

    Args:
        module: takes images, of any size but for its positions.
        table: name of its parameter with a position for every patch, row by row, after those of other tokens: [..., L, F].
        grid: patches down and across for which there are positions.
        patch: height and width of a patch in pixels.
        pixels_BCHW: the images.

    Raises:
        ValueError: they are no whole patches.
    """
    height, width = pixels_BCHW.shape[2:]
    if height % patch[0] or width % patch[1]:
        raise ValueError(f"{height} x {width} pixels are no whole patches of {patch[0]} x {patch[1]}")
    stored: Tensor = attrgetter(table)(module)
    positions = resampled_positions(stored, grid, (height // patch[0], width // patch[1]))
    return functional_call(module, {table: positions}, (pixels_BCHW,))


def resampled_positions(table_LF: Tensor, old: Grid, new: Grid) -> Tensor:
    """Return the positions of another grid, as timm and open_clip resample them: bicubic, over all that a new one covers.

    Args:
        table_LF: positions of other tokens, such as a class token, and then of the patches: [..., L, F].
        old: their grid.
        new: the other grid.
    """
    extra = table_LF.shape[-2] - old[0] * old[1]
    with torch.autocast(table_LF.device.type, enabled=False):
        patches = resampling(old, new, "bicubic", like=table_LF) @ table_LF[..., extra:, :]
    return torch.cat([table_LF[..., :extra, :], patches], dim=-2)


def resampling(old: Grid, new: Grid, mode: Literal["bilinear", "bicubic"], *, like: Tensor) -> Tensor:
    """Return the matrix [N, M] by which a map of M = `old` positions is resampled to N = `new` ones, of the type of `like`.

    A product with it is the interpolation of torch with antialiasing, whose own gradient depends on the order of sums on GPUs.
    """
    count = old[0] * old[1]
    unit_M1HW = torch.eye(count, dtype=like.dtype, device=like.device).view(count, 1, *old)
    return nn.functional.interpolate(unit_M1HW, size=new, mode=mode, antialias=True).flatten(1).T
