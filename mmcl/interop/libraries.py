"""Models of other libraries by name: open_clip, transformers, timm, torchvision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmcl.encoders.tower import DualEncoder, TowerSpec, build_tower, wrap_encoder
from mmcl.files.hub import offline
from mmcl.interop.bounds import bounded_build
from mmcl.interop.device import find_device
from mmcl.interop.model import Model

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz")


def load_of_library(
    name: str, *, preprocess: Mapping[str, Any] | None, resize_positions: bool, device: str | torch.device | None
) -> Model:
    """Loads a model that another library made.

    Args:
        name: with the prefix of the library, see `load_model`.
        preprocess: fields of `Preprocess` that override the library's.
        resize_positions, device: as for `load_model`.

    Raises:
        UserError: see `load_model`.
    """
    found = find_device(device)
    scheme, _, rest = name.partition(":")
    with _within_folder(Path(rest.removeprefix("local-dir:"))):
        fields = None if preprocess is None else dict(preprocess)
        model = _transformers(rest, fields, resize_positions) if scheme == "hf" else _LIBRARIES[scheme](rest, fields)
    return Model(**model, provenance={"source": name}, device=found)


@contextmanager
def _within_folder(folder: Path) -> Iterator[None]:
    """Builds another library's folder from its own files alone: no larger than its weights, and without access to a hub.

    Exceptions are an adapter, whose base model may be stored elsewhere, and a name that is not a folder, which is trusted."""
    weights = [file for file in folder.rglob("*") if file.suffix in _WEIGHT_SUFFIXES] if folder.is_dir() else []
    if not weights or (folder / "adapter_config.json").is_file():
        yield
        return
    with offline(), bounded_build(weights, str(folder)):
        yield


_Fields = dict[str, Any] | None
"""Of `Preprocess`."""


def _open_clip(rest: str, preprocess: _Fields) -> dict[str, Any]:
    from mmcl.encoders.open_clip import dual_encoder

    arch, pretrained = _split(rest)
    return _from_dual("open_clip", dual_encoder(arch, pretrained or None, preprocess=preprocess))


def _transformers(rest: str, preprocess: _Fields, resize_positions: bool) -> dict[str, Any]:
    from mmcl.encoders.transformers import dual_encoder

    return _from_dual("transformers", dual_encoder(rest, preprocess=preprocess, resize_positions=resize_positions))


def _from_dual(library: str, dual: DualEncoder) -> dict[str, Any]:
    towers = nn.ModuleDict(
        {
            "image": wrap_encoder(dual.image, TowerSpec(modality="image", encoder=library)),
            "text": wrap_encoder(dual.text, TowerSpec(modality="text", encoder=library)),
        }
    )
    return {"towers": towers, "logit_scale": dual.logit_scale, "logit_bias": dual.logit_bias}


def _image_only(library: str) -> Callable[[str, _Fields], dict[str, Any]]:
    def load(rest: str, preprocess: _Fields) -> dict[str, Any]:
        name, path = _split(rest)
        args = {"name": name, "pretrained": path or True, "preprocess": preprocess}
        spec = TowerSpec(modality="image", encoder=library, encoder_args=args)
        return {"towers": nn.ModuleDict({"image": build_tower(spec)})}

    return load


def _split(rest: str) -> tuple[str, str]:
    """Splits a name into architecture and weights; folders and repositories, whose names have slashes, include weights."""
    if rest.startswith(("local-dir:", "hf-hub:")):
        return rest, ""
    name, _, weights = rest.partition("/")
    return name, weights


_LIBRARIES: Mapping[str, Callable[[str, _Fields], dict[str, Any]]] = {
    "open_clip": _open_clip,
    "timm": _image_only("timm"),
    "torchvision": _image_only("torchvision"),
}
