"""Image encoder for CPUs: strided convolutions, then one linear layer over all positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmcl.encoders.positions import resampling
from mmcl.encoders.tower import ImageEncoder, PixelNorm
from mmcl.errors import UserError
from mmcl.preprocess import Preprocess, as_size


class StridedCNN(ImageEncoder):
    """Stages of a strided convolution, which halves the resolution, batch norm and ReLU, then optional residual blocks.

    The output of the last stage is flattened instead of averaged. This keeps positions, which suits images centered on one
    object (digits, icons), and needs a fraction of the convolutions that would compensate for average pooling. For images of
    another size, the weights of the positions are resampled.

    Args:
        image_size: side in pixels, or height and width.
        channels: 1 (gray), 3 (RGB), or the number of channels of the input arrays.
        widths: number of channels after each stage.
        blocks: number of residual blocks of two 3x3 convolutions in each stage.
        kernel: kernel size of the first convolution.
        feature_dim: width F of the features.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 32,
        channels: int = 3,
        widths: Sequence[int] = (64, 128, 256),
        blocks: Sequence[int] = (0, 0, 0),
        kernel: int = 5,
        feature_dim: int = 512,
    ):
        super().__init__()
        if len(blocks) != len(widths):
            raise UserError(f"strided_cnn: widths {list(widths)} and blocks {list(blocks)} must have one entry for each stage")
        self.preprocess = Preprocess(size=as_size(image_size), channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
        self.feature_dim = feature_dim
        self.rebuild_args = {
            "image_size": self.preprocess.size,
            "channels": channels,
            "widths": list(widths),
            "blocks": list(blocks),
            "kernel": kernel,
            "feature_dim": feature_dim,
        }
        stages: list[nn.Module] = [PixelNorm(self.preprocess)]
        width_in, sides = channels, [self.preprocess.height, self.preprocess.width]
        for stage, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
            stages.append(_convolution(width_in, width, kernel if stage == 0 else 3, stride=2))
            stages += [_Residual(width) for _ in range(depth)]
            width_in, sides = width, [(side + 1) // 2 for side in sides]
        self.stages = nn.Sequential(*stages)
        self.grid = (sides[0], sides[1])
        self.project = nn.Linear(width_in * math.prod(sides), feature_dim, bias=False)
        self.norm = nn.BatchNorm1d(feature_dim)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        # On a CPU, convolutions over channels-last memory take about half the time.
        maps_BCHW = self.stages(image_BCHW.contiguous(memory_format=torch.channels_last))
        feature_BF: Tensor = self.norm(self._projected(maps_BCHW)).relu()
        return feature_BF

    def _projected(self, maps_BCHW: Tensor) -> Tensor:
        grid = (maps_BCHW.shape[2], maps_BCHW.shape[3])
        if grid == self.grid:
            projected_BF: Tensor = self.project(maps_BCHW.flatten(1))
            return projected_BF
        # As if the maps were enlarged to the grid of the weights; these are fewer than the maps of a batch.
        weight_FCP = self.project.weight.unflatten(1, (maps_BCHW.shape[1], -1))
        weight_FCQ = weight_FCP @ resampling(grid, self.grid, "bilinear", like=weight_FCP)
        return nn.functional.linear(maps_BCHW.flatten(1), weight_FCQ.flatten(1))


def _convolution(width_in: int, width_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width_out), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    """x + two 3x3 convolutions (He et al., "Deep Residual Learning for Image Recognition", 2016), then ReLU."""

    def __init__(self, width: int):
        super().__init__()
        self.first = _convolution(width, width, 3)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        maps_BCHW: Tensor = (x + self.norm(self.second(self.first(x)))).relu()
        return maps_BCHW
