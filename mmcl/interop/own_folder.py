"""Reading a model from a folder of mmcl's own format; see save.py."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from mmcl.encoders import HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.given import given_encoders
from mmcl.encoders.tokenizers import Tokenizer
from mmcl.encoders.tower import GIVEN, ImageEncoder, Tower, TowerSpec, build_tower
from mmcl.errors import UserError
from mmcl.files.hub import hub_errors, offline
from mmcl.files.untrusted import existing_file, load_into, read_json, read_tensors, reason
from mmcl.interop.bounds import bounded_build
from mmcl.interop.device import find_device
from mmcl.interop.graph_folder import Runtime
from mmcl.interop.model import Model
from mmcl.interop.model_file import ModelFile, TowerEntry, damaged, read_model_file
from mmcl.interop.save import CONFIG, TOKENIZER, WEIGHTS
from mmcl.interop.suggestions import saved_with_preprocess, unknown_model
from mmcl.preprocess import OF_THE_ENCODER, Preprocess


def load_own(
    name: str | Path,
    *,
    preprocess: Preprocess | Mapping[str, Any] | None,
    towers: Mapping[str, nn.Module] | None,
    device: str | torch.device | None,
) -> Model:
    """Loads a run directory, its `model/` folder, or a folder that `save_model` wrote.

    Args:
        name, towers, device: as for `load_model`.
        preprocess: must be None, because the folder says it.

    Raises:
        UserError: see `load_model`.
    """
    found = find_device(device)
    folder = model_folder(Path(name).expanduser())
    if folder is None:
        raise unknown_model(str(name), holds=CONFIG)
    if preprocess is not None:
        raise saved_with_preprocess(name)
    with given_encoders(towers):
        return Model(**_read_folder(folder, given=towers or {}), device=found)


def model_folder(path: Path) -> Path | None:
    """Returns the folder of the model at a path; None if there is none. Raises UserError for that of another library."""
    for runtime in get_args(Runtime):
        if any((path / f"{tower}.{runtime}").is_file() for tower in ("image", "text")):
            fix = f"give onnx:{path}" if runtime == "onnx" else "torch.export.load reads it"
            raise UserError(f"{path}: graphs without weights to train; {fix}")
    for folder in (path, path / "model"):
        if (folder / CONFIG).is_file():
            return folder
    if (path / "open_clip_config.json").is_file():
        raise UserError(f"{path}: a folder of open_clip; give open_clip:local-dir:{path}")
    if (path / "adapter_config.json").is_file() or (path / "modules.json").is_file():
        raise UserError(f"{path}: a folder of transformers; give hf:{path}")
    return None


def own_repository(name: str) -> Path | None:
    """Returns the folder of a model in mmcl's own format, or the copy of a repository of the hub; None for another format."""
    if Path(name).is_dir():
        own = Path(name, CONFIG)
        return Path(name) if own.is_file() and "format_version" in read_json(own) else None
    with hub_errors(name):
        try:
            config = Path(hf_hub_download(name, CONFIG))
        except EntryNotFoundError:  # such as an adapter
            return None
        if "format_version" not in read_json(config):
            return None
        hf_hub_download(name, WEIGHTS)
        with suppress(EntryNotFoundError):  # of images alone
            hf_hub_download(name, TOKENIZER)
    return config.parent


def _read_folder(folder: Path, given: Collection[str]) -> dict[str, Any]:
    """Reads the arguments of `Model`; `given` holds the encoders that the caller passed."""
    file = read_model_file(folder / CONFIG)
    for entry in file.towers.values():
        _check_registered(folder, entry, file.plugins)
        _check_given(folder, entry, given)
    # Encoders draw weights, all of which are replaced: the caller's random numbers stay as they were.
    with offline(), bounded_build([existing_file(folder / WEIGHTS)], str(folder / CONFIG)), torch.random.fork_rng(devices=[]):
        towers = nn.ModuleDict({name: _read_tower(folder, entry) for name, entry in file.towers.items()})
    tensors = read_tensors(folder / WEIGHTS)
    for alias, original in file.shared_tensors.items():
        if original not in tensors:
            raise damaged(folder / CONFIG, f"shared_tensors name {original!r}, which the weights lack")
        tensors[alias] = tensors[original]
    load_into(towers, tensors, where=str(folder / WEIGHTS))
    _check_encoding(towers, folder)
    return {
        "towers": towers,
        "logit_scale": file.logit_scale,
        "logit_bias": file.logit_bias,
        "embedding": file.embedding,
        "class_names": _class_names(file, towers, folder),
        "matryoshka_dims": _matryoshka_dims(file, towers, folder),
        "provenance": file.provenance,
    }


def _check_registered(folder: Path, entry: TowerEntry, plugins: Sequence[str]) -> None:
    """Raises UserError, which names the plug-ins, for an encoder or a head that is not registered here."""
    encoders = IMAGE_ENCODERS if entry.modality == "image" else TEXT_ENCODERS
    for registry, name in ((encoders, entry.encoder), (HEADS, entry.head)):
        if plugins and name not in registry:
            modules = ",".join(plugins)
            raise UserError(
                f"{folder}: its {registry.kind} {name!r} is of a plug-in that is not loaded ({modules}): install it, or "
                f"import it by --plugins {modules} or MMCL_PLUGINS"
            )


def _check_given(folder: Path, entry: TowerEntry, given: Collection[str]) -> None:
    """Raises UserError if an encoder that the caller must pass is missing, or one is passed that the model does not use."""
    modality = entry.modality
    if entry.encoder == GIVEN and modality not in given:
        raise UserError(
            f"{folder}: its {modality} encoder was given as a module from Python and cannot be rebuilt by name: "
            f"mmcl.load_model(..., towers={{'{modality}': MODULE}})"
        )
    if entry.encoder != GIVEN and modality in given:
        raise UserError(f"{folder}: its {modality} encoder is {entry.encoder!r}, built by name; remove it from towers")


def _class_names(file: ModelFile, towers: nn.ModuleDict, folder: Path) -> Sequence[str] | None:
    logits = int(towers["image"].embed_dim) if "image" in towers else 0  # type: ignore[arg-type]
    if file.class_names is not None and len(file.class_names) != logits:
        raise damaged(folder / CONFIG, f"it has {len(file.class_names)} class_names for {logits} logits")
    return file.class_names


def _matryoshka_dims(file: ModelFile, towers: nn.ModuleDict, folder: Path) -> Sequence[int]:
    width = min(int(tower.embed_dim) for tower in towers.values())  # type: ignore[arg-type]
    wrong = [dim for dim in file.matryoshka_dims if not 0 < dim < width]
    if wrong:
        raise damaged(folder / CONFIG, f"its matryoshka_dims have {wrong[0]}, and its embeddings are {width} wide")
    return file.matryoshka_dims


def _read_tower(folder: Path, entry: TowerEntry) -> Tower:
    spec = TowerSpec(**{field.name: getattr(entry, field.name) for field in fields(TowerSpec)})
    tokenizer = Tokenizer.load(folder / TOKENIZER) if spec.modality == "text" else None
    try:
        tower = build_tower(spec, tokenizer=tokenizer)
    except UserError as error:
        if spec.encoder == GIVEN:
            raise
        raise damaged(folder / CONFIG, f"its {spec.modality} tower cannot be built ({reason(error)})") from None
    except Exception as error:  # constructors of five libraries may raise anything for unusual values
        raise damaged(folder / CONFIG, f"its {spec.modality} tower cannot be built ({reason(error)})") from None
    if isinstance(tower.encoder, ImageEncoder):
        trained, where = entry.preprocess or {}, f"{folder}: {spec.encoder}"
        tower.encoder.preprocess = _trained_preprocess(trained, tower.encoder.preprocess, where=where)
    return tower


@torch.no_grad()
def _check_encoding(towers: nn.ModuleDict, folder: Path) -> None:
    """Encodes a blank input, because some arguments build a tower that cannot encode."""
    for name, tower in towers.eval().items():
        if not tower.encoder.encodes:  # type: ignore[union-attr]
            continue
        try:
            if isinstance(tower.encoder, ImageEncoder):
                shown = tower.encoder.preprocess
                tower(torch.zeros(1, shown.channels, shown.height, shown.width))
            else:
                tower(tower.encoder.tokenizer(""))  # type: ignore[union-attr,operator]
        except Exception as error:  # of five libraries, as above
            raise damaged(folder / CONFIG, f"its {name} tower cannot encode ({reason(error)})") from None


def _trained_preprocess(values: Any, here: Preprocess, *, where: str) -> Preprocess:
    """Preprocessing used in training, regardless of the library's current defaults.

    Raises:
        UserError: the encoder built here applies other constants than in training.
    """
    trained = Preprocess.from_json(values)
    for name in OF_THE_ENCODER:
        was, is_now = getattr(trained, name), getattr(here, name)
        if was != is_now:
            raise UserError(f"{where} was trained with {name} {was}, but has {is_now} as installed here; install that version")
    return trained
