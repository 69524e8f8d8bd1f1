"""Rewrite a graph into the form that a CPU computes fastest; done when a graph is loaded, never to the file.

The rules are linear algebra and change nothing but the rounding: a 1x1 convolution commutes with an enlargement; maps
enlarged by repetition can be added up while they are small; the 18 offset channels of a deformable convolution are
mixtures of 6. An accelerator's compiler gets the graph as published, because other operations are expensive there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import ModelProto
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dekr_infer.onnx_graph.dialects import STANDARD_OPERATOR

FAR = 4  # an enlargement by this factor or more is cheaper after a 1x1 convolution than before it (measured)
EXACT = 1e-5  # of the largest weight: what float32 rounding leaves of an exact mixture
LINEAR = {"mode": "linear"}
REPEAT = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def optimize_for_cpu(model: ModelProto) -> ModelProto:
    """Return a graph in the `onnx` dialect in the form that a CPU computes fastest; what fits no rule stays as it is."""
    rewritten = ir.from_proto(model)
    for rule in (convolve_before_enlarging, add_before_enlarging, mix_offsets):
        rule(rewritten.graph)
    RemoveUnusedNodesPass()(rewritten)
    return ir.to_proto(rewritten)


def convolve_before_enlarging(graph: ir.Graph) -> None:
    """Apply the 1x1 convolutions of a Concat to its far enlarged parts before these are enlarged."""
    for concat in [node for node in graph if node.op_type == "Concat" and node.attributes.get_int("axis") == 1]:
        whole = concat.outputs[0]
        convs = list(whole.consumers())
        far = [_enlargement(_alone(value, "Resize"), LINEAR) >= FAR for value in concat.inputs]
        widths = [_channels(value) for value in concat.inputs]
        if whole.is_graph_output() or not all(widths) or not any(far) or all(far) or not all(map(_is_pointwise, convs)):
            continue
        near = _add(
            graph, concat, "Concat", [v for v, is_far in zip(concat.inputs, far, strict=True) if not is_far], concat
        )
        for conv in convs:
            _convolve_parts(graph, conv, concat, far, widths, near)


def _convolve_parts(
    graph: ir.Graph, conv: ir.Node, concat: ir.Node, far: list[bool], widths: list[int], near: ir.Value
) -> None:
    """Replace a 1x1 convolution of a Concat by the sum of the convolutions of its near parts and of each far part."""
    weights = np.split(_array(conv.inputs[1]), np.cumsum(widths)[:-1], axis=1)
    total = None
    for index, (value, weight) in enumerate(zip(concat.inputs, weights, strict=True)):
        if far[index]:
            resize = value.producer()
            own = _constant(graph, f"{conv.outputs[0].name}.small.{index}.weight", weight)
            small = _add(graph, conv, "Conv", [resize.inputs[0], own], {"kernel_shape": [1, 1]})
            large = _add(graph, conv, "Resize", [small, *resize.inputs[1:]], resize)
            total = large if total is None else _add(graph, conv, "Add", [total, large])
    near_weights = [weight for weight, is_far in zip(weights, far, strict=True) if not is_far]
    own = _constant(graph, f"{conv.outputs[0].name}.near.weight", np.concatenate(near_weights, axis=1))
    near_sum = _add(graph, conv, "Conv", [near, own, *conv.inputs[2:]], {"kernel_shape": [1, 1]})
    _replace(graph, conv, _add(graph, conv, "Add", [near_sum, total]))


def add_before_enlarging(graph: ir.Graph) -> None:
    """Add each of several maps enlarged by repetition to the next larger one of a sum, then enlarge them together."""
    for node in [node for node in graph if node.op_type == "Add"]:
        if _alone(node.outputs[0], "Add") and node.outputs[0].consumers()[0].op_type == "Add":
            continue  # a part of a longer sum
        terms = _terms(node)
        factors = [_enlargement(_alone(value, "Resize"), REPEAT) for value in terms]
        far = sorted((pair for pair in zip(factors, terms, strict=True) if pair[0]), key=lambda pair: -pair[0])
        rest = [value for value, factor in zip(terms, factors, strict=True) if not factor]
        steps = [a / b for (a, _), (b, _) in pairwise(far)]
        if len(far) < 2 or not rest or not all(step > 1 and step == int(step) for step in steps):
            continue
        total = None
        for step, (_, value) in zip([*steps, far[-1][0]], far, strict=True):
            resize = value.producer()
            small = resize.inputs[0] if total is None else _add(graph, node, "Add", [resize.inputs[0], total])
            scales = _constant(graph, f"enlarge.{step:g}", np.array([1, 1, step, step]))
            total = _add(graph, node, "Resize", [small, resize.inputs[1], scales], resize)
        for value in reversed(rest):
            total = _add(graph, node, "Add", [value, total])
        _replace(graph, node, total)


def _terms(node: ir.Node) -> list[ir.Value]:
    """Return what a chain of additions adds up, in order."""
    terms: list[ir.Value] = []
    for value in node.inputs:
        inner = _alone(value, "Add")
        terms += [value] if inner is None else _terms(inner)
    return terms


def affine_mixing() -> np.ndarray:
    """Return how taps move under an affine map: (18, 6), dy and dx of each tap from (a, b, t) of dy, then of dx."""
    tap = np.array([(y, x, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)], np.float64)
    mixing = np.zeros((9, 2, 2, 3))
    mixing[:, 0, 0] = mixing[:, 1, 1] = tap
    return mixing.reshape(18, 6)


def mix_offsets(graph: ir.Graph) -> None:
    """Split offset convolutions whose taps move by one affine map: convolve to its 6 maps, and mix these to the 18."""
    mixing = affine_mixing()
    back = np.linalg.pinv(mixing)
    for node in [node for node in graph if node.op_type == STANDARD_OPERATOR]:
        conv = _alone(node.inputs[2], "Conv")
        if conv is None or not _is_constant(conv.inputs[1]) or conv.attributes.get_int("group", 1) != 1:
            continue
        weight = _array(conv.inputs[1]).astype(np.float64)
        if len(weight) != len(mixing):
            continue
        thin = np.tensordot(back, weight, 1)
        if np.abs(np.tensordot(mixing, thin, 1) - weight).max() > EXACT * np.abs(weight).max():
            continue
        own = _constant(graph, f"{conv.inputs[1].name}.maps", thin)
        maps = _add(graph, conv, "Conv", [conv.inputs[0], own], conv)
        mix = _constant(graph, "offsets.mixing", mixing[:, :, None, None])
        _replace(graph, conv, _add(graph, conv, "Conv", [maps, mix, *conv.inputs[2:]], {"kernel_shape": [1, 1]}))


def _add(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: ir.Node | dict[str, Any] | None = None,
) -> ir.Value:
    """Insert a node, with these attributes or those of another node, and return its output."""
    own = attributes.attributes.copy() if isinstance(attributes, ir.Node) else attributes
    node = ir.node(op_type, inputs, own)
    graph.insert_before(before, node)
    return node.outputs[0]


def _replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let a value take the place and the name of a node's output."""
    replace_nodes_and_values(graph, node, [node], [], node.outputs, [value])


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Return the initialiser of this name, made of the array in float32 if there is none yet."""
    if name not in graph.initializers:
        tensor = ir.tensor(np.ascontiguousarray(array, np.float32), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def _alone(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the node of this type that computes a value for one reader alone, if there is one."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != op_type or value.is_graph_output():
        return None
    return node if len(value.uses()) == 1 else None


def _enlargement(resize: ir.Node | None, attributes: dict[str, str]) -> int:
    """Return by how much a Resize with these attributes enlarges both sides; 0 for everything else."""
    if resize is None or len(resize.inputs) != 3 or not _is_constant(resize.inputs[2]):
        return 0
    if any(resize.attributes.get_string(key) != wanted for key, wanted in attributes.items()):
        return 0
    scales = _array(resize.inputs[2]).tolist()
    fits = len(scales) == 4 and scales[:2] == [1, 1] and scales[2] == scales[3] == int(scales[2]) > 1
    return int(scales[2]) if fits else 0


def _is_pointwise(node: ir.Node) -> bool:
    """Return whether a node is a plain 1x1 convolution with constant weights."""
    if node.op_type != "Conv" or not _is_constant(node.inputs[1]) or node.attributes.get_int("group", 1) != 1:
        return False
    strides, pads = node.attributes.get_ints("strides", [1, 1]), node.attributes.get_ints("pads", [])
    return list(strides) == [1, 1] and not any(pads) and _array(node.inputs[1]).shape[2:] == (1, 1)


def _channels(value: ir.Value | None) -> int:
    """Return how many channels a map has, according to the convolution behind it; 0 when there is none."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Relu", "Add", "Resize"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return len(_array(node.inputs[1])) if node and node.op_type == "Conv" and _is_constant(node.inputs[1]) else 0
