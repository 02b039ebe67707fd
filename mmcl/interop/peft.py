"""Adapters of models of transformers in the format of peft: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from mmcl.encoders.adapters import Adapter, adapters
from mmcl.encoders.low_rank import DoRA, LoRA
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.files.atomic import staged

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_peft(path: str | Path, tower: Tower, *, base: str | None) -> None:
    """Write the adapters of a tower for `peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), path)`.

    The write is atomic. The head of the tower is not a part of it.

    Args:
        path: the folder; one with other adapters is replaced.
        tower: with an encoder "transformers" and its adapters, before they are merged.
        base: folder or hub id of the model that they change; None if it has no name of its own.

    Raises:
        UserError: the encoder is of another library, or peft has no adapters of this kind.
    """
    if tower.encoder_name != "transformers":
        raise UserError(f"peft adapts models of transformers, not the encoder {tower.encoder_name}: save the merged model")
    model: Any = tower.encoder.model
    prefix = "encoder." if getattr(model.config, "is_encoder_decoder", False) else ""  # of the whole model
    tensors: dict[str, Tensor] = {}
    found, modules = [], []
    for name, adapter in adapters(model):
        module, _, parameter = name.rpartition(".")
        layer = model.get_submodule(module)
        _check(name, parameter, layer, adapter)
        assert isinstance(adapter, LoRA), "checked above"
        found.append(adapter)
        modules.append(prefix + module)
        tensors |= {f"base_model.model.{prefix}{module}.{key}": x for key, x in _tensors(layer, adapter).items()}
    if not found:
        raise UserError("the encoder has no adapters: save them before they are merged")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": "FEATURE_EXTRACTION" if not hasattr(model, "logit_scale") else None,
        "inference_mode": True,
        "r": len(found[0].A),
        "lora_alpha": found[0].alpha,
        "lora_dropout": found[0].dropout,
        "use_dora": isinstance(found[0], DoRA),
        "fan_in_fan_out": found[0].is_transposed,
        "bias": "none",
        "target_modules": sorted(modules),
    }
    with staged(path) as stage:
        stage.mkdir()
        (stage / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        save_file(tensors, stage / WEIGHTS, metadata={"format": "pt"})


def _check(name: str, parameter: str, layer: nn.Module, adapter: Adapter) -> None:
    kind = type_before_parametrizations(layer)
    is_plain = issubclass(kind, nn.Linear) or kind.__name__ == "Conv1D" or (issubclass(kind, nn.Conv2d) and layer.groups == 1)
    if type(adapter) not in (LoRA, DoRA):
        raise UserError(f"{name}: peft has no adapters of type {type(adapter).__name__}: save the merged model")
    if parameter != "weight" or not is_plain:
        raise UserError(f"{name}: peft does not adapt this parameter of {kind.__name__} by itself: leave it out by adapt.where")


def _tensors(layer: nn.Module, adapter: LoRA) -> dict[str, Tensor]:
    A_RI, B_OR = adapter.A.detach(), adapter.B.detach()
    magnitude = adapter.magnitude.detach() if isinstance(adapter, DoRA) else None
    if isinstance(layer, nn.Conv2d):
        A_RI, B_OR = A_RI.unflatten(1, (-1, *layer.kernel_size)), B_OR[:, :, None, None]
        magnitude = None if magnitude is None else magnitude[None, :, None, None]
    tensors = {"lora_A.weight": A_RI, "lora_B.weight": B_OR}
    tensors |= {} if magnitude is None else {"lora_magnitude_vector": magnitude}
    return {key: tensor.cpu().contiguous().clone() for key, tensor in tensors.items()}
