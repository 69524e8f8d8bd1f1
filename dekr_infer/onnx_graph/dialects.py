"""Convert a graph between its two dialects, exactly in either direction.

ascend  opset 11, `DeformableConv2D` in the default domain, 27 offset channels per offset group: all dx, all dy, all
        masks of 1, each (group, tap)
onnx    opset 19, the standard `DeformConv`, 18 offset channels per offset group: dy and dx of each tap in turn

Only the order of the offset convolution's output channels differs, so its weights are permuted and nothing is added.
With several offset groups that order also decides the convolution's form: in `onnx` a group's channels are neighbours,
so it is a grouped convolution; planar, the groups alternate, so in `ascend` it is a plain convolution whose weights are
block-diagonal (zero wherever a group would read another group's input).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import ModelProto
from onnx_ir.convenience import convert_attributes

from dekr_infer.errors import DekrError
from dekr_infer.onnx_graph.operators import OPERATOR, STANDARD_OPERATOR

ASCEND, ONNX = "ascend", "onnx"
DIALECTS = (ASCEND, ONNX)
_OPERATOR = {ASCEND: OPERATOR, ONNX: STANDARD_OPERATOR}
_OPSET = {ASCEND: 11, ONNX: 19}
_IR_VERSION = {ASCEND: 6, ONNX: 9}
TAPS = 9
_UNCHANGED = (  # operators of which the opsets from 11 to 19 changed types and additions only
    "Abs Add AveragePool Cast Ceil Clip Concat Constant Conv Div Equal Exp Expand Flatten Floor Gather GatherElements "
    "GatherND Gemm Greater Identity LeakyRelu Less MatMul Max MaxPool Mean Min Mod Mul Neg NonZero Pad Pow ReduceMax "
    "Relu Reshape Resize Shape Sigmoid Slice Sqrt Sub Sum Tanh Tile Transpose Where"
)
UNCHANGED = frozenset(_UNCHANGED.split())
_FOREIGN = "only graphs of this project can be converted"


def dialect_of(model: ModelProto) -> str:
    """Return the dialect of a graph; without deformable convolutions its opset decides."""
    types = {node.op_type for node in model.graph.node}
    if OPERATOR in types:
        return ASCEND
    if STANDARD_OPERATOR in types:
        return ONNX
    return ASCEND if any(e.domain == "" and e.version < _OPSET[ONNX] for e in model.opset_import) else ONNX


def to_dialect(model: ModelProto, dialect: str) -> ModelProto:
    """Return a graph in a dialect: the graph itself when it is in it already, else a converted copy.

    Raises:
        DekrError: a deformable convolution is not of the form that our export writes, or another operator may mean
            something else in the opset of that dialect.
    """
    source = dialect_of(model)
    if source == dialect:
        return model
    _check_meanings(model, source, _OPSET[dialect])
    converted = ir.from_proto(model)
    arranged: set[ir.Value] = set()  # equal weights may be stored once and serve several convolutions
    for node in converted.graph:
        if node.op_type == _OPERATOR[source]:
            _convert_offsets(node, dialect, arranged)
            _convert_deformable(node, dialect)
        elif node.op_type == "Split":
            _convert_split(node, converted.graph, dialect)
    converted.ir_version = _IR_VERSION[dialect]
    converted.graph.opset_imports.clear()
    converted.graph.opset_imports[""] = _OPSET[dialect]
    if "dialect" in converted.metadata_props:
        converted.metadata_props["dialect"] = dialect
    return to_proto(converted)


def _check_meanings(model: ModelProto, source: str, target: int) -> None:
    """Raise a `DekrError` that names the first node which opset `target` may read as something else."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    for node in model.graph.node:
        if node.op_type in (_OPERATOR[source], "Split"):
            continue
        name = node.name or node.op_type
        try:
            before, after = (onnx.defs.get_schema(node.op_type, version, node.domain) for version in (opset, target))
        except onnx.defs.SchemaError:
            raise DekrError(f"node {name}: {node.op_type} is no operator of opsets {opset} and {target}") from None
        known = before.since_version == after.since_version or (
            node.op_type in UNCHANGED and opset >= min(_OPSET.values()) and not after.deprecated
        )
        if not known or not {entry.name for entry in node.attribute} <= after.attributes.keys():
            raise DekrError(
                f"node {name}: {node.op_type} of opset {opset} may mean something else in opset {target}; {_FOREIGN}"
            )


def to_proto(model: ir.Model) -> ModelProto:
    """Return a model in its file form, without the shapes of inner values, which rewrites change."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return proto


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Return the initialiser of this name, made of the array if there is none yet."""
    if name not in graph.initializers:
        tensor = ir.tensor(np.asarray(array, order="C"), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def _convert_offsets(node: Any, dialect: str, arranged: set[ir.Value]) -> None:
    """Rearrange the convolution, with constant weight and bias, that computes a deformable node's offsets."""
    conv = node.inputs[2].producer() if node.inputs[2] is not None else None
    constants = [value for value in conv.inputs[1:] if value and value.const_value is not None] if conv else []
    if conv is None or conv.op_type != "Conv" or len(constants) != 2 or len(conv.inputs) != 3:
        raise DekrError(f"{node.name}: its offsets do not come from a convolution; export the model with this project")
    groups = node.attributes["deformable_groups" if dialect == ONNX else "offset_group"].as_int()
    if "group" in conv.attributes:
        conv.attributes.add(ir.AttrInt64("group", groups if dialect == ONNX else 1))
    arrange = _interleaved if dialect == ONNX else _planar
    for value, kind in zip(constants, ("weight", "bias"), strict=True):
        if value not in arranged:
            arranged.add(value)
            value.const_value = ir.tensor(arrange(value.const_value.numpy(), kind, groups), name=value.name)
            value.shape = value.const_value.shape


def _convert_deformable(node: ir.Node, dialect: str) -> None:
    old = {name: attribute.value for name, attribute in node.attributes.items()}
    new = {name: list(old[name]) for name in ("strides", "dilations")}
    if dialect == ONNX:
        new |= {"pads": list(old["pads"]) * 2, "group": old["groups"]}
        new |= {"offset_group": old["deformable_groups"], "kernel_shape": [3, 3]}
    else:
        new |= {"pads": list(old["pads"])[:2], "groups": old["group"], "deformable_groups": old["offset_group"]}
    node.op_type = _OPERATOR[dialect]
    node.attributes.clear()
    for attribute in convert_attributes(new):
        node.attributes.add(attribute)


def _interleaved(values: np.ndarray, kind: str, groups: int) -> np.ndarray:
    """Return planar dx, dy, mask as dy, dx of each tap, group by group.

    Args:
        values: weight (27 * groups, groups * C, 3, 3) or bias (27 * groups,).
        kind: weight or bias.
        groups: offset groups.
    Returns:
        (18 * groups, C, 3, 3) or (18 * groups,).
    Raises:
        DekrError: the masks are not the constant 1, or a group reads another group's input.
    """
    inner = values.shape[1:]
    if len(values) != 3 * groups * TAPS or not (values[2 * groups * TAPS :] == (kind == "bias")).all():
        raise DekrError(f"a deformable convolution has masks that vary; {_FOREIGN}")
    dx, dy, _ = values.reshape(3, groups, TAPS, *inner)
    by_group = np.stack((dy, dx), 2).reshape(groups, 2 * TAPS, *inner)
    if kind == "weight":
        blocks = by_group.reshape(groups, 2 * TAPS, groups, -1, *inner[1:])
        own = np.stack([blocks[group, :, group] for group in range(groups)])
        if np.count_nonzero(own) != np.count_nonzero(blocks):
            raise DekrError(f"a deformable convolution's groups mix; {_FOREIGN}")
        by_group = own
    return by_group.reshape(2 * groups * TAPS, *by_group.shape[2:])


def _planar(values: np.ndarray, kind: str, groups: int) -> np.ndarray:
    """Return the inverse of `_interleaved`."""
    if len(values) != 2 * groups * TAPS:
        raise DekrError(f"offsets do not fit a node's offset groups; {_FOREIGN}")
    own = values.reshape(groups, TAPS, 2, *values.shape[1:])
    if kind == "weight":
        blocks = np.zeros((groups, TAPS, 2, groups, *values.shape[1:]), values.dtype)
        for group in range(groups):
            blocks[group, :, :, group] = own[group]
        own = blocks.reshape(groups, TAPS, 2, -1, *values.shape[2:])
    mask = np.full_like(own[:, :, 0], kind == "bias")
    return np.stack((own[:, :, 1], own[:, :, 0], mask)).reshape(3 * groups * TAPS, *own.shape[3:])


def _convert_split(node: Any, graph: ir.Graph, dialect: str) -> None:
    """Move the sizes of a Split's parts: an attribute up to opset 12, an input from 13 on."""
    if dialect == ASCEND:
        sizes = node.inputs[1]
        node.attributes.add(ir.AttrInt64s("split", sizes.const_value.numpy().tolist()))
        node.resize_inputs(1)
        del graph.initializers[sizes.name]
    elif "split" in node.attributes:
        sizes = np.array(node.attributes.pop("split").as_ints(), np.int64)
        node.resize_inputs(2)
        node.replace_input_with(1, constant(graph, f"{node.outputs[0].name}.split", sizes))


def check_standard(model: ModelProto) -> None:
    """Check a graph in the `onnx` dialect with ONNX's own checker, types and shapes included.

    Raises:
        DekrError: the graph is not valid ONNX.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DekrError(f"the exported graph is not valid ONNX: {error}") from None
