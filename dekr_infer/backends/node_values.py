"""What every node of a graph computes for one input, and where the node comes from in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto

AT_ONCE = 48  # values that are kept from one run; a large network's are gigabytes in all


def value_names(model: ModelProto) -> list[str]:
    """Return the names of the float32 values that a graph in the `onnx` dialect computes, in its order."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    return [name for node in model.graph.node for name in node.output if types.get(name) == TensorProto.FLOAT]


def node_values(
    model: ModelProto, feed: Mapping[str, np.ndarray], names: Iterable[str], threads: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and the arrays of values that a graph computes; it is run once for each `AT_ONCE` of them.

    Args:
        model: in the `onnx` dialect.
        feed: its inputs.
        names: of `value_names`, in any order.
        threads: of ONNX Runtime; by default all cores.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads or 0, 4
    for some in batched(names, AT_ONCE):
        part = ModelProto()
        part.CopyFrom(model)
        del part.graph.output[:]
        part.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in some)
        session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
        yield from zip(some, session.run(some, feed), strict=True)


def batched(names: Iterable[str], count: int) -> Iterator[list[str]]:
    """Yield names in lists of at most so many."""
    rest = iter(names)
    while some := list(islice(rest, count)):
        yield some


def sources_of(model: ModelProto) -> dict[str, str]:
    """Return, for each value that a graph computes, its node and, where it has weights, their checkpoint key.

    For example `layer1.0.conv1 (layer1.0.conv1.weight)`.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        keys = [name for name in node.input[1:2] if name in weights and node.op_type != "Resize"]
        key = keys[0].removesuffix(".float16").removesuffix(".flat") if keys else ""
        name = node.name or node.op_type
        found.update(dict.fromkeys(node.output, f"{name} ({key})" if key else name))
    return found
