"""Run an exported graph on ONNX Runtime: loading, either dialect, input sizes, one forward pass."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnxruntime.capi import onnxruntime_pybind11_state as state

from dekr_infer.errors import DekrError
from dekr_infer.geometry import InputSizes, Size, cells
from dekr_infer.onnx_graph.cpu_optimize import optimize_for_cpu
from dekr_infer.onnx_graph.dialects import ONNX, to_dialect
from dekr_infer.pose.preprocess import mirror, normalise, warp
from dekr_infer.skeleton import COCO_17
from dekr_infer.storage.atomic import read_regular
from dekr_infer.structures import INPUT_NAME, OUTPUT_NAMES, Frame, Maps, Passes, output_shapes

CPU_PROVIDER = "CPUExecutionProvider"
EXPORT_AGAIN = "export it again with DEKR_pth2onnx.py"
MALFORMED = (  # what the rewrites stumble over in nodes that lack something, or hold it in another type
    *(LookupError, ValueError, TypeError, AttributeError, ArithmeticError, StopIteration, RuntimeError, AssertionError),
)
RUNTIME_ERRORS = (
    *(state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented),
    *(state.NoSuchFile, state.RuntimeException, RuntimeError),
)


class OnnxRuntime:
    """A graph in either dialect, loaded for ONNX Runtime.

    Args:
        path: the ONNX file.
        threads: how many ONNX Runtime may use for one pass; by default all cores of this process.
        as_written: run the file's own nodes; otherwise the same sums, rearranged for a CPU (`cpu_optimize`).
        provider: the execution provider, by ONNX Runtime's name.

    `input_sizes`, `checkpoint_sha256` and `weights` (`random`, `demo` or `trained`) are those that the file's metadata
    name; `sha256` is that of the file. One object serves several threads: `infer` runs at most `passes_at_once` passes
    together, as many as the cores can hold with `threads` each, while other threads decode images and poses.

    Raises:
        DekrError: the file is missing, damaged or not one of ours, or ONNX Runtime refuses it.
    """

    def __init__(
        self, path: Path, threads: int | None = None, as_written: bool = False, provider: str = CPU_PROVIDER
    ) -> None:
        model, self.sha256 = load_graph(path)
        self.path = path
        self.metadata = {entry.key: entry.value for entry in model.metadata_props if isinstance(entry.value, str)}
        input_sizes = InputSizes.parse(self.metadata.get("input_sizes", ""))
        if not input_sizes:
            raise DekrError(f"{path}: its metadata names no input sizes; export it with DEKR_pth2onnx.py")
        self.input_sizes = input_sizes
        self.checkpoint_sha256 = self.metadata.get("checkpoint_sha256")
        self.weights = self.metadata.get("weights")
        if provider not in onnxruntime.get_available_providers():
            available = ", ".join(onnxruntime.get_available_providers())
            raise DekrError(f"ONNX Runtime {onnxruntime.__version__}: has no {provider}; it has {available}")
        options = onnxruntime.SessionOptions()
        cores = len(os.sched_getaffinity(0))
        options.intra_op_num_threads = threads or cores
        self.passes_at_once = max(1, cores // (threads or cores))
        self._turns = threading.BoundedSemaphore(self.passes_at_once)
        options.log_severity_level = 4
        standard = _standard(model, path, as_written or provider != CPU_PROVIDER)
        try:
            self.session = onnxruntime.InferenceSession(standard.SerializeToString(), options, providers=[provider])
        except RUNTIME_ERRORS as error:
            raise DekrError(
                f"{path}: ONNX Runtime {onnxruntime.__version__}: {_first_line(error)}; {EXPORT_AGAIN}"
            ) from None

    def run(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Run one forward pass.

        Args:
            image: (1, 3, H, W) float32, H x W an input size.
        Returns:
            heatmap (1, 18, H/4, W/4), offset (1, 34, H/4, W/4), both float32, and the milliseconds it took.
        """
        started = time.perf_counter()
        try:
            heatmap, offset = self.session.run(OUTPUT_NAMES, {INPUT_NAME: image})
        except RUNTIME_ERRORS as error:
            raise DekrError(f"{self.path}: cannot be run: {_first_line(error)}; {EXPORT_AGAIN}") from None
        milliseconds = (time.perf_counter() - started) * 1000
        expected = output_shapes(COCO_17, cells(Size(*image.shape[2:])))
        for name, shape, values in zip(OUTPUT_NAMES, expected, (heatmap, offset), strict=True):
            if values.shape != shape:
                raise DekrError(f"{self.path}: {name} has shape {values.shape}, not {shape}; {EXPORT_AGAIN}")
        return heatmap, offset, milliseconds

    def infer(self, frame: Frame, flip: bool) -> Passes:
        """Decode a frame's image, warp it once, and run both passes.

        Raises:
            DekrError: the image cannot be decoded, or ONNX Runtime fails.
        """
        warped = warp(frame.read(), frame.placement.input)
        maps = []
        for pixels in (warped, mirror(warped))[: 1 + flip]:
            tensor = normalise(pixels)
            with self._turns:
                heatmap, offset, milliseconds = self.run(tensor)
            sources = (f"{frame.name}: heatmap", f"{frame.name}: offset")
            maps.append(Maps(heatmap[0], offset[0], sources, milliseconds))
        return Passes(*maps)


def load_graph(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read an ONNX file and its SHA-256.

    Raises:
        DekrError: missing, damaged, or not a graph of this project's form.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); export it with DEKR_pth2onnx.py") from None
    try:
        model = onnx.load_from_string(data)
    except DecodeError:
        model = onnx.ModelProto()
    if not model.graph.node:
        raise DekrError(f"{path}: not an ONNX file, or cut short; export it again with DEKR_pth2onnx.py")
    inputs, outputs = ([str(entry.name) for entry in ends] for ends in (model.graph.input, model.graph.output))
    if inputs != [INPUT_NAME] or outputs != list(OUTPUT_NAMES):
        raise DekrError(
            f"{path}: goes from {', '.join(inputs)} to {', '.join(outputs)}, not from {INPUT_NAME} to "
            f"{', '.join(OUTPUT_NAMES)}; export it with DEKR_pth2onnx.py"
        )
    return model, hashlib.sha256(data).hexdigest()


def _standard(model: onnx.ModelProto, path: Path, as_written: bool) -> onnx.ModelProto:
    """Return a graph in the dialect of ONNX Runtime and, unless `as_written`, in the form that suits a CPU."""
    try:
        _check_order(model)
        standard = to_dialect(model, ONNX)
        return standard if as_written else optimize_for_cpu(standard)
    except DekrError as error:
        raise DekrError(f"{path}: {error}; {EXPORT_AGAIN}") from None
    except MALFORMED as error:
        raise DekrError(f"{path}: its nodes are not those of our export ({error!r:.80}); {EXPORT_AGAIN}") from None


def _check_order(model: onnx.ModelProto) -> None:
    """Check that each node reads only what is computed before it, so that following a graph's nodes comes to an end.

    Raises:
        DekrError: a node reads a tensor that nothing before it computes, or computes a tensor that exists.
    """
    made = {"", *(tensor.name for tensor in model.graph.initializer), *(entry.name for entry in model.graph.input)}
    for node in model.graph.node:
        unknown = next((name for name in node.input if name not in made), None)
        if unknown is not None:
            raise DekrError(f"node {node.name or node.op_type} reads {unknown}, which no node before it computes")
        if not made.isdisjoint(filter(None, node.output)):
            raise DekrError(f"node {node.name or node.op_type} computes a tensor that exists already")
        made.update(node.output)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
