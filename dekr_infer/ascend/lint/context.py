"""What the rules of atc look at, a graph at one size, and what they yield, findings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from onnx import NodeProto, TensorProto

from dekr_infer.onnx_graph.subgraphs import array_of

REFUSED, WRONG, WARNING = "refused", "wrong", "warning"  # atc stops; it converts to something else; slow or unsure
PORTABLE_OPSET = 11
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
        """The shape of a node's input, when it is known."""
        return self.shapes.get(_input(node, index))

    def output_shape(self, node: NodeProto) -> Shape | None:
        """The shape of a node's first output, when it is known."""
        return self.shapes.get(node.output[0]) if node.output else None

    def constant(self, node: NodeProto, index: int) -> np.ndarray | None:
        """The value of a node's input, when it is constant."""
        tensor = self.constants.get(_input(node, index))
        return None if tensor is None else array_of(tensor)

    def integers(self, node: NodeProto, index: int) -> list[int] | None:
        """The same as a flat list, when it holds integers."""
        values = self.constant(node, index)
        if values is None or values.dtype.kind not in "iu":
            return None
        return [int(value) for value in values.flat]


def _input(node: NodeProto, index: int) -> str:
    """An input's name; empty when it is left out."""
    return node.input[index] if index < len(node.input) else ""
