"""A node's attributes: their values, once their kinds are seen to be those that the operator asks for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from onnx import AttributeProto, NodeProto, defs, helper

from dekr_infer.onnx_graph.dialects import OPERATOR

LARGEST_VERSION = 2**31  # of an opset, as onnx looks it up
_INT: set[int] = {AttributeProto.INT}
_LIST = _INT | {AttributeProto.INTS}  # a single number has rules of its own
_DEFORMABLE: dict[str, set[int]] = {
    **dict.fromkeys(("strides", "pads", "dilations"), _LIST),
    **dict.fromkeys(("groups", "deformable_groups", "defomable_groups", "modulated"), _INT),
    "data_format": {AttributeProto.STRING},
}


@cache
def _kinds(operator: str, opset: int) -> dict[str, set[int]]:
    """The kinds that each attribute may have, at this opset or the newest."""
    if operator == OPERATOR:
        return _DEFORMABLE
    kinds: dict[str, set[int]] = {}
    if defs.has(operator):
        schemas = [defs.get_schema(operator)]
        if opset in range(1, LARGEST_VERSION) and defs.has(operator, opset):
            schemas.append(defs.get_schema(operator, opset))
        for name, entry in (pair for schema in schemas for pair in schema.attributes.items()):
            kind: Any = entry.type
            kinds.setdefault(name, set()).add(AttributeProto.AttributeType.Value(kind.name))
    return kinds


def attributes_of(node: NodeProto, opset: int) -> dict[str, Any]:
    """The values by name; without attributes that are of the wrong kind or unknown to the operator."""
    kinds = _kinds(node.op_type, opset)
    return {
        entry.name: helper.get_attribute_value(entry)
        for entry in node.attribute
        if entry.type in kinds.get(entry.name, ()) and not entry.ref_attr_name
    }


def wrong_kinds(node: NodeProto, opset: int) -> Iterator[tuple[str, str]]:
    """What is wrong with the attributes' kinds, and the remedy."""
    kinds = _kinds(node.op_type, opset)
    for entry in node.attribute:
        wanted = kinds.get(entry.name)
        if entry.ref_attr_name:
            yield f"{entry.name} refers to a function's attribute", f"write {entry.name} as a value"
        elif wanted and entry.type not in wanted:
            names = " or ".join(AttributeProto.AttributeType.Name(kind) for kind in sorted(wanted, reverse=True))
            found = AttributeProto.AttributeType.Name(entry.type)
            yield f"{entry.name} is of kind {found} instead of {names}", f"write {entry.name} as {names}"


def largest(attributes: dict[str, Any], *keys: str) -> int:
    """The largest number in these lists, at least 1."""
    values = [attributes.get(key, 1) for key in keys]
    return max([1, *(number for value in values for number in (value if isinstance(value, list) else [value]))])


def text(attributes: dict[str, Any], key: str, default: str) -> str:
    """A string attribute."""
    return attributes[key].decode(errors="replace") if key in attributes else default
