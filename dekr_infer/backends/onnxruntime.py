"""Run an exported graph on ONNX Runtime: loading, either dialect, input sizes, one forward pass."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, external_data_helper
from onnx_ir.serde import SerdeError
from onnxruntime.capi import onnxruntime_pybind11_state as state

from dekr_infer.backends.base import infer_passes
from dekr_infer.errors import NO_THREADS, DekrError
from dekr_infer.geometry import InputSizes, Size, cells
from dekr_infer.onnx_graph.baked import FLOAT32, PIXEL_NAME, UINT8, Baked
from dekr_infer.onnx_graph.cpu_optimize import optimize_for_cpu
from dekr_infer.onnx_graph.dialects import ONNX, to_dialect
from dekr_infer.onnx_graph.float16 import LARGEST, Float16OverflowError, Rounding, node_of, rehearse
from dekr_infer.onnx_graph.subgraphs import inner_graphs, tensors
from dekr_infer.pose.decode import transform_poses
from dekr_infer.pose.preprocess import as_tensor, warp
from dekr_infer.skeleton import joints_in, shipped_skeleton
from dekr_infer.storage.atomic import read_regular
from dekr_infer.structures import INPUT_NAME, OUTPUT_NAMES, PEOPLE_NAMES, Frame, Passes, People, output_shapes

CPU_PROVIDER = "CPUExecutionProvider"
NUMBERS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64)
OUT_OF_MEMORY = re.compile("(?i)failed to allocate memory|bad_alloc|bad allocation")
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
        rounding: rehearse float16 by rounding as it says; see `float16.rehearse`.

    `baked` is the decoding of a graph that yields people, else `None`; `input_dtype` that of its input.
    `input_sizes`, `checkpoint_sha256` and `weights` (`random`, `demo` or `trained`) are those that the file's metadata
    name, as are the `joints`; `skeleton` is the shipped one that has them, else `None`. `sha256` is that of the file,
    `versions` those of the libraries that compute. One object serves several threads: `infer` runs at most
    `passes_at_once` passes together, as many as the cores can hold with `threads` each, while other threads decode
    images and poses.

    Raises:
        DekrError: the file is missing, damaged or not one of ours, or ONNX Runtime refuses it.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        as_written: bool = False,
        provider: str = CPU_PROVIDER,
        rounding: Rounding | None = None,
    ) -> None:
        model, self.sha256 = load_graph(path)
        self.path, self.rounding = path, rounding
        self.metadata = {entry.key: entry.value for entry in model.metadata_props if isinstance(entry.value, str)}
        input_sizes = InputSizes.parse(self.metadata.get("input_sizes", ""))
        if not input_sizes:
            raise DekrError(f"{path}: its metadata names no input sizes; export it with DEKR_pth2onnx.py")
        self.input_sizes = input_sizes
        self.joints = joints_in(self.metadata)
        self.skeleton = shipped_skeleton(self.joints)
        self.checkpoint_sha256 = self.metadata.get("checkpoint_sha256")
        self.weights = self.metadata.get("weights")
        self.input_dtype = UINT8 if _element_type(model) == onnx.TensorProto.UINT8 else FLOAT32
        self.baked = _baked(model, self.metadata, path)
        self.provider = provider
        self.versions = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
        if provider not in onnxruntime.get_available_providers():
            available = ", ".join(onnxruntime.get_available_providers())
            raise DekrError(f"ONNX Runtime {onnxruntime.__version__}: has no {provider}; it has {available}")
        options = onnxruntime.SessionOptions()
        cores = len(os.sched_getaffinity(0))
        options.intra_op_num_threads = threads or cores
        self.passes_at_once = max(1, cores // (threads or cores))
        self._turns = threading.BoundedSemaphore(self.passes_at_once)
        options.log_severity_level = 4
        standard = standard_graph(model, path, as_written or provider != CPU_PROVIDER, rounding)
        try:
            self.session = onnxruntime.InferenceSession(standard.SerializeToString(), options, providers=[provider])
        except EncodeError:  # protobuf's word for it
            raise MemoryError from None
        except RUNTIME_ERRORS as error:
            raise runtime_failure(f"{path}: ONNX Runtime {onnxruntime.__version__}", error) from None

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs that `run` returns, in order."""
        return OUTPUT_NAMES if self.baked is None else PEOPLE_NAMES

    @property
    def precision(self) -> str | None:
        """What the graph computes in, where it is not float32."""
        return self.metadata.get("precision") if self.rounding is None else str(self.rounding)

    def tensor_of(self, warped: np.ndarray) -> np.ndarray:
        """Return a warped image (H, W, 3) uint8 BGR as the graph's input: (1, 3, H, W) of its dtype."""
        return as_tensor(warped, self.input_dtype)

    def run(self, image: np.ndarray, pixel: float = 1.0) -> tuple[Any, ...]:
        """Run the graph once.

        Args:
            image: (N, 3, H, W) of `input_dtype`, H x W an input size; N is 1, except for maps in the `onnx` dialect.
            pixel: input pixels in an image pixel, for a graph that rescores people.
        Returns:
            heatmap (N, J + 1, H/4, W/4), offset (N, 2 J, H/4, W/4), both float32, and the milliseconds it took. Of
            a graph that yields people: keypoints (1, K, J, 3) and scores (1, K) float32, num (1, 1) int64, the
            milliseconds.
        """
        feed = {INPUT_NAME: image}
        expected = output_shapes(self.joints, cells(Size(*image.shape[2:])), len(image)) if image.ndim == 4 else ()
        if self.baked is not None:
            count = self.baked.settings.max_people
            expected = ((1, count, len(self.joints), 3), (1, count), (1, 1))
            if self.baked.rescore_sha256:
                feed[PIXEL_NAME] = np.array(pixel, np.float32)
        started = time.perf_counter()
        try:
            outputs = self.session.run(self.output_names, feed)
        except RUNTIME_ERRORS as error:
            raise runtime_failure(f"{self.path}: cannot be run", error) from None
        milliseconds = (time.perf_counter() - started) * 1000
        for name, shape, values in zip(self.output_names, expected, outputs, strict=True):
            if values.shape != shape:
                raise DekrError(f"{self.path}: {name} has shape {values.shape}, not {shape}; {EXPORT_AGAIN}")
        if self.rounding is not None and not all(np.isfinite(values).all() for values in outputs):
            self._name_overflow(image)
        return *outputs, milliseconds

    def _name_overflow(self, image: np.ndarray) -> NoReturn:
        """Raise a `DekrError` that names the first operator whose result is too large for float16."""
        from dekr_infer.backends.node_values import first_overflow, sources_of

        model = standard_graph(load_graph(self.path)[0], self.path, rounding=self.rounding)
        name = first_overflow(model, {INPUT_NAME: image})
        node = sources_of(model)[node_of(model, name)] if name is not None else "a weight"
        raise Float16OverflowError(
            f"{self.path}: {node} overflows in float16, whose largest number is {LARGEST:.0f}; keep that node in "
            "float32 (--keep_dtype), and see compare_nodes.py for the magnitudes of all"
        )

    def infer(self, frame: Frame, flip: bool) -> Passes | People:
        """Decode a frame's image, warp it once, and run both passes; or the graph that yields people, once.

        Raises:
            DekrError: the image cannot be decoded, or ONNX Runtime fails.
        """
        warped = warp(frame.read(), frame.placement.input)
        if self.baked is not None:
            return self._people(frame, self.tensor_of(warped))
        return infer_passes(frame, warped, flip, self.input_dtype, self._run_in_turn)

    def _run_in_turn(self, tensor: np.ndarray) -> tuple[Any, ...]:
        with self._turns:
            return self.run(tensor)

    def _people(self, frame: Frame, tensor: np.ndarray) -> People:
        placement = frame.placement
        with self._turns:
            keypoints, scores, num, _ = self.run(tensor, min(placement.input) / min(placement.image))
        if not (np.isfinite(keypoints).all() and np.isfinite(scores).all()):
            raise DekrError(f"{frame.name}: {self.path} found NaN or infinite values in it; check that file")
        count = int(num[0, 0])
        return People(transform_poses(keypoints[0, :count], placement.to_image), scores[0, :count])


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
    yields_people = tuple(outputs) in (PEOPLE_NAMES, PEOPLE_NAMES + OUTPUT_NAMES) and inputs[1:] in ([], [PIXEL_NAME])
    if inputs[:1] != [INPUT_NAME] or not (yields_people or (len(inputs) == 1 and tuple(outputs) == OUTPUT_NAMES)):
        raise DekrError(
            f"{path}: goes from {', '.join(inputs)} to {', '.join(outputs)}, not from {INPUT_NAME} to "
            f"{', '.join(OUTPUT_NAMES)}; export it with DEKR_pth2onnx.py"
        )
    return model, hashlib.sha256(data).hexdigest()


def _element_type(model: onnx.ModelProto) -> int:
    """Return the type of the input's values, as ONNX numbers types."""
    return model.graph.input[0].type.tensor_type.elem_type


def _baked(model: onnx.ModelProto, metadata: dict[str, str], path: Path) -> Baked | None:
    """Return the decoding in a graph that yields people."""
    if model.graph.output[0].name != PEOPLE_NAMES[0]:
        return None
    try:
        return Baked.parse(metadata)
    except DekrError as error:
        raise DekrError(f"{path}: {error}; {EXPORT_AGAIN}") from None


def standard_graph(
    model: onnx.ModelProto, path: Path, as_written: bool = True, rounding: Rounding | None = None
) -> onnx.ModelProto:
    """Return a graph in the dialect of ONNX Runtime.

    Args:
        model: of `load_graph`.
        path: its file, for messages.
        as_written: leave it otherwise as it is; else it gets the form that suits a CPU.
        rounding: let the graph as written round to float16.
    Raises:
        DekrError: it holds what our export does not write, or yields people, which no accelerator decodes in float16.
    """
    try:
        _check_contents(model)
        _check_order(model)
        standard = to_dialect(model, ONNX)
        if rounding is None:
            return standard if as_written else optimize_for_cpu(standard)
    except DekrError as error:
        raise DekrError(f"{path}: {error}; {EXPORT_AGAIN}") from None
    except MALFORMED as error:
        raise DekrError(f"{path}: its nodes are not those of our export ({error!r:.80}); {EXPORT_AGAIN}") from None
    if any(entry.key == "precision" for entry in model.metadata_props):
        raise DekrError(f"{path}: computes in int8; float16 is rehearsed with the float32 graph")
    if model.graph.output[0].name == PEOPLE_NAMES[0]:
        raise DekrError(f"{path}: yields people; float16 is rehearsed with a graph that yields maps (--decode maps)")
    try:
        return rehearse(standard, rounding)
    except DekrError as error:
        raise DekrError(f"{path}: {error}") from None
    except (*MALFORMED, SerdeError) as error:
        raise DekrError(f"{path}: its nodes are not those of our export ({error!r:.80}); {EXPORT_AGAIN}") from None


def _check_contents(model: onnx.ModelProto) -> None:
    """Check that a graph is one file of plain nodes: no loops, which could not be interrupted, and no foreign files.

    Raises:
        DekrError: a node holds graphs of its own, the file defines functions, or weights lie in other files.
    """
    if model.functions:
        raise DekrError(f"defines functions, the first is {model.functions[0].name}, which our export does not")
    for node in model.graph.node:
        if next(inner_graphs(node), None) is not None:
            raise DekrError(
                f"node {node.name or node.op_type} is control flow ({node.op_type}), which our export has not"
            )
    for tensor in tensors(model.graph):
        if external_data_helper.uses_external_data(tensor):
            raise DekrError(f"the values of {tensor.name} lie in another file, our export writes one file")
    for entry in (*model.graph.input, *model.graph.output):
        if entry.type.WhichOneof("value") != "tensor_type" or entry.type.tensor_type.elem_type not in NUMBERS:
            raise DekrError(f"{entry.name} is no tensor of plain numbers")


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


def runtime_failure(where: str, error: Exception) -> Exception:
    """Return the error for what ONNX Runtime refuses: its own, or that memory is short."""
    if OUT_OF_MEMORY.search(str(error)):
        return MemoryError()
    if "PosixThread" in str(error):
        return DekrError(f"{where}: {NO_THREADS}")
    remedy = EXPORT_AGAIN
    if "DeformConv" in str(error) and "NOT_IMPLEMENTED" in str(error):
        remedy = "update ONNX Runtime (pip install 'onnxruntime>=1.25'): older ones lack this operator on a CPU"
    return DekrError(f"{where}: {_first_line(error)}; {remedy}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
