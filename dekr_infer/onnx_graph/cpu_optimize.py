"""Rewrite a graph into the form that a CPU computes fastest; done when a graph is loaded, never to the file.

The rules are linear algebra and change nothing but the rounding: a 1x1 convolution commutes with an enlargement; maps
enlarged by repetition can be added up while they are small; the 18 offset channels of a deformable convolution are
mixtures of 6. An accelerator's compiler gets the graph as published, because other operations are expensive there.

What fits no rule stays as it is. Nodes are `Any`: a malformed graph ends in an exception, which its reader handles.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, count, pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import ModelProto
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dekr_infer.onnx_graph.dialects import constant, to_proto
from dekr_infer.onnx_graph.operators import STANDARD_OPERATOR

FAR = 4  # an enlargement by this factor or more is cheaper after a 1x1 convolution than before it (measured)
EXACT = 1e-5  # of the largest weight: what float32 rounding leaves of an exact mixture
LINEAR = {"mode": "linear"}
REPEAT = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
POINTWISE = {"kernel_shape": [1, 1]}


def optimize_for_cpu(model: ModelProto) -> ModelProto:
    """Return a graph in the `onnx` dialect in the form that a CPU computes fastest."""
    rewritten = ir.from_proto(model)
    for rule in (convolve_before_enlarging, add_before_enlarging, mix_offsets):
        rule(rewritten.graph)
    RemoveUnusedNodesPass()(rewritten)
    return to_proto(rewritten)


def convolve_before_enlarging(graph: ir.Graph) -> None:
    """Apply the 1x1 convolutions of a Concat to its far enlarged parts before these are enlarged."""
    for concat in _nodes(graph, "Concat"):
        whole, parts = concat.outputs[0], concat.inputs
        far = [_enlargement(_alone(part, "Resize"), LINEAR) >= FAR for part in parts]
        near = [not is_far for is_far in far]
        widths = [_channels(part) for part in parts]
        fits = concat.attributes.get_int("axis") == 1 and all(widths) and not whole.is_graph_output()
        if not fits or not any(far) or all(far) or not all(map(_is_pointwise, whole.consumers())):
            continue
        near_parts = _before(concat, "Concat", list(compress(parts, near)), concat.attributes)
        for conv in whole.consumers():
            stem = conv.outputs[0].name
            weights = np.split(_array(conv.inputs[1]), np.cumsum(widths)[:-1], axis=1)
            total = None
            for index, part in enumerate(parts):
                if far[index]:
                    resize, own = part.producer(), constant(graph, f"{stem}.far.{index}.weight", weights[index])
                    small = _before(conv, "Conv", [resize.inputs[0], own], POINTWISE)
                    large = _before(conv, "Resize", [small, *resize.inputs[1:]], resize.attributes)
                    total = large if total is None else _before(conv, "Add", [total, large])
            own = constant(graph, f"{stem}.near.weight", np.concatenate(list(compress(weights, near)), axis=1))
            near_sum = _before(conv, "Conv", [near_parts, own, *conv.inputs[2:]], POINTWISE)
            _replace(conv, _before(conv, "Add", [near_sum, total]))


def add_before_enlarging(graph: ir.Graph) -> None:
    """Add each of several maps enlarged by repetition to the next larger one of a sum, then enlarge them together."""
    for node in _nodes(graph, "Add"):
        if _alone(node.outputs[0], "Add") and node.outputs[0].consumers()[0].op_type == "Add":
            continue  # a part of a longer sum
        factors = [(_enlargement(_alone(term, "Resize"), REPEAT), term) for term in _terms(node)]
        far = sorted((pair for pair in factors if pair[0]), key=lambda pair: -pair[0])
        rest = [term for factor, term in factors if not factor]
        steps = [a / b for (a, _), (b, _) in pairwise(far)]
        if len(far) < 2 or not rest or not all(step > 1 and step == int(step) for step in steps):
            continue
        total = None
        for step, (_, term) in zip([*steps, far[-1][0]], far, strict=True):
            small, roi, _ = term.producer().inputs
            scales = constant(graph, f"enlarge.{step:g}", np.array([1, 1, step, step], np.float32))
            total = small if total is None else _before(node, "Add", [small, total])
            total = _before(node, "Resize", [total, roi, scales], term.producer().attributes)
        for term in reversed(rest):
            total = _before(node, "Add", [term, total])
        _replace(node, total)


def _terms(node: Any) -> list[Any]:
    """Return what a chain of additions adds up, in order."""
    inner = [(value, _alone(value, "Add")) for value in node.inputs]
    return [term for value, add in inner for term in ([value] if add is None else _terms(add))]


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
    for node in _nodes(graph, STANDARD_OPERATOR):
        conv = _alone(node.inputs[2], "Conv")
        if conv is None or not _is_constant(conv.inputs[1]) or conv.attributes.get_int("group", 1) != 1:
            continue
        weight = _array(conv.inputs[1]).astype(np.float64)
        if len(weight) != len(mixing):
            continue
        thin = np.tensordot(back, weight, 1)
        if np.abs(np.tensordot(mixing, thin, 1) - weight).max() > EXACT * np.abs(weight).max():
            continue
        own = constant(graph, f"{conv.inputs[1].name}.maps", thin.astype(np.float32))
        mix = constant(graph, "offsets.mixing", mixing[:, :, None, None].astype(np.float32))
        maps = _before(conv, "Conv", [conv.inputs[0], own], conv.attributes)
        _replace(conv, _before(conv, "Conv", [maps, mix, *conv.inputs[2:]], POINTWISE))


def _nodes(graph: ir.Graph, op_type: str) -> list[Any]:
    return [node for node in graph if node.op_type == op_type]


def _before(place: Any, op_type: str, inputs: Sequence[Any], attributes: Any = None) -> ir.Value:
    """Insert a node before another one, whose name begins its own, and return its output."""
    taken = {other.name for other in place.graph}
    names = (f"{place.name}.{op_type}.{number}" for number in count(1))
    name = next(name for name in names if name not in taken)
    node = ir.node(op_type, inputs, attributes, name=name)
    place.prepend(node)
    return node.outputs[0]


def _replace(node: Any, value: Any) -> None:
    """Let a value take the place and the name of a node's output."""
    replace_nodes_and_values(node.graph, node, [node], [], node.outputs, [value])


def _is_constant(value: Any) -> bool:
    return value is not None and value.const_value is not None


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.const_value.numpy())


def _alone(value: Any, op_type: str) -> Any:
    """Return the node of this type that computes a value for one reader alone; `None` if there is none."""
    node = None if value is None or value.is_graph_output() or len(value.uses()) != 1 else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _enlargement(resize: Any, attributes: dict[str, str]) -> int:
    """Return by how much a Resize with these attributes enlarges both sides; 0 for everything else."""
    if resize is None or len(resize.inputs) != 3 or not _is_constant(resize.inputs[2]):
        return 0
    scales = _array(resize.inputs[2]).tolist()
    fits = len(scales) == 4 and scales[:2] == [1, 1] and scales[2] == scales[3] == int(scales[2]) > 1
    same = all(resize.attributes.get_string(key) == expected for key, expected in attributes.items())
    return int(scales[2]) if fits and same else 0


def _is_pointwise(node: Any) -> bool:
    """Return whether a node is a plain 1x1 convolution with constant weights."""
    if node.op_type != "Conv" or not _is_constant(node.inputs[1]) or node.attributes.get_int("group", 1) != 1:
        return False
    strides, pads = node.attributes.get_ints("strides", [1, 1]), node.attributes.get_ints("pads", [])
    return list(strides) == [1, 1] and not any(pads) and _array(node.inputs[1]).shape[2:] == (1, 1)


def _channels(value: Any) -> int:
    """Return how many channels a map has, according to the convolution behind it; 0 when there is none."""
    node = value.producer()
    while node is not None and node.op_type in ("Relu", "Add", "Resize"):
        node = node.inputs[0].producer()
    return len(_array(node.inputs[1])) if node and node.op_type == "Conv" and _is_constant(node.inputs[1]) else 0
