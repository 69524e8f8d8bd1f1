"""Run a converted model over both folders of tensors by ais_bench, and look at what it left.

Without --input it runs ./prep_data into ./out and ./prep_data_flip into ./out_flip. Results of an earlier run of the
same pictures are replaced; those of other pictures are refused. What stands behind -- goes to ais_bench as it is.

  bash scripts/ais_bench.sh models/dekr_bs1.om
  bash scripts/ais_bench.sh models/dekr_bs1.om --input prep_data --output_dirname out --device 1
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dekr_infer.ascend.ais_bench_cli import REMEDIES, Frontend, find_frontend
from dekr_infer.ascend.subprocess_runner import remedy, run_tool
from dekr_infer.backends.folder_runner import (
    BOTH_PASSES,
    check_dirname,
    list_tensors,
    output_stem,
    record_outputs,
    summary_path,
)
from dekr_infer.cli.app import Arguments, Parser, non_negative_int, run
from dekr_infer.errors import DekrError
from dekr_infer.geometry import Size, cells
from dekr_infer.skeleton import COCO_17
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.atomic import folder_lock, read_json, scratch_folder, sha256, write_json
from dekr_infer.storage.run_record import record_path
from dekr_infer.structures import output_files, output_shapes

PUBLISHED = 7.72  # passes a second: the sample's figure for 310P3, batch 1


class Job(NamedTuple):
    """One folder of tensors to be run: `source` -> `folder`, by a model on a device; `input_sizes` by tensor."""

    model: Path
    device: int
    source: Path
    folder: Path
    input_sizes: dict[Path, Size]

    def check(self, frontend: Frontend) -> None:
        """Look at all paths before the first tool runs; see `Frontend.check_paths`.

        Raises:
            DekrError: ais_bench would refuse one.
        """
        frontend.check_model(self.model)
        frontend.check_paths([self.model, self.folder, self.source, *self.input_sizes])

    def results(self) -> set[str]:
        """The names of all results."""
        return {name for file in self.input_sizes for name in output_files(output_stem(file))}


def main(argv: Arguments = None) -> int:
    """The command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    parser = Parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.om")
    parser.add_argument("--input", type=Path, help="one folder of tensors (default: both passes)")
    parser.add_argument("--output", type=Path, default=Path(), help="where the output folders go (default: here)")
    parser.add_argument("--output_dirname", help="with --input: the output folder's name (default: out)")
    parser.add_argument("--device", type=non_negative_int, default=0, metavar="N", help="(default: 0)")
    args = parser.parse_args(words[:end])
    if args.output_dirname and not args.input:
        parser.error("--output_dirname needs --input")
    return run(lambda: bench(args, words[end + 1 :]))


def bench(args: Namespace, extra: Sequence[str]) -> None:
    """Both passes, or the one asked for.

    Raises:
        DekrError: something is missing, or ais_bench failed or left less than it should.
    """
    if not args.model.is_file():
        raise DekrError(f"{args.model}: no such model; make it with scripts/atc.sh")
    if args.output_dirname is not None:
        check_dirname(args.output_dirname)
    folders = [(args.input, args.output_dirname or "out")] if args.input else [(Path(i), o) for i, o in BOTH_PASSES]
    jobs = [
        Job(args.model, args.device, source, args.output / name, input_sizes_of(source)) for source, name in folders
    ]
    for job in jobs:
        tensors.refuse_foreign(job.folder, job.results(), "these inputs")
    frontend = find_frontend()
    for job in jobs:
        job.check(frontend)
    for job in jobs:
        summary = run_pass(frontend, job, extra)
        for line in _speeds(summary, list(job.input_sizes.values())):
            print(line)
        print(f"{len(job.input_sizes)} tensors -> {job.folder}; {summary_path(job.folder)}", flush=True)
    print(
        f"(published for a 310P3: {PUBLISHED} passes/s. A pass is one network run, time on the device alone: a picture"
    )
    print("takes two, and reading, copying and decoding come on top)")


def input_sizes_of(source: Path) -> dict[Path, Size]:
    """The tensors of a folder in ais_bench's order, each a float32 (1, 3, H, W); wrong ones would pass unnoticed.

    Raises:
        DekrError: there is no such folder or no tensor in it, or one is of another form.
    """
    if not source.is_dir():
        raise DekrError(f"{source}: no such folder of tensors; make it with DEKR_preprocess.py")
    input_sizes = {}
    for file in list_tensors([source]):
        shape = tensors.read_header(file).shape
        if len(shape) != 4 or shape[:2] != (1, 3):
            raise DekrError(f"{file}: its shape {shape} is not (1, 3, H, W); make it again with DEKR_preprocess.py")
        input_sizes[file] = Size(*shape[2:])
    return input_sizes


def run_pass(frontend: Frontend, job: Job, extra: Sequence[str]) -> dict[str, Any]:
    """Run into a private folder beside the final one, look at the results, then move them.

    Newer ones refuse to write where others can read, and one that outlived a killed run may still be writing.

    Args:
        job: has been checked by `Job.check`.
        extra: further words for ais_bench.
    Returns:
        ais_bench's summary.
    Raises:
        DekrError: ais_bench failed, or left less than it should, or other things.
    """
    place = job.folder.resolve()
    with folder_lock(job.folder):
        _forget(job.folder)
        with scratch_folder(place.parent, f"{place.name}.ais_bench") as private:
            options = frontend.command(job.model, job.source, private, job.folder.name, job.device)
            started = time.monotonic()
            ran = run_tool([*options, *extra])
            made = private / job.folder.name
            if ran.code:
                found = remedy(ran.lines, REMEDIES) or "its messages above name the reason"
                raise DekrError(f"{job.source}: ais_bench failed with exit code {ran.code}; {found}")
            if not summary_path(made).is_file():
                raise DekrError(f"{job.source}: ais_bench ended without a summary; see its messages above")
            summary = _final(read_json(summary_path(made)), made, job.folder)
            _check_results(job, made)
            for name in sorted(os.listdir(made)):
                os.replace(made / name, job.folder / name)
            write_json(summary_path(job.folder), summary)
            record_outputs(job.folder, list(job.input_sizes), sha256(job.model))
    print(f"{job.source}: done in {time.monotonic() - started:.1f} s, loading and files included")
    return summary


def _forget(folder: Path) -> None:
    """Remove an earlier run's results, so that none can pass for this run's, and its records."""
    for name in tensors.names_in(folder):
        (folder / name).unlink()
    for record in (summary_path(folder), record_path(folder)):
        record.unlink(missing_ok=True)


def _check_results(job: Job, made: Path) -> None:
    for file, input_size in job.input_sizes.items():
        shapes = output_shapes(COCO_17, cells(input_size))
        for name, shape in zip(output_files(output_stem(file)), shapes, strict=True):
            try:
                found = tensors.read_header(made / name).shape
            except DekrError:
                found = None
            if found != shape:
                raise DekrError(
                    f"{job.source}: ais_bench reported success, but {name} is missing or not float32 "
                    f"{shape}; is the model a DEKR export?"
                )
    foreign = tensors.names_in(made) - job.results()
    if foreign:
        raise DekrError(f"{job.source}: ais_bench left {min(foreign)}, which is no result of these tensors")


def _final(summary: Any, made: Path, folder: Path) -> dict[str, Any]:
    """The summary with the outputs' final paths."""
    if not _is_summary(summary):
        raise DekrError(f"{summary_path(made)}: not the summary of an ais_bench known here; it names no throughput")
    for entry in summary.get("filesinfo", {}).values():
        entry["outfiles"] = [str(folder / Path(file).name) for file in entry["outfiles"]]
    return summary


def _is_summary(value: Any) -> bool:
    """Whether this is a summary with a throughput, times and file names of the right kinds."""
    if not isinstance(value, dict):
        return False
    times, files = value.get("npu_compute_time_list", []), value.get("filesinfo", {})
    if not isinstance(times, list) or not isinstance(files, dict):
        return False
    numbers = [value.get("throughput"), *times]
    names = [entry.get("outfiles") if isinstance(entry, dict) else None for entry in files.values()]
    return all(type(number) in (int, float) and 0 < number < 1e12 for number in numbers) and all(
        isinstance(group, list) and all(isinstance(name, str) for name in group) for group in names
    )


def _speeds(summary: dict[str, Any], input_sizes: list[Size]) -> list[str]:
    """Passes a second for each input size and overall, from the times in the summary."""
    times = summary.get("npu_compute_time_list", [])
    lines = []
    if times and len(times) % len(input_sizes) == 0:
        loops = len(times) // len(input_sizes)
        by_input_size: dict[Size, list[float]] = {}
        for index, milliseconds in enumerate(times):
            by_input_size.setdefault(input_sizes[index // loops], []).append(milliseconds)
        for input_size, values in sorted(by_input_size.items()):
            mean = sum(values) / len(values)
            lines.append(f"  {input_size!s:>9}  {len(values):6d} passes  {mean:8.2f} ms  {1000 / mean:8.2f} passes/s")
    return [*lines, f"  overall: {summary['throughput']:.2f} passes/s (published: {PUBLISHED})"]
