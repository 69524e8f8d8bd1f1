"""Walk through all of an ONNX model: the graphs inside its nodes, and the tensors of them all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import GraphProto, NodeProto, TensorProto


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """Return the graphs that a node holds, as the branches of an If."""
    for entry in node.attribute:
        if entry.HasField("g"):
            yield entry.g
        yield from entry.graphs


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Return the tensors of a graph and of the graphs inside it: weights, and what Constant nodes hold."""
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


def array_of(tensor: TensorProto) -> np.ndarray | None:
    """Return a tensor's values; None when its data do not fit its shape and type, or lie in another file."""
    if min(tensor.dims, default=0) < 0:
        return None
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, onnx.checker.ValidationError, OSError):
        return None


def is_text(message: Message) -> bool:
    """Whether all names in a message are text; in damaged files they need not be."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            if not all(map(is_text, [value] if isinstance(value, Message) else value)):
                return False
        elif field.type == field.TYPE_STRING and not all(
            isinstance(part, str) for part in ([value] if isinstance(value, (str, bytes)) else value)
        ):
            return False
    return True
