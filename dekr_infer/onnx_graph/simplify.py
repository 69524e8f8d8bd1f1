"""Remove graph parts that cancel: parts of a map that are taken apart and put together again in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

Part = tuple[ir.Value, int, int]  # channels of what, from, up to


def drop_rejoined_parts(graph: ir.Graph) -> None:
    """Remove each Concat that rejoins all channels of one convolution's result, and the Split or Slices before it."""
    for concat in [node for node in graph if node.op_type == "Concat" and _axis(node) == 1]:
        parts = list(_parts(concat))
        source = parts[0][0] if parts else None
        conv = source.producer() if source is not None else None
        if source is None or conv is None or conv.op_type != "Conv":
            continue
        weight = conv.inputs[1]
        assert weight is not None and weight.const_value is not None
        rejoined = all(a[0] is b[0] and a[2] == b[1] for a, b in pairwise(parts))
        if not rejoined or parts[0][1] != 0 or parts[-1][2] != weight.const_value.shape[0]:
            continue
        takers = {value.producer() for value in concat.inputs if value is not None}
        replace_nodes_and_values(graph, concat, [concat], [], concat.outputs, [source])
        graph.remove([node for node in takers if node is not None], safe=True)


def _parts(concat: ir.Node) -> Iterator[Part]:
    """Yield the channels that the inputs of a Concat are, up to the first one that is no part."""
    for value in concat.inputs:
        node = value.producer() if value is not None else None
        if value is None or node is None or node.inputs[0] is None:
            return
        if node.op_type == "Split" and _axis(node) == 1:
            sizes = list(node.attributes["split"].as_ints())
            index = list(node.outputs).index(value)
            yield node.inputs[0], sum(sizes[:index]), sum(sizes[: index + 1])
        elif node.op_type == "Slice":
            bounds = [value.const_value.numpy().tolist() for value in node.inputs[1:5] if value and value.const_value]
            if bounds[2:] != [[1], [1]]:  # of axis 1, in steps of 1
                return
            yield node.inputs[0], bounds[0][0], bounds[1][0]
        else:
            return


def _axis(node: ir.Node) -> int:
    return node.attributes.get_int("axis", 0) or 0
