"""Loading models of any kind: `load_model("runs/a")`, `load_model("open_clip:ViT-B-32/laion2b_s34b_b79k")`, ...

Only what a model needs is imported for it: one of ONNX runs without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mmcl.errors import UserError
from mmcl.interop.available import check_available
from mmcl.interop.suggestions import ONNX, PREFIXES, saved_with_preprocess
from mmcl.preprocess import Preprocess

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mmcl.interop.model import Model


def load_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    resize_positions: bool = False,
    towers: Mapping[str, nn.Module] | None = None,
) -> Model:
    """Loads a model for inference.

    Args:
        name: one of
            a run directory, or its `model/` folder;
            `open_clip:ARCH`, with random weights, or `open_clip:ARCH/PRETRAINED`, a tag of released weights or a path;
            `open_clip:local-dir:FOLDER` or `open_clip:hf-hub:ID`, with open_clip_config.json and weights;
            `hf:ID_OR_DIR`, a CLIP-like model of transformers, also as sentence-transformers or PEFT save it; or the ID of a
            model that `mmcl push` sent;
            `timm:NAME` or `torchvision:NAME`, images only, with released weights, or `NAME/PATH` with weights from a file;
            `timm:local-dir:FOLDER` or `timm:hf-hub:ID`, in timm's format;
            `onnx:FOLDER`, written by `mmcl export --to onnx` (`mmcl.interop.onnx_model`): it runs without torch, has the same
            methods, and no towers.
        device: device to run on; None uses the GPU if there is one.
        preprocess: image preprocessing for a model of another library, or only the fields that differ from the library's
            defaults. Weights from a file do not specify it; the values that are assumed are then printed on standard error.
        resize_positions: whether `hf:` models are resampled to the `size` of `preprocess` (position embeddings, bicubic), which
            otherwise must be their own. Models of open_clip and timm always are.
        towers: the encoder of each tower, "image" or "text", that was passed to `mmcl.train` as a module. Its weights do not
            matter: those of the folder are loaded into a copy of it.

    Raises:
        UserError: the device is not available; the model does not exist or cannot be downloaded; it needs a plug-in that is not
            loaded or an encoder in `towers`; its files are damaged or of another version; or a model saved by mmcl would
            preprocess images differently than in training.

    Example:
        >>> model = load_model("runs/clip_emoji")  # after `mmcl train`
        >>> model.encode_text(["a cat", "a dog"]).shape
        (2, 256)
    """
    scheme, _, rest = str(name).partition(":")
    if not rest or scheme not in PREFIXES:
        from mmcl.interop.own_folder import load_own

        if resize_positions:
            raise UserError(f"{name} has the size that it was trained with; remove resize_positions")
        return load_own(name, preprocess=preprocess, towers=towers, device=device)
    if towers:
        raise UserError(f"{name} is built by name; remove towers")
    fields = asdict(preprocess) if isinstance(preprocess, Preprocess) else preprocess
    if resize_positions and "size" not in (fields or {}):
        raise UserError(f"{name}: resize_positions needs the new size: preprocess={{'size': 336}}")
    if scheme == ONNX:
        from mmcl.interop.onnx_model import OnnxModel

        if preprocess is not None or resize_positions:
            raise saved_with_preprocess(name)
        return cast("Model", OnnxModel(rest, device=device))
    check_available(str(name))
    from mmcl.interop.libraries import load_of_library
    from mmcl.interop.own_folder import load_own, own_repository

    if scheme == "hf" and (folder := own_repository(rest)) is not None:
        return load_own(folder, preprocess=preprocess, towers=None, device=device)

    return load_of_library(str(name), preprocess=fields, resize_positions=resize_positions, device=device)
