"""Run a graph over a folder of tensors with ais_bench's contract: order, file names, input sizes and summary.

What ais_bench does silently wrong (other dtypes, equal names, files of an earlier run) is refused here. A record beside
the output folder says what is done and how long it took, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.evaluation.provenance import read_record
from dekr_infer.geometry import Size, cells
from dekr_infer.skeleton import COCO_17
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.atomic import atomic_write, beside, read_regular, write_failure, write_json

if TYPE_CHECKING:  # whoever only asks for names starts without ONNX Runtime
    from dekr_infer.backends.onnxruntime import Network

CHANNELS = (COCO_17.heatmap_channels, COCO_17.offset_channels)  # of output 0 and output 1
FORMATS = ("NPY", "BIN")
RECORD_ENDING = "_record.jsonl"  # of the runner's record, behind the folder's name
BOTH_PASSES = (("prep_data", "out"), ("prep_data_flip", "out_flip"))  # tensors -> outputs, when none are named


@dataclass(frozen=True)
class Options:
    """How a folder is run; the names are ais_bench's.

    Args:
        outfmt: `NPY`, or `BIN` for bare float32 values.
        loop: passes per tensor, each of them timed.
        warmup_count: untimed passes on the first tensor.
        overwrite: run tensors anew whose outputs are there.
    """

    outfmt: str = "NPY"
    loop: int = 1
    warmup_count: int = 1
    overwrite: bool = False

    @property
    def suffix(self) -> str:
        """Of the files written."""
        return f".{self.outfmt.lower()}"


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted as ais_bench does: digit runs as numbers, letters without case."""

    def key(name: str) -> list[tuple[int, int, str]]:
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in re.split(r"(\d+)", name)]

    return sorted(names, key=key)


def list_tensors(places: Sequence[Path]) -> list[Path]:
    """The tensors to run, in order: those of one folder, or the files themselves.

    Raises:
        DekrError: there are none, one is missing, or two would write the same outputs.
    """
    if len(places) == 1 and places[0].is_dir():
        names = [entry.name for entry in os.scandir(places[0]) if entry.name.lower().endswith(".npy")]
        files = [places[0] / name for name in natural_order(names)]
    else:
        files = list(places)
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise DekrError(f"{missing}: no such folder or file of tensors; make them with DEKR_preprocess.py")
    if not files:
        raise DekrError(f"{places[0]}: holds no .npy files; make them with DEKR_preprocess.py")
    stems: dict[str, Path] = {}
    for file in files:
        other = stems.setdefault(output_stem(file), file)
        if other is not file:
            raise DekrError(f"{other} and {file} would write the same outputs; names count up to their first dot")
    return files


def output_stem(file: Path) -> str:
    """What an input's outputs are called: its name up to the first dot."""
    return file.name.split(".", 1)[0]


def output_names(file: Path, suffix: str = tensors.SUFFIX) -> list[str]:
    """The names of an input's outputs, in the graph's order."""
    return [f"{output_stem(file)}_{index}{suffix}" for index in range(len(CHANNELS))]


def check_dirname(name: str) -> None:
    """Refuse an --output_dirname that is not the name of a folder just below --output.

    Raises:
        ConfigError: it is none.
    """
    if name in ("", "..") or Path(name).name != name:
        raise ConfigError(f"--output_dirname {name!r}: it must be the name of a folder below --output")


def run_folder(
    network: Network,
    files: Sequence[Path],
    folder: Path,
    options: Options,
    arguments: dict[str, Any],
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Run every tensor that is not done yet and write its outputs; at the end, the summary beside the folder.

    Args:
        files: from `list_tensors`.
        folder: for `<stem>_0.npy` and `<stem>_1.npy`; created when absent.
        arguments: the command line, for the summary.
    Returns:
        The summary, with ais_bench's keys, the graph's SHA-256, and what was noted of the tensors when it began.
    Raises:
        DekrError: a tensor is damaged or of no input size of the graph, or the folder holds other outputs.
    """
    input_sizes, noted = check_input_sizes(network, files), read_record(files[0].parent)
    done_before = 0
    with tensors.exclusive(folder), Record(folder, network.sha256, options) as record:
        tensors.refuse_foreign(
            folder, {name for file in files for name in output_names(file, options.suffix)}, "these inputs"
        )
        waiting = []
        for file, input_size in zip(files, input_sizes, strict=True):
            if record.knows(file) and _is_fresh(file, folder, input_size, options):
                done_before += 1
            else:
                waiting.append(file)
        advance(done_before)
        if waiting:
            summary_path(folder).unlink(missing_ok=True)  # it tells of an earlier run; none until this one is done
        for turn, file in enumerate(waiting):
            changed = _changed(file)
            image = tensors.read(file)
            for _ in range(options.warmup_count if turn == 0 else 0):
                network.run(image)
            record.add(file.name, changed, _run_one(network, image, file, folder, options))
            advance(1)
        summary = _summary(record, files, folder, options, network, arguments) | {"tensors": noted}
    write_json(summary_path(folder), summary)
    return summary


def check_input_sizes(network: Network, files: Sequence[Path]) -> list[Size]:
    """The input size of every tensor, before anything runs.

    Raises:
        DekrError: a tensor is damaged, or its shape is no input size of the graph.
    """
    input_sizes = []
    for file in files:
        shape = tensors.read_header(file).shape
        input_size = Size(*shape[2:]) if len(shape) == 4 and shape[:2] == (1, 3) else Size(0, 0)
        if input_size not in network.input_sizes:
            known = ", ".join(f"(1, 3, {g.h}, {g.w})" for g in network.input_sizes)
            raise DekrError(f"{file}: its shape {shape} is no input size of {network.path} ({known}); make it again")
        input_sizes.append(input_size)
    return input_sizes


def summary_path(folder: Path) -> Path:
    """Where ais_bench puts the summary of an output folder: beside it."""
    return beside(folder, "_summary.json")


def _run_one(network: Network, image: np.ndarray, file: Path, folder: Path, options: Options) -> list[float]:
    times = []
    for _ in range(options.loop):
        *outputs, milliseconds = network.run(image)
        times.append(milliseconds)
    for name, values in zip(output_names(file, options.suffix), outputs, strict=True):
        if not np.isfinite(values).all():
            raise DekrError(f"{file}: the network's output for it holds NaN or infinite values; check {network.path}")
        tensors.write(folder, name, values)
    return times


def _is_fresh(file: Path, folder: Path, input_size: Size, options: Options) -> bool:
    """Whether both outputs are there, whole, and no older than the input."""
    if options.overwrite:
        return False
    for name, channels in zip(output_names(file, options.suffix), CHANNELS, strict=True):
        output, shape = folder / name, (1, channels, *cells(input_size))
        whole = tensors.is_finished(output, shape) if name.endswith(tensors.SUFFIX) else output.is_file()
        if not whole or output.stat().st_mtime_ns < file.stat().st_mtime_ns:
            return False
    return True


class Record:
    """What a folder holds and how it was made: one JSON line for the run, then one per finished tensor."""

    def __init__(self, folder: Path, model_sha256: str, options: Options) -> None:
        self.path = beside(folder, RECORD_ENDING)
        self.folder = folder
        self.head: dict[str, Any] = {"model_sha256": model_sha256, "outfmt": options.outfmt, "loop": options.loop}
        self.overwrite = options.overwrite
        self.times: dict[str, list[float]] = {}
        self.changed: dict[str, int] = {}
        self._file: TextIO | None = None

    def __enter__(self) -> Record:
        lines = [] if self.overwrite else self._lines()
        if len(lines) > 1 and lines[0] != self.head:  # a run that finished nothing left nothing to mix up
            raise DekrError(
                f"{self.folder}: holds outputs of another model or of other options; "
                "name another folder, delete this one, or add --overwrite"
            )
        entries = [line for line in lines[1:] if len(line["milliseconds"]) == self.head["loop"]]
        self.times = {line["file"]: line["milliseconds"] for line in entries}
        self.changed = {line["file"]: line["changed"] for line in entries}
        kept = [self.head, *(self._entry(name) for name in self.times)]
        with atomic_write(self.path) as temporary:  # at no moment is what earlier runs did forgotten
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        try:
            self._file = open(self.path, "a", encoding="utf-8")
        except OSError as error:
            raise DekrError(write_failure(self.path, error)) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what it holds was flushed, or `add` has told why not
                self._file.close()

    def knows(self, file: Path) -> bool:
        """Whether a tensor was finished, by this run or an earlier one, and is still the file it was then."""
        return file.name in self.times and self.changed[file.name] == _changed(file)

    def add(self, name: str, changed: int, times: list[float]) -> None:
        """Note that a tensor's outputs are written; `changed` is when the tensor was."""
        self.times[name], self.changed[name] = times, changed
        assert self._file is not None
        try:
            self._file.write(json.dumps(self._entry(name)) + "\n")
            self._file.flush()
        except OSError as error:
            raise DekrError(write_failure(self.path, error)) from None

    def _entry(self, name: str) -> dict[str, Any]:
        return {"file": name, "milliseconds": self.times[name], "changed": self.changed[name]}

    def _is_entry(self, value: Any) -> bool:
        """Whether a line of the record tells of a finished tensor."""
        form = {"file": str, "milliseconds": list, "changed": int}
        return (
            isinstance(value, dict)
            and all(isinstance(value.get(key), kind) for key, kind in form.items())
            and all(type(time) is float and 0 < time < float("inf") for time in value["milliseconds"])
        )

    def _lines(self) -> list[dict[str, Any]]:
        """The lines of an earlier run, up to one that a killed run left unfinished."""
        try:
            text = read_regular(self.path).decode("utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError):
            raise DekrError(f"{self.path}: cannot be read; delete it together with {self.folder}") from None
        lines: list[dict[str, Any]] = []
        for line in text.splitlines():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                break
            if lines and not self._is_entry(value):
                break
            lines.append(value)
        return lines


def _changed(file: Path) -> int:
    """When a tensor was last written, in nanoseconds; tells it from another of the same name and shape."""
    return file.stat().st_mtime_ns


def _summary(
    record: Record,
    files: Sequence[Path],
    folder: Path,
    options: Options,
    network: Network,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    times = [value for file in files for value in record.times[file.name]]
    none = [0.0] * len(times)  # nothing is copied to a device and back
    return {
        "filesinfo": {
            str(index): {
                "infiles": [str(file)],
                "outfiles": [str(folder / name) for name in output_names(file, options.suffix)],
            }
            for index, file in enumerate(files)
        },
        "args": arguments,
        "NPU_compute_time": _statistics(times),
        "H2D_latency": _statistics(none),
        "D2H_latency": _statistics(none),
        "npu_compute_time_list": times,
        "throughput": 1000 / float(np.mean(times)),
        "pid": os.getpid(),
        "model_sha256": network.sha256,
        "checkpoint_sha256": network.checkpoint_sha256,
        "versions": {name: version(name) for name in ("onnxruntime", "numpy")},
    }


def _statistics(times: Sequence[float]) -> dict[str, float]:
    return {
        "min": float(np.min(times)),
        "max": float(np.max(times)),
        "mean": float(np.mean(times)),
        "median": float(np.median(times)),
        "percentile(99%)": float(np.percentile(times, 99)),
        "count": len(times),
    }
