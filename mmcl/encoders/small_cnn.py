"""The smallest useful picture encoder: two convolutions, for MNIST and for reading."""

from __future__ import annotations

from torch import Tensor, nn

from mmcl.encoders.tower import ImageEncoder, PixelNorm
from mmcl.types import Preprocess


class SmallCNN(ImageEncoder):
    """Two 3x3 convolutions with ReLU and 2x2 max-pooling, then one linear layer: [B, C, S, S] to [B, feature_dim].

    Args:
        image_size: side S in pixels, at least 4.
        channels: 1 (grey) or 3 (RGB).
        feature_dim: width F of the features.
    """

    def __init__(self, *, image_size: int = 28, channels: int = 1, feature_dim: int = 128):
        super().__init__()
        self.preprocess = Preprocess(size=image_size, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
        self.feature_dim = feature_dim
        self.rebuild_args = {"image_size": image_size, "channels": channels, "feature_dim": feature_dim}
        self.layers = nn.Sequential(
            PixelNorm(self.preprocess),
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (image_size // 4) ** 2, feature_dim),
        )

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.layers(image_BCHW)
