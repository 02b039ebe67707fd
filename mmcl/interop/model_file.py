"""The schema of a model folder's config.json: other people's files, so every key, type and range is checked before anything is
built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmcl.config import from_dict
from mmcl.errors import UserError
from mmcl.files.untrusted import read_json
from mmcl.interop.encoding import Embedding

FORMAT_VERSION = 1
MAX_SCALE = 1e6
"""Above it, float32 cannot tell the logits of different cosines apart; trained models have at most some hundreds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerEntry:
    """A tower by name and arguments, as in `TowerSpec`; for images also the preprocessing used in training."""

    modality: Literal["image", "text"]
    encoder: str
    encoder_args: dict[str, Any]
    head: str
    head_args: dict[str, Any]
    preprocess: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.encoder_args.get("pretrained"):  # a folder holds its weights: it downloads none
            raise UserError("encoder_args name released weights (pretrained), and the folder holds its own")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFile:
    """What config.json says; the attributes are those of `Model`, `shared_tensors` a name left out of the weights for each name
    whose tensor it shares, and `plugins` the modules that registered encoders or heads of it. These are only ever named to the
    user, and never imported: the file may be anyone's."""

    format_version: int
    towers: dict[str, TowerEntry]
    embedding: Embedding
    class_names: tuple[str, ...] | None = None
    logit_scale: float | None
    logit_bias: float | None
    shared_tensors: dict[str, str]
    provenance: dict[str, Any]
    plugins: tuple[str, ...] = ()
    matryoshka_dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        wrong = next((name for name, tower in self.towers.items() if name != tower.modality), None)
        if not self.towers or wrong is not None:
            raise UserError(f"towers are named {', '.join(self.towers) or 'nothing'}: the names must be image and text")
        if not all(part.isidentifier() for module in self.plugins for part in module.split(".")):
            raise UserError("plugins are names of modules, such as my_package.plugin")
        check_scale(self.logit_scale)


def check_scale(logit_scale: float | None) -> None:
    """Raises UserError for a scale that turns no cosines into logits."""
    if logit_scale is not None and not 0 < logit_scale <= MAX_SCALE:
        raise UserError(f"logit_scale is {logit_scale}: it is above 0 and at most {MAX_SCALE:.0e}")


def read_model_file(path: Path) -> ModelFile:
    """Reads a config.json. Raises UserError if it is missing, damaged, of another library or of another version."""
    content = read_json(path)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        scheme = "timm:local-dir:" if "architecture" in content else "hf:"
        hint = f"it has format version {version}; update mmcl" if version else f"another library's? try {scheme}{path.parent}"
        raise UserError(f"{path.parent}: not a model of format version {FORMAT_VERSION}: {hint}")
    try:
        return from_dict(ModelFile, content, str(path))
    except UserError as error:
        raise damaged(path, str(error).removeprefix(f"{path}: ")) from None


def damaged(path: Path, what: str) -> UserError:
    """Builds the error for a file whose content mmcl did not write."""
    return UserError(f"{path} is damaged: {what}; copy or save the model again")
