"""What every node of a graph computes for one input, and where the node comes from in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto

from dekr_infer.backends.onnxruntime import CPU_PROVIDER, RUNTIME_ERRORS, runtime_failure
from dekr_infer.onnx_graph.float16 import COPY

AT_ONCE = 48  # values that are handed out by one run; a large network's are gigabytes in all


def value_names(model: ModelProto) -> list[str]:
    """Return the names of the float32 values that a graph in the `onnx` dialect computes, in its order."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    return [name for node in model.graph.node for name in node.output if types.get(name) == TensorProto.FLOAT]


def node_values(
    model: ModelProto, feed: Mapping[str, np.ndarray], names: Sequence[str], threads: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and the arrays of values that a graph computes; it is run once for each `AT_ONCE` of them.

    Args:
        model: in the `onnx` dialect.
        feed: its inputs.
        names: of `value_names`.
        threads: of ONNX Runtime; by default all cores.
    """
    shown = ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = _session(shown, threads)
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        yield from zip(some, _run(session, some, feed), strict=True)


def first_overflow(model: ModelProto, feed: Mapping[str, np.ndarray], threads: int | None = None) -> str | None:
    """Return the first value that a graph computes which is not finite; `None` if all are."""
    for name, values in node_values(model, feed, value_names(model), threads):
        if not np.isfinite(values).all():
            return name
    return None


def _session(model: ModelProto, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads or 0, 4
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # these keep what a run no longer needs
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU_PROVIDER])
    except RUNTIME_ERRORS as error:
        raise runtime_failure("the graph, with its inner values", error) from None


def _run(
    session: onnxruntime.InferenceSession, names: Sequence[str] | None, feed: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    try:
        found: list[np.ndarray] = session.run(names, feed)
    except RUNTIME_ERRORS as error:
        raise runtime_failure("the graph, with its inner values", error) from None
    return found


def sources_of(model: ModelProto) -> dict[str, str]:
    """Return, for each value that a graph computes, its node and, where it has weights, their checkpoint key.

    For example `layer1.0.conv1 (layer1.0.conv1.weight)`.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        keys = [name for name in node.input[1:2] if name in weights and node.op_type != "Resize"]
        key = keys[0].removesuffix(COPY).removesuffix(".flat") if keys else ""
        name = node.name or node.op_type
        found.update(dict.fromkeys(node.output, f"{name} ({key})" if key else name))
    return found
