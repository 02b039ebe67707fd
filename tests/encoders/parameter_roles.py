"""The roles of the parameters of every encoder of the libraries, one family at a time, on the meta device.

`python -m tests.encoders.parameter_roles > tests/encoders/parameter_roles.json` freezes them; read the difference first.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import open_clip
import timm
import torch
import torchvision
import transformers
from torch import nn

from mmcl.encoders.parameter_roles import parameter_roles

_EVERY = 12
"""Models of a timm module that are built, spread over its list: enough for each option that some of them have."""

_TRANSFORMERS = (
    "aimv2 albert beit bert camembert clip clip_text_model clip_vision_model convnext convnextv2 data2vec-vision "
    "deberta-v2 deit dinov2 dinov2_with_registers dinov3_convnext dinov3_vit distilbert efficientnet electra ernie "
    "eurobert focalnet gemma gemma2 gpt2 hgnet_v2 hiera ijepa levit llama mistral mobilenet_v2 mobilevit modernbert "
    "mpnet mt5 nomic_bert opt poolformer pvt pvt_v2 qwen2 qwen3 regnet resnet roberta roformer segformer siglip "
    "siglip2 siglip_vision_model swiftformer swin swinv2 t5 textnet vit vit_mae vit_msn xlm-roberta "
)


def families() -> dict[str, Callable[[], Iterator[nn.Module]]]:
    """Every family with what builds its models: timm's and torchvision's modules, transformers' types, all of open_clip."""
    found: dict[str, Callable[[], Iterator[nn.Module]]] = {}
    for module in timm.list_modules():
        found[f"timm/{module}"] = partial(_timm, module)
    for module in sorted({_torchvision_module(name) for name in _torchvision_names()}):
        found[f"torchvision/{module}"] = partial(_torchvision, module)
    for name in _TRANSFORMERS.split():
        found[f"transformers/{name}"] = partial(_transformers, name)
    return {**found, "open_clip": _open_clip}


def _timm(module: str) -> Iterator[nn.Module]:
    names = timm.list_models(module=module)
    for name in names[:: max(1, len(names) // _EVERY)]:
        yield timm.create_model(name, num_classes=0)


def _torchvision_names() -> list[str]:
    return list(torchvision.models.list_models(module=torchvision.models))


def _torchvision_module(name: str) -> str:
    return str(torchvision.models.get_model_builder(name).__module__.rpartition(".")[2])


def _torchvision(module: str) -> Iterator[nn.Module]:
    names = [name for name in _torchvision_names() if _torchvision_module(name) == module]
    if module == "regnet":  # its constructor reads numbers back from tensors, which the meta device has not
        names = []
    for name in names:
        yield torchvision.models.get_model(name)


def _transformers(name: str) -> Iterator[nn.Module]:
    yield transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name))


def _open_clip() -> Iterator[nn.Module]:
    for arch in open_clip.list_models():
        config: dict[str, Any] = open_clip.get_model_config(arch)
        if "hf_model_name" in config["text_cfg"]:  # built from the hub's configuration
            continue
        build = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        yield build(config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=config.get("quick_gelu", False))


def frozen_roles(build: Callable[[], Iterator[nn.Module]]) -> dict[str, list[str]]:
    """Role -> the tensors of more than one dimension that have it, as "Class.parameter", digits as N."""
    found: dict[str, set[str]] = {"matrix": set(), "table": set(), "other": set()}
    with torch.device("meta"):
        for model in build():
            owners = dict(model.named_modules())
            for name, parameter, role in parameter_roles(model):
                path, _, own_name = name.rpartition(".")
                owner = f"{path.rpartition('.')[2]}:" if isinstance(owners[path], nn.Embedding) else ""
                if parameter.ndim > 1:
                    found[role].add(re.sub(r"\d+", "N", f"{owner}{type(owners[path]).__name__}.{own_name}"))
    return {role: sorted(names) for role, names in found.items() if names}


if __name__ == "__main__":
    json.dump({name: frozen_roles(build) for name, build in families().items()}, sys.stdout, indent=1, sort_keys=True)
