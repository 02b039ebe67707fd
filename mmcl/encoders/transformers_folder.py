"""Folders of transformers that need more than loading: those of peft and of sentence-transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from mmcl.errors import UserError, how_to_install
from mmcl.files.hub import hub_errors
from mmcl.files.untrusted import read_json, reason


def located(name: str | None, config: Mapping[str, Any] | None) -> tuple[str | None, str | None]:
    """Return the location of the model, and of its adapter or None.

    Folders of old sentence-transformers versions hold CLIP in a subfolder; those of peft hold an adapter and name its model.
    """
    if (name is None) == (config is None):
        raise UserError("transformers: give either name, a folder or a hub id, or config")
    if name is None or not Path(name).is_dir() or Path(name, "config.json").is_file():
        return name, None
    if not Path(name, "adapter_config.json").is_file():
        inner = next((folder for folder in Path(name).glob("*_CLIPModel") if (folder / "config.json").is_file()), name)
        return str(inner), None
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"{name}: holds an adapter, which peft merges into its model: {how_to_install('peft')}")
    base = read_json(Path(name, "adapter_config.json")).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise UserError(f"{name}: adapter_config.json does not name the model that it adapts; set base_model_name_or_path")
    return base, name


def merged(model: Any, adapter: str, base: str) -> Any:
    """Merge an adapter of peft. Raise UserError unless each of its tensors has its place in the model."""
    import peft

    refusal = f"{adapter}: not an adapter of {base} ({{}}); set base_model_name_or_path in its adapter_config.json"
    try:
        adapted = peft.PeftModel.from_pretrained(model, adapter)
    except RuntimeError:
        raise UserError(refusal.format("their shapes differ")) from None
    except ValueError as error:  # such as of layers that the model does not have
        raise UserError(refusal.format(reason(error))) from None
    with hub_errors(adapter):
        different = peft.get_peft_model_state_dict(adapted).keys() ^ peft.load_peft_weights(adapter, device="cpu").keys()
    if different:
        raise UserError(refusal.format(f"one of them alone has {min(different)}"))
    return adapted.merge_and_unload()


@contextmanager
def without_bars(hidden: bool = True) -> Iterator[None]:
    """Hide the progress bars of transformers, those of downloads too: it draws one even for a file that is here."""
    hidden = hidden and transformers_logging.is_progress_bar_enabled()
    if hidden:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            transformers_logging.enable_progress_bar()
