"""The two dialects of the graph, and the exact way from either to the other.

ascend  opset 11, `DeformableConv2D` in the default domain, 27 offset channels per offset group: all dx, all dy, all
        masks of 1, each (group, tap)
onnx    opset 19, the standard `DeformConv`, 18 offset channels per offset group: dy and dx of each tap in turn

Only the order of the offset convolution's output channels differs, so its weights are permuted and nothing is added.
With several offset groups that order also decides the convolution's form: in `onnx` a group's channels are neighbours,
so it is a grouped convolution; planar, the groups alternate, so in `ascend` it is a plain convolution whose weights are
block-diagonal (zero wherever a group would listen to another's input).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dekr_infer.errors import DekrError
from dekr_infer.onnx_graph.operator_names import OPERATOR, STANDARD_OPERATOR

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
            groups = _offset_groups(node)
            convolution = _offset_convolution(node, producers, tensors)
            _set_groups(convolution, groups if dialect == ONNX else 1)
            for name, kind in zip(convolution.input[1:], ("weight", "bias"), strict=True):
                if name not in arranged:
                    arranged.add(name)
                    values = arrange(numpy_helper.to_array(tensors[name]), kind, groups)
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


def _offset_convolution(node: NodeProto, producers: dict[str, NodeProto], tensors: dict[str, TensorProto]) -> NodeProto:
    """The convolution, with constant weight and bias, that makes a node's offsets."""
    producer = producers.get(node.input[2])
    is_ours = producer is not None and producer.op_type == "Conv" and len(producer.input) == 3
    if producer is None or not is_ours or any(name not in tensors for name in producer.input[1:]):
        raise DekrError(f"{node.name}: its offsets do not come from a convolution; export the model with this project")
    return producer


def _offset_groups(node: NodeProto) -> int:
    return int(next(entry.i for entry in node.attribute if entry.name in ("deformable_groups", "offset_group")))


def _set_groups(convolution: NodeProto, groups: int) -> None:
    for entry in convolution.attribute:
        if entry.name == "group":
            entry.i = groups


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


def _interleaved(values: np.ndarray, kind: str, groups: int) -> np.ndarray:
    """Planar dx, dy, mask -> dy, dx of each tap, group by group.

    Args:
        values: weight (27 * groups, groups * C, 3, 3) or bias (27 * groups,).
    Returns:
        (18 * groups, C, 3, 3) or (18 * groups,).
    Raises:
        DekrError: the masks are not the constant 1, or a group listens to another's input.
    """
    inner = values.shape[1:]
    if len(values) != 3 * groups * TAPS or not (values[2 * groups * TAPS :] == (kind == "bias")).all():
        raise DekrError("a deformable convolution has masks that vary; only graphs of this project can be converted")
    dx, dy, _ = values.reshape(3, groups, TAPS, *inner)
    by_group = np.stack((dy, dx), 2).reshape(groups, 2 * TAPS, *inner)
    if kind == "weight":
        blocks = by_group.reshape(groups, 2 * TAPS, groups, -1, *inner[1:])
        own = np.stack([blocks[group, :, group] for group in range(groups)])
        if np.count_nonzero(own) != np.count_nonzero(blocks):
            raise DekrError("a deformable convolution's groups mix; only graphs of this project can be converted")
        by_group = own
    return by_group.reshape(2 * groups * TAPS, *by_group.shape[2:])


def _planar(values: np.ndarray, kind: str, groups: int) -> np.ndarray:
    """The inverse of `_interleaved`."""
    if len(values) != 2 * groups * TAPS:
        raise DekrError("offsets do not fit a node's offset groups; only graphs of this project can be converted")
    own = values.reshape(groups, TAPS, 2, *values.shape[1:])
    if kind == "weight":
        blocks = np.zeros((groups, TAPS, 2, groups, *values.shape[1:]), values.dtype)
        for group in range(groups):
            blocks[group, :, :, group] = own[group]
        own = blocks.reshape(groups, TAPS, 2, -1, *values.shape[2:])
    mask = np.full_like(own[:, :, 0], kind == "bias")
    return np.stack((own[:, :, 1], own[:, :, 0], mask)).reshape(3 * groups * TAPS, *own.shape[3:])


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
