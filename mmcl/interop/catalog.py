"""Names of models that can be loaded, with what their libraries know of them.

They are read from catalog.json, because importing the libraries takes many seconds; `scripts/data/list_models.py` writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmcl.files.untrusted import read_json

Facts = dict[str, Any]
"""Of a model: embed_dim, image_size, parameters, and its repository on the hub; only those that its library states."""

FILE = Path(__file__).with_name("catalog.json")

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
    """Returns {kind: {name: facts}}: names as `load_model` takes them, and families of transformers.

    Of open_clip, timm and torchvision these are the models of the versions that catalog.json names. A model of another version
    loads by its name, too.

    Example:
        >>> catalog()["open_clip: images and texts"]["open_clip:ViT-B-32/laion2b_s34b_b79k"]
        {'embed_dim': 512, 'image_size': 224, 'hub': 'laion/CLIP-ViT-B-32-laion2B-s34B-b79K'}
    """
    models = read_json(FILE)["models"]
    return {
        "open_clip: images and texts": models["open_clip"],
        "transformers: hf:ID of a repository or a folder of these families": {
            family: {"embeds": what} for family, what in TRANSFORMERS_FAMILIES.items()
        },
        "timm: images": models["timm"],
        "torchvision: images": models["torchvision"],
    }
