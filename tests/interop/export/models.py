"""Tiny models of every kind of tower, with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmcl.encoders.adapters import adapt, adapters, merge_adapters
from mmcl.encoders.tokenizers import from_transformers
from mmcl.encoders.tower import TowerSpec, build_tower
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from tests.encoders import tiny

OWN_IMAGE = {"image_size": 16, "widths": [8, 16], "blocks": [0, 1], "kernel": 3, "feature_dim": 24}
OWN_TEXT = {"width": 16, "layers": 1, "heads": 2, "context_length": tiny.CONTEXT}
LINEAR = {"head": "linear", "head_args": {"embed_dim": 8}}
MLP = {"head": "mlp", "head_args": {"embed_dim": 8, "hidden_dim": 12}}


def shaken_model(towers: Mapping[str, Mapping[str, Any]], **parameters: Any) -> Model:
    """A model of towers given as for `TowerSpec`, whose weights are far from their initial values."""
    torch.manual_seed(0)
    built = nn.ModuleDict(
        {
            name: build_tower(
                TowerSpec(modality=name, **spec),  # type: ignore[arg-type]
                tokenizer=from_transformers(tiny.word_tokenizer()) if name == "text" else None,
            )
            for name, spec in towers.items()
        }
    )
    for module in built.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return Model(tiny.shaken(built), logit_scale=12.5, device="cpu", **parameters)  # type: ignore[arg-type]


def own(**parameters: Any) -> Model:
    """mmcl's own towers."""
    image = {"encoder": "strided_cnn", "encoder_args": OWN_IMAGE, **LINEAR}
    return shaken_model({"image": image, "text": {"encoder": "small_text", "encoder_args": OWN_TEXT, **LINEAR}}, **parameters)


def of_transformers(kind: str, folder: Path) -> Model:
    """clip | siglip | siglip2, as the library saves it."""
    folder.mkdir()
    tiny.transformers_model(kind, folder)
    shown = {"size": 32, "resize": "squash", "mean": [0.5] * 3, "std": [0.5] * 3} if kind == "siglip2" else None
    return load_model(f"hf:{folder}", device="cpu", preprocess=shown)


def of_open_clip(kind: str, folder: Path) -> Model:
    """clip | eos | resnet | siglip | coca | bert, as a folder of the library."""
    folder.mkdir()
    config = tiny.open_clip_config(kind, folder)
    tiny.open_clip_model(config, kind, folder / "open_clip_model.safetensors")
    (folder / "model.safetensors").unlink(missing_ok=True)  # of a text model alone
    custom = {"custom_text": True} if kind in ("siglip", "bert") else {}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**config, **custom}}))
    return load_model(f"open_clip:local-dir:{folder}", device="cpu")


def timm_and_bert(head: Mapping[str, Any] = LINEAR) -> Model:
    """An image tower of timm and a text tower of transformers, each with a head."""
    image = {"encoder": "timm", "encoder_args": {"name": "test_vit", "image_size": 32}, **head}
    text = {"encoder": "transformers", "encoder_args": {"config": tiny.config("bert"), "pooling": "mean"}, **head}
    return shaken_model({"image": image, "text": text})


def torchvision_and_own() -> Model:
    """An image tower of torchvision and mmcl's text tower."""
    image = {"encoder": "torchvision", "encoder_args": {"name": "resnet18", "image_size": 32}, **LINEAR}
    return shaken_model({"image": image, "text": {"encoder": "small_text", "encoder_args": OWN_TEXT, **LINEAR}})


def merged_lora(folder: Path) -> Model:
    """A CLIP of transformers with trained adapters, which are merged."""
    model = of_transformers("clip", folder)
    for tower in model.towers.values():
        adapt(tower.encoder, rank=2)  # type: ignore[arg-type]
        for _, adapter in adapters(tower):
            tiny.shaken(adapter)
    merge_adapters(model.towers)
    return model


def own_with_mlp_heads() -> Model:
    """mmcl's own towers, each with an MLP head with batch norm."""
    image = {"encoder": "strided_cnn", "encoder_args": OWN_IMAGE, **MLP}
    return shaken_model({"image": image, "text": {"encoder": "small_text", "encoder_args": OWN_TEXT, **MLP}})


MODELS: Mapping[str, Callable[[Path], Model]] = {
    "hf CLIP": lambda folder: of_transformers("clip", folder),
    "hf SigLIP": lambda folder: of_transformers("siglip", folder),
    "hf SigLIP 2": lambda folder: of_transformers("siglip2", folder),
    "open_clip CLIP": lambda folder: of_open_clip("clip", folder),
    "open_clip ResNet": lambda folder: of_open_clip("resnet", folder),
    "open_clip SigLIP": lambda folder: of_open_clip("siglip", folder),
    "timm + BERT": lambda folder: timm_and_bert(),
    "timm + BERT, MLP heads": lambda folder: timm_and_bert(MLP),
    "torchvision + own": lambda folder: torchvision_and_own(),
    "own + own": lambda folder: own(),
    "own + own, MLP heads": lambda folder: own_with_mlp_heads(),
    "hf CLIP, LoRA merged": merged_lora,
}
"""By name, from an empty folder that does not exist yet."""
