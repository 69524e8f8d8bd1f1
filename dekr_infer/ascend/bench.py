"""Run a converted model over both folders of tensors by ais_bench, and look at what it left.

Without --input it runs ./prep_data into ./out and ./prep_data_flip into ./out_flip. Results of an earlier run of the
same pictures are replaced; those of other pictures are refused. What stands behind -- goes to ais_bench as it is.

  bash scripts/ais_bench.sh models/dekr_bs1.om
  bash scripts/ais_bench.sh models/dekr_bs1.om --input prep_data --output_dirname out --device 1
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dekr_infer import tensors
from dekr_infer.ascend.frontend import REMEDIES, Frontend, find_frontend
from dekr_infer.ascend.tool import remedy, run_tool
from dekr_infer.command import Arguments, Parser, natural, run
from dekr_infer.dump import BOTH_PASSES, CHANNELS, list_tensors, output_stem, summary_path
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.files import read_json, write_json
from dekr_infer.geometry import Size, cells

PUBLISHED = 7.72  # passes a second: the sample's figure for 310P3, batch 1


def main(argv: Arguments = None) -> int:
    """The command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    parser = Parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.om")
    parser.add_argument("--input", type=Path, help="one folder of tensors (default: both passes)")
    parser.add_argument("--output", type=Path, default=Path(), help="where the output folders go (default: here)")
    parser.add_argument("--output_dirname", help="with --input: the output folder's name (default: out)")
    parser.add_argument("--device", type=natural, default=0, metavar="N", help="(default: 0)")
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
    if args.output_dirname == ".." or Path(args.output_dirname or "out").name != (args.output_dirname or "out"):
        raise ConfigError(f"--output_dirname {args.output_dirname!r}: it must be the name of a folder below --output")
    jobs = [(args.input, args.output_dirname or "out")] if args.input else [(Path(i), o) for i, o in BOTH_PASSES]
    prepared = [(source, args.output / name, _gears(source)) for source, name in jobs]
    for _, folder, gears in prepared:
        tensors.refuse_foreign(folder, {name for file in gears for name in _outputs(file)}, "these inputs")
    frontend = find_frontend()
    for source, folder, gears in prepared:
        frontend.check_paths([args.model, folder, source, *gears])
        summary = _one_pass(frontend, args, extra, source, folder, gears)
        for line in _speeds(summary, list(gears.values())):
            print(line)
        print(f"{len(gears)} tensors -> {folder}; {summary_path(folder)}", flush=True)
    print(
        f"(published for a 310P3: {PUBLISHED} passes/s. A pass is one network run, time on the device alone: a picture"
    )
    print("takes two, and reading, copying and decoding come on top)")


def _gears(source: Path) -> dict[Path, Size]:
    """The tensors of a folder in ais_bench's order, each a float32 (1, 3, H, W); wrong ones would pass unnoticed."""
    if not source.is_dir():
        raise DekrError(f"{source}: no such folder of tensors; make it with DEKR_preprocess.py")
    gears = {}
    for file in list_tensors([source]):
        shape = tensors.read_header(file).shape
        if len(shape) != 4 or shape[:2] != (1, 3):
            raise DekrError(f"{file}: its shape {shape} is not (1, 3, H, W); make it again with DEKR_preprocess.py")
        gears[file] = Size(*shape[2:])
    return gears


def _outputs(file: Path) -> list[str]:
    return [f"{output_stem(file)}_{index}.npy" for index in range(len(CHANNELS))]


def _one_pass(
    frontend: Frontend, args: Namespace, extra: Sequence[str], source: Path, folder: Path, gears: dict[Path, Size]
) -> dict[str, Any]:
    """Run into a private folder beside the final one, look at the results, then move them."""
    private = folder.resolve().with_name(f"{folder.name}.ais_bench")  # newer frontends refuse folders others can read
    with tensors.exclusive(folder):
        shutil.rmtree(private, ignore_errors=True)
        _forget(folder)
        private.mkdir(mode=0o750)
        try:
            options = frontend.command(args.model, source, private, folder.name, args.device)
            started = time.monotonic()
            ran = run_tool([*options, *extra])
            made = private / folder.name
            if ran.code:
                found = remedy(ran.lines, REMEDIES) or "its messages above name the reason"
                raise DekrError(f"{source}: ais_bench failed with exit code {ran.code}; {found}")
            if not summary_path(made).is_file():
                raise DekrError(f"{source}: ais_bench ended without a summary; see its messages above")
            summary = _final(read_json(summary_path(made)), made, folder)
            _check_results(source, made, gears)
            for name in sorted(os.listdir(made)):
                os.replace(made / name, folder / name)
            write_json(summary_path(folder), summary)
        finally:
            shutil.rmtree(private, ignore_errors=True)
    print(f"{source}: done in {time.monotonic() - started:.1f} s, loading and files included")
    return summary


def _forget(folder: Path) -> None:
    """Remove an earlier run's results, so that none can pass for this run's, and its records."""
    for name in tensors.names_in(folder):
        (folder / name).unlink()
    for record in (summary_path(folder), folder.with_name(f"{folder.name}_record.jsonl")):
        record.unlink(missing_ok=True)


def _check_results(source: Path, made: Path, gears: dict[Path, Size]) -> None:
    for file, gear in gears.items():
        for name, channels in zip(_outputs(file), CHANNELS, strict=True):
            if not tensors.is_finished(made / name, (1, channels, *cells(gear))):
                raise DekrError(
                    f"{source}: ais_bench reported success, but {name} is missing or not float32 "
                    f"{(1, channels, *cells(gear))}; is the model a DEKR export?"
                )
    foreign = tensors.names_in(made) - {name for file in gears for name in _outputs(file)}
    if foreign:
        raise DekrError(f"{source}: ais_bench left {min(foreign)}, which is no result of these tensors")


def _final(summary: Any, made: Path, folder: Path) -> dict[str, Any]:
    """The summary with the outputs' final paths."""
    if not isinstance(summary, dict) or "throughput" not in summary:
        raise DekrError(f"{summary_path(made)}: not the summary of an ais_bench known here; it names no throughput")
    for entry in summary.get("filesinfo", {}).values():
        entry["outfiles"] = [str(folder / Path(file).name) for file in entry["outfiles"]]
    return summary


def _speeds(summary: dict[str, Any], gears: list[Size]) -> list[str]:
    """Passes a second for each gear and overall, from the times in the summary."""
    times = summary.get("npu_compute_time_list", [])
    lines = []
    if times and len(times) % len(gears) == 0:
        loops = len(times) // len(gears)
        by_gear: dict[Size, list[float]] = {}
        for index, milliseconds in enumerate(times):
            by_gear.setdefault(gears[index // loops], []).append(milliseconds)
        for gear, values in sorted(by_gear.items()):
            mean = sum(values) / len(values)
            lines.append(f"  {gear!s:>9}  {len(values):6d} passes  {mean:8.2f} ms  {1000 / mean:8.2f} passes/s")
    return [*lines, f"  overall: {summary['throughput']:.2f} passes/s (published: {PUBLISHED})"]
