"""Smaller graphs of ONNX: everything in float16, or weights of 8 bits.

Both keep inputs and outputs in float32. Weights of 8 bits are computed with in float32, so that an embedding does not depend on
the batch that it is computed in, as it would if the activations were quantized by their range.
"""

from __future__ import annotations

import sys

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from mmcl.errors import UserError
from mmcl.interop.graph_folder import Precision

_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gather", "Gemm", "MatMul", "Transpose")
"""Operators whose constants are weights; a transposed one goes into a product."""
_SMALLEST = 256
"""Numbers of a weight of which a quarter is worth another node."""


def reduced(model: ModelProto, precision: Precision, tower: str) -> ModelProto:
    """Returns a graph of the given precision.

    Args:
        model: graph in float32, which may be changed.
        precision: "fp16" or "int8".
        tower: its name, for errors.

    Raises:
        UserError: the graph has no weights that can be stored in 8 bits.
    """
    if precision == "fp16":
        return _in_float16(model)
    if not _store_in_8_bits(model.graph):
        raise UserError(f"the {tower} tower has no weights for precision int8: no product, convolution or table; take fp16")
    return model


def _in_float16(model: ModelProto) -> ModelProto:
    path = list(sys.path)
    from onnxruntime.transformers import float16

    sys.path[:] = path  # the package adds a folder of its own scripts
    # A sum of squares overflows in float16 long before the numbers do.
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, "ReduceL2", "ReduceSumSquare"]
    converted: ModelProto = float16.convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked)
    return converted


def _store_in_8_bits(graph: GraphProto) -> int:
    """Stores weights as int8 with a scale for each output channel, in place. Returns their number."""
    axes = _channel_axes(graph)
    weights = [one for one in graph.initializer if one.name in axes]
    for weight in weights:
        matrix, axis = numpy_helper.to_array(weight), axes[weight.name]
        others = tuple(one for one in range(matrix.ndim) if one != axis)
        scales = np.abs(matrix).max(axis=others, keepdims=True) / np.float32(127)
        scales[scales == 0] = 1
        stored, scale = f"{weight.name}_int8", f"{weight.name}_scale"
        graph.initializer.remove(weight)
        graph.initializer.append(numpy_helper.from_array(np.rint(matrix / scales).astype(np.int8), stored))
        graph.initializer.append(numpy_helper.from_array(scales.reshape(-1), scale))
        graph.node.insert(0, helper.make_node("DequantizeLinear", [stored, scale], [weight.name], axis=axis))
    return len(weights)


def _channel_axes(graph: GraphProto) -> dict[str, int]:
    """Returns the axis of the output channels of every weight, by name: the first one, as in torch, or the last of a factor on
    the right."""
    large = {
        one.name: len(one.dims)
        for one in graph.initializer
        if one.data_type == TensorProto.FLOAT and len(one.dims) > 1 and np.prod(one.dims) >= _SMALLEST
    }
    axes = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in large and node.op_type in _WITH_WEIGHTS:
                on_the_right = node.op_type == "MatMul" and place == 1
                transposed = any(one.name == "transB" and one.i for one in node.attribute)
                last = on_the_right or (node.op_type == "Gemm" and place == 1 and not transposed)
                axes[name] = large[name] - 1 if last else 0
    return axes
