"""Writes mmcl/interop/catalog.json: the models with released weights of the libraries installed here, for `mmcl list models`.

    python scripts/data/list_models.py

Run it with the newest versions of the libraries. Nothing is downloaded.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import open_clip
import timm
from open_clip.pretrained import get_pretrained_cfg
from torchvision import models

from mmcl.interop.catalog import FILE, Facts

PACKAGES = {"open_clip": "open_clip_torch", "timm": "timm", "torchvision": "torchvision"}
"""The distribution of each library."""


def versions() -> dict[str, str]:
    """The version of each library, without what says how it was built, such as "+cpu"."""
    return {library: version(package).partition("+")[0] for library, package in PACKAGES.items()}


def released() -> dict[str, dict[str, Facts]]:
    """Facts of every model by library and by name, as `mmcl.load_model` takes it."""
    return {"open_clip": _open_clip(), "timm": _timm(), "torchvision": _torchvision()}


def _open_clip() -> dict[str, Facts]:
    found = {}
    for arch, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(arch) or {}
        size = config.get("vision_cfg", {}).get("image_size")
        hub = "/".join(get_pretrained_cfg(arch, tag).get("hf_hub", "").split("/")[:2])  # a file may follow
        found[f"open_clip:{arch}/{tag}"] = _stated(embed_dim=config.get("embed_dim"), image_size=size, hub=hub or None)
    return found


def _timm() -> dict[str, Facts]:
    found = {}
    for name in timm.list_pretrained():
        config = timm.models.get_pretrained_cfg(name)
        assert config is not None
        hub = f"timm/{name}" if config.hf_hub_id == "timm/" else config.hf_hub_id
        found[f"timm:{name}"] = _stated(image_size=config.input_size[-1], hub=hub)
    return found


def _torchvision() -> dict[str, Facts]:
    names = models.list_models(module=models)
    weights = {name: models.get_model_weights(name).DEFAULT for name in names}
    return {f"torchvision:{name}": _stated(parameters=weights[name].meta.get("num_params")) for name in names}


def _stated(**facts: Any) -> Facts:
    return {name: value for name, value in facts.items() if value is not None}


def to_text(versions: dict[str, str], found: dict[str, dict[str, Facts]]) -> str:
    """JSON with a line for each model."""

    def listed(own: dict[str, Facts]) -> str:
        return ",\n".join(f"   {json.dumps(name)}: {json.dumps(facts)}" for name, facts in own.items())

    libraries = ",\n".join(f'  "{library}": {{\n{listed(own)}\n  }}' for library, own in found.items())
    return f'{{\n "versions": {json.dumps(versions)},\n "models": {{\n{libraries}\n }}\n}}\n'


def main() -> None:
    FILE.write_text(to_text(versions(), released()), encoding="utf-8")


if __name__ == "__main__":
    main()
