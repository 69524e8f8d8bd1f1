"""Quantise the trunk of an exported graph to int8 with ONNX Runtime's static quantisation, for CPUs.

The heads stay in float32: offsets of tens of cells do not bear a step of a 256th of their range, and deformable
convolutions have no int8 form. Weights have a scale for each output channel and 7 bits: without VNNI, a CPU adds up two
products of 8 bits with 8 in 16, which overflows.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from dekr_infer.export.uint8_input import NORMALISE
from dekr_infer.onnx_graph.cpu_optimize import optimize_for_cpu
from dekr_infer.onnx_graph.float16 import TRUNK, part_of
from dekr_infer.structures import INPUT_NAME

INT8 = "int8"
OPERATORS = ["Conv", "Add", "Relu", "Resize", "Concat"]
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")  # flags of /proc/cpuinfo


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands tensors to the calibration, one by one."""

    def __init__(self, tensors: Iterable[np.ndarray]) -> None:
        self.tensors: Iterator[np.ndarray] = iter(tensors)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input; `None` after the last."""
        tensor = next(self.tensors, None)
        return None if tensor is None else {INPUT_NAME: tensor}


def quantise_trunk(model: ModelProto, tensors: Iterable[np.ndarray]) -> ModelProto:
    """Return a graph whose trunk computes in int8.

    Args:
        model: in the `onnx` dialect, in float32; it is brought into the form that suits a CPU first.
        tensors: the network's inputs for images that are like those to come, (1, 3, H, W) each.
    """
    optimised = optimize_for_cpu(model)
    left = [node.name for node in optimised.graph.node if part_of(node) != TRUNK or node.name == NORMALISE]
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        source, target = Path(scratch) / "float32.onnx", Path(scratch) / "int8.onnx"
        onnx.save(optimised, source)
        quantize_static(
            source,
            target,
            _Images(tensors),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            nodes_to_exclude=left,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        quantised = onnx.load(target)
    del quantised.metadata_props[:]  # those of the quantiser's own steps, too
    quantised.metadata_props.extend(model.metadata_props)
    return quantised


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the quantiser's advice, which is for graphs in another form."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def has_vnni() -> bool:
    """Return whether this CPU multiplies int8 four at a time; elsewhere than on Linux, that it does."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return any(flag in flags for flag in VNNI)
