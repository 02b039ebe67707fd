"""Names of models that can be loaded, with what their libraries know of them offline."""

from __future__ import annotations

from typing import Any

Facts = dict[str, Any]
"""Of a model: embed_dim, image_size, parameters; only those that its library states."""

TRANSFORMERS_FAMILIES = {
    "clip": "images and texts",
    "siglip": "images and texts",
    "siglip2": "images and texts",
    "dinov2": "images",
    "resnet": "images",
    "vit": "images",
    "bert": "texts",
    "distilbert": "texts",
    "gpt2": "texts",
    "modernbert": "texts",
    "roberta": "texts",
    "t5": "texts",
}
"""Families (`model_type`) of transformers that the tests cover, with what they embed."""


def catalog() -> dict[str, dict[str, Facts]]:
    """Returns {kind: {name: facts}}: names as `load_model` takes them, and families of transformers. Downloads nothing.

    Example:
        >>> catalog()["open_clip: images and texts"]["open_clip:ViT-B-32/laion2b_s34b_b79k"]
        {'embed_dim': 512, 'image_size': 224}
    """
    return {
        "open_clip: images and texts": _open_clip(),
        "transformers: hf:ID of a repository or a folder of these families": {
            family: {"embeds": what} for family, what in TRANSFORMERS_FAMILIES.items()
        },
        "timm: images": _timm(),
        "torchvision: images": _torchvision(),
    }


def _open_clip() -> dict[str, Facts]:
    import open_clip

    models = {}
    for arch, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(arch) or {}
        size = config.get("vision_cfg", {}).get("image_size")
        models[f"open_clip:{arch}/{tag}"] = _stated(embed_dim=config.get("embed_dim"), image_size=size)
    return models


def _timm() -> dict[str, Facts]:
    import timm

    models = {}
    for name in timm.list_pretrained():
        config = timm.models.get_pretrained_cfg(name)
        models[f"timm:{name}"] = _stated(image_size=config.input_size[-1] if config else None)
    return models


def _torchvision() -> dict[str, Facts]:
    from torchvision import models

    names = models.list_models(module=models)
    weights = {name: models.get_model_weights(name).DEFAULT for name in names}
    return {f"torchvision:{name}": _stated(parameters=weights[name].meta.get("num_params")) for name in names}


def _stated(**facts: Any) -> Facts:
    return {name: value for name, value in facts.items() if value is not None}
