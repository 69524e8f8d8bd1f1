"""The shapes of every tensor at given input sizes, in a graph and in those inside its nodes, as views for the rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from dekr_infer.ascend.lint.context import Shape, View, attributes_of
from dekr_infer.onnx_graph.operators import OPERATOR
from dekr_infer.onnx_graph.subgraphs import array_of, inner_graphs

SMALL = 1024  # elements: constants up to here may steer shapes and stay in the graph while shapes are inferred
_NUMBERS = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
Shapes = dict[str, Shape]


def opset_of(model: ModelProto) -> int:
    """Return the opset of the standard operators."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def infer(model: ModelProto, sizes: Shapes) -> tuple[GraphProto, str]:
    """Return the same nodes with every tensor's shape at these input sizes, and the reason if these do not fit."""
    small = ModelProto()
    small.ir_version = max(4, model.ir_version)
    small.opset_import.extend(model.opset_import)
    graph = small.graph
    graph.name = "shapes"
    graph.node.extend(_stand_in(node, opset_of(model)) for node in model.graph.node)
    for name, shape in sizes.items():
        kind = next((e.type.tensor_type.elem_type for e in model.graph.input if e.name == name), TensorProto.FLOAT)
        graph.input.append(_open(name, kind, shape))
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL and array_of(tensor) is not None:
            graph.initializer.append(tensor)
        else:
            graph.input.append(_open(tensor.name, tensor.data_type, tensor.dims))
    graph.output.extend(ValueInfoProto(name=entry.name) for entry in model.graph.output)
    try:
        return onnx.shape_inference.infer_shapes(small, strict_mode=True, data_prop=True).graph, ""
    except (onnx.shape_inference.InferenceError, ValueError) as reason:
        return graph, " ".join(str(reason).split())[:200]


def _open(name: str, kind: int, sizes: Iterable[int]) -> ValueInfoProto:
    """Return a tensor's declaration, open where a size is not above 0; onnx would abort on negative sizes."""
    return helper.make_tensor_value_info(name, kind, [size if size > 0 else None for size in sizes])


def _stand_in(node: NodeProto, opset: int) -> NodeProto:
    """Return a node that onnx can infer: a plain convolution has the shapes of a deformable one."""
    if any(inner_graphs(node)):
        copy = NodeProto.FromString(node.SerializeToString())
        for graph in inner_graphs(copy):
            nodes = [_stand_in(inner, opset) for inner in graph.node]
            del graph.node[:]
            graph.node.extend(nodes)
        return copy
    if node.op_type != OPERATOR or len(node.input) < 2:
        return node
    given = attributes_of(node, opset)
    lists = {key: given[key] for key in ("strides", "pads", "dilations") if isinstance(given.get(key), list)}
    pairs: dict[str, Any] = {key: [*values, *values][:2] for key, values in lists.items() if values}
    if "pads" in pairs:
        pairs["pads"] *= 2
    stand_in = helper.make_node("Conv", node.input[:2], node.output, node.name)
    pairs["group"] = max(1, given.get("groups", 1))
    stand_in.attribute.extend(helper.make_attribute(key, value) for key, value in pairs.items())
    return stand_in


def view_of(graph: GraphProto, inferred: GraphProto, opset: int, input_sizes: bool) -> View:
    """Return the view of a model's own graph; `inferred` is the same graph with shapes."""
    return View(opset, _shapes(inferred), _constants(graph, opset), _producers(graph), input_sizes)


def views(graph: GraphProto, inferred: GraphProto, view: View) -> Iterator[tuple[NodeProto, View]]:
    """Yield every node with the view of its graph, which includes the tensors of the graphs around it."""
    for node, other in zip(graph.node, inferred.node, strict=True):
        yield node, view
        for inner, inner_inferred in zip(inner_graphs(node), inner_graphs(other), strict=True):
            inside = View(
                view.opset,
                view.shapes | _shapes(inner_inferred),
                view.constants | _constants(inner, view.opset),
                view.producers | _producers(inner),
                view.input_sizes,
            )
            yield from views(inner, inner_inferred, inside)


def _shapes(graph: GraphProto) -> Shapes:
    shapes: Shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for entry in [*graph.input, *graph.value_info, *graph.output]:
        kind = entry.type.tensor_type
        if kind.HasField("shape"):
            shapes[entry.name] = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return shapes


def _constants(graph: GraphProto, opset: int) -> dict[str, TensorProto]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            constants.update((node.output[0], value) for value in _values(attributes_of(node, opset)))
    return constants


def _values(attributes: dict[str, Any]) -> Iterator[TensorProto]:
    """Yield the value of a Constant node, in whichever attribute it is."""
    for key, value in attributes.items():
        if key == "value":
            yield value
        elif key in _NUMBERS:
            yield numpy_helper.from_array(np.array(value, _NUMBERS[key]))


def _producers(graph: GraphProto) -> dict[str, NodeProto]:
    return {name: node for node in graph.node for name in node.output}
