"""ONNX graphs of both towers, run by onnxruntime."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.export import ExportedProgram

from mmcl.errors import UserError, first_line
from mmcl.interop.export.graphs import GraphExport, axes_of
from mmcl.interop.export.onnx_precision import reduced
from mmcl.interop.export.own import usage_by_mmcl
from mmcl.interop.export.target import LoadedExport
from mmcl.interop.graph_folder import IMAGE_EMBEDS, IMAGE_INPUTS, IMAGE_LOGITS, TEXT_EMBEDS, TEXT_INPUTS
from mmcl.interop.onnx_model import OnnxModel
from mmcl.types import Tokens

OPSET = 20
_LARGEST_FILE = 2**31 - 2**24
"""Bytes of weights that one protobuf file can hold; more are written beside it."""


class OnnxExport(GraphExport):
    """Graphs of ONNX for images and texts, which run without torch: any model whose towers can be traced."""

    needs = ("onnx", "onnxscript", "onnxruntime")
    precisions = ("fp32", "fp16", "int8")
    extra = "onnx"
    runtime = "onnx"

    def save(self, program: ExportedProgram, path: Path, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Converts one graph, see `GraphExport`."""
        size = sum(tensor.nbytes for tensor in program.state_dict.values())
        if self.precision != "fp32" and size > _LARGEST_FILE:
            raise UserError(f"the {path.stem} tower has {size / 1e9:.1f} GB, and {self.precision} is for up to 2 GB; take fp32")
        try:
            with redirect_stdout(io.StringIO()):  # some versions of onnxscript print what they merge
                converted = torch.onnx.export(
                    program,
                    input_names=inputs,
                    output_names=outputs,
                    opset_version=OPSET,
                    dynamic_shapes={name: dict(enumerate(axes_of(name))) for name in inputs},
                    custom_translation_table={torch.ops.aten._is_all_true.default: _all_true},
                    dynamo=True,
                    verbose=False,
                )
            assert converted is not None
            if self.precision == "fp32":
                converted.save(path, external_data=size > _LARGEST_FILE)
            else:
                path.write_bytes(reduced(converted.model_proto, self.precision, path.stem).SerializeToString())
        except UserError:
            raise
        except Exception as error:  # from the conversion of any operator
            cause: BaseException = error  # beneath general advice
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise UserError(f"the {path.stem} tower cannot be converted to ONNX ({first_line(cause)}); try --to pt2") from None

    def load(self, folder: Path) -> LoadedExport:
        """Loads the graphs by onnxruntime."""
        return _LoadedOnnx(OnnxModel(folder, device="cpu"))

    def usage(self, place: str, *, on_hub: bool = False) -> str:
        """See `ExportTarget`."""
        return usage_by_mmcl(f"onnx:{place}")


def _all_true(flags: Any) -> Any:
    """An operator of checks inside of models, which has no translation in torch."""
    from onnx import TensorProto
    from onnxscript import opset20

    op: Any = opset20
    smallest = op.ReduceMin(op.Cast(flags, to=TensorProto.INT64), keepdims=False)
    return op.Cast(smallest, to=TensorProto.BOOL)


class _LoadedOnnx:
    def __init__(self, model: OnnxModel):
        self._model = model

    def embed_pixels(self, pixels_BCHW: Tensor) -> np.ndarray:
        return self._model.run("image", dict(zip(IMAGE_INPUTS, [pixels_BCHW.numpy()], strict=True)), IMAGE_EMBEDS)

    def pixel_logits(self, pixels_BCHW: Tensor) -> np.ndarray:
        return self._model.run("image", dict(zip(IMAGE_INPUTS, [pixels_BCHW.numpy()], strict=True)), IMAGE_LOGITS)

    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        inputs = dict(zip(TEXT_INPUTS, [tokens.ids.numpy(), tokens.mask.long().numpy()], strict=True))
        return self._model.run("text", inputs, TEXT_EMBEDS)

    def encode_image(self, images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        return self._model.encode_image(images)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.encode_text(texts)
