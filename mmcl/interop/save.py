"""mmcl's own model format: a self-contained folder with JSON for the architecture and safetensors for the weights; no pickle.

config.json         towers by name and arguments, the plug-ins that registered these names, preprocessing, logit scale and bias,
                    class names, trained widths, origin of the model
model.safetensors   the weights, each stored once
tokenizer.json      if there is a text tower
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from mmcl.encoders.adapters import merged_state_dict
from mmcl.encoders.tower import ImageEncoder, Tower
from mmcl.errors import UserError
from mmcl.files.atomic import staged
from mmcl.interop.encoding import Embedding
from mmcl.interop.model_file import FORMAT_VERSION

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


def save_model(
    path: str | Path,
    towers: nn.ModuleDict,
    *,
    logit_scale: float | None = None,
    logit_bias: float | None = None,
    embedding: Embedding = "projection",
    class_names: Sequence[str] | None = None,
    matryoshka_dims: Sequence[int] = (),
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder that `load_model` can read without further arguments. The write is atomic. Adapters are merged in it.

    Args:
        path: the folder; an existing model folder is replaced, a folder with other content is refused.
        towers: "image" and "text", or one of them, as built by `build_tower`.
        logit_scale, logit_bias, embedding, class_names, matryoshka_dims, provenance: as in `Model`.

    Raises:
        UserError: a tower was not built by `build_tower`, so it cannot be rebuilt; or the folder cannot be written.
    """
    _keep_other_files(Path(path))
    tensors, shared = _unique_tensors(towers)
    config = {
        "format_version": FORMAT_VERSION,
        "towers": {name: _describe(name, tower) for name, tower in towers.items()},  # type: ignore[arg-type]
        "plugins": sorted({module for tower in towers.values() for module in tower.spec.plugins()}),  # type: ignore[union-attr,operator]
        "embedding": embedding,
        "class_names": None if class_names is None else list(class_names),
        "matryoshka_dims": list(matryoshka_dims),
        "logit_scale": None if logit_scale is None else float(logit_scale),
        "logit_bias": None if logit_bias is None else float(logit_bias),
        "shared_tensors": shared,
        "provenance": dict(provenance or {}),
    }
    with staged(path) as stage:
        stage.mkdir()
        (stage / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        save_file(tensors, stage / WEIGHTS)
        if "text" in towers:
            towers["text"].encoder.tokenizer.save(stage / TOKENIZER)  # type: ignore[union-attr,operator]


def _keep_other_files(path: Path) -> None:
    if path.is_dir() and any(path.iterdir()) and not (path / CONFIG).is_file():
        raise UserError(f"{path} holds something other than a model, which would be lost; give another folder")


def _describe(name: str, tower: Tower) -> dict[str, Any]:
    if tower.spec is None:
        raise UserError(f"the {name} tower was made by hand and cannot be saved; build it with build_tower")
    description = asdict(tower.spec)
    if isinstance(tower.encoder, ImageEncoder):
        description["preprocess"] = asdict(tower.encoder.preprocess)
    return description


def _unique_tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict without repetitions, on the CPU; and for each name left out, the name that it shares its tensor with."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in merged_state_dict(module).items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in first:
            shared[name] = first[place]
        else:
            first[place] = name
            tensors[name] = tensor.cpu().contiguous().clone()  # overlapping views are not allowed in a file
    return tensors, shared
