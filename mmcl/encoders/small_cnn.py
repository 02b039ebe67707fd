"""Minimal image encoder with two convolutions, for MNIST and as an example."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmcl.encoders.tower import ImageEncoder, PixelNorm
from mmcl.preprocess import Preprocess, as_size


class SmallCNN(ImageEncoder):
    """Two 3x3 convolutions with ReLU and 2x2 max-pooling, then one linear layer: [B, C, H, W] to [B, feature_dim].

    Args:
        image_size: side in pixels, or height and width, at least 4.
        channels: 1 (gray), 3 (RGB), or the number of channels of the input arrays.
        feature_dim: width F of the features.
    """

    def __init__(self, *, image_size: int | Sequence[int] = 28, channels: int = 1, feature_dim: int = 128):
        super().__init__()
        self.preprocess = Preprocess(size=as_size(image_size), channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
        self.feature_dim = feature_dim
        self.rebuild_args = {"image_size": self.preprocess.size, "channels": channels, "feature_dim": feature_dim}
        self.layers = nn.Sequential(
            PixelNorm(self.preprocess),
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (self.preprocess.height // 4) * (self.preprocess.width // 4), feature_dim),
        )

    def forward(self, image_BCHW: Tensor) -> Tensor:
        feature_BF: Tensor = self.layers(image_BCHW)
        return feature_BF
