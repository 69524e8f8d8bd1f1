"""What atc asks of `DeformableConv2D`, the deformable convolution of CANN's own."""

from __future__ import annotations

from typing import Any

from onnx import NodeProto

from dekr_infer.ascend.lint.attributes import largest
from dekr_infer.ascend.lint.context import REFUSED, WARNING, WRONG, Rule, Shape, View


def deformable(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
    """The attributes, then the inputs."""
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
        yield REFUSED, f"{len(node.input)} inputs instead of x, filter, offsets and perhaps bias", "export it anew"
        return
    yield from _shapes(node, attributes, view)


def _shapes(node: NodeProto, attributes: dict[str, Any], view: View) -> Rule:
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
        yield REFUSED, f"{x[1]} channels meet a filter for {weight[1] * groups}", "export it anew"
    if x[1] > 0 and x[1] % 16:
        rule = f"slow: {x[1]} channels are no multiple of 16, so the AI Core's kernel may not take it"
        yield WARNING, rule, "pad the channels with zero weights, then measure"
    if x[2] > 100000 // kh or x[3] > 4096 // kw:
        yield REFUSED, f"a map of {x[3]}x{x[2]} is larger than {4096 // kw}x{100000 // kh}", "use smaller input sizes"


def _badly_placed(x: Shape | None, offsets: Shape | None, output: Shape | None) -> str | None:
    """What is wrong when there are not as many offsets as places of the output."""
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
    """False when the offsets come straight from a convolution whose last third is not constant 1."""
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
