"""Two runs of a network node by node: how far apart their values are, and where values are too large for float16."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import ModelProto

from dekr_infer.backends.node_values import node_values, sources_of, value_names
from dekr_infer.errors import DekrError
from dekr_infer.storage import npy

_log = logging.getLogger(__name__)

# Numbers, of the task and of the time, follow the operator's name in the files of `msaccucmp.py convert -t npy`.
_OF_DEVICE = re.compile(r"(?P<type>[\w-]+)\.(?P<node>[\w-]+)(?:\.\d+){2,8}\.output\.(?P<index>\d+)\.npy")
_OF_ONNX = re.compile(r"(?P<node>[\w-]+)\.(?P<index>\d+)(?:\.\d+)+\.npy")
_REPLACED = re.compile(r"[./\\ ]")  # by an underscore, in the names of such files
LAYOUT = (
    "the .npy files that 'msaccucmp.py convert -t npy' makes of a device's dump, Conv2D.NODE.3.4.1682067845380164."
    "output.0.npy, or those of an ONNX dump, NODE.0.1682067845380164.npy"
)


class NodeDifference(NamedTuple):
    """How far a value of the second run is from that of the first.

    Args:
        name: of the value.
        source: its node and checkpoint key.
        shape: of the value.
        rms: the root mean square of the difference over that of the first run's value.
        cosine: of the angle between both.
        largest_difference: absolute.
        largest: the largest magnitude in the first run.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    rms: float
    cosine: float
    largest_difference: float
    largest: float


def difference_of_values(name: str, source: str, first: np.ndarray, second: np.ndarray) -> NodeDifference:
    """Return how far two arrays of one shape are apart; infinite or NaN values count as infinitely far."""
    a, b = (values.ravel().astype(np.float64) for values in (first, second))
    with np.errstate(invalid="ignore", over="ignore"):
        products = (float(np.dot(*pair)) for pair in ((a - b, a - b), (a, a), (b, b), (a, b)))
        largest_difference, largest = (float(np.abs(values).max(initial=0)) for values in (a - b, a))
    squared, length, other, product = products
    if not math.isfinite(squared):
        return NodeDifference(
            name, source, first.shape, math.inf, 0.0, math.inf, largest if length < math.inf else math.inf
        )
    length, other = math.sqrt(length), math.sqrt(other)
    cosine = product / (length * other) if length and other else float(length == other)
    rms = math.sqrt(squared) / length if length else math.inf if squared else 0.0
    return NodeDifference(name, source, first.shape, rms, min(cosine, 1.0), largest_difference, largest)


def compare_graphs(
    first: ModelProto, second: ModelProto, feed: Mapping[str, np.ndarray], threads: int | None = None
) -> Iterator[NodeDifference]:
    """Yield the differences of the values that two graphs in the `onnx` dialect compute under one name, in order.

    Args:
        first: the graph to compare with.
        second: the other graph.
        feed: the input of both.
        threads: of ONNX Runtime.
    Raises:
        DekrError: no value of the two has the same name.
    """
    known = set(value_names(second))
    names, sources = [name for name in value_names(first) if name in known], sources_of(first)
    if not names:
        raise DekrError("the two graphs name no value alike; export both with this project and one --deform")
    both = (node_values(model, feed, names, threads) for model in (first, second))
    left_out, compared = len(value_names(first)) - len(names), 0
    for (name, a), (_, b) in zip(*both, strict=True):
        if a.shape == b.shape:
            compared += 1
            yield difference_of_values(name, sources[name], a, b)
        else:
            left_out += 1
    if not compared:
        raise DekrError("no value of the two graphs has one name and one shape; are they of one network?")
    if left_out:
        _log.warning("%d values of the first graph have none of their name and shape in the second", left_out)


def compare_dump(
    model: ModelProto, folder: Path, feed: Mapping[str, np.ndarray], threads: int | None = None
) -> Iterator[NodeDifference]:
    """Yield the differences of a graph's values from those that a device has dumped.

    Args:
        model: the graph that was dumped, in the `onnx` dialect; a node's name leads to its file.
        folder: of the layout `LAYOUT`.
        feed: the graph's input, as the device got it.
        threads: of ONNX Runtime.
    Raises:
        DekrError: there is no file of this layout, or a file is damaged, or of another shape than the value.
    """
    files: dict[tuple[str, int], Path] = {}
    for path in sorted(folder.iterdir()):
        match = _OF_DEVICE.fullmatch(path.name) or _OF_ONNX.fullmatch(path.name)
        if match:
            key = (match["node"], int(match["index"]))
            if key in files:
                raise DekrError(f"{path}: of the same value as {files[key].name}; leave the dump of one run there")
            files[key] = path
    computed = set(value_names(model))
    found = {
        name: files[key]
        for node in model.graph.node
        for index, name in enumerate(node.output)
        if name in computed and (key := (_REPLACED.sub("_", node.name), index)) in files
    }
    if not found:
        raise DekrError(f"{folder}: holds no value of a node of this graph; expected are {LAYOUT}")
    sources = sources_of(model)
    for name, values in node_values(model, feed, list(found), threads):
        dumped = npy.read_unchecked(found[name], npy.OUTPUTS)
        if dumped.shape != values.shape:
            raise DekrError(
                f"{found[name]}: has shape {dumped.shape}, {sources[name]} computes {values.shape}; is it of another "
                "image or input size?"
            )
        yield difference_of_values(name, sources[name], values, dumped)
