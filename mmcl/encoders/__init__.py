"""Image and text encoders. Each third-party library is imported in one file only.

An image encoder is an `nn.Module` from pixels, float32 [B, C, H, W] in [0, 1] (it normalizes them itself), to features [B, F].
A text encoder is an `nn.Module` from `Tokens` to features [B, F]. See `tower.py` for their other attributes.
"""

from __future__ import annotations

from mmcl.registry import Registry


def _of_library(name: str) -> str | None:
    """The library that has an image encoder of a name; they are imported only for this error."""
    import open_clip
    import timm
    import torchvision

    if "/" in name:
        return f"'transformers' with args {{name: {name}}}"
    here = {
        "torchvision": name in torchvision.models.list_models(module=torchvision.models),
        "timm": timm.is_model(name),
        "open_clip": name in open_clip.list_models(),
    }
    library = next((library for library, has_it in here.items() if has_it), None)
    return f"{library!r} with args {{{'arch' if library == 'open_clip' else 'name'}: {name}}}" if library else None


IMAGE_ENCODERS = Registry(
    "image encoder",
    {
        "small_cnn": "mmcl.encoders.small_cnn:SmallCNN",
        "strided_cnn": "mmcl.encoders.strided_cnn:StridedCNN",
        "open_clip": "mmcl.encoders.open_clip:image_encoder",
        "timm": "mmcl.encoders.timm:TimmEncoder",
        "torchvision": "mmcl.encoders.torchvision:TorchvisionEncoder",
        "transformers": "mmcl.encoders.transformers:image_encoder",
        "embeddings_of": "mmcl.encoders.embeddings_of:EmbeddedImages",
        "rows": "mmcl.encoders.rows:RowsOfImages",
        "custom": "mmcl.encoders.given:GivenImageEncoder",
    },
    suggest=_of_library,
)

TEXT_ENCODERS = Registry(
    "text encoder",
    {
        "small_text": "mmcl.encoders.small_text:SmallText",
        "open_clip": "mmcl.encoders.open_clip:text_encoder",
        "transformers": "mmcl.encoders.transformers:text_encoder",
        "embeddings_of": "mmcl.encoders.embeddings_of:EmbeddedTexts",
        "rows": "mmcl.encoders.rows:RowsOfTexts",
        "custom": "mmcl.encoders.given:GivenTextEncoder",
    },
    suggest=lambda name: f"'transformers' with args {{name: {name}}}" if "/" in name else None,
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

ADAPTERS = Registry(
    "adapter",
    {
        "lora": "mmcl.encoders.low_rank:LoRA",
        "dora": "mmcl.encoders.low_rank:DoRA",
    },
)
