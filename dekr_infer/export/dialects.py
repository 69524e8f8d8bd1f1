"""The two dialects of the graph, and the exact way from either to the other.

ascend  opset 11, `DeformableConv2D` in the default domain, 27 offset channels: nine dx, nine dy, nine masks of 1
onnx    opset 19, the standard `DeformConv`, 18 offset channels: dy and dx of each tap in turn

Only the order of the offset convolution's output channels differs, so its weights are permuted and nothing is added.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dekr_infer.errors import DekrError
from dekr_infer.export.operator_names import OPERATOR, STANDARD_OPERATOR

ASCEND, ONNX = "ascend", "onnx"
DIALECTS = (ASCEND, ONNX)
_OPSET = {ASCEND: 11, ONNX: 19}
_IR_VERSION = {ASCEND: 6, ONNX: 9}
TAPS = 9


def dialect_of(model: ModelProto) -> str:
    """Which dialect a graph is in; one without deformable convolutions counts by its opset."""
    types = {node.op_type for node in model.graph.node}
    if OPERATOR in types:
        return ASCEND
    if STANDARD_OPERATOR in types:
        return ONNX
    return ASCEND if any(e.domain == "" and e.version < _OPSET[ONNX] for e in model.opset_import) else ONNX


def to_dialect(model: ModelProto, dialect: str) -> ModelProto:
    """A graph of ours in the wanted dialect: itself when it is in it already, else a converted copy.

    Raises:
        DekrError: a deformable convolution is not of the form that our export writes.
    """
    if dialect_of(model) == dialect:
        return model
    converted = ModelProto()
    converted.CopyFrom(model)
    arrange = _interleaved if dialect == ONNX else _planar
    operator = {ASCEND: STANDARD_OPERATOR, ONNX: OPERATOR}[dialect]
    producers = {name: node for node in converted.graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in converted.graph.initializer}
    arranged: set[str] = set()  # equal weights are stored once and may serve several convolutions
    for node in converted.graph.node:
        if node.op_type == operator:
            for name, kind in _offset_weights(node, producers, tensors):
                if name not in arranged:
                    arranged.add(name)
                    values = arrange(numpy_helper.to_array(tensors[name]), kind)
                    tensors[name].CopyFrom(numpy_helper.from_array(values, name))
            _convert_deformable(node)
        elif node.op_type == "Split":
            _convert_split(node, converted, tensors, dialect)
    _set_versions(converted, dialect)
    return converted


def _set_versions(model: ModelProto, dialect: str) -> None:
    model.ir_version = _IR_VERSION[dialect]
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", _OPSET[dialect]))
    for entry in model.metadata_props:
        if entry.key == "dialect":
            entry.value = dialect


def _offset_weights(
    node: NodeProto, producers: dict[str, NodeProto], tensors: dict[str, TensorProto]
) -> list[tuple[str, str]]:
    """The names of the weight and the bias of the convolution that makes a node's offsets."""
    producer = producers.get(node.input[2])
    is_ours = producer is not None and producer.op_type == "Conv" and len(producer.input) == 3
    if producer is None or not is_ours or any(name not in tensors for name in producer.input[1:]):
        raise DekrError(f"{node.name}: its offsets do not come from a convolution; export the model with this project")
    return [(producer.input[1], "weight"), (producer.input[2], "bias")]


def _convert_deformable(node: NodeProto) -> None:
    to_standard = node.op_type == OPERATOR
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    pads = list(attributes["pads"])
    common = {"strides": list(attributes["strides"]), "dilations": list(attributes["dilations"])}
    del node.attribute[:]
    if to_standard:
        node.op_type = STANDARD_OPERATOR
        wanted = {**common, "pads": pads * 2, "group": attributes["groups"]}
        wanted |= {"offset_group": attributes["deformable_groups"], "kernel_shape": [3, 3]}
    else:
        node.op_type = OPERATOR
        wanted = {**common, "pads": pads[:2], "groups": attributes["group"]}
        wanted |= {"deformable_groups": attributes["offset_group"]}
    node.attribute.extend(helper.make_attribute(key, value) for key, value in wanted.items())


def _interleaved(values: np.ndarray, kind: str) -> np.ndarray:
    """Planar dx, dy, mask -> dy, dx of each tap; the masks must be the constant 1 that our export writes."""
    if len(values) != 3 * TAPS or not (values[2 * TAPS :] == (kind == "bias")).all():
        raise DekrError("a deformable convolution has masks that vary; only graphs of this project can be converted")
    dx, dy = values[:TAPS], values[TAPS : 2 * TAPS]
    return np.stack((dy, dx), 1).reshape(2 * TAPS, *values.shape[1:])


def _planar(values: np.ndarray, kind: str) -> np.ndarray:
    """dy, dx of each tap -> planar dx, dy, mask."""
    if len(values) != 2 * TAPS:
        raise DekrError("a deformable convolution has offset groups; only graphs of this project can be converted")
    mask = np.full((TAPS, *values.shape[1:]), kind == "bias", values.dtype)
    return np.concatenate((values[1::2], values[0::2], mask))


def _convert_split(node: NodeProto, model: ModelProto, tensors: dict[str, TensorProto], dialect: str) -> None:
    """The parts of a Split are an attribute up to opset 12 and an input from 13 on."""
    if dialect == ONNX:
        attribute = next((entry for entry in node.attribute if entry.name == "split"), None)
        if attribute is None:
            return
        name = f"{node.output[0]}.split"
        model.graph.initializer.append(numpy_helper.from_array(np.array(attribute.ints, np.int64), name))
        node.attribute.remove(attribute)
        node.input.append(name)
    else:
        sizes = tensors[node.input[1]]
        node.attribute.append(helper.make_attribute("split", numpy_helper.to_array(sizes).tolist()))
        del node.input[1]
        model.graph.initializer.remove(sizes)


def check_standard(model: ModelProto) -> None:
    """Let the ONNX checker look at a graph in the `onnx` dialect, types and shapes included.

    Raises:
        DekrError: it is not valid ONNX.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DekrError(f"the exported graph is not valid ONNX: {error}") from None
