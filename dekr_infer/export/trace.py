"""torch network -> ONNX graph in the accelerator's dialect: traced once, simplified exactly, sizes left open.

Height and width stay dynamic because every up-sampling has a constant factor and nothing reshapes.
"""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import nn

from dekr_infer.errors import DekrError
from dekr_infer.export.fold import fold_adaptive_blocks, fold_batch_norm
from dekr_infer.export.operator import TRACE_DOMAIN
from dekr_infer.export.variants.arrange import ALLOWED, SEPARATE, arrange_branches
from dekr_infer.geometry import Size
from dekr_infer.onnx_graph.simplify import drop_rejoined_parts

INPUT = "image"
OUTPUTS = ("heatmap", "offset")
OPSET = 11  # what the accelerator's compiler has known longest
TRACE_SIZE = Size(64, 96)  # pixels; any multiple of 32 gives the same graph
# Node types that would tie the graph to one size, or that folding must have removed.
UNWANTED = {"Shape", "Gather", "Transpose", "MatMul", "Tile", "Expand", "ConstantOfShape", "BatchNormalization"}


def build_graph(network: nn.Module, deform: str = SEPARATE) -> ModelProto:
    """The folded graph of a network in evaluation mode; the network itself is left as it is.

    Args:
        deform: what becomes of the adaptive blocks, one of `variants.VARIANTS`.
    Returns:
        `image` (1, 3, H, W) -> `heatmap`, `offset` at a quarter of the size; opset 11, no batch norm.
    Raises:
        DekrError: the network holds something that does not fold, or not the parts that the variant arranges.
    """
    folded = copy.deepcopy(network).eval()
    fold_adaptive_blocks(folded)
    arrange_branches(folded, deform)
    model = _trace(folded)
    _inline_identities(model)
    _constants_to_initializers(model)
    _fold_batch_norms(model)
    drop_rejoined_parts(model)
    _drop_unused_initializers(model)
    _leave_trace_domain(model)
    left = sorted({node.op_type for node in model.graph.node} & (UNWANTED - ALLOWED[deform]))
    if left:
        raise DekrError(f"the network does not fold: {', '.join(left)} nodes are left in the graph")
    return model


def _trace(network: nn.Module) -> ModelProto:
    buffer = io.BytesIO()
    spatial = {INPUT: {2: "height", 3: "width"}} | {name: {2: "rows", 3: "columns"} for name in OUTPUTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor, which cannot write opset 11
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, *TRACE_SIZE),),
            buffer,  # type: ignore[arg-type]  # taken by the TorchScript exporter
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes=spatial,
            opset_version=OPSET,
            custom_opsets={TRACE_DOMAIN: 1},
            dynamo=False,
            autograd_inlining=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # keeps the batch norms, so that we fold them in float64
        )
    return onnx.load_from_string(buffer.getvalue())


def _inline_identities(model: ModelProto) -> None:
    source = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    kept = [node for node in model.graph.node if node.op_type != "Identity"]
    for node in kept:
        for index, name in enumerate(node.input):
            while name in source:
                name = source[name]
            node.input[index] = name
    _replace_nodes(model, kept)


def _constants_to_initializers(model: ModelProto) -> None:
    kept = []
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    _replace_nodes(model, kept)


def _fold_batch_norms(model: ModelProto) -> None:
    """Take every batch norm that follows a convolution into it."""
    weights = initializers(model)
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    convolutions: dict[str, NodeProto] = {}
    kept = []
    for node in model.graph.node:
        conv = convolutions.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if conv is None or readers[node.input[0]] > 1:
            kept.append(node)
            if node.op_type == "Conv":
                convolutions[node.output[0]] = node
            continue
        _fold_into(model, conv, node, weights)
    _replace_nodes(model, kept)


def _fold_into(model: ModelProto, conv: NodeProto, norm: NodeProto, weights: dict[str, np.ndarray]) -> None:
    scale, shift, mean, variance = (weights[name] for name in norm.input[1:5])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    bias = weights[conv.input[2]] if len(conv.input) > 2 else np.zeros(len(scale))
    weight, bias = fold_batch_norm(weights[conv.input[1]], bias, (scale, shift, mean, variance), epsilon)
    stem = conv.output[0]
    for suffix, values in (("weight", weight), ("bias", bias)):
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), f"{stem}.{suffix}"))
    conv.input[:] = [conv.input[0], f"{stem}.weight", f"{stem}.bias"]
    conv.output[0] = norm.output[0]


def _drop_unused_initializers(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _leave_trace_domain(model: ModelProto) -> None:
    for node in model.graph.node:
        if node.domain == TRACE_DOMAIN:
            node.domain = ""
    kept = [entry for entry in model.opset_import if entry.domain != TRACE_DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def initializers(model: ModelProto) -> dict[str, np.ndarray]:
    """The graph's constant tensors by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _replace_nodes(model: ModelProto, nodes: list[NodeProto]) -> None:
    kept = [copy.copy(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
