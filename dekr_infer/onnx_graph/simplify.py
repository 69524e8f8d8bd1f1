"""Graph surgery: parts of a map that are taken apart and put together again in the same order are the map itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

Part = tuple[str, int, int]  # channels of what, from, up to


def drop_rejoined_parts(model: ModelProto) -> None:
    """Remove each Concat that rejoins all channels of one convolution's result, and the Split or Slices before it."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    dropped: list[NodeProto] = []
    for node in model.graph.node:
        parts = list(_parts(node, producers, values)) if _axis(node) == 1 and node.op_type == "Concat" else []
        source = producers.get(parts[0][0]) if parts else None
        if source is None or source.op_type != "Conv" or not _all_of(parts, len(values[source.input[1]])):
            continue
        takers = {id(producers[name]): producers[name] for name in node.input}
        dropped += [node, *takers.values()]
        source.output[0] = node.output[0]
    for node in dropped:
        model.graph.node.remove(node)


def _all_of(parts: list[Part], channels: int) -> bool:
    in_turn = all(a[0] == b[0] and a[2] == b[1] for a, b in pairwise(parts))
    return in_turn and parts[0][1] == 0 and parts[-1][2] == channels


def _parts(concat: NodeProto, producers: dict[str, NodeProto], values: dict[str, np.ndarray]) -> Iterator[Part]:
    """Which channels of what the inputs of a Concat are, up to the first one that is no part."""
    for name in concat.input:
        node = producers.get(name)
        if node is not None and node.op_type == "Split" and _axis(node) == 1:
            sizes = next(list(entry.ints) for entry in node.attribute if entry.name == "split")
            index = list(node.output).index(name)
            yield node.input[0], sum(sizes[:index]), sum(sizes[: index + 1])
        elif node is not None and node.op_type == "Slice" and _cuts_channels(node, values):
            start, end = (int(values[bound][0]) for bound in node.input[1:3])
            yield node.input[0], start, end
        else:
            return


def _cuts_channels(node: NodeProto, values: dict[str, np.ndarray]) -> bool:
    axes, steps = (values[name].tolist() for name in node.input[3:5])
    return bool(axes == steps == [1])


def _axis(node: NodeProto) -> int:
    return next((int(helper.get_attribute_value(entry)) for entry in node.attribute if entry.name == "axis"), 0)
