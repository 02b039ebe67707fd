"""Image and text encoders. Each third-party library is imported in one file only.

An image encoder is an `nn.Module` from pixels, float32 [B, C, H, W] in [0, 1] (it normalises them itself), to features [B, F].
A text encoder is an `nn.Module` from `Tokens` to features [B, F]. See `tower.py` for their other attributes.
"""

from __future__ import annotations

from mmcl.registry import Registry

IMAGE_ENCODERS = Registry(
    "image encoder",
    {
        "small_cnn": "mmcl.encoders.small_cnn:SmallCNN",
        "strided_cnn": "mmcl.encoders.strided_cnn:StridedCNN",
        "open_clip": "mmcl.encoders.open_clip:image_encoder",
        "timm": "mmcl.encoders.timm:TimmEncoder",
        "torchvision": "mmcl.encoders.torchvision:TorchvisionEncoder",
        "transformers": "mmcl.encoders.transformers:image_encoder",
        "custom": "mmcl.encoders.given:GivenImageEncoder",
    },
)

TEXT_ENCODERS = Registry(
    "text encoder",
    {
        "small_text": "mmcl.encoders.small_text:SmallText",
        "open_clip": "mmcl.encoders.open_clip:text_encoder",
        "transformers": "mmcl.encoders.transformers:text_encoder",
        "custom": "mmcl.encoders.given:GivenTextEncoder",
    },
)

HEADS = Registry(
    "head",
    {
        "none": "mmcl.encoders.heads:NoHead",
        "linear": "mmcl.encoders.heads:LinearHead",
        "mlp": "mmcl.encoders.heads:MLPHead",
        "tanh": "mmcl.encoders.heads:TanhHead",
    },
)
