"""Trace a torch network into an ONNX graph in the accelerator's dialect: folded, simplified exactly, sizes left open.

Height and width stay dynamic because every up-sampling has a constant factor and nothing reshapes.

An initialiser is named after the checkpoint key it is made of (`fold.key_of`), so a node of the file leads back to the
checkpoint. After folding,

- a convolution's weight has the key of its weight, its bias that of its batch norm's bias:
  `stage2.0.branches.0.0.conv1.weight` and `stage2.0.branches.0.0.bn1.bias`;
- the offset convolution of an adaptive block has the keys of the two convolutions that it replaces:
  `offset_feature_layers.3.0.transform_matrix_conv_and_translation_conv.weight`;
- what a variant makes of all joints has the range of the joints: `offset_feature_layers.0-16.0.adapt_conv.weight`;
- constants that hold nothing of the checkpoint are `constant.0`, `constant.1`, ...

A convolution's node has the name of its weight, without `.weight`.
"""

from __future__ import annotations

import copy
import io
import warnings

import onnx
import onnx_ir as ir
import torch
from onnx import ModelProto
from onnx_ir.passes import common
from torch import Tensor, nn

from dekr_infer.errors import DekrError
from dekr_infer.export.fold import fold_adaptive_blocks, fold_batch_norms, key_of, mark_keys
from dekr_infer.export.symbolics import TRACE_DOMAIN
from dekr_infer.export.variants import ALLOWED, SEPARATE, arrange_branches
from dekr_infer.geometry import Size
from dekr_infer.onnx_graph.dialects import to_proto
from dekr_infer.onnx_graph.simplify import drop_rejoined_parts
from dekr_infer.structures import INPUT_NAME, OUTPUT_NAMES

OPSET = 11  # what the accelerator's compiler has known longest
TRACE_SIZE = Size(64, 96)  # pixels; any multiple of 32 gives the same graph
# Node types that would tie the graph to one size, or that folding must have removed.
UNWANTED = {"Shape", "Gather", "Transpose", "MatMul", "Tile", "Expand", "ConstantOfShape", "BatchNormalization"}
_TIDY = (
    common.IdentityEliminationPass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.RemoveUnusedNodesPass(),
)


def build_graph(network: nn.Module, deform: str = SEPARATE) -> ModelProto:
    """Return the folded graph of a network; the network itself is left as it is.

    Args:
        network: its batch norms count as in evaluation mode.
        deform: the variant of the adaptive blocks, one of `variants.VARIANTS`.
    Returns:
        `image` (1, 3, H, W) -> `heatmap`, `offset` at a quarter of the size; opset 11, no batch norm.
    Raises:
        DekrError: the network holds something that does not fold, or lacks the parts that the variant arranges.
    """
    image = torch.zeros(1, 3, *TRACE_SIZE)
    folded = copy.deepcopy(network).eval()
    mark_keys(folded)
    fold_batch_norms(folded, image)
    fold_adaptive_blocks(folded)
    arrange_branches(folded, deform)
    model = ir.from_proto(_trace(folded, image))
    for tidy in _TIDY:
        tidy(model)
    drop_rejoined_parts(model.graph)
    common.RemoveUnusedNodesPass()(model)
    for node in model.graph:
        node.domain = node.domain.removeprefix(TRACE_DOMAIN)
    model.graph.opset_imports.pop(TRACE_DOMAIN, None)
    _name_after_keys(model.graph, {name: key_of(v) for name, v in folded.state_dict(keep_vars=True).items()})
    left = sorted({node.op_type for node in model.graph} & (UNWANTED - ALLOWED.get(deform, set())))
    if left:
        raise DekrError(f"the network does not fold: {', '.join(left)} nodes are left in the graph")
    return to_proto(model)


def _trace(network: nn.Module, image: Tensor) -> ModelProto:
    buffer = io.BytesIO()
    network.training = True  # of a network in evaluation mode the exporter stores equal weights once, under one name
    spatial = {INPUT_NAME: {2: "height", 3: "width"}} | {name: {2: "rows", 3: "columns"} for name in OUTPUT_NAMES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor, which cannot write opset 11
        torch.onnx.export(
            network,
            (image,),
            buffer,  # type: ignore[arg-type]  # taken by the TorchScript exporter
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_axes=spatial,
            opset_version=OPSET,
            custom_opsets={TRACE_DOMAIN: 1},
            dynamo=False,
            autograd_inlining=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # or the exporter folds the batch norms we did not, in float32
        )
    return onnx.load_from_string(buffer.getvalue())


def _name_after_keys(graph: ir.Graph, keys: dict[str, str]) -> None:
    """Name initialisers after the checkpoint keys of the traced parameters, and convolutions after their weights."""
    count = 0
    for value in list(graph.initializers.values()):
        name = keys.get(value.name or "", "")
        if not name:
            name, count = f"constant.{count}", count + 1
        value.name = name
    for node in graph:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if weight is not None and (weight.name or "").endswith(".weight"):
            node.name = (weight.name or "").removesuffix(".weight")
