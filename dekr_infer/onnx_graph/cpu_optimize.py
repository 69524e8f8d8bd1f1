"""Rewrites that spare a CPU work and change nothing but the rounding; done when a graph is loaded, never to the file.

Each is linear algebra: a 1x1 convolution commutes with an enlargement; maps enlarged by repetition can be added up
while they are small; the 18 offset channels of a deformable convolution are mixtures of 6. An accelerator's compiler
gets the graph as published, because what is dear there is not what is dear here.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dekr_infer.onnx_graph.operator_names import STANDARD_OPERATOR

FAR = 4  # an enlargement by this factor or more is cheaper behind a 1x1 convolution than before it (measured)
EXACT = 1e-5  # of the largest weight: what float32 rounding leaves of an exact mixture
LINEAR = {"mode": b"linear"}
REPEAT = {"mode": b"nearest", "coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor"}


def optimize_for_cpu(model: ModelProto) -> None:
    """Bring a graph in the `onnx` dialect, in place, into the form that a CPU computes fastest.

    What does not fit a rule stays as it is.
    """
    for rule in (convolve_before_enlarging, add_before_enlarging, mix_offsets):
        graph = Graph(model)
        rule(graph)
        graph.finish()


class Graph:
    """A model's nodes, which may be replaced, with who makes and who reads each tensor (as of the beginning)."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.tensors: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {entry.name for entry in model.graph.output}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)

    def values(self, name: str) -> np.ndarray:
        """A constant's values."""
        return numpy_helper.to_array(self.tensors[name])

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add a float32 constant, or find the one of this name; returns the name."""
        if name not in self.tensors:
            tensor = numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)
            self.graph.initializer.append(tensor)
            self.tensors[name] = tensor
        return name

    def made_by(self, name: str, kind: str) -> NodeProto | None:
        """The node that makes a tensor for one reader alone, if it is of this kind."""
        node = self.producers.get(name)
        alone = len(self.readers[name]) == 1 and name not in self.outputs
        return node if node is not None and node.op_type == kind and alone else None

    def replace(self, old: NodeProto, new: list[NodeProto]) -> None:
        """Put nodes in the place of one."""
        at = next(index for index, node in enumerate(self.nodes) if node is old)
        self.nodes[at : at + 1] = new

    def finish(self) -> None:
        """Write the nodes back, without those, and the constants, that nobody reads any more."""
        read = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if read.intersection(node.output):
                kept.append(NodeProto.FromString(node.SerializeToString()))
                read.update(node.input)
        del self.graph.node[:]
        self.graph.node.extend(reversed(kept))
        tensors = [tensor for tensor in self.tensors.values() if tensor.name in read]
        if len(tensors) < len(self.tensors):
            del self.graph.initializer[:]
            self.graph.initializer.extend(tensors)


def convolve_before_enlarging(graph: Graph) -> None:
    """1x1 convolutions of a Concat: its far enlarged parts pass them while they are small."""
    for concat in [node for node in graph.nodes if node.op_type == "Concat" and _attribute(node, "axis") == 1]:
        convs = graph.readers[concat.output[0]]
        far = [_enlarges(graph, graph.made_by(name, "Resize"), LINEAR) >= FAR for name in concat.input]
        widths = [_channels(graph, name) for name in concat.input]
        fits = all(widths) and all(_is_pointwise(graph, node) for node in convs)
        if not fits or not any(far) or all(far) or concat.output[0] in graph.outputs:
            continue
        near = f"{concat.output[0]}.near"
        for conv in convs:
            graph.replace(conv, _by_parts(graph, conv, concat, far, widths, near))
        names = [name for name, is_far in zip(concat.input, far, strict=True) if not is_far]
        graph.replace(concat, [helper.make_node("Concat", names, [near], axis=1)])


def _by_parts(
    graph: Graph, conv: NodeProto, concat: NodeProto, far: list[bool], widths: list[int], near: str
) -> list[NodeProto]:
    """A 1x1 convolution of a Concat as the sum of that of its near parts and those of its far ones."""
    stem = conv.output[0]
    weights = np.split(graph.values(conv.input[1]), np.cumsum(widths)[:-1], axis=1)
    nodes: list[NodeProto] = []
    total = ""
    for index, (name, weight) in enumerate(zip(concat.input, weights, strict=True)):
        if far[index]:
            resize, small, large = graph.producers[name], f"{stem}.small.{index}", f"{stem}.large.{index}"
            own = graph.constant(f"{small}.weight", weight)
            nodes.append(helper.make_node("Conv", [resize.input[0], own], [small], kernel_shape=[1, 1]))
            nodes.append(_like(resize, [small, *resize.input[1:]], large))
            if total:
                nodes.append(helper.make_node("Add", [total, large], [f"{large}.sum"]))
            total = nodes[-1].output[0]
    near_weights = [weight for weight, is_far in zip(weights, far, strict=True) if not is_far]
    own = graph.constant(f"{stem}.near.weight", np.concatenate(near_weights, axis=1))
    nodes.append(helper.make_node("Conv", [near, own, *conv.input[2:]], [f"{stem}.near"], kernel_shape=[1, 1]))
    return [*nodes, helper.make_node("Add", [f"{stem}.near", total], [stem])]


def add_before_enlarging(graph: Graph) -> None:
    """Sums with several maps enlarged by repetition: each is added to the next larger one, then enlarged with it."""
    for node in [node for node in graph.nodes if node.op_type == "Add"]:
        if graph.made_by(node.output[0], "Add") and graph.readers[node.output[0]][0].op_type == "Add":
            continue  # a part of a longer sum
        terms = _terms(graph, node)
        factors = {name: _enlarges(graph, graph.made_by(name, "Resize"), REPEAT) for name in terms}
        far = sorted((name for name in terms if factors[name]), key=lambda name: -factors[name])
        rest = [name for name in terms if not factors[name]]
        steps = [factors[a] / factors[b] for a, b in pairwise(far)]
        if len(far) > 1 and rest and all(step > 1 and step == int(step) for step in steps):
            graph.replace(node, _nested(graph, node.output[0], rest, far, [*steps, factors[far[-1]]]))


def _nested(graph: Graph, stem: str, rest: list[str], far: list[str], steps: list[float]) -> list[NodeProto]:
    """The sum of `rest` and of the enlarged `far`, largest factor first; `steps` lead from each to the next."""
    nodes: list[NodeProto] = []
    total = ""
    for index, (name, step) in enumerate(zip(far, steps, strict=True)):
        resize = graph.producers[name]
        small = resize.input[0]
        if total:
            nodes.append(helper.make_node("Add", [small, total], [f"{stem}.small.{index}"]))
            small = nodes[-1].output[0]
        scales = graph.constant(f"enlarge.{step:g}", np.array([1, 1, step, step]))
        total = f"{stem}.large.{index}"
        nodes.append(_like(resize, [small, resize.input[1], scales], total))
    for index, name in enumerate(reversed(rest)):
        out = f"{stem}.sum.{index}" if index < len(rest) - 1 else stem
        nodes.append(helper.make_node("Add", [name, total], [out]))
        total = out
    return nodes


def _terms(graph: Graph, node: NodeProto) -> list[str]:
    """What a chain of additions adds up, in order."""
    terms: list[str] = []
    for name in node.input:
        inner = graph.made_by(name, "Add")
        terms += [name] if inner is None else _terms(graph, inner)
    return terms


def _mixing() -> np.ndarray:
    """How taps move under an affine map: (18, 6), dy and dx of each tap from (a, b, t) of dy, then of dx."""
    tap = np.array([(y, x, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)], np.float64)
    mixing = np.zeros((9, 2, 2, 3))
    mixing[:, 0, 0] = mixing[:, 1, 1] = tap
    return mixing.reshape(18, 6)


def mix_offsets(graph: Graph) -> None:
    """Offset convolutions whose taps move by one affine map: convolve to its 6 maps, and mix those to the 18."""
    mixing = _mixing()
    back = np.linalg.pinv(mixing)
    for node in [node for node in graph.nodes if node.op_type == STANDARD_OPERATOR]:
        conv = graph.made_by(node.input[2], "Conv")
        if conv is None or conv.input[1] not in graph.tensors or _attribute(conv, "group", 1) != 1:
            continue
        weight = graph.values(conv.input[1]).astype(np.float64)
        if len(weight) != len(mixing):
            continue
        thin = np.tensordot(back, weight, 1)
        if np.abs(np.tensordot(mixing, thin, 1) - weight).max() > EXACT * np.abs(weight).max():
            continue
        maps = f"{conv.output[0]}.maps"
        own = graph.constant(f"{conv.input[1]}.maps", thin)
        mix = graph.constant("offsets.mixing", mixing[:, :, None, None])
        mixed = helper.make_node("Conv", [maps, mix, *conv.input[2:]], [conv.output[0]], kernel_shape=[1, 1])
        graph.replace(conv, [_like(conv, [conv.input[0], own], maps), mixed])


def _like(node: NodeProto, inputs: list[str], output: str) -> NodeProto:
    """A node of the same kind and with the same attributes."""
    made = helper.make_node(node.op_type, inputs, [output])
    made.attribute.extend(node.attribute)
    return made


def _attribute(node: NodeProto, name: str, default: int = 0) -> int:
    return next((entry.i for entry in node.attribute if entry.name == name), default)


def _enlarges(graph: Graph, node: NodeProto | None, form: dict[str, bytes]) -> int:
    """By how much a Resize of this form enlarges both sides; 0 for everything else."""
    if node is None or len(node.input) != 3 or node.input[2] not in graph.tensors:
        return 0
    attributes = {entry.name: entry.s for entry in node.attribute}
    scales = graph.values(node.input[2]).tolist()
    whole = len(scales) == 4 and scales[:2] == [1, 1] and scales[2] == scales[3] == int(scales[2]) > 1
    return int(scales[2]) if whole and form.items() <= attributes.items() else 0


def _is_pointwise(graph: Graph, node: NodeProto) -> bool:
    """Whether a node is a plain 1x1 convolution."""
    if node.op_type != "Conv" or node.input[1] not in graph.tensors or _attribute(node, "group", 1) != 1:
        return False
    lists = {entry.name: list(entry.ints) for entry in node.attribute}
    plain = lists.get("strides", [1, 1]) == [1, 1] and not any(lists.get("pads", []))
    return plain and list(graph.tensors[node.input[1]].dims[2:]) == [1, 1]


def _channels(graph: Graph, name: str) -> int:
    """How many channels a map has, as the convolution behind it says; 0 when none does."""
    node = graph.producers.get(name)
    while node is not None and node.op_type in ("Relu", "Add", "Resize"):
        node = graph.producers.get(node.input[0])
    if node is None or node.op_type != "Conv" or node.input[1] not in graph.tensors:
        return 0
    return int(graph.tensors[node.input[1]].dims[0])
