"""What atc asks of the nodes of an ONNX graph: one short rule per operator, each a generator of findings.

The facts are those of CANN 6.0 and later as published; the numbers are the documented limits of its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto

from dekr_infer.export.operator_names import OPERATOR, STANDARD_OPERATOR

REFUSED, WRONG, WARNING = "refused", "wrong", "warning"  # atc stops; it converts to something else; slow or unsure
PORTABLE_OPSET = 11
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


class Finding(NamedTuple):
    """One thing that atc refuses, converts wrongly, or makes slow; `node` is a node's name or the file's part."""

    level: str
    node: str
    rule: str
    remedy: str


@dataclass(frozen=True)
class View:
    """A graph at one size: `shapes` by tensor name (-1: unknown), `constants` by name, `gears` whether it has any."""

    opset: int
    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, onnx.TensorProto]
    producers: dict[str, NodeProto]
    gears: bool

    def shape(self, node: NodeProto, index: int) -> tuple[int, ...] | None:
        """The shape of a node's input, when it is known."""
        return self.shapes.get(node.input[index]) if index < len(node.input) else None

    def constant(self, node: NodeProto, index: int) -> np.ndarray | None:
        """The value of a node's input, when it is constant."""
        tensor = self.constants.get(node.input[index]) if index < len(node.input) else None
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)


def name_of(node: NodeProto) -> str:
    """How a finding calls a node."""
    return node.name or f"{node.op_type} -> {', '.join(node.output)}"


def check_node(node: NodeProto, view: View) -> Iterator[Finding]:
    """All findings about one node."""
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
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    for level, rule, remedy in _RULES.get(node.op_type, _no_rule)(node, attributes, view):
        yield Finding(level, name, rule, remedy)


Rule = Iterator[tuple[str, str, str]]


def _no_rule(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    yield from ()


def _deformable(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    kinds = {entry.name: entry.type for entry in node.attribute}
    for key in ("strides", "pads"):
        if kinds.get(key) != AttributeProto.INTS or len(attributes[key]) not in (1, 2):
            yield REFUSED, f"{key} must be there as a list of 1 or 2 numbers", f"write {key}=[1, 1]"
        elif key == "pads" and len(set(attributes[key])) > 1:
            yield WRONG, "unequal pads mean different sides in different versions", "use equal pads"
    if "dilations" in kinds and kinds["dilations"] != AttributeProto.INTS:
        level = WARNING if attributes["dilations"] == 1 else WRONG
        yield level, "dilations that are no list are ignored and mean 1", "write dilations as a list"
    elif len(attributes.get("dilations", [1])) > 2:
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
        yield REFUSED, f"{len(node.input)} inputs instead of x, filter, offsets and perhaps bias", "export it anew"
        return
    yield from _deformable_shapes(node, attributes, view)


def _deformable_shapes(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    x, weight, offsets = (view.shape(node, index) for index in range(3))
    groups, offset_groups = max(1, attributes.get("groups", 1)), attributes.get("deformable_groups", 1)
    if (groups, offset_groups) != (1, 1):
        yield WARNING, "groups above 1: the documents forbid them, samples run with them", "compare the outputs"
    if weight is None or len(weight) != 4:
        yield WARNING, "the filter's shape is not known here", "make the filter a constant"
        return
    kh, kw = weight[2:]
    wanted = 3 * offset_groups * kh * kw
    if offsets is not None and len(offsets) == 4 and offsets[1] not in (wanted, -1):
        rule = f"{offsets[1]} offset channels instead of {wanted}: all x, then all y, then all masks"
        yield REFUSED, rule, "rearrange the offsets and add masks of 1"
    elif not _masks_are_one(node, view):
        rule = "the last third of the offsets, which are the masks, is not constant 1"
        yield WARNING, rule, "see that the offsets are planar: all x, then all y, then all masks"
    if x is None or len(x) != 4:
        return
    if x[1] not in (-1, weight[1] * groups):
        yield REFUSED, f"{x[1]} channels meet a filter for {weight[1] * groups}", "export it anew"
    if x[1] % 16:
        rule = f"slow: {x[1]} channels are no multiple of 16, so the AI Core's kernel may not take it"
        yield WARNING, rule, "pad the channels with zero weights, then measure"
    if x[2] > 100000 // kh or x[3] > 4096 // kw:
        yield REFUSED, f"a map of {x[3]}x{x[2]} is larger than {4096 // kw}x{100000 // kh}", "use smaller gears"
    if max(kh, kw, *_ints(attributes, "strides")) > 63:
        yield REFUSED, "a filter or stride above 63", "use a smaller one"
    if max(*_ints(attributes, "pads"), *_ints(attributes, "dilations")) > 255:
        yield REFUSED, "pads or dilations above 255", "use smaller ones"


def _masks_are_one(node: NodeProto, view: View) -> bool:
    """False when the offsets come straight from a convolution whose last third is not constant 1."""
    maker = view.producers.get(node.input[2])
    if maker is None or maker.op_type != "Conv":
        return True
    weight, bias = view.constant(maker, 1), view.constant(maker, 2)
    if weight is None or len(weight) % 3:
        return True
    masks = slice(2 * len(weight) // 3, None)
    return bias is not None and not weight[masks].any() and bool((bias[masks] == 1).all())


def _convolution(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    x, weight = view.shape(node, 0), view.shape(node, 1)
    if x is not None and x[-1] > 4096:
        yield REFUSED, f"a map {x[-1]} wide: at most 4096", "use smaller gears"
    yield from _limits(attributes, weight[2:] if weight is not None else ())


def _limits(attributes: dict[str, Any], kernel: Sequence[int]) -> Rule:
    if max(_ints(attributes, "kernel_shape") + list(kernel)) > 255:
        yield REFUSED, "a kernel above 255", "use a smaller one"
    if max(_ints(attributes, "pads")) > 255:
        yield REFUSED, "pads above 255", "use smaller ones"
    if max(_ints(attributes, "strides")) > 63:
        yield REFUSED, "a stride above 63", "use a smaller one"


def _max_pool(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    kernel = _ints(attributes, "kernel_shape")
    if max(_ints(attributes, "dilations")) > 1:
        yield REFUSED, "MaxPool with dilations", "leave them out"
    if max(kernel) > 255 or int(np.prod(kernel)) > 256 or max(_ints(attributes, "strides")) > 63:
        yield WARNING, "slow: such a large kernel or stride runs on the AICPU", "use a smaller one"


def _resize(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    mode, coordinates = _text(attributes, "mode", "nearest"), _text(attributes, COORDINATE_MODE, "half_pixel")
    if view.opset == 13:
        yield WARNING, "Resize at opset 13 is not in the list of CANN 6.0.1", f"export with opset {PORTABLE_OPSET}"
    if mode == "cubic":
        yield REFUSED, "mode cubic is not supported", "use nearest or linear"
    if view.opset > 10 and coordinates not in COORDINATES:
        yield REFUSED, f"{COORDINATE_MODE} {coordinates} is not supported", "use asymmetric"
    nearest = _text(attributes, "nearest_mode", "round_prefer_floor")
    if view.opset > 10 and mode == "nearest" and coordinates == "asymmetric" and nearest != "floor":
        yield WRONG, f"nearest_mode {nearest} is ignored and means floor", "write nearest_mode floor"
    for key in ("antialias", "exclude_outside"):
        if attributes.get(key, 0):
            yield WRONG, f"{key} is ignored", f"leave {key} out"
    if not any(view.constant(node, index) is not None for index in range(len(node.input) - 1, 0, -1)[:2]):
        yield WARNING, "neither scales nor sizes are constant", "export with scale factors, e.g. [1, 1, 2, 2]"


def _slice(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    x, axes, steps = view.shape(node, 0), view.constant(node, 3), view.constant(node, 4)
    if x is not None and len(x) < 2:
        yield WARNING, "Slice of a tensor of rank 1", "keep it inside shape computations"
    elif x is not None and steps is not None and axes is not None:
        on_last = [int(step) for axis, step in zip(axes, steps, strict=False) if axis in (-1, len(x) - 1)]
        if any(step != 1 for step in on_last):
            yield REFUSED, "Slice with a step on the last axis", "transpose, or use Gather"


def _gather(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    indices = view.constant(node, 1)
    if indices is not None and indices.size and indices.min() < 0:
        yield WRONG, "negative indices are not supported", "count them from the front"


def _expand(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    if view.constant(node, 1) is None:
        yield WARNING, "Expand to a shape that is not constant", "make it constant, or see that it folds per gear"


def _non_zero(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    if view.gears:
        yield REFUSED, "NonZero: a shape that depends on data is forbidden with gears", "rewrite it"


def _unsqueeze(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    if view.opset > 12:
        yield WARNING, "Unsqueeze above opset 12 is not in CANN 5's list", f"export with opset {PORTABLE_OPSET}"


def _ints(attributes: dict[str, Any], key: str) -> list[int]:
    value = attributes.get(key, [])
    return [1, *value] if isinstance(value, (list, tuple)) else [1, int(value)]


def _text(attributes: dict[str, Any], key: str, default: str) -> str:
    value = attributes.get(key, default)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


_RULES: dict[str, Callable[[NodeProto, dict[str, Any], View], Rule]] = {
    OPERATOR: _deformable,
    "Conv": _convolution,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "Slice": _slice,
    "Expand": _expand,
    "NonZero": _non_zero,
    "Unsqueeze": _unsqueeze,
} | dict.fromkeys(("Gather", "GatherElements", "GatherND"), _gather)
