"""Walk through all of an ONNX model: the graphs inside its nodes, and the tensors of them all."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, NodeProto, TensorProto


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a node holds, as the branches of an If."""
    for entry in node.attribute:
        if entry.HasField("g"):
            yield entry.g
        yield from entry.graphs


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """The tensors of a graph and of the graphs inside it: weights, and what Constant nodes hold."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for entry in node.attribute:
            if entry.HasField("t"):
                yield entry.t
            yield from entry.tensors
        for inner in inner_graphs(node):
            yield from tensors(inner)
