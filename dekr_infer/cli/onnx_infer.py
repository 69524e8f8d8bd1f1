"""Run an exported graph on the CPU in ais_bench's place: same flags, order, file names and summary.

Without --input it runs ./prep_data into ./out and ./prep_data_flip into ./out_flip. A stopped run goes on where it was.
Either dialect of the graph will do. A graph that yields people (--decode people) runs ./prep_data alone and writes
keypoints, scores and the number of people, in input pixels; predict.py and evaluate.py take such a graph, too.

  python3 scripts/onnx_infer.py --model models/dekr_bs1.onnx
  python3 scripts/onnx_infer.py --model models/dekr_bs1.onnx --input prep_data --output ./ --output_dirname out
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dekr_infer.backends.folder_runner import (
    BOTH_PASSES,
    FORMATS,
    Options,
    check_dirname,
    list_tensors,
    run_folder,
    summary_path,
)
from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.cli.app import (
    Arguments,
    Parser,
    cores,
    non_negative_int,
    positive_int,
    print_note,
    run,
    worker_count,
    yes_no,
)
from dekr_infer.cli.precision import add_precision, rounding_of
from dekr_infer.cli.progress import progress
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.onnx_graph.float16 import Rounding


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--model", "-m", type=Path, required=True, help="ONNX file of DEKR_pth2onnx.py")
    parser.add_argument("--input", "-i", help="folder of tensors, or files separated by commas (default: both passes)")
    parser.add_argument("--output", "-o", type=Path, help="where the output folders go (default: here)")
    parser.add_argument("--output_dirname", help="the output folder's name (default: the time, as ais_bench)")
    parser.add_argument("--outfmt", choices=FORMATS, default="NPY", help="of the outputs")
    parser.add_argument("--loop", type=positive_int, default=1, metavar="N", help="passes per tensor, each timed")
    parser.add_argument(
        "--warmup_count", type=non_negative_int, default=1, metavar="N", help="untimed passes before the first"
    )
    parser.add_argument(
        "--auto_set_dymdims_mode", type=yes_no, default=True, help="must be on: the graph has input sizes"
    )
    parser.add_argument("--threads", type=worker_count, default=cores(), metavar="N", help="(default: all cores)")
    add_precision(parser)
    parser.add_argument("--overwrite", action="store_true", help="run tensors anew whose outputs are there")
    args = parser.parse_args(argv)
    if args.output_dirname and not args.output and args.input:
        parser.error("--output_dirname needs --output")

    def work() -> None:
        if not args.auto_set_dymdims_mode:
            raise DekrError(f"{args.model} has input sizes: --auto_set_dymdims_mode must be on; leave that flag out")
        arguments = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        options = Options(args.outfmt, args.loop, args.warmup_count, args.overwrite)
        jobs = _jobs(args.input, args.output, args.output_dirname)
        infer(args.model, jobs, options, args.threads, arguments, rounding_of(args))

    return run(work)


Job = tuple[list[Path], Path | None]  # a folder of tensors or files, and the folder of their outputs; `None`: nowhere


def infer(
    model: Path,
    jobs: Sequence[Job],
    options: Options,
    threads: int,
    arguments: dict[str, Any],
    rounding: Rounding | None = None,
) -> None:
    """Run a graph over some folders of tensors, one after the other, and print a line for each.

    Args:
        model: the ONNX file.
        jobs: tensors and output folder of each pass.
        options: how to run them.
        threads: for ONNX Runtime.
        arguments: the command line, for the summaries.
        rounding: rehearse an NPU's float16.
    Raises:
        DekrError: see `list_tensors`, `OnnxRuntime` and `run_folder`.
    """
    network = OnnxRuntime(model, threads, rounding=rounding)
    if network.baked is not None:
        jobs = jobs[:1]  # the flipped pass is in the graph, where there is one
    inputs = [list_tensors(places) for places, _ in jobs]
    print_note(network.weights)
    for files, (_, folder) in zip(inputs, jobs, strict=True):
        with tempfile.TemporaryDirectory() as scratch, progress(str(folder or "timing"), len(files)) as advance:
            target = folder or Path(scratch) / "out"
            summary = run_folder(network, files, target, options, arguments, advance)
        statistics = summary["NPU_compute_time"]
        print(
            f"{len(files)} tensors -> {folder or 'nowhere (no --output)'}: compute time (ms) "
            + ", ".join(f"{key} = {statistics[key]:.1f}" for key in ("min", "max", "mean", "median"))
            + f"; throughput {summary['throughput']:.3f} passes/s"
            + (f"; {summary_path(folder)}" if folder else ""),
            flush=True,
        )


def _jobs(source: str | None, output: Path | None, dirname: str | None) -> list[Job]:
    if source is None:
        return [([Path(tensors)], (output or Path()) / outputs) for tensors, outputs in BOTH_PASSES]
    places = [Path(part) for part in source.split(",") if part]
    if not places:
        raise ConfigError("--input names no folder and no file")
    if dirname is not None:
        check_dirname(dirname)
    return [(places, output / (dirname or time.strftime("%Y_%m_%d-%H_%M_%S")) if output else None)]
