"""Try the export variants of a checkpoint on this host's NPU, and rank them by the time of one pass. Experimental.

Each variant is exported, checked, converted, and timed at every input size with a sample image; its outputs are
compared with ONNX Runtime's on the CPU. A variant that fails, or differs by more than float16 explains, is reported and
not ranked. Finished steps are noted in the work folder and not repeated until their inputs change.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

import dekr_infer
from dekr_infer.ascend import atc
from dekr_infer.ascend.ais_bench import PUBLISHED, Job, run_pass
from dekr_infer.ascend.ais_bench_frontend import Frontend, find_frontend
from dekr_infer.ascend.soc_version import chip_name
from dekr_infer.ascend.tuning_report import Outcome, Shares, as_json, ranked, shares_of, table
from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.config.load import skeleton_of
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.export.parity import SEED, Difference, difference_of, sample_image
from dekr_infer.export.variants import SEPARATE
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size
from dekr_infer.pose.preprocess import normalise
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.atomic import folder_lock, scratch_folder, sha256, write_json
from dekr_infer.storage.run_record import Head, RunRecord
from dekr_infer.structures import output_files

LOOP = 50  # timed passes per input size
STEM = "image"  # of the sample image's tensor
# What atc's float16 may cost, as shares of the largest value. In torch, with everything but the taps' positions in
# float16, W32 with random weights moved by 2.5 % (heatmap) and 3.0 % (offset), the demo network by 0.6 % and 1.0 %;
# channels, taps or corners in a wrong order move them by tens of per cent.
HEAT_SHARE, OFFSET_SHARE = 0.1, 0.1


@dataclass(frozen=True)
class Tuning:
    """What all variants have in common.

    Args:
        words: --cfg and the KEY VALUE pairs, as the user wrote them.
        work: the folder of graphs and models; `scratch` is an empty folder in it.
        device: the number by which ais_bench opens the chip.
        loop: timed passes per input size.
        precision_mode, cache, extra: of the conversion; see `atc.convert`.
        threads: for torch and ONNX Runtime.
    """

    config: CfgNode
    words: Sequence[str]
    work: Path
    scratch: Path
    frontend: Frontend
    chip: str
    device: int
    loop: int
    precision_mode: str | None
    cache: str | None
    extra: Sequence[str]
    threads: int
    input_sizes: InputSizes

    def graph(self, variant: str) -> Path:
        """Return the place of a variant's ONNX file."""
        return self.work / f"dekr_{variant}.onnx"

    def model(self, variant: str) -> Path:
        """Return the place of a variant's model for the NPU."""
        return self.graph(variant).with_suffix(atc.SUFFIX)

    def export(self, variant: str) -> None:
        """Export the checkpoint."""
        from dekr_infer.model.head import build_network  # needs torch, which no other step does

        print(f"exporting {self.graph(variant)}; its parity with torch is checked", flush=True)
        checkpoint = Path(self.config.TEST.MODEL_FILE)
        network = build_network(self.config)
        dekr_infer.export_onnx(
            network,
            checkpoint,
            self.graph(variant),
            deform=variant,
            input_sizes=self.input_sizes,
            skeleton=skeleton_of(self.config),
            threads=self.threads,
        )

    def convert(self, variant: str) -> None:
        """Convert the exported graph."""
        atc.convert(
            self.graph(variant),
            self.model(variant),
            chip=self.chip,
            precision_mode=self.precision_mode,
            cache=self.cache,
            extra=self.extra,
        )

    def time(self, variant: str) -> dict[str, Any]:
        """Return the milliseconds of a pass and the differences from the CPU at every input size, as values of JSON."""
        rng = np.random.default_rng(SEED)
        network = OnnxRuntime(self.graph(variant), self.threads)
        found = {}
        for input_size in self.input_sizes:
            image = normalise(sample_image(rng, input_size))
            milliseconds, outputs = self._timed(variant, input_size, image)
            difference = difference_of(input_size, network.run(image)[:2], outputs)
            found[str(input_size)] = {"milliseconds": milliseconds, "difference": difference[1:]}
        return found

    def _timed(self, variant: str, input_size: Size, image: np.ndarray) -> tuple[float, list[np.ndarray]]:
        """Return the median time of a pass, in milliseconds, and the outputs, from one run of ais_bench."""
        source, folder = (self.scratch / f"{name}_{variant}_{input_size}" for name in ("in", "out"))
        source.mkdir(mode=0o750)
        np.save(source / f"{STEM}.npy", image)
        job = Job.of(self.model(variant), self.device, source, folder)
        job.check(self.frontend)
        times = run_pass(self.frontend, job, ["--loop", str(self.loop)]).npu_compute_time_list
        if len(times) != self.loop:
            raise DekrError(f"ais_bench reports {len(times)} passes at {input_size} instead of {self.loop}")
        outputs = [
            np.array(tensors.read_unchecked(folder / name, tensors.OUTPUTS), np.float32) for name in output_files(STEM)
        ]
        if not all(np.isfinite(values).all() for values in outputs):
            raise DekrError(
                f"NaN or infinite outputs at {input_size}: float16 does not suffice; try another --precision_mode"
            )
        return statistics.median(times), outputs

    def attempt(self, variant: str, record: RunRecord, made_by: dict[str, Any], heat: float, offset: float) -> Outcome:
        """Do all steps of a variant; a failure is its outcome.

        Args:
            variant: one of `VARIANTS`.
            record: of the finished steps.
            made_by: what the export depends on.
            heat: the largest difference of the heatmap allowed, as a share of its largest value.
            offset: the same of the offset.
        """
        graph, model = self.graph(variant), self.model(variant)
        try:
            record.step(f"{variant}: export", made_by, lambda: self.export(variant), graph)
            options = [self.chip, self.precision_mode, self.cache, list(self.extra), str(atc.find_atc().resolve())]
            converted_by = {"graph": sha256(graph), "options": options}
            record.step(f"{variant}: convert", converted_by, lambda: self.convert(variant), model)
            timed_by = {"model": sha256(model), "device": self.device, "loop": self.loop}
            found = record.step(f"{variant}: time", timed_by, lambda: self.time(variant))
        except ConfigError:
            raise
        except DekrError as error:
            return Outcome(variant, {}, problem=" ".join(str(error).split()))
        times = {size: found[str(size)]["milliseconds"] for size in self.input_sizes}
        differences = [Difference(size, *found[str(size)]["difference"]) for size in self.input_sizes]
        wrong = [difference for difference in differences if not agrees(difference, heat, offset)]
        problem = f"its outputs differ from the CPU's at {', '.join(str(d.input_size) for d in wrong)}" if wrong else ""
        return Outcome(variant, times, differences, problem)


def agrees(difference: Difference, heat: float, offset: float) -> bool:
    """Return whether both differences are within their tolerances, which are shares of the largest value."""
    return difference.heat_share <= heat and difference.offset_share <= offset


def tune(
    config: CfgNode,
    variants: Sequence[str],
    work: Path,
    *,
    words: Sequence[str] = (),
    root: Path | None = None,
    chip: str | None = None,
    device: int | None = None,
    loop: int = LOOP,
    heat_tolerance: float = HEAT_SHARE,
    offset_tolerance: float = OFFSET_SHARE,
    precision_mode: str | None = None,
    cache: str | None = "enable",
    extra: Sequence[str] = (),
    threads: int = 1,
    input_sizes: InputSizes = PUBLISHED_SIZES,
) -> None:
    """Try every variant in turn, print the ranking, and write it to `tune.json` in the work folder.

    Args:
        config: names the checkpoint.
        variants: of `VARIANTS`.
        work: folder for everything that is made.
        words: the configuration as typed, for the command that is printed.
        root: weight the input sizes as in this data set; by default as in a sample of COCO.
        chip: see `chip_name`.
        device: the model runs on this device, by default on 0.
        loop: timed passes per input size.
        heat_tolerance: largest difference of the heatmap from the CPU, as a share of its largest value.
        offset_tolerance: the same of the offset.
        precision_mode: see `convert`.
        cache: see `convert`.
        extra: further words for atc.
        threads: of ONNX Runtime.
        input_sizes: those that are timed.
    Raises:
        DekrError: something that all variants need is missing, or no variant could be ranked.
        ConfigError: the configuration names no checkpoint.
    """
    if not config.TEST.MODEL_FILE:
        raise ConfigError("no checkpoint is named; add TEST.MODEL_FILE models/pose_dekr_hrnetw32_coco.pth")
    made_by = {
        "checkpoint": sha256(Path(config.TEST.MODEL_FILE)),
        "network": config.MODEL.dump(),
        "version": dekr_infer.__version__,
    }
    shares = shares_of(root, input_sizes)
    atc.find_atc()
    chip = chip_name(chip, device)
    frontend = find_frontend()
    frontend.check_output(work)
    with (
        folder_lock(work),
        scratch_folder(work, "unfinished") as scratch,
        RunRecord(work / "steps_record.jsonl", Head("steps")) as record,
    ):
        conversion = (precision_mode, cache, extra)
        tuning = Tuning(
            config, words, work, scratch, frontend, chip, device or 0, loop, *conversion, threads, input_sizes
        )
        outcomes = []
        for variant in variants:
            outcomes.append(tuning.attempt(variant, record, made_by, heat_tolerance, offset_tolerance))
            if outcomes[-1].problem:
                print(f"warning: {variant}: {outcomes[-1].problem}", file=sys.stderr, flush=True)
        order = ranked(outcomes, shares)
        written = {
            "chip": chip,
            "loop": loop,
            "allowed_shares": {"heat": heat_tolerance, "offset": offset_tolerance},
            "sizes": {"source": shares.source, "counts": {str(size): n for size, n in shares.counts.items()}},
            "variants": as_json(order, shares),
        }
        write_json(work / "tune.json", written, indent=1)
    _print_ranking(order, shares, tuning)
    if order[0].problem:
        raise DekrError("no variant could be ranked; the table above gives the reason for each")


def _print_ranking(order: Sequence[Outcome], shares: Shares, tuning: Tuning) -> None:
    print(f"\nmilliseconds on the device for one pass of one image (median of {tuning.loop}); no files, no copies")
    for line in table(order, shares):
        print(line)
    print(f"all: {shares.line()} ({shares.source})")
    print(f"heatmap, offset: largest differences from ONNX Runtime on the CPU; published: {PUBLISHED} passes/s (310P3)")
    print(f"all values: {tuning.work / 'tune.json'}")
    best = order[0]
    if best.problem:
        return
    published = next((outcome for outcome in order if outcome.variant == SEPARATE and outcome.milliseconds), best)
    ratio = shares.mean(published.milliseconds) / shares.mean(best.milliseconds)
    faster = f", {ratio:.2f} times as fast as {SEPARATE}" if published is not best else ""
    print(f"fastest here: {best.variant}{faster}. To use it:")
    print("  " + shlex.join(["bash", "scripts/ais_bench.sh", str(tuning.model(best.variant))]))
    print("To export it:")
    print("  " + shlex.join(["python3", "DEKR_pth2onnx.py", "--deform", best.variant, *tuning.words]))
