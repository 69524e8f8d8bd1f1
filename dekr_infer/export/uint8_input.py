"""Let a graph take 8-bit RGB: the normalisation becomes part of it, as a 1x1 convolution in front of the network.

It is not folded into the first 3x3 convolution, whose padding is 0 in normalised values. Whole numbers up to 255 are
exact in float16, so an accelerator rounds no more than with a normalised input.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import ModelProto

from dekr_infer.onnx_graph.dialects import constant, to_proto
from dekr_infer.pose.preprocess import MEAN, STD

NORMALISE = "normalise"  # name of the convolution
WEIGHT, BIAS = f"{NORMALISE}.weight", f"{NORMALISE}.bias"


def take_uint8(model: ModelProto) -> ModelProto:
    """Return a graph whose input is `image` (N, 3, H, W) uint8 RGB, made of one that takes normalised float32."""
    made = ir.from_proto(model)
    image, first = made.graph.inputs[0], made.graph[0]
    readers = list(image.uses())
    mean, std = np.array(MEAN), np.array(STD)
    weight = constant(made.graph, WEIGHT, np.diag(1 / (255 * std)).astype(np.float32)[:, :, None, None])
    bias = constant(made.graph, BIAS, (-mean / std).astype(np.float32))
    cast = ir.node("Cast", [image], {"to": ir.DataType.FLOAT}, name="normalise.cast")
    conv = ir.node("Conv", [cast.outputs[0], weight, bias], {"kernel_shape": [1, 1]}, name=NORMALISE)
    for node in (cast, conv):
        node.outputs[0].name = f"{node.name}.output"
        made.graph.insert_before(first, node)
    for node, index in readers:
        node.replace_input_with(index, conv.outputs[0])
    image.type = ir.TensorType(ir.DataType.UINT8)
    return to_proto(made)
