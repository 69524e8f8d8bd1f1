"""Which of the four export forms (--deform) of a checkpoint is the fastest on this NPU: each is tried, all are ranked.

Each form is exported, looked at with atc's eyes, converted, and timed at every size with a made-up picture; what the
NPU computes is compared with ONNX Runtime on the CPU. The figure that ranks them is the time on the device of one
pass, the sizes weighted by how often they occur in COCO; reading, copying and decoding are not in it, and a picture
takes two passes. A form that fails, or whose outputs differ by more than float16 explains, is told and not ranked.

What is done is noted in --work and not done again unless what it was made of has changed. Ends with exit code 0 when
at least one form is ranked.

  bash scripts/tune_npu.sh TEST.MODEL_FILE models/pose_dekr_hrnetw32_coco.pth
  bash scripts/tune_npu.sh --variants separate,gather --root data/coco TEST.MODEL_FILE models/w32.pth
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import dekr_infer
from dekr_infer.ascend import atc
from dekr_infer.ascend import tuning_report as ranking
from dekr_infer.ascend.ais_bench import PUBLISHED, Job, input_sizes_of, run_pass
from dekr_infer.ascend.ais_bench_cli import Frontend, find_frontend
from dekr_infer.ascend.soc_version import chip_name
from dekr_infer.ascend.subprocess_runner import run_tool
from dekr_infer.ascend.tuning_report import Outcome, shares_of
from dekr_infer.backends.onnxruntime import open_network
from dekr_infer.cli.app import Arguments, Parser, add_config, config_of, cores, non_negative_int, positive_int, run
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.export.parity import SEED, Difference, difference_of, sample_image
from dekr_infer.export.variants import SEPARATE, VARIANTS
from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.pose.preprocess import normalise
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.atomic import folder_lock, scratch_folder, sha256, write_json
from dekr_infer.storage.run_record import Head, RunRecord
from dekr_infer.structures import output_files

EXPORT = Path(__file__).resolve().parents[2] / "DEKR_pth2onnx.py"
LOOP = 50  # timed passes per size
PICTURE = "picture.npy"
# What atc's float16 may cost, as shares of the largest value. In torch, with everything but the taps' positions in
# float16, W32 with random weights moved by 2.5 % (heatmap) and 3.0 % (offset), the demo network by 0.6 % and 1.0 %;
# channels, taps or corners in a wrong order move them by tens of per cent.
HEAT_SHARE, OFFSET_SHARE = 0.1, 0.1


def main(argv: Arguments = None) -> int:
    """The command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    parser = Parser(__doc__)
    parser.add_argument("--variants", type=_variants, default=VARIANTS, metavar="A,B", help=f"of {','.join(VARIANTS)}")
    parser.add_argument(
        "--work", type=Path, default=Path("models/tune"), help="for what it makes (default: models/tune)"
    )
    parser.add_argument("--root", type=Path, help="weight the sizes as in this data set (default: a sample of COCO)")
    parser.add_argument(
        "--device", type=non_negative_int, metavar="N", help="NPU to convert for and run on (default: 0)"
    )
    parser.add_argument(
        "--loop", type=positive_int, default=LOOP, metavar="N", help=f"passes per size (default: {LOOP})"
    )
    for name, share in (("heat", HEAT_SHARE), ("offset", OFFSET_SHARE)):
        told = f"difference from the CPU, as a share of the largest value (default: {share})"
        parser.add_argument(f"--{name}_tolerance", type=_share, default=share, metavar="X", help=told)
    atc.add_options(parser, cache="enable")  # the four forms have most kernels in common
    add_config(parser)
    args = parser.parse_args(words[:end])
    return run(lambda: tune(args, words[end + 1 :]))


def _variants(text: str) -> list[str]:
    """An argument type: forms separated by commas, each once."""
    names = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(VARIANTS)}")
    return names


def _share(text: str) -> float:
    """An argument type: a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def tune(args: Namespace, extra: Sequence[str]) -> None:
    """Try every form asked for, one after the other, and rank them.

    Raises:
        DekrError: something that all of them need is missing, or none could be ranked.
    """
    config = config_of(args)
    if not config.TEST.MODEL_FILE:
        raise ConfigError("no checkpoint is named; add TEST.MODEL_FILE models/pose_dekr_hrnetw32_coco.pth")
    origin = {"checkpoint": sha256(Path(config.TEST.MODEL_FILE)), "network": config.MODEL.dump()}
    shares = shares_of(args.root)
    atc.find_atc()
    args.chip = chip_name(args.chip, args.device)
    args.device = args.device or 0
    frontend = find_frontend()
    frontend.check_paths([args.work])
    with _workplace(args.work) as scratch, RunRecord(args.work / "stages_record.jsonl", Head("steps")) as stages:
        outcomes = []
        for variant in args.variants:
            outcomes.append(_try(Trial(variant, args, extra, frontend, stages, scratch), origin))
            if outcomes[-1].problem:
                print(f"warning: {variant}: {outcomes[-1].problem}", file=sys.stderr, flush=True)
        order = ranking.ranked(outcomes, shares)
        _report(order, shares, args)
    if order[0].problem:
        raise DekrError("none of the forms could be ranked; the table above gives the reason of each")


@contextmanager
def _workplace(work: Path) -> Iterator[Path]:
    """Hold the work folder for this run alone; yields an empty folder in it for what need not stay."""
    with folder_lock(work), scratch_folder(work, "unfinished") as scratch:
        yield scratch


class Trial:
    """One form: its files, and the stages that make and time them."""

    def __init__(
        self,
        variant: str,
        args: Namespace,
        extra: Sequence[str],
        frontend: Frontend,
        stages: RunRecord,
        scratch: Path,
    ) -> None:
        self.variant, self.args, self.extra = variant, args, list(extra)
        self.frontend, self.stages, self.scratch = frontend, stages, scratch
        self.graph = args.work / f"dekr_{variant}.onnx"
        self.model = self.graph.with_suffix(atc.SUFFIX)

    def export(self) -> None:
        """Checkpoint -> ONNX, by the command that anyone would use."""
        made = self.scratch / self.graph.name
        cfg = ["--cfg", self.args.cfg] if self.args.cfg else []
        words = ["--output", str(made), "--deform", self.variant, *cfg, *self.args.pairs]
        ran = run_tool([sys.executable, str(EXPORT), *words])
        if ran.code:
            reasons = [line.removeprefix("error: ") for line in ran.lines if line.startswith("error: ")]
            raise DekrError(f"not exported: {reasons[-1] if reasons else f'exit code {ran.code}, see above'}")
        os.replace(made, self.graph)

    def convert(self) -> None:
        """ONNX -> the NPU's model."""
        own = {"model": self.graph, "output": self.model, "keep_dtype": None, "dry_run": False}
        atc.convert(Namespace(**vars(self.args) | own), self.extra)

    def time(self) -> dict[str, Any]:
        """Milliseconds and differences of every input size, as JSON holds them."""
        rng = np.random.default_rng(SEED)
        network = open_network(self.graph, cores())
        found = {}
        for input_size in PUBLISHED_SIZES:
            image = normalise(sample_image(rng, input_size))
            milliseconds, outputs = self._timed(input_size, image)
            difference = difference_of(input_size, network.run(image)[:2], outputs)
            found[str(input_size)] = {"milliseconds": milliseconds, "difference": difference[1:]}
        return found

    def _timed(self, input_size: Size, image: np.ndarray) -> tuple[float, list[np.ndarray]]:
        """The median time of one pass, and the outputs; one run of ais_bench per input size."""
        source = self.scratch / f"in_{self.variant}_{input_size}"
        source.mkdir(mode=0o750)
        np.save(source / PICTURE, image)
        folder = self.scratch / f"out_{self.variant}_{input_size}"
        job = Job(self.model, self.args.device, source, folder, input_sizes_of(source))
        job.check(self.frontend)
        summary = run_pass(self.frontend, job, ["--loop", str(self.args.loop)])
        times = summary.get("npu_compute_time_list", [])
        if len(times) != self.args.loop:
            raise DekrError(f"ais_bench tells of {len(times)} passes at {input_size}, not of {self.args.loop}")
        outputs = [np.array(tensors.open_map(folder / name)) for name in output_files(Path(PICTURE).stem)]
        if not all(np.isfinite(values).all() for values in outputs):
            raise DekrError(
                f"NaN or infinite outputs at {input_size}: float16 does not suffice; try another --precision_mode"
            )
        return statistics.median(times), outputs


def _try(trial: Trial, origin: dict[str, str]) -> Outcome:
    """All stages of a form; a failure is its outcome."""
    args, stages, name = trial.args, trial.stages, trial.variant
    try:
        made_by = origin | {"version": dekr_infer.__version__}
        stages.step(f"{name}: export", made_by, trial.export, trial.graph)
        options = [args.chip, args.precision_mode, args.cache, trial.extra, str(atc.find_atc().resolve())]
        stages.step(f"{name}: convert", {"graph": sha256(trial.graph), "options": options}, trial.convert, trial.model)
        timed_by = {"model": sha256(trial.model), "device": args.device, "loop": args.loop}
        found = stages.step(f"{name}: time", timed_by, trial.time)
    except ConfigError:
        raise
    except DekrError as error:
        return Outcome(name, {}, problem=" ".join(str(error).split()))
    times = {input_size: found[str(input_size)]["milliseconds"] for input_size in PUBLISHED_SIZES}
    differences = [Difference(input_size, *found[str(input_size)]["difference"]) for input_size in PUBLISHED_SIZES]
    wrong = [d for d in differences if not _agrees(d, args)]
    problem = f"its outputs differ from the CPU's at {', '.join(str(d.input_size) for d in wrong)}" if wrong else ""
    return Outcome(name, times, differences, problem)


def _agrees(difference: Difference, args: Namespace) -> bool:
    return difference.heat_share <= args.heat_tolerance and difference.offset_share <= args.offset_tolerance


def _report(order: Sequence[Outcome], shares: ranking.Shares, args: Namespace) -> None:
    print(
        f"\nmilliseconds on the device for one pass of one picture (median of {args.loop}); files and copies left out"
    )
    for line in ranking.table(order, shares):
        print(line)
    print(f"all: {shares.line()} ({shares.source})")
    print(f"heatmap, offset: largest differences from ONNX Runtime on the CPU; published: {PUBLISHED} passes/s (310P3)")
    record = args.work / "tune.json"
    allowed = {"heat": args.heat_tolerance, "offset": args.offset_tolerance}
    counted = {"source": shares.source, "counts": {str(input_size): n for input_size, n in shares.counts.items()}}
    told = {"chip": args.chip, "loop": args.loop, "allowed_shares": allowed, "sizes": counted}
    write_json(record, told | {"variants": ranking.as_json(order, shares)}, indent=1)
    print(f"all figures: {record}")
    best = order[0]
    if best.problem:
        return
    beside = next((outcome for outcome in order if outcome.variant == SEPARATE), best)
    ratio = shares.mean(beside.milliseconds) / shares.mean(best.milliseconds) if beside.milliseconds else 1
    faster = f", {ratio:.2f} times as fast as {SEPARATE}" if beside is not best and beside.milliseconds else ""
    cfg = ["--cfg", args.cfg] if args.cfg else []
    print(f"fastest here: {best.variant}{faster}. To use it:")
    print("  " + shlex.join(["bash", "scripts/ais_bench.sh", str(args.work / f"dekr_{best.variant}.om")]))
    print("It is what this exports:")
    print("  " + shlex.join(["python3", EXPORT.name, "--deform", best.variant, *cfg, *args.pairs]))
