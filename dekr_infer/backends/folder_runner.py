"""Run a graph over a folder of tensors with ais_bench's contract: order, file names, input sizes and summary.

Other dtypes, equal names and files of an earlier run, which ais_bench takes silently, are refused here. The record
beside the output folder says what is done, so that an interrupted run resumes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.geometry import MULTIPLE, Size
from dekr_infer.storage import npy
from dekr_infer.storage.atomic import folder_lock, sibling_path, write_json
from dekr_infer.storage.run_record import Entry, FileMark, Head, RunRecord, mark_file, read_record, record_path, text_of
from dekr_infer.structures import output_files

if TYPE_CHECKING:  # names alone are available without ONNX Runtime
    from dekr_infer.backends.onnxruntime import OnnxRuntime

KIND = "outputs"  # of the record
FORMATS = ("NPY", "BIN")
BOTH_PASSES = (("prep_data", "out"), ("prep_data_flip", "out_flip"))  # tensors -> outputs, when none are named


@dataclass(frozen=True)
class Options:
    """How a folder is run; the names are ais_bench's.

    Args:
        outfmt: `NPY`, or `BIN` for bare float32 values.
        loop: passes per tensor, each of them timed.
        warmup_count: untimed passes on the first tensor.
        overwrite: run all tensors again.
        replace_others: run all tensors again if the outputs are of another graph or other options, which is refused by
            default.
    """

    outfmt: str = "NPY"
    loop: int = 1
    warmup_count: int = 1
    overwrite: bool = False
    replace_others: bool = False

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
    """Return the tensors to run, in order: those of one folder, or the files themselves.

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
        if text_of(Path(file.name)) != file.name:
            raise DekrError(f"{file}: its name is not text; rename it")
        other = stems.setdefault(output_stem(file), file)
        if other is not file:
            raise DekrError(f"{other} and {file} would write the same outputs; names count up to their first dot")
    return files


def output_stem(file: Path) -> str:
    """Return the stem of an input's outputs: its name up to the first dot."""
    return file.name.split(".", 1)[0]


def check_dirname(name: str) -> None:
    """Refuse an --output_dirname that is not the name of a folder just below --output.

    Raises:
        ConfigError: it is none.
    """
    if name in ("", "..") or Path(name).name != name:
        raise ConfigError(f"--output_dirname {name!r}: it must be the name of a folder below --output")


def run_folder(
    network: OnnxRuntime,
    files: Sequence[Path],
    folder: Path,
    options: Options,
    arguments: dict[str, Any],
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Run every tensor that is not done yet and write its outputs; at the end, the summary beside the folder.

    Args:
        network: the graph to run; one that yields people writes keypoints, scores and their number.
        options: how to run it.
        advance: called with the number of tensors just finished.
        files: from `list_tensors`.
        folder: for `<stem>_0.npy` and `<stem>_1.npy`; created when absent.
        arguments: the command line, for the summary.
    Returns:
        The summary, with ais_bench's keys, hashes and versions.
    Raises:
        DekrError: a tensor is damaged or of no input size of the graph, or the folder holds other outputs.
    """
    check_input_sizes(network, files)
    about = {"checkpoint": network.checkpoint_sha256, "weights": network.weights, "versions": _versions()}
    head = outputs_head(files, network.sha256, options.outfmt, options.loop, about)
    head.settings.update(_precision(network))
    own = {name for file in files for name in _outputs(file, network, options)}
    with folder_lock(folder):
        npy.refuse_foreign(folder, own, "these inputs")
        record = RunRecord(record_path(folder), head)
        if options.overwrite or (record.has_other_settings and options.replace_others):
            record.entries.clear()
        if record.has_other_settings:
            raise DekrError(
                f"{folder}: holds outputs of another model or of other options; "
                "name another folder, delete this one, or add --overwrite"
            )
        tensors = TensorMarks(files)
        waiting = [
            file
            for file in files
            if file.name not in record.entries
            or len(record.entries[file.name].milliseconds) != options.loop
            or not record.is_done(file.name, {"tensor": tensors.hash(file)}, folder)
        ]
        record.drop(record.entries.keys() - {file.name for file in files})
        advance(len(files) - len(waiting))
        if waiting:
            summary_path(folder).unlink(missing_ok=True)  # it is an earlier run's; there is none until this one is done
        with record:
            for turn, file in enumerate(waiting):
                image, content = npy.read_hashed(file, npy.TENSORS)
                for _ in range(options.warmup_count if turn == 0 else 0):
                    network.run(image)
                times, marks = _run_one(network, image, file, folder, options)
                record.add(Entry(file.name, {"tensor": content}, marks, times, tensors.image(file, content)))
                advance(1)
        summary = _summary(record, files, folder, options, network, arguments)
        write_json(summary_path(folder), summary)
    return summary


def outputs_head(
    files: Sequence[Path], model_sha256: str, outfmt: str = "NPY", loop: int = 1, about: dict[str, Any] | None = None
) -> Head:
    """Return the head of the record of a folder of outputs of these tensors."""
    tensors = {}
    for folder in {file.parent for file in files}:
        contents = read_record(record_path(folder))
        tensors[text_of(Path(os.path.realpath(folder)))] = (
            contents.head.settings | contents.head.about if contents else {}
        )
    settings = {"model_sha256": model_sha256, "outfmt": outfmt, "loop": loop}
    return Head(KIND, settings, {"tensors": tensors, **(about or {})})


def record_outputs(folder: Path, files: Sequence[Path], model_sha256: str, about: dict[str, Any] | None = None) -> None:
    """Write the record of .npy outputs that another tool has just written; the folder is locked by the caller.

    Args:
        folder: holds both outputs of every tensor.
        files: the tensors, from `list_tensors`.
        model_sha256: of the file that the tool ran.
        about: further facts of the run, such as the tool's version.
    Raises:
        DekrError: a tensor or an output cannot be read.
    """
    tensors = TensorMarks(files)
    record = RunRecord(record_path(folder), outputs_head(files, model_sha256, about=about))
    record.entries.clear()
    with record:
        for file in files:
            content = tensors.hash(file)
            marks = {name: mark_file(folder / name) for name in output_files(output_stem(file))}
            record.add(Entry(file.name, {"tensor": content}, marks, result=tensors.image(file, content)))


class TensorMarks:
    """What the records of tensor folders have noted of their tensors: contents, and the images they were made of."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._known: dict[tuple[Path, str], tuple[FileMark, Any]] = {}
        for folder in {file.parent for file in files}:
            contents = read_record(record_path(folder))
            for entry in contents.entries.values() if contents else ():
                for name, mark in entry.outputs.items():
                    self._known[folder, name] = mark, entry.inputs.get("image")

    def hash(self, file: Path) -> str:
        """Return the content hash of a tensor; reads the file unless its record tells.

        Raises:
            DekrError: the file cannot be read.
        """
        known = self._known.get((file.parent, file.name))
        mark = known[0].renewed(file) if known else None
        return (mark or mark_file(file)).xxh3

    def image(self, file: Path, content: str) -> dict[str, Any] | None:
        """Return the fingerprint of the image from which a tensor with this content was made, as the record tells."""
        mark, fingerprint = self._known.get((file.parent, file.name), (None, None))
        return {"image": fingerprint} if mark is not None and mark.xxh3 == content else None


def check_input_sizes(network: OnnxRuntime, files: Sequence[Path]) -> None:
    """Check the dtype and the shape of every tensor before anything runs.

    Raises:
        DekrError: a tensor is damaged, or its dtype is not the graph's, or its shape is no input size of the graph.
    """
    for file in files:
        header = npy.read_header(file, npy.TENSORS)
        refuse_other_dtype(file, str(header.dtype), network.input_dtype, network.path)
        shape = header.shape
        input_size = Size(*shape[2:]) if len(shape) == 4 and shape[:2] == (1, 3) else Size(0, 0)
        if input_size not in network.input_sizes:
            if network.input_sizes.exact:
                known = f"{network.input_sizes}: the short side, then multiples of {MULTIPLE}"
            else:
                known = ", ".join(f"(1, 3, {g.h}, {g.w})" for g in network.input_sizes)
            raise DekrError(
                f"{file}: its shape {shape} is no input size of {network.path} ({known}); "
                "make it again with DEKR_preprocess.py"
            )


def refuse_other_dtype(file: Path, dtype: str, expected: str, model: Path) -> None:
    """Refuse a tensor of another dtype than the graph's input.

    Raises:
        DekrError: it is of another one.
    """
    if dtype != expected:
        raise DekrError(
            f"{file}: holds {dtype}, {model} takes {expected}; run DEKR_preprocess.py --dtype {expected} into an empty "
            f"folder, or export the graph again with --input {dtype}"
        )


def summary_path(folder: Path) -> Path:
    """Return the place of an output folder's summary, beside it, as ais_bench has it."""
    return sibling_path(folder, "_summary.json")


def _run_one(
    network: OnnxRuntime, image: np.ndarray, file: Path, folder: Path, options: Options
) -> tuple[list[float], dict[str, FileMark]]:
    """Run one tensor and write its outputs; return the milliseconds of each pass and the marks of the files."""
    times = []
    for _ in range(options.loop):
        *outputs, milliseconds = network.run(image)
        times.append(milliseconds)
    marks = {}
    for name, values in zip(_outputs(file, network, options), outputs, strict=True):
        if not np.isfinite(values).all():
            raise DekrError(f"{file}: the network's output for it holds NaN or infinite values; check {network.path}")
        marks[name] = npy.write(folder, name, values)
    return times, marks


def _outputs(file: Path, network: OnnxRuntime, options: Options) -> tuple[str, ...]:
    """Return the file names of a tensor's outputs, in the graph's order."""
    return output_files(output_stem(file), options.suffix, network.output_names)


def _precision(network: OnnxRuntime) -> dict[str, str]:
    """Return what records and summaries say of the precision: nothing for float32."""
    return {} if network.precision is None else {"precision": network.precision}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("onnxruntime", "numpy")}


def _summary(
    record: RunRecord,
    files: Sequence[Path],
    folder: Path,
    options: Options,
    network: OnnxRuntime,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    times = [value for file in files for value in record.entries[file.name].milliseconds]
    none = [0.0] * len(times)  # nothing is copied to a device and back
    return {
        "filesinfo": {
            str(index): {
                "infiles": [str(file)],
                "outfiles": [str(folder / name) for name in _outputs(file, network, options)],
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
        "versions": _versions(),
        **_precision(network),
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
