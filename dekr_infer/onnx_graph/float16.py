"""Rehearse float16 without an accelerator: put the rounding of its operators into a graph, as casts there and back.

Every operator of an accelerator reads and writes float16, and adds up the products of a convolution in float32 inside.
Here the operators stay in float32; their weights are rounded once, and a cast to float16 and back follows each one
whose result need not be a float16. A file whose tensors are float16 would be no rehearsal: ONNX Runtime computes it in
float32 from one end to the other.

The modes have the names of atc's --precision_mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import ModelProto

from dekr_infer.errors import DekrError
from dekr_infer.onnx_graph.dialects import TAPS, constant, to_proto
from dekr_infer.onnx_graph.operators import OPERATOR, STANDARD_OPERATOR
from dekr_infer.storage.atomic import read_regular

LARGEST = 65504.0  # finite float16
FORCE, MATRIX_ONLY = "force_fp16", "allow_fp32_to_fp16"
MODES = (FORCE, MATRIX_ONLY)
ONCE, TWICE = "once", "twice"
TRUNK, HEATMAP, OFFSET = PARTS = ("trunk", "heatmap", "offset")
MATRIX = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm", STANDARD_OPERATOR))
_EXACT = (  # operators that make float16 values of float16 values
    "Abs Concat Expand Flatten Gather GatherElements GatherND Identity Max MaxPool Min Neg ReduceMax ReduceMin Relu "
    "Reshape Slice Split Squeeze Tile Transpose Unsqueeze Where"
)
EXACT = frozenset(_EXACT.split())
_TYPE = "OpType::"
COPY = ".float16"  # ends the names of rounded weights, and of rounded copies
_DOWN, _UP = ".down", ".up"  # end the names of the casts
_HEADS = {HEATMAP: ("transition_heatmap", "head_heatmap"), OFFSET: ("transition_offset", "offset_")}


class Float16OverflowError(DekrError):
    """A value is too large for float16."""


@dataclass(frozen=True)
class Rounding:
    """What is rounded to float16.

    Args:
        mode: one of `MODES`: everything, or only the operators that multiply matrices.
        parts: of the network, of `PARTS`; the others stay in float32.
        weights_only: leave what the operators compute as it is.
        keep: names of nodes that stay in float32, or `OpType::` and a type, as in the file of atc's --keep_dtype.
        deform: how often a deformable convolution rounds: `once`, or `twice`, also between the sampling and the
            product, which are two operators on some chips.
    """

    mode: str = FORCE
    parts: tuple[str, ...] = PARTS
    weights_only: bool = False
    keep: tuple[str, ...] = ()
    deform: str = ONCE

    def __str__(self) -> str:
        """Return all of it in one line, for records."""
        words = [f"fp16 {self.mode}"]
        words += [",".join(self.parts)] if self.parts != PARTS else []
        words += ["weights only"] if self.weights_only else []
        words += [f"deform {self.deform}"] if self.deform != ONCE else []
        words += [f"keep {','.join(self.keep)}"] if self.keep else []
        return "; ".join(words)

    def chooses(self, node: Any) -> bool:
        """Return whether a node computes in float16."""
        if self.mode == MATRIX_ONLY and node.op_type not in MATRIX:
            return False
        return part_of(node) in self.parts and not any(_matches(entry, node) for entry in self.keep)


def part_of(node: Any) -> str:
    """Return the part of the network that a node belongs to, by its name, which leads back to the checkpoint."""
    name = (node.name or "").lstrip("/")
    return next((part for part, starts in _HEADS.items() if name.startswith(starts)), TRUNK)


def read_keep_list(path: Path) -> tuple[str, ...]:
    """Read the file of atc's --keep_dtype: a node's name, or `OpType::` and a type, on each line.

    Raises:
        DekrError: the file cannot be read, or names nothing.
    """
    try:
        lines = read_regular(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DekrError(f"{path}: cannot be read as text ({error}); write one node name on each line") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise DekrError(f"{path}: names no node; write one name, or {_TYPE}Conv, on each line")
    return names


def _matches(entry: str, node: Any) -> bool:
    if entry.startswith(_TYPE):
        kind = entry.removeprefix(_TYPE)
        return node.op_type == (STANDARD_OPERATOR if kind == OPERATOR else kind)
    return entry == node.name


def rehearse(model: ModelProto, rounding: Rounding) -> ModelProto:
    """Return a graph in the `onnx` dialect with the rounding in it; the names of its values stay.

    Raises:
        DekrError: a name to keep is that of no node.
    """
    rewritten = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    graph = rewritten.graph
    unknown = [entry for entry in rounding.keep if not any(_matches(entry, node) for node in graph)]
    if unknown:
        raise DekrError(f"no node is called {unknown[0]}; the names are those of the ONNX file, see compare_nodes.py")
    rounded = _Rounded(graph)
    for node in list(graph):
        if not rounding.chooses(node):
            rounded.note(node)
            continue
        split = rounding.deform == TWICE and node.op_type == STANDARD_OPERATOR
        for part in _sampled_apart(graph, node) if split else [node]:
            rounded.round_constants(part)
            if rounding.weights_only:
                continue
            rounded.round_inputs(part)
            if part.op_type in EXACT:
                rounded.note(part)
            else:
                rounded.round_outputs(part)
    return to_proto(rewritten)


@dataclass
class _Rounded:
    """The graph under work, and which of its values are float16 numbers by now."""

    graph: ir.Graph
    low: set[Any] = field(default_factory=set)
    copies: dict[Any, Any] = field(default_factory=dict)

    def note(self, node: Any) -> None:
        """Note that the outputs of a node that computes nothing new are what its inputs are."""
        inputs = [value for value in node.inputs if _is_float(value)]
        if node.op_type in EXACT and inputs and all(value in self.low for value in inputs):
            self.low.update(node.outputs)

    def round_constants(self, node: Any) -> None:
        """Round the weights that a node reads; others may share them, so it gets copies."""
        if node.op_type == "Resize":  # its scales are no values of the network
            return
        for index, value in enumerate(node.inputs):
            if _is_float(value) and value.const_value is not None:
                values = value.const_value.numpy()
                with np.errstate(over="ignore"):  # reported when the graph is run
                    own = constant(self.graph, f"{value.name}{COPY}", values.astype(np.float16).astype(np.float32))
                self.low.add(own)
                node.replace_input_with(index, own)

    def round_inputs(self, node: Any) -> None:
        """Let a node read rounded copies of what no float16 operator has computed."""
        for index, value in enumerate(node.inputs):
            if not _is_float(value) or value.const_value is not None or value in self.low:
                continue
            if value not in self.copies:
                first = self.graph[0] if value.producer() is None else None
                place = value.producer() if first is None else first
                self.copies[value] = self._casts(value, place, before=first is not None)
                self.copies[value].name = f"{value.name}{COPY}"
                self.low.add(self.copies[value])
            node.replace_input_with(index, self.copies[value])

    def round_outputs(self, node: Any) -> None:
        """Round what a node computes, under the name that the value had."""
        for value in node.outputs:
            if not _is_float(value):
                continue
            readers, name = list(value.uses()), value.name
            value.name = f"{name}.float32"
            high = self._casts(value, node)
            high.name = name
            for reader, index in readers:
                reader.replace_input_with(index, high)
            for index, output in enumerate(self.graph.outputs):
                if output is value:
                    high.shape = value.shape
                    self.graph.outputs[index] = high
            self.low.add(high)

    def _casts(self, value: Any, place: Any, before: bool = False) -> Any:
        down = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16}, name=f"{value.name}{_DOWN}")
        up = ir.node("Cast", down.outputs, {"to": ir.DataType.FLOAT}, name=f"{value.name}{_UP}")
        down.outputs[0].name = f"{value.name}.half"
        up.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        if before:
            place.prepend([down, up])
        else:
            place.append([down, up])
        return up.outputs[0]


def _is_float(value: Any) -> bool:
    """Return whether a value is float32; of a few values the type is not known, and these are."""
    return value is not None and value.dtype in (None, ir.DataType.FLOAT)


def _sampled_apart(graph: ir.Graph, node: Any) -> Iterator[Any]:
    """Make a deformable convolution two operators, one after the other: the samples of all taps, and their product.

    The first is a deformable convolution, too: one that picks a tap for each of its output channels.
    """
    offset_groups, groups = (node.attributes.get_int(name, 1) for name in ("offset_group", "group"))
    if node.inputs[1] is None or node.inputs[1].const_value is None:
        raise DekrError(f"{node.name or node.op_type}: its weights are computed; rehearse it with one rounding")
    weight = node.inputs[1].const_value.numpy()
    channels = weight.shape[1] * groups
    one_tap = np.tile(np.eye(TAPS, dtype=np.float32), (channels, 1)).reshape(channels * TAPS, 1, 3, 3)
    picks = constant(graph, f"taps.{channels}", one_tap)
    sampling = ir.node("DeformConv", [node.inputs[0], picks, node.inputs[2]], name=f"{node.name}.samples")
    for attribute in node.attributes.values():
        if attribute.name not in ("group", "offset_group"):
            sampling.attributes.add(attribute)
    sampling.attributes.add(ir.AttrInt64("group", channels))
    sampling.attributes.add(ir.AttrInt64("offset_group", offset_groups))
    samples = sampling.outputs[0]
    samples.name, samples.type = f"{node.name}.samples.output", ir.TensorType(ir.DataType.FLOAT)
    node.prepend(sampling)
    flat = constant(graph, f"{node.inputs[1].name}.flat", weight.reshape(len(weight), -1, 1, 1))
    inputs = [samples, flat, *node.inputs[3:4]]
    product = ir.node("Conv", inputs, {"kernel_shape": [1, 1], "group": groups}, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)
    yield from (sampling, product)


def node_of(model: ModelProto, value: str) -> str:
    """Return an output of the node of the original graph that computes a value, or that reads a rounded copy of it."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    node = made_by[value]
    if not node.name.endswith(_UP):
        return value
    if value.endswith(COPY):
        reader = next(reader for reader in model.graph.node if value in reader.input)
        return str(reader.output[0])
    return str(made_by[node.input[0]].input[0])
