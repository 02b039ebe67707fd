"""Loading models of any kind: `load_model("runs/a")`, `load_model("open_clip:ViT-B-32/laion2b_s34b_b79k")`, ..."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmcl.encoders import HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.given import given_encoders
from mmcl.encoders.tokenizers import Tokenizer
from mmcl.encoders.tower import GIVEN, DualEncoder, ImageEncoder, Tower, TowerSpec, build_tower, wrap_encoder
from mmcl.errors import UserError
from mmcl.files.hub import offline
from mmcl.files.untrusted import existing_file, load_into, read_tensors, reason
from mmcl.interop.available import check_available
from mmcl.interop.bounds import bounded_build
from mmcl.interop.device import find_device
from mmcl.interop.model import Model
from mmcl.interop.model_file import ModelFile, TowerEntry, damaged, read_model_file
from mmcl.interop.save import CONFIG, TOKENIZER, WEIGHTS
from mmcl.interop.suggestions import unknown_model
from mmcl.preprocess import OF_THE_ENCODER, Preprocess

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz")


def load_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    towers: Mapping[str, nn.Module] | None = None,
) -> Model:
    """Loads a model for inference.

    Args:
        name: one of
            a run directory, or its `model/` folder;
            `open_clip:ARCH`, with random weights, or `open_clip:ARCH/PRETRAINED`, a tag of released weights or a path;
            `open_clip:local-dir:FOLDER` or `open_clip:hf-hub:ID`, with open_clip_config.json and weights;
            `hf:ID_OR_DIR`, a CLIP-like model of transformers;
            `timm:NAME` or `torchvision:NAME`, images only, with released weights, or `NAME/PATH` with weights from a file;
            `timm:local-dir:FOLDER` or `timm:hf-hub:ID`, in timm's format.
        device: device to run on; None uses the GPU if there is one.
        preprocess: image preprocessing for a model of another library, or only the fields that differ from the library's
            defaults. Weights from a file do not specify it; the values that are assumed are then printed on standard error.
        towers: the encoder of each tower, "image" or "text", that was passed to `mmcl.train` as a module. Its weights do not
            matter: those of the folder are loaded into a copy of it.

    Raises:
        UserError: the device is not there; the model does not exist or cannot be downloaded; it needs a plug-in that is not
            loaded or an encoder in `towers`; its files are damaged or of another version; or a model saved by mmcl would
            preprocess images differently than in training.

    Example:
        >>> model = load_model("runs/clip_emoji")  # after `mmcl train`
        >>> model.encode_text(["a cat", "a dog"]).shape
        (2, 256)
    """
    device = find_device(device)
    scheme, _, rest = str(name).partition(":")
    if rest and scheme in _LIBRARIES:
        fields = asdict(preprocess) if isinstance(preprocess, Preprocess) else preprocess
        if towers:
            raise UserError(f"{name} is built by name; remove towers")
        check_available(str(name))
        with _within_folder(Path(rest.removeprefix("local-dir:"))):
            model = _LIBRARIES[scheme](rest, None if fields is None else dict(fields))
        return Model(**model, provenance={"source": str(name)}, device=device)
    folder = _model_folder(Path(name).expanduser())
    if folder is None:
        raise unknown_model(str(name), holds=CONFIG)
    if preprocess is not None:
        raise UserError(f"{name} was saved with its preprocessing; remove preprocess")
    with given_encoders(towers):
        return Model(**_read_folder(folder, given=towers or {}), device=device)


def _model_folder(path: Path) -> Path | None:
    for folder in (path, path / "model"):
        if (folder / CONFIG).is_file():
            return folder
    if (path / "open_clip_config.json").is_file():
        raise UserError(f"{path}: a folder of open_clip; give open_clip:local-dir:{path}")
    if (path / "adapter_config.json").is_file() or (path / "modules.json").is_file():
        raise UserError(f"{path}: a folder of transformers; give hf:{path}")
    return None


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


def _read_folder(folder: Path, given: Collection[str]) -> dict[str, Any]:
    """Reads the arguments of `Model`; `given` holds the encoders that the caller passed."""
    file = read_model_file(folder / CONFIG)
    for entry in file.towers.values():
        _check_registered(folder, entry, file.plugins)
        _check_given(folder, entry, given)
    with offline(), bounded_build([existing_file(folder / WEIGHTS)], str(folder / CONFIG)):
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
            f"{folder}: its {modality} encoder was given as a module from Python, and no name builds it again: "
            f"mmcl.load_model(..., towers={{'{modality}': MODULE}})"
        )
    if entry.encoder != GIVEN and modality in given:
        raise UserError(f"{folder}: its {modality} encoder is {entry.encoder!r}, built by name; remove it from towers")


def _class_names(file: ModelFile, towers: nn.ModuleDict, folder: Path) -> Sequence[str] | None:
    logits = int(towers["image"].embed_dim) if "image" in towers else 0  # type: ignore[arg-type]
    if file.class_names is not None and len(file.class_names) != logits:
        raise damaged(folder / CONFIG, f"it has {len(file.class_names)} class_names for {logits} logits")
    return file.class_names


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


_Fields = dict[str, Any] | None
"""Of `Preprocess`."""


def _open_clip(rest: str, preprocess: _Fields) -> dict[str, Any]:
    from mmcl.encoders.open_clip import dual_encoder

    arch, pretrained = _split(rest)
    return _from_dual("open_clip", dual_encoder(arch, pretrained or None, preprocess=preprocess))


def _transformers(rest: str, preprocess: _Fields) -> dict[str, Any]:
    from mmcl.encoders.transformers import dual_encoder

    return _from_dual("transformers", dual_encoder(rest, preprocess=preprocess))


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
    "hf": _transformers,
    "timm": _image_only("timm"),
    "torchvision": _image_only("torchvision"),
}
