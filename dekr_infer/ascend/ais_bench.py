"""Run a converted model over folders of tensors by ais_bench, check its results, and only then replace earlier ones."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import onnx

from dekr_infer.ascend.ais_bench_frontend import REMEDIES, Frontend, check_further_words, find_frontend
from dekr_infer.ascend.lint.check import default_input_sizes, load
from dekr_infer.ascend.subprocess_runner import remedy, run_tool
from dekr_infer.backends.ascend_session import exported_beside
from dekr_infer.backends.folder_runner import (
    BOTH_PASSES,
    check_dirname,
    list_tensors,
    output_stem,
    record_outputs,
    refuse_other_dtype,
    summary_path,
)
from dekr_infer.errors import DekrError
from dekr_infer.geometry import InputSizes, Size, cells
from dekr_infer.skeleton import COCO_17, joints_in
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.atomic import folder_lock, read_json, scratch_folder, sha256, write_json
from dekr_infer.storage.run_record import record_path
from dekr_infer.structures import output_files, output_shapes

PUBLISHED = 7.72  # passes a second: the published speed on a 310P3, batch 1
_Number = Annotated[float, msgspec.Meta(gt=0, lt=1e12)]


class _Files(msgspec.Struct):
    outfiles: list[str]


class Summary(msgspec.Struct):
    """What is read of an ais_bench summary: milliseconds of each pass, passes a second, files by tensor."""

    throughput: _Number
    npu_compute_time_list: list[_Number] = []
    filesinfo: dict[str, _Files] = {}


class Job(NamedTuple):
    """A folder of tensors to be run: `source` -> `folder`, by a model of `joints`; `input_sizes` by tensor."""

    model: Path
    device: int
    source: Path
    folder: Path
    input_sizes: dict[Path, Size]
    dtype: str = str(tensors.DTYPE)
    joints: tuple[str, ...] = COCO_17.joints

    @classmethod
    def of(cls, model: Path, device: int, source: Path, folder: Path) -> Job:
        """Look at the tensors of a folder: ais_bench would take other arrays without a word.

        Raises:
            DekrError: there is no such folder, no tensor in it, a file that ais_bench takes for a tensor or overlooks,
                or an array that is not a float32 or uint8 (1, 3, H, W), or not of the others' dtype.
        """
        if not source.is_dir():
            raise DekrError(f"{source}: no such folder of tensors; make it with DEKR_preprocess.py")
        for name in sorted(os.listdir(source)):
            ending = os.path.splitext(name)[1]
            if ending.lower() == ".bin":
                raise DekrError(f"{source / name}: ais_bench would feed it to the network; move it out of this folder")
            if ending.lower() == ".npy" and ending not in (".npy", ".NPY"):
                raise DekrError(f"{source / name}: ais_bench overlooks this ending; rename it to .npy")
        input_sizes: dict[Path, Size] = {}
        dtypes: dict[str, Path] = {}
        for file in list_tensors([source]):
            header = tensors.read_header(file, tensors.TENSORS)
            shape = header.shape
            dtypes.setdefault(str(header.dtype), file)
            if len(shape) != 4 or shape[:2] != (1, 3):
                raise DekrError(f"{file}: its shape {shape} is not (1, 3, H, W); run DEKR_preprocess.py --overwrite")
            input_sizes[file] = Size(*shape[2:])
        if len(dtypes) > 1:
            (one, file), (other, stray) = dtypes.items()
            raise DekrError(f"{stray}: holds {other}, but {file} holds {one}; run DEKR_preprocess.py --overwrite")
        dtype, joints = next(iter(dtypes)), _joints_of(model.with_suffix(".onnx"))
        return cls(model, device, source, folder, input_sizes, dtype, joints)

    @property
    def results(self) -> dict[str, tuple[Path, tuple[int, ...]]]:
        """The tensor and the shape of each result, by the result's name, in ais_bench's order."""
        return {
            name: (file, shape)
            for file, size in self.input_sizes.items()
            for name, shape in zip(
                output_files(output_stem(file)), output_shapes(self.joints, cells(size)), strict=True
            )
        }

    def check(self, frontend: Frontend) -> None:
        """Refuse what is known to fail, before any tool runs.

        Raises:
            DekrError: results of other tensors are in the way, ais_bench would refuse a path, or a tensor has another
                size than the model, as far as the ONNX file beside the model tells.
        """
        tensors.refuse_foreign(self.folder, self.results, "these inputs")
        frontend.check(self.model, self.source, self.folder.resolve().parent)
        exported = self.model.with_suffix(".onnx")
        known, dtype = _input_of(exported)
        strays = [file for file, size in self.input_sizes.items() if size not in known]
        if len(strays) < len(self.input_sizes):
            for file in strays:
                raise DekrError(
                    f"{file}: its size {self.input_sizes[file]} is none of the input sizes of "
                    f"{self.model.with_suffix('.onnx')} ({', '.join(map(str, known))}); delete this tensor, "
                    "and run DEKR_preprocess.py again"
                )
            refuse_other_dtype(next(iter(self.input_sizes)), self.dtype, dtype, exported)


def _input_of(file: Path) -> tuple[Sequence[Size], str]:
    """Return the input sizes in an ONNX file's metadata, and its input's dtype; nothing when there is no such file."""
    try:
        model = load(file)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    except (DekrError, LookupError):
        return (), ""
    found = InputSizes.parse(default_input_sizes(model))
    return found.sizes if found else (), str(dtype)


def _joints_of(file: Path) -> tuple[str, ...]:
    """Return the joints in an ONNX file's metadata; COCO's when there is no such file, or it names none."""
    try:
        metadata = {entry.key: entry.value for entry in load(file).metadata_props}
    except DekrError:
        return COCO_17.joints
    return joints_in(metadata)


def run_passes(
    model: Path,
    *,
    source: Path | None = None,
    output: Path = Path(),
    dirname: str | None = None,
    device: int = 0,
    extra: Sequence[str] = (),
) -> None:
    """Run both passes, or the folder asked for, and print the speed of each input size.

    Args:
        model: the .om file.
        device: the NPU's number.
        source: a folder of tensors; by default prep_data and prep_data_flip.
        output: where the output folders are, or are created.
        dirname: with `source`: the output folder's name, by default `out`.
        extra: further words for ais_bench.
    Raises:
        DekrError: something is missing, or ais_bench failed or left less than it should.
        ConfigError: a folder's name or a further word does not fit.
    """
    check_further_words(extra)
    if not model.is_file():
        raise DekrError(f"{model}: no such model; make it with scripts/atc.sh")
    if dirname is not None:
        check_dirname(dirname)
    folders = [(source, dirname or "out")] if source else [(Path(place), name) for place, name in BOTH_PASSES]
    jobs = [Job.of(model, device, place, output / name) for place, name in folders]
    frontend = find_frontend()
    for job in jobs:
        job.check(frontend)
    for job in jobs:
        summary = run_pass(frontend, job, extra)
        for line in _speeds(summary, list(job.input_sizes.values())):
            print(line)
        print(f"{len(job.input_sizes)} tensors -> {job.folder}; {summary_path(job.folder)}", flush=True)
    print(f"(published for a 310P3: {PUBLISHED} passes/s. A pass is one network run, time on the device alone.")
    print("An image takes two passes; reading, copying and decoding are not included.)")


def run_pass(frontend: Frontend, job: Job, extra: Sequence[str] = ()) -> Summary:
    """Run ais_bench into a private folder, check what it left, then replace the results of an earlier run.

    The private folder is beside the final one, has a new name each time, and nobody else may read it: the front ends of
    2025 and 2026 ask for that, and a tool that outlived a killed run may still write into its own.

    Args:
        frontend: the installed ais_bench.
        job: has passed `Job.check`.
        extra: further words for ais_bench.
    Raises:
        DekrError: ais_bench failed, or left less than it should, or other files.
    """
    place = job.folder.resolve()
    with folder_lock(job.folder, create=False), scratch_folder(place.parent, f"{place.name}.ais_bench") as private:
        # The front ends check --output_dirname by itself, as a path from the current folder: no such path may exist.
        made = private / f"{private.name}.results"
        started = time.monotonic()
        ran = run_tool([*frontend.command(job.model, job.source, private, made.name, job.device), *extra])
        if ran.code:
            found = remedy(ran.lines, REMEDIES) or "its messages above name the reason"
            missing = next((file for name, (file, _) in job.results.items() if not (made / name).exists()), job.source)
            tensor = f"{missing} ({job.input_sizes.get(missing)})"
            raise DekrError(f"{job.source}: ais_bench failed with exit code {ran.code}; {found.format(tensor=tensor)}")
        written, summary = _check_results(job, made)
        job.folder.mkdir(parents=True, exist_ok=True)
        for record in (summary_path(job.folder), record_path(job.folder)):
            record.unlink(missing_ok=True)  # they describe the results that are now replaced
        for name in job.results:
            os.replace(made / name, job.folder / name)
        write_json(summary_path(job.folder), written)
        weights = exported_beside(job.model)[1].get("weights")
        record_outputs(job.folder, list(job.input_sizes), sha256(job.model), {"weights": weights})
    print(f"{job.source}: done in {time.monotonic() - started:.1f} s, loading and files included")
    return summary


def _check_results(job: Job, made: Path) -> tuple[dict[str, Any], Summary]:
    """Return the summary as ais_bench wrote it, with the final paths of the results, and what is read of it.

    Raises:
        DekrError: the summary or a result is missing or of another form, or a file is no result of these tensors.
    """
    path = summary_path(made)
    if not path.is_file():
        raise DekrError(f"{job.source}: ais_bench ended without a summary; see its messages above")
    written = read_json(path)
    summary = _summary_in(written, path)
    for name, (_, shape) in job.results.items():
        try:
            found = tensors.read_header(made / name, tensors.OUTPUTS).shape
        except DekrError:
            found = ()
        if found != shape:
            raise DekrError(
                f"{job.source}: ais_bench reported success, but {name} is missing or not float32 or float16 {shape}; "
                f"check that {job.model} is a DEKR export, converted with its own input sizes"
            )
    foreign = set(os.listdir(made)) - set(job.results)
    if foreign:
        raise DekrError(f"{job.source}: ais_bench left {min(foreign)}, which is no result of these tensors")
    for entry in written.get("filesinfo", {}).values():
        entry["outfiles"] = [str(job.folder / Path(file).name) for file in entry["outfiles"]]
    return written, summary


def _summary_in(value: Any, path: Path) -> Summary:
    """Return what is read of a summary.

    Args:
        path: of ais_bench's summary.
        value: as it is in the JSON file `path`.
    Raises:
        DekrError: it has no throughput, or times or file names of the wrong types.
    """
    try:
        return msgspec.convert(value, Summary)
    except ValueError as error:  # of the wrong type, or a text with half a surrogate pair
        raise DekrError(f"{path}: not the summary of an ais_bench known here ({error}); update ais_bench") from None


def _speeds(summary: Summary, input_sizes: list[Size]) -> list[str]:
    """Return the passes a second for each input size and overall, as lines.

    Args:
        summary: its times are those of the tensors in turn, each with all its loops.
        input_sizes: of the tensors in ais_bench's order.
    """
    times = summary.npu_compute_time_list
    lines = []
    if times and len(times) % len(input_sizes) == 0:
        loops = len(times) // len(input_sizes)
        by_input_size: dict[Size, list[float]] = {}
        for index, milliseconds in enumerate(times):
            by_input_size.setdefault(input_sizes[index // loops], []).append(milliseconds)
        for input_size, values in sorted(by_input_size.items()):
            mean = sum(values) / len(values)
            lines.append(f"  {input_size!s:>9}  {len(values):6d} passes  {mean:8.2f} ms  {1000 / mean:8.2f} passes/s")
    return [*lines, f"  overall: {summary.throughput:.2f} passes/s (published: {PUBLISHED})"]
