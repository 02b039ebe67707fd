"""ONNX graphs of both towers, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.export import ExportedProgram

from mmcl.errors import UserError
from mmcl.files.untrusted import reason
from mmcl.interop.export.graphs import GraphExport, axes_of
from mmcl.interop.export.target import LoadedExport
from mmcl.interop.graph_folder import IMAGE_EMBEDS, IMAGE_INPUTS, TEXT_EMBEDS, TEXT_INPUTS
from mmcl.interop.onnx_model import OnnxModel
from mmcl.types import Tokens

OPSET = 20
_LARGEST_FILE = 2**31 - 2**24
"""Bytes of weights that one protobuf file can hold; more are written beside it."""


class OnnxExport(GraphExport):
    """Graphs of ONNX for images and texts, which run without torch: any model whose towers can be traced."""

    needs = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"
    runtime = "onnx"

    def save(self, program: ExportedProgram, path: Path, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """See `GraphExport`."""
        size = sum(tensor.nbytes for tensor in program.state_dict.values())
        try:
            converted = torch.onnx.export(
                program,
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                dynamic_shapes={name: dict(enumerate(axes_of(name))) for name in inputs},
                dynamo=True,
                verbose=False,
            )
            assert converted is not None
            converted.save(path, external_data=size > _LARGEST_FILE)
        except Exception as error:  # from the conversion of any operator
            raise UserError(f"the {path.stem} tower cannot be converted to ONNX ({reason(error)}); try --to pt2") from None

    def load(self, folder: Path) -> LoadedExport:
        """Loads the graphs by onnxruntime."""
        return _LoadedOnnx(OnnxModel(folder, device="cpu"))

    def usage(self, folder: str) -> str:
        """See `ExportTarget`."""
        return f'model = mmcl.load_model("onnx:{folder}")\nmodel.encode_image(["cat.png"]), model.encode_text(["a cat"])'


class _LoadedOnnx:
    def __init__(self, model: OnnxModel):
        self._model = model

    def embed_pixels(self, pixels_BCHW: Tensor) -> np.ndarray:
        return self._model.run("image", dict(zip(IMAGE_INPUTS, [pixels_BCHW.numpy()], strict=True)), IMAGE_EMBEDS)

    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        inputs = dict(zip(TEXT_INPUTS, [tokens.ids.numpy(), tokens.mask.long().numpy()], strict=True))
        return self._model.run("text", inputs, TEXT_EMBEDS)

    def encode_image(self, images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        return self._model.encode_image(images)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.encode_text(texts)
