"""The things that the rules read, a graph at one input size and a node's attributes, and what they yield, findings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, defs, helper

from dekr_infer.onnx_graph.operators import OPERATOR
from dekr_infer.onnx_graph.subgraphs import array_of

REFUSED, WRONG, WARNING = "refused", "wrong", "warning"  # atc stops; it converts to something else; slow or unsure
PORTABLE_OPSET = 11
LARGEST_VERSION = 2**31  # of an opset, as onnx looks it up
_INT: set[int] = {AttributeProto.INT}
_LIST = _INT | {AttributeProto.INTS}  # a single number has rules of its own
_DEFORMABLE: dict[str, set[int]] = {
    **dict.fromkeys(("strides", "pads", "dilations"), _LIST),
    **dict.fromkeys(("groups", "deformable_groups", "defomable_groups", "modulated"), _INT),
    "data_format": {AttributeProto.STRING},
}
Shape = tuple[int, ...]
Rule = Iterator[tuple[str, str, str]]  # level, rule and remedy: findings without the node's name


class Finding(NamedTuple):
    """One thing that atc refuses, converts wrongly, or makes slow; `node` is a node's name or the file's part."""

    level: str
    node: str
    rule: str
    remedy: str


@dataclass(frozen=True)
class View:
    """A graph at one size: `shapes` by tensor name (-1: unknown), `constants`, `input_sizes`: whether any."""

    opset: int
    shapes: dict[str, Shape]
    constants: dict[str, TensorProto]
    producers: dict[str, NodeProto]
    input_sizes: bool

    def shape(self, node: NodeProto, index: int) -> Shape | None:
        """Return the shape of a node's input, or `None` if it is unknown."""
        return self.shapes.get(_input(node, index))

    def output_shape(self, node: NodeProto) -> Shape | None:
        """Return the shape of a node's first output, or `None` if it is unknown."""
        return self.shapes.get(node.output[0]) if node.output else None

    def constant(self, node: NodeProto, index: int) -> np.ndarray | None:
        """Return the value of a node's input, or `None` if it is not constant."""
        tensor = self.constants.get(_input(node, index))
        return None if tensor is None else array_of(tensor)

    def integers(self, node: NodeProto, index: int) -> list[int] | None:
        """Return the integers of a constant input, or `None` if it holds anything else."""
        values = self.constant(node, index)
        if values is None or values.dtype.kind not in "iu":
            return None
        return [int(value) for value in values.flat]


def _input(node: NodeProto, index: int) -> str:
    """Return an input's name; empty if the input is left out."""
    return node.input[index] if index < len(node.input) else ""


@cache
def _kinds(operator: str, opset: int) -> dict[str, set[int]]:
    """Return the kinds that each attribute may have, at this opset or the newest."""
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
    """Return the values by name, without attributes of the wrong kind or unknown to the operator."""
    kinds = _kinds(node.op_type, opset)
    return {
        entry.name: helper.get_attribute_value(entry)
        for entry in node.attribute
        if entry.type in kinds.get(entry.name, ()) and not entry.ref_attr_name
    }


def wrong_kinds(node: NodeProto, opset: int) -> Iterator[tuple[str, str]]:
    """Yield the faults of the attributes' kinds, each with its remedy."""
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
    """Return the largest number in these lists, at least 1."""
    values = [attributes.get(key, 1) for key in keys]
    return max([1, *(number for value in values for number in (value if isinstance(value, list) else [value]))])


def text(attributes: dict[str, Any], key: str, default: str) -> str:
    """Return a string attribute."""
    return attributes[key].decode(errors="replace") if key in attributes else default
