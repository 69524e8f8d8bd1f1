"""Run a converted model (.om) on NPUs from Python: one process of the Python that has ais_bench for each device.

ais_bench holds the interpreter's lock during a pass, and often lives in an older Python. So `ascend_worker` runs it in
a process of its own, over memory that both share, while this process decodes images and poses. A device has two slots:
one is filled or read while the device computes on the other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import mmap
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from dekr_infer.backends.base import infer_passes
from dekr_infer.errors import DekrError, one_line
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size, cells
from dekr_infer.onnx_graph.baked import FLOAT32, UINT8
from dekr_infer.pose.preprocess import warp
from dekr_infer.skeleton import joints_in, shipped_skeleton
from dekr_infer.storage.atomic import sha256
from dekr_infer.structures import Frame, Passes, output_shapes

PROVIDER = "ascend"
WORKER = Path(__file__).with_name("ascend_worker.py")
INSTALL = "install the wheels aclruntime and ais_bench for it, or name another Python in AIS_BENCH_PYTHON"
LOAD = "load the toolkit first: source /usr/local/Ascend/ascend-toolkit/set_env.sh"
DEVICE = "the device cannot be opened: check --device, and driver and rights with 'npu-smi info'"
MODEL = "the model cannot be loaded; convert it again with scripts/atc.sh on this toolkit"
WHEELS = "aclruntime and ais_bench do not match; build and install both wheels together"
RIGHTS = "this ais_bench refuses the file: chmod go-w it, and keep to A-Z a-z 0-9 _ / . - in its path"
REMEDIES = {"open device": DEVICE, "invalid parameter": MODEL, "version is lower": WHEELS, "illegal": RIGHTS}
UNKNOWN = "see what it logs in ~/ascend/log, and the table in docs/ascend.md"
SLOTS, CONTROL = 2, -1
START_SECONDS = 600.0  # for loading the model; it takes some ten
PASS_SECONDS = 60.0  # a pass takes 130 ms; the first at an input size may take longer
PATIENCE = 10.0  # seconds that a worker has to free its device
LINES = 200  # of what a worker prints, kept for the reason of a failure

log = logging.getLogger(__name__)


def ais_bench_python() -> str:
    """Return the Python that has ais_bench: `AIS_BENCH_PYTHON`, or python3.

    Raises:
        DekrError: it is not there.
    """
    python = os.environ.get("AIS_BENCH_PYTHON") or "python3"
    found = shutil.which(python)
    if found is None:
        raise DekrError(f"{python}: not found; name the Python that has ais_bench in AIS_BENCH_PYTHON")
    return found


def exported_beside(path: Path) -> tuple[Path, dict[str, str]]:
    """Return the ONNX file beside a model for an NPU, and its metadata; none if there is no such file of ours."""
    from dekr_infer.backends.onnxruntime import load_graph

    exported = path.with_suffix(".onnx")
    try:
        graph, _ = load_graph(exported)
    except DekrError:
        return exported, {}
    return exported, {entry.key: entry.value for entry in graph.metadata_props}


class AscendSession:
    """A converted model, loaded on one or several NPUs.

    Args:
        path: the .om file.
        devices: the NPUs' numbers.

    `input_sizes`, `joints` and the kind of `weights` are those in the metadata of the ONNX file beside the model (the
    same name, ending in .onnx), from which scripts/atc.sh has converted it, or else the five published sizes and COCO's
    joints; a model of a single size has that. Each size is tried on the model before the first image. `input_dtype`
    follows from the model's bytes. One object serves several threads; `passes_at_once` keep all devices busy.

    Raises:
        DekrError: the model, ais_bench or the device is missing or cannot be used, or the sizes are not the model's.
    """

    baked = None
    checkpoint_sha256 = None  # an .om file does not tell
    provider = PROVIDER

    def __init__(self, path: Path, devices: Sequence[int] = (0,)) -> None:
        if not path.is_file():
            raise DekrError(f"{path}: no such model; make it with scripts/atc.sh")
        self.path, self.versions = path, dict[str, str]()
        self.sha256 = sha256(path)
        exported, metadata = exported_beside(path)
        self.weights = metadata.get("weights")
        self.precision: str | None = None  # that of its conversion, which the file does not tell
        self.joints = joints_in(metadata)
        self.skeleton = shipped_skeleton(self.joints)
        known = InputSizes.parse(metadata.get("input_sizes", ""))
        if known:
            again = f"convert that file again with scripts/atc.sh, or move it away if {path} is not of it"
            wanted = _Sizes(known, f"an input size of {exported}", again)
        else:
            again = f"put the ONNX file that it was converted from beside it, as {exported}, which tells its sizes"
            wanted = _Sizes(PUBLISHED_SIZES, "a published input size", again)
        self._devices: list[_Device] = []
        stop = weakref.finalize(self, _stop, self._devices)
        try:
            for number in devices:
                self._devices.append(_Device(path, number, wanted, len(self.joints)))
        except BaseException:
            stop()
            raise
        self.input_sizes, self.input_dtype, _ = self._devices[0].form
        self.passes_at_once = SLOTS * len(devices)
        self._free: queue.SimpleQueue[tuple[_Device, int]] = queue.SimpleQueue()
        for slot in range(SLOTS):
            for device in self._devices:
                self._free.put((device, slot))

    def run(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Run the model once, on a device that is free.

        Args:
            image: (1, 3, H, W) of `input_dtype`, H x W an input size.
        Returns:
            heatmap (1, 18, H/4, W/4), offset (1, 34, H/4, W/4), both float32 or float16 as the model has them, and the
            milliseconds it took on the device.
        Raises:
            DekrError: the size is none of the model's, or the device fails.
        """
        input_size = Size(*image.shape[2:])
        if image.shape[:2] != (1, 3) or input_size not in self.input_sizes or image.dtype != self.input_dtype:
            raise DekrError(
                f"{self.path}: was given {image.dtype} {image.shape}; it takes {self.input_dtype} (1, 3, H, W) of the "
                f"sizes {', '.join(map(str, self.input_sizes))}"
            )
        device, slot = self._free.get()
        try:
            outputs, milliseconds = device.run(slot, image)
        finally:
            self._free.put((device, slot))
        for values, shape in zip(outputs, output_shapes(self.joints, cells(input_size)), strict=True):
            if values.shape != shape or values.dtype not in (np.float32, np.float16):
                raise DekrError(
                    f"{self.path}: returns {values.dtype} {values.shape}, not float32 or float16 {shape}; convert an "
                    "export of this project with scripts/atc.sh"
                )
        return outputs[0], outputs[1], milliseconds

    def infer(self, frame: Frame, flip: bool) -> Passes:
        """Decode a frame's image, warp it once, and run both passes.

        Raises:
            DekrError: the image cannot be decoded, or the device fails.
        """
        return infer_passes(frame, warp(frame.read(), frame.placement.input), flip, self.input_dtype, self.run)


class _Sizes(NamedTuple):
    """The input sizes that a model should have, and for messages: what they are, and what to do if it has others."""

    sizes: InputSizes
    source: str
    remedy: str


class _Form(NamedTuple):
    """The input of a model: its sizes, its dtype, and ais_bench's name for the way to choose a size."""

    input_sizes: InputSizes
    dtype: str
    mode: str

    @classmethod
    def of(cls, path: Path, described: dict[str, Any], wanted: _Sizes) -> _Form:
        """Return the form of a model that a worker has described.

        Raises:
            DekrError: it is no DEKR network, or of other input sizes.
        """
        _, shape, count = described["input"]
        if len(shape) != 4 or shape[:2] != [1, 3] or described["outputs"] != 2:
            raise DekrError(
                f"{path}: takes {shape} and has {described['outputs']} outputs, not (1, 3, H, W) and heatmap and "
                "offset; convert an export of this project with scripts/atc.sh"
            )
        static = min(shape) > 0
        sizes = InputSizes((Size(*shape[2:]),)) if static else wanted.sizes
        largest = max(sizes, key=lambda size: size.h * size.w)
        dtype = {1: UINT8, 4: FLOAT32}.get(count / (3 * largest.h * largest.w))
        if dtype is None:
            raise DekrError(
                f"{path}: its largest input has {count} bytes; {largest}, {wanted.source}, is another; {wanted.remedy}"
            )
        return cls(sizes, dtype, "static" if static else "dymdims")


class _LostError(Exception):
    """A worker has ended, or does not answer."""


class _Device:
    """An NPU, and the worker that serves it, which is replaced once if it ends or hangs."""

    def __init__(self, path: Path, number: int, wanted: _Sizes, joints: int) -> None:
        self.path, self.number, self.wanted, self.joints = path, number, wanted, joints
        self._lock, self._replaced = threading.Lock(), False
        try:
            self.worker, self.form = self._start()
        except _LostError as lost:
            raise DekrError(f"{path}: {lost}") from None

    def _start(self) -> tuple[_Worker, _Form]:
        worker = _Worker(self.path, self.number)
        try:
            form = _Form.of(self.path, worker.answer(CONTROL, START_SECONDS), self.wanted)
            worker.map(form.input_sizes, self.joints)
            gears = [] if form.mode == "static" else [[1, 3, *size] for size in form.input_sizes]
            refused = worker.ask(CONTROL, START_SECONDS, memory=len(worker.memory), gears=gears)["refused"]
            if refused is not None:
                (_, _, h, w), reason = refused
                raise DekrError(
                    f"{self.path}: does not take {Size(h, w)}, {self.wanted.source} ({reason}); {self.wanted.remedy}"
                )
        except BaseException:
            worker.stop()
            raise
        return worker, form

    def run(self, slot: int, image: np.ndarray) -> tuple[list[np.ndarray], float]:
        """Run one pass; see `AscendSession.run`."""
        while True:
            worker = self.worker
            try:
                return worker.run(slot, image, self.form.mode)
            except _LostError as lost:
                self._replace(worker, lost)

    def _replace(self, worker: _Worker, lost: _LostError) -> None:
        """Start another worker, unless the other slot's thread has done so; the second time raise the reason."""
        with self._lock:
            if self.worker is not worker:
                return
            worker.stop()
            if self._replaced:
                raise DekrError(f"{self.path}: {lost}, for the second time; check the device with 'npu-smi info'")
            self._replaced = True
            log.warning("%s: %s; it is started again, once", self.path, lost)
            try:
                self.worker, _ = self._start()
            except _LostError as again:
                raise DekrError(f"{self.path}: {again}, for the second time") from None


class _Worker:
    """A process of ais_bench's Python with the model on one device; see `ascend_worker` for what is said."""

    memory: mmap.mmap

    def __init__(self, path: Path, device: int) -> None:
        self.path, self.device, self.python = path, device, ais_bench_python()
        self._file = os.memfd_create("dekr_infer")  # leaves nothing behind, whatever ends
        try:
            self._process = subprocess.Popen(
                [self.python, str(WORKER), str(device), os.path.realpath(path), str(self._file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[self._file],
                start_new_session=True,  # Ctrl-C is for this process, which then ends the worker
            )
        except OSError as error:
            os.close(self._file)
            raise DekrError(f"{self.python}: cannot be started ({error.strerror}); {INSTALL}") from None
        process = self._process
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._requests, self._sending = process.stdin, threading.Lock()
        self._printed: deque[str] = deque(maxlen=LINES)
        self._answers = {slot: queue.SimpleQueue[dict[str, Any] | None]() for slot in (CONTROL, *range(SLOTS))}
        listen = threading.Thread(target=_listen, args=(process.stderr, self._printed), daemon=True)
        listen.start()
        threading.Thread(target=_sort, args=(process.stdout, self._answers, listen), daemon=True).start()

    def map(self, input_sizes: InputSizes, joints: int) -> None:
        """Make the shared memory large enough for inputs and outputs of every size, float32, in each slot."""
        largest = max(input_sizes, key=lambda size: size.h * size.w)
        values = 3 * largest.h * largest.w + sum(math.prod(s) for s in output_shapes(range(joints), cells(largest)))
        self._slot_bytes = values * 4
        os.ftruncate(self._file, SLOTS * self._slot_bytes)
        self.memory = mmap.mmap(self._file, SLOTS * self._slot_bytes)

    def run(self, slot: int, image: np.ndarray, mode: str) -> tuple[list[np.ndarray], float]:
        """Run one pass; return both outputs and the milliseconds."""
        start, stop = slot * self._slot_bytes, (slot + 1) * self._slot_bytes
        np.ndarray(image.shape, image.dtype, self.memory, start)[...] = image
        form = {"shape": image.shape, "dtype": str(image.dtype), "mode": mode}
        answer = self.ask(slot, PASS_SECONDS, **form, start=start, stop=stop)
        outputs: list[np.ndarray] = [
            np.ndarray(tuple(shape), np.dtype(dtype), self.memory, place).copy()
            for dtype, shape, place in answer["outputs"]
        ]
        return outputs, answer["milliseconds"]

    def ask(self, slot: int, seconds: float, **request: Any) -> dict[str, Any]:
        """Send a request and return its answer; see `answer`."""
        line = json.dumps({"slot": slot, **request}).encode() + b"\n"
        with self._sending, contextlib.suppress(OSError, ValueError):  # it has ended: so does its answer
            self._requests.write(line)
            self._requests.flush()
        return self.answer(slot, seconds)

    def answer(self, slot: int, seconds: float) -> dict[str, Any]:
        """Return the next answer of a slot.

        Raises:
            _LostError: the worker has ended, or does not answer in time.
            DekrError: ais_bench cannot be imported, or reports an error.
        """
        who = f"ais_bench on NPU {self.device}"
        try:
            answer = self._answers[slot].get(timeout=seconds)
        except queue.Empty:
            raise _LostError(f"{who} did not answer in {seconds:g} s") from None
        if answer is None:
            self._answers[slot].put(None)
            code = self._process.wait()
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            reason = one_line(f": {self._printed[-1]}")[:200] if self._printed else ""
            raise _LostError(f"{who} ended {how}{reason}")
        if "missing" in answer:
            remedy = LOAD if ".so" in answer["missing"] else INSTALL
            raise DekrError(f"{self.python}: cannot import ais_bench ({answer['missing'][:200]}); {remedy}")
        if "error" in answer:
            text = "\n".join((*self._printed, answer["error"]))
            remedy = next((helps for known, helps in REMEDIES.items() if re.search(known, text)), UNKNOWN)
            raise DekrError(f"{self.path}: {who} reports {one_line(answer['error'])[:200]}; {remedy}")
        return answer

    def stop(self) -> None:
        """End the process: asked to free its device first, then by force."""
        with contextlib.suppress(OSError), self._sending:
            self._requests.close()
        try:
            self._process.wait(PATIENCE if self._process.poll() is None else 0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        with contextlib.suppress(OSError):
            os.close(self._file)
            self._file = -1


def _stop(devices: list[_Device]) -> None:
    for device in devices:
        device.worker.stop()


def _listen(stream: IO[bytes], printed: deque[str]) -> None:
    """Keep the last lines that a worker prints."""
    with stream:
        for line in stream:
            if text := line.decode(errors="replace").strip():
                printed.append(text)


def _sort(
    stream: IO[bytes], answers: Mapping[int, queue.SimpleQueue[dict[str, Any] | None]], listen: threading.Thread
) -> None:
    """Hand each answer to its slot; when there are no more, tell all slots."""
    with stream, contextlib.suppress(ValueError):  # an end in the middle of a line
        for line in stream:
            answer = json.loads(line)
            answers[answer["slot"]].put(answer)
    listen.join(1.0)  # its last line may be the reason
    for slot in answers.values():
        slot.put(None)
