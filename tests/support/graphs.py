"""Read ONNX graphs in tests: nodes, attributes, initialisers."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper


def nodes_of(model: ModelProto, *kinds: str) -> list[NodeProto]:
    """Return the nodes of these types, in order."""
    return [node for node in model.graph.node if node.op_type in kinds]


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def producer(model: ModelProto, name: str) -> NodeProto:
    """Return the node that computes a tensor."""
    return next(node for node in model.graph.node if name in node.output)


def initializers(model: ModelProto) -> dict[str, np.ndarray]:
    """Return the constant tensors of a graph by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def set_initializer(model: ModelProto, name: str, values: np.ndarray) -> None:
    """Replace the values of a constant tensor, in place."""
    entry = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    entry.CopyFrom(numpy_helper.from_array(values, name))


def copy_of(model: ModelProto) -> ModelProto:
    """Return a deep copy."""
    return ModelProto.FromString(model.SerializeToString())


def metadata(model: ModelProto) -> dict[str, str]:
    """Return the metadata of a model."""
    return {entry.key: entry.value for entry in model.metadata_props}
