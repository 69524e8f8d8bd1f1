"""The requirements of atc on the nodes of an ONNX graph: one short rule per operator, each a generator of findings.

The facts are those of CANN 6.0 and later as published; the numbers are the documented limits of its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import onnx
from onnx import NodeProto

from dekr_infer.ascend.lint.context import (
    PORTABLE_OPSET,
    REFUSED,
    WARNING,
    WRONG,
    Finding,
    Rule,
    Shape,
    View,
    attributes_of,
    largest,
    text,
    wrong_kinds,
)
from dekr_infer.onnx_graph.operators import OPERATOR, STANDARD_OPERATOR

OLD_OPSET = 13  # the newest that CANN 6.0 has parsers for
_PLAIN = (
    "Add And AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv ConvTranspose Div Equal Exp "
    "Expand Flatten Floor Gather GatherElements GatherND Gemm GlobalAveragePool Greater Identity LeakyRelu Less MatMul "
    "Max MaxPool Min Mul Neg Not NonZero Pad Pow Range ReduceMax ReduceMean ReduceSum Relu Reshape Shape Sigmoid Slice "
    "Softmax Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Unsqueeze Where"
)
OPSETS = dict.fromkeys(_PLAIN.split(), range(8, 19)) | {
    OPERATOR: range(9, 17),
    "Resize": range(10, 19),
    "Upsample": range(8, 17),
}
COORDINATE_MODE = "coordinate_transformation_mode"
COORDINATES = {
    *("align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel"),
    *("tf_half_pixel_for_nn", "tf_crop_and_resize"),
}


def name_of(node: NodeProto) -> str:
    """Return the name by which a finding calls a node."""
    return node.name or f"{node.op_type} -> {', '.join(node.output)}"


def check_node(node: NodeProto, view: View) -> Iterator[Finding]:
    """Yield all findings about one node."""
    name = name_of(node)
    if node.domain not in ("", "ai.onnx"):
        yield Finding(REFUSED, name, f"E16002: no parser for {node.domain}::{node.op_type}", "use standard operators")
        return
    known = OPSETS.get(node.op_type)
    if node.op_type == STANDARD_OPERATOR:
        rule = f"E16002: there is no parser for the standard {STANDARD_OPERATOR}"
        yield Finding(REFUSED, name, rule, f"export {OPERATOR} (DEKR_pth2onnx.py without --dialect onnx)")
    elif node.op_type == "GridSample":
        yield Finding(REFUSED, name, "GridSample: CANN 6.0 has no parser, later ones no kernel on 310P", "rewrite it")
    elif known is None and not onnx.defs.has(node.op_type):
        yield Finding(REFUSED, name, f"E16002: no parser for {node.op_type}", "use standard operators")
    elif known is None:
        rule = f"{node.op_type} is not among the operators known here to be accepted"
        yield Finding(WARNING, name, rule, "look it up in the operator list of your CANN")
    elif view.opset not in known:
        rule = f"E16002: no parser for {node.op_type} at opset {view.opset}, only {known[0]} to {known[-1]}"
        yield Finding(REFUSED, name, rule, f"export with opset {PORTABLE_OPSET}")
    for rule, remedy in wrong_kinds(node, view.opset):
        yield Finding(REFUSED, name, rule, remedy)
    for level, rule, remedy in _RULES.get(node.op_type, _no_rule)(node, attributes_of(node, view.opset), view):
        yield Finding(level, name, rule, remedy)


def _no_rule(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    yield from ()


def _convolution(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    x, weight = view.shape(node, 0), view.shape(node, 1)
    if x and x[-1] > 4096:
        yield REFUSED, f"a map {x[-1]} wide: at most 4096", "use smaller input sizes"
    if attributes.get("group", 1) > 1:
        yield WARNING, "group above 1: the documents allow 1 only, many samples run with it", "compare the outputs"
    yield from _limits(attributes, weight[2:] if weight else ())


def _transposed(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    x = view.shape(node, 0)
    if x is not None and len(x) != 4:
        yield WARNING, f"ConvTranspose of rank {len(x)}: only maps, of rank 4, are known to work", "reshape to rank 4"


def _limits(attributes: dict[str, Any], kernel: Sequence[int]) -> Rule:
    if max([largest(attributes, "kernel_shape"), *kernel]) > 255:
        yield REFUSED, "a kernel above 255", "use a smaller one"
    if largest(attributes, "pads") > 255:
        yield REFUSED, "pads above 255", "use smaller ones"
    if largest(attributes, "strides") > 63:
        yield REFUSED, "a stride above 63", "use a smaller one"


def _max_pool(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    kernel = attributes.get("kernel_shape", [])
    if largest(attributes, "dilations") > 1:
        yield REFUSED, "MaxPool with dilations", "leave them out"
    if largest(attributes, "kernel_shape") > 255 or prod(kernel) > 256 or largest(attributes, "strides") > 63:
        yield WARNING, "slow: such a large kernel or stride runs on the AICPU", "use a smaller one"


def _resize(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    mode, coordinates = text(attributes, "mode", "nearest"), text(attributes, COORDINATE_MODE, "half_pixel")
    if view.opset == 13:
        yield WARNING, "Resize at opset 13 is not in the list of CANN 6.0.1", f"export with opset {PORTABLE_OPSET}"
    if mode == "cubic":
        yield REFUSED, "mode cubic is not supported", "use nearest or linear"
    if view.opset > 10 and coordinates not in COORDINATES:
        yield REFUSED, f"{COORDINATE_MODE} {coordinates} is not supported", "use asymmetric"
    if view.opset > 10 and mode == "nearest":
        yield from _nearest(text(attributes, "nearest_mode", "round_prefer_floor"), coordinates)
    x = view.shape(node, 0)
    if "axes" in attributes and (x is None or attributes["axes"] != list(range(len(x)))):
        yield WRONG, "axes is ignored", "leave axes out and give a scale for every axis, e.g. [1, 1, 2, 2]"
    for key in ("antialias", "exclude_outside"):
        if attributes.get(key, 0):
            yield WRONG, f"{key} is ignored", f"leave {key} out"
    if not any(view.constant(node, index) is not None for index in range(len(node.input) - 1, 0, -1)[:2]):
        yield WARNING, "neither scales nor sizes are constant", "export with scale factors, e.g. [1, 1, 2, 2]"


def _nearest(nearest: str, coordinates: str) -> Rule:
    """Check the rounding, which atc derives from the coordinates and not from `nearest_mode`."""
    if coordinates != "align_corners" and "half_pixel" not in coordinates:
        if nearest != "floor":
            yield WRONG, f"nearest_mode {nearest} is ignored and means floor", "write nearest_mode floor"
    elif nearest in ("ceil", "round_prefer_floor"):
        yield WRONG, f"nearest_mode {nearest} is ignored with {coordinates}", "use asymmetric with nearest_mode floor"
    else:
        rule = f"nearest_mode {nearest} is ignored with {coordinates}, and its own rounding is not documented"
        yield WARNING, rule, "use asymmetric with nearest_mode floor, or compare the outputs"


def _slice(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    x, axes, steps = view.shape(node, 0), view.integers(node, 3), view.integers(node, 4)
    if steps is not None and not node.input[3]:
        axes = list(range(len(steps)))
    if x is not None and len(x) < 2:
        yield WARNING, "Slice of a tensor of rank 1", "keep it inside shape computations"
    elif x is not None and steps is not None and axes is not None:
        on_last = [step for axis, step in zip(axes, steps, strict=False) if axis in (-1, len(x) - 1)]
        if any(step != 1 for step in on_last):
            yield REFUSED, "Slice with a step on the last axis", "transpose, or use Gather"


def _gather(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    indices = view.integers(node, 1)
    if indices is None and view.constant(node, 1) is not None:
        yield REFUSED, "indices that are no integers", "make them int64"
    elif min(indices or [0]) < 0:
        yield WRONG, "negative indices are not supported", "count them from the front"


def _expand(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    if view.constant(node, 1) is None:
        yield WARNING, "Expand to a shape that is not constant", "make it constant, or see that it folds per input size"
    yield from _made_shape(node.op_type, view.integers(node, 1))


def _constant_of_shape(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    yield from _made_shape(node.op_type, view.integers(node, 0))


def _made_shape(operator: str, sizes: list[int] | None) -> Rule:
    if sizes is not None and (len(sizes) not in range(1, 9) or min(sizes) < 1):
        yield REFUSED, f"{operator} to {sizes}: 1 to 8 sizes above 0 are allowed", "make it another shape"


def _range(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    if any(view.integers(node, index) is not None for index in range(3)):
        yield WARNING, "Range is documented for float only", "make it of floats and cast its output"


def _matmul(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    ranks = [len(shape) for index in range(2) if (shape := view.shape(node, index)) is not None]
    if any(rank not in range(1, 7) for rank in ranks):
        yield REFUSED, f"MatMul of ranks {ranks}: 1 to 6 are allowed", "reshape its inputs"


def _gemm(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    if len(node.input) > 2 or any(attributes.get(key, 1) != 1 for key in ("alpha", "beta")):
        yield WARNING, "Gemm's bias, alpha and beta are not in CANN 5's list", "use MatMul and Add"


def _non_zero(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    if view.input_sizes:
        yield REFUSED, "NonZero: a shape that depends on data is forbidden with input sizes", "rewrite it"


def _unsqueeze(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    if view.opset > 12:
        yield WARNING, "Unsqueeze above opset 12 is not in CANN 5's list", f"export with opset {PORTABLE_OPSET}"


def _deformable(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    for key in ("strides", "pads"):
        if not isinstance(attributes.get(key), list) or len(attributes[key]) not in (1, 2):
            yield REFUSED, f"{key} must be there as a list of 1 or 2 numbers", f"write {key}=[1, 1]"
        elif key == "pads" and len(set(attributes[key])) > 1:
            yield WRONG, "unequal pads mean different sides in different versions", "use equal pads"
    dilations = attributes.get("dilations", [1])
    if isinstance(dilations, int):
        level = WARNING if dilations == 1 else WRONG
        yield level, "dilations that are no list are ignored and mean 1", "write dilations as a list"
    elif len(dilations) not in (1, 2):
        yield REFUSED, "dilations must be 1 or 2 numbers", "write dilations=[1, 1]"
    if attributes.get("groups", 0) < 1:
        yield REFUSED, "groups is missing and means 0 then", "write groups=1"
    if "defomable_groups" in attributes:
        level = WARNING if attributes["defomable_groups"] == 1 else WRONG
        yield level, "defomable_groups is misspelt and ignored", "write deformable_groups"
    if attributes.get("data_format", b"NCHW") != b"NCHW":
        yield WARNING, "data_format is ignored, everything is NCHW", "leave data_format out"
    if attributes.get("modulated", 1) != 1:
        yield REFUSED, "only modulated=1 is supported", "add masks of 1 to the offsets"
    if len(node.input) not in (3, 4):
        yield REFUSED, f"{len(node.input)} inputs instead of x, filter, offsets and perhaps bias", "export it again"
        return
    yield from _deformable_shapes(node, attributes, view)


def _deformable_shapes(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    x, weight, offsets, bias = (view.shape(node, index) for index in range(4))
    groups, offset_groups = max(1, attributes.get("groups", 1)), attributes.get("deformable_groups", 1)
    if (groups, offset_groups) != (1, 1):
        yield WARNING, "groups above 1: the documents forbid them, samples run with them", "compare the outputs"
    if weight is None or len(weight) != 4 or min(weight) < 1:
        yield WARNING, "the filter's shape is not known here", "make the filter a constant"
        return
    kh, kw = weight[2:]
    wanted = 3 * offset_groups * kh * kw
    if (rule := _badly_placed(x, offsets, view.output_shape(node))) is not None:
        yield REFUSED, rule, "make an offset for every place of the output, [N, channels, Ho, Wo]"
    elif offsets is not None and offsets[1] not in (wanted, -1):
        rule = f"{offsets[1]} offset channels instead of {wanted}: all x, then all y, then all masks"
        yield REFUSED, rule, "rearrange the offsets and add masks of 1"
    elif not _masks_are_one(node, view):
        rule = "the last third of the offsets, which are the masks, is not constant 1"
        yield WARNING, rule, "see that the offsets are planar: all x, then all y, then all masks"
    if bias is not None and bias != weight[:1]:
        yield REFUSED, f"a bias of shape {bias} for {weight[0]} filters", f"give it the shape ({weight[0]},)"
    if max(kh, kw, largest(attributes, "strides")) > 63:
        yield REFUSED, "a filter or stride above 63", "use a smaller one"
    if largest(attributes, "pads", "dilations") > 255:
        yield REFUSED, "pads or dilations above 255", "use smaller ones"
    if x is None or len(x) != 4:
        return
    if x[1] not in (-1, weight[1] * groups):
        yield REFUSED, f"{x[1]} channels meet a filter for {weight[1] * groups}", "export it again"
    if x[1] > 0 and x[1] % 16:
        rule = f"slow: {x[1]} channels are no multiple of 16, so the AI Core's kernel may not take it"
        yield WARNING, rule, "pad the channels with zero weights, then measure"
    if x[2] > 100000 // kh or x[3] > 4096 // kw:
        yield REFUSED, f"a map of {x[3]}x{x[2]} is larger than {4096 // kw}x{100000 // kh}", "use smaller input sizes"


def _badly_placed(x: Shape | None, offsets: Shape | None, output: Shape | None) -> str | None:
    """Return the fault of offsets that are not one for each place of the output."""
    if offsets is None:
        return None
    if len(offsets) != 4:
        return f"offsets of rank {len(offsets)} instead of 4"
    if x and not _agree(offsets[:1], x[:1]):
        return f"offsets for {offsets[0]} pictures instead of {x[0]}"
    if output is not None and not _agree(offsets[2:], output[2:]):
        return f"offsets of {offsets[3]}x{offsets[2]} for an output of {output[3]}x{output[2]}"
    return None


def _agree(found: Shape, wanted: Shape) -> bool:
    """Whether two shapes are equal wherever both are known."""
    return all(size == other or -1 in (size, other) for size, other in zip(found, wanted, strict=True))


def _masks_are_one(node: NodeProto, view: View) -> bool:
    """Return False if the offsets are those of a convolution whose last third is not constant 1."""
    maker = view.producers.get(node.input[2])
    if maker is None or maker.op_type != "Conv":
        return True
    weight, bias = view.constant(maker, 1), view.constant(maker, 2)
    if weight is None or weight.ndim != 4 or len(weight) % 3:
        return True
    masks = slice(2 * len(weight) // 3, None)
    if bias is None or bias.shape != weight.shape[:1]:
        return False
    return not weight[masks].any() and bool((bias[masks] == 1).all())


_RULES: dict[str, Callable[[NodeProto, dict[str, Any], View], Rule]] = {
    OPERATOR: _deformable,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "Slice": _slice,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "NonZero": _non_zero,
    "Unsqueeze": _unsqueeze,
} | dict.fromkeys(("Gather", "GatherElements", "GatherND"), _gather)
