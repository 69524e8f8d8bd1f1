r"""From COCO's images to AP in one process: decode, warp, run the graph, find people, evaluate; no tensor on the disk.

Decoding of images and of poses overlaps with the graph's passes. All that is written on the way are shards of people,
<output>/<run>/shard-000000.jsonl and so on. An interrupted run resumes there; a new graph or setting needs a new --run.
The results, metrics and both JSON files are those of the three steps (preprocess, onnx_infer, postprocess).

Several processes or hosts with a common disk share the work: each runs the same command with --shard i/n, i from 0 to
n - 1, and at the end one runs it with --merge. Or one command spreads the work over a Ray cluster: --engine ray, with
--threads for each worker; all nodes see the files at the same paths.

  python3 scripts/evaluate.py --model models/dekr_bs1.onnx RESCORE.MODEL_FILE models/final_rescore_coco_kpt.pth
  python3 scripts/evaluate.py --model models/dekr_bs1.onnx --limit 100 --run quick DATASET.ROOT data/coco
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm
from yacs.config import CfgNode

import dekr_infer
from dekr_infer.backends.base import NPU_SUFFIX, open_network
from dekr_infer.cli.app import (
    Arguments,
    Parser,
    add_category,
    add_config,
    add_devices,
    add_report,
    config_of,
    cores,
    positive_int,
    run,
    share_of_one,
    worker_count,
)
from dekr_infer.cli.data_set import data_set_of, image_files_of
from dekr_infer.cli.postprocess import write_evaluation
from dekr_infer.cli.precision import add_precision, rounding_of
from dekr_infer.cli.progress import duration, progress
from dekr_infer.config.settings import (
    baked_config,
    decode_settings,
    influences,
    refine_settings,
    require_fit,
    rescore_net,
)
from dekr_infer.data.sources import ImageFiles, frames_of
from dekr_infer.detector import Detector
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.evaluation.coco_metrics import coco_metrics
from dekr_infer.evaluation.evaluate import Found, assess, entries_of, find_people
from dekr_infer.evaluation.metrics_file import TOLERANCE
from dekr_infer.evaluation.ray_engine import find_people_on_ray
from dekr_infer.evaluation.shards import IMAGES, PEOPLE_BYTES, Shards
from dekr_infer.geometry import cells
from dekr_infer.pose.preprocess import moves_pixels
from dekr_infer.storage.atomic import folder_lock, sha256
from dekr_infer.structures import Frame, output_shapes

FIRST = 8  # images after which the time needed is estimated
HELPERS = 2  # threads that decode images and poses while the others run the graph


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    args = parse(argv)
    return run(lambda: Evaluation(config_of(args), args).evaluate())


def parse(argv: Arguments) -> Namespace:
    """Return the options of a command line."""
    parser = Parser(__doc__)
    parser.add_argument("--model", "-m", type=Path, required=True, help="ONNX file, or .om for an NPU")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for all results")
    parser.add_argument("--run", metavar="NAME", help="folder of the shards below --output (default: the graph's name)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N images")
    parser.add_argument("--allow_missing", action="store_true", help="evaluate the images that are there")
    parser.add_argument("--expect", type=share_of_one, metavar="AP", help="fail if AP is another one")
    parser.add_argument(
        "--tolerance",
        type=share_of_one,
        default=TOLERANCE,
        metavar="T",
        help="for --expect, both ways",
    )
    shares = parser.add_mutually_exclusive_group()
    shares.add_argument("--shard", type=_share, default=(0, 1), metavar="i/n", help="do the share i, from 0, of n")
    shares.add_argument("--merge", action="store_true", help="evaluate what all shares have written")
    parser.add_argument("--shard_images", type=positive_int, default=IMAGES, metavar="N", help="images of a shard")
    parser.add_argument(
        "--report_every", type=positive_int, default=500, metavar="N", help="images from one AP to the next"
    )
    parser.add_argument("--threads", type=worker_count, default=cores(), metavar="N", help="(default: all cores)")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="what runs it")
    parser.add_argument("--provider", metavar="NAME", help="ONNX Runtime's execution provider (default: the CPU's)")
    add_devices(parser)
    add_precision(parser)
    add_report(parser)
    add_category(parser)
    add_config(parser)
    args = parser.parse_args(argv)
    if args.expect is not None and args.shard[1] > 1:
        parser.error("--expect needs all shares: give it with --merge")
    if args.engine == "ray" and args.model.suffix == NPU_SUFFIX:
        parser.error(f"--engine ray: {args.model} runs on NPUs; name several with --device")
    return args


def _share(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text} is not i/n with i from 0 to n - 1, for example 0/3")
    return int(match[1]), int(match[2])


class _Work:
    """What a run evaluates: the data set's images, and the detector."""

    def __init__(self, config: CfgNode, args: Namespace) -> None:
        self.data = data_set_of(config, args.category)
        self.data.check_annotations()
        self.files = files = image_files_of(config)
        names = [image.file_name for image in self.data.images[: args.limit]]
        absent = files.check_present(names, args.allow_missing)
        self.network = open_network(args.model, args.threads, args.provider, args.device, rounding_of(args))
        require_fit(config, args.model, self.network.input_sizes, self.network.joints)
        baked = self.network.baked
        self.config = config = baked_config(config, baked, args.model)
        self.baked_rescore = baked.rescore_sha256 if baked else None
        rescored = config.RESCORE.VALID and not self.baked_rescore
        self.detector = Detector(
            self.network,
            decode_settings(config),
            flip=config.TEST.FLIP_TEST,
            refine=refine_settings(config),
            rescore=rescore_net(config) if rescored else None,
            skeleton=self.data.skeleton,
            scales=config.TEST.SCALE_FACTOR,
        )
        frames = frames_of(self.data, self.network.input_sizes, files)[: args.limit]
        self.frames = [frame for frame in frames if frame.file_name not in absent]


def worker_of(config: CfgNode, args: Namespace) -> tuple[Detector, dict[str, Frame]]:
    """Return what a worker on another node needs; see `find_people_on_ray`."""
    work = _Work(config, args)
    return work.detector, {frame.key: frame for frame in work.frames}


class Evaluation(_Work):
    """One run of the command: what it evaluates, and the shards that it fills."""

    def __init__(self, config: CfgNode, args: Namespace) -> None:
        self.started, self.args, self.asked = time.monotonic(), args, config
        name = args.run or args.model.stem
        if Path(name).name != name or name == "..":
            raise ConfigError(f"--run {name}: it must be the name of a folder below --output")
        self.folder: Path = args.output / name
        super().__init__(config, args)
        rescore = self.config.RESCORE.MODEL_FILE if self.detector.rescore else None
        settings = influences(self.config) | {
            "annotations": sha256(self.data.annotation),
            "category": self.data.category.id if self.data.category else None,
            "graph": self.network.sha256,
            "rescore": sha256(Path(rescore)) if rescore else self.baked_rescore,
            "provider": self.network.provider,
            "onnxruntime": self.network.versions.get("onnxruntime"),
            "opencv": cv2.__version__,
        }
        settings |= {"precision": self.network.precision} if self.network.precision else {}
        about = {"dekr_infer": dekr_infer.__version__, "numpy": np.__version__}
        prints, skeleton = _print_of(self.files), self.detector.skeleton
        self.shards = Shards(self.folder, settings, about, args.shard_images, self.data, self.frames, prints, skeleton)

    def evaluate(self) -> None:
        """Find the people of this run's share, then evaluate those of all shares.

        Raises:
            DekrError: see `Shards`; images cannot be read, shares are missing, or AP is not the expected one.
        """
        args, (share, shares) = self.args, self.args.shard
        self._announce()
        began = time.monotonic()
        if not args.merge:
            with folder_lock(self.folder / f"share-{share}-of-{shares}", create=False):
                self._find(self.shards.waiting(share, shares))
        seconds = time.monotonic() - began
        own = [frame for frame in self.frames if self.shards.shard[frame.key] % shares == share]
        if shares > 1:
            print(f"share {share}/{shares}: {len(own)} images done; when all shares are, run this with --merge")
        else:
            self._require_all()
            metrics = self._conclude(seconds)
        self._refuse_unreadable(own)
        if args.expect is not None and self.data.people is None:
            raise DekrError(f"{self.data.annotation}: has no annotations, so there is no AP to expect")
        if args.expect is not None and abs(metrics["AP"] - args.expect) > args.tolerance:
            raise DekrError(f"AP is {metrics['AP']:.4f}, expected {args.expect} within {args.tolerance}")

    def _announce(self) -> None:
        """Print what there is to do, and what it needs on the disk."""
        passes = (1 + self.detector.flip) * len(self.detector.scales)
        sizes = Counter(frame.placement.input for frame in self.frames)
        values = sum(
            count * (3 * size.h * size.w + sum(map(np.prod, output_shapes(self.network.joints, cells(size)))))
            for size, count in sizes.items()
        )
        most = len(self.frames) * self.detector.settings.max_people * PEOPLE_BYTES
        total = len(self.frames)
        print(
            f"{total} images, {total - len(self.shards.waiting())} of them done before, {passes * total} passes ("
            f"{', '.join(f'{size}: {count}' for size, count in sizes.items())}) -> {self.folder}; at most "
            f"{_bytes(most)} on the disk, the three steps write {_bytes(4 * passes * int(values))}",
            flush=True,
        )

    def _find(self, waiting: Sequence[Frame]) -> None:
        """Find the people of some images; write each shard when its last image is done."""
        shards, began = self.shards, time.monotonic()
        left = Counter(shards.shard[frame.key] for frame in waiting)
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # the graph has the cores
        try:
            stream = self._stream(waiting)
            with progress("evaluate", len(waiting)) as advance, closing(stream):
                for done, (frame, found) in enumerate(stream, 1):
                    shards.found[frame.key] = found
                    left[shards.shard[frame.key]] -= 1
                    if not left[shards.shard[frame.key]]:
                        shards.write(shards.shard[frame.key])
                    advance(1)
                    if done < len(waiting) and (done == FIRST or done % self.args.report_every == 0):
                        pace = (time.monotonic() - began) / done
                        judged = self.data.people is not None and done % self.args.report_every == 0
                        so_far = f"; AP {self._running_ap():.3f} so far" if judged else ""
                        line = f"{pace:.2f} s an image, about {duration(pace * (len(waiting) - done))} left{so_far}"
                        tqdm.write(f"evaluate: {done} of {len(waiting)} images, {line}", file=sys.stderr)
        finally:
            cv2.setNumThreads(threads)

    def _stream(self, waiting: Sequence[Frame]) -> Generator[tuple[Frame, Found], None, None]:
        if self.args.engine == "ray":
            make = partial(worker_of, self.asked, self.args)
            return find_people_on_ray(make, waiting, self.args.threads, self.detector.skeleton)
        workers = self.network.passes_at_once + HELPERS
        return find_people(self.detector, waiting, workers, keep_unreadable=True)

    def _running_ap(self) -> float:
        done = self._readable()
        ids = {found.image_id for found in done}
        seen = replace(
            self.data,
            images=tuple(image for image in self.data.images if image.id in ids),
            people=tuple(person for person in self.data.ground_truth() if person.image_id in ids),
        )
        return coco_metrics(seen, [entry for found in done for entry in entries_of(self.data, found)], list(ids))["AP"]

    def _readable(self) -> list[Found]:
        """Return what was found in the images that are done and could be read, in the data set's order."""
        found = (self.shards.found.get(frame.key) for frame in self.frames)
        return [one for one in found if one is not None and one.error is None]

    def _require_all(self) -> None:
        missing = [frame for frame in self.frames if frame.key not in self.shards.found]
        if missing:
            numbers = sorted({self.shards.shard[frame.key] for frame in missing})
            raise DekrError(
                f"{self.folder}: {len(missing)} of {len(self.frames)} images are not done, the first is "
                f"{missing[0].name}; {len(numbers)} shards are missing or not whole: "
                f"{', '.join(map(str, numbers[:10]))}{', ...' if len(numbers) > 10 else ''}; "
                "run the shares --shard i/n that have not ended"
            )

    def _conclude(self, seconds: float) -> dict[str, float]:
        """Write the results and metrics.json and print the metrics; return them."""
        found = self._readable()
        evaluation = assess(self.data, found, seconds, self.detector.skeleton)
        times = [value for one in found for value in one.milliseconds]
        origin: dict[str, Any] = {
            "graph": self.network.sha256,
            "checkpoint": self.network.checkpoint_sha256,
            "weights": self.network.weights,
            "precision": self.network.precision,
            "versions": self.network.versions,
            "tensors": None,
            "record": {"opencv": [cv2.__version__], "moved_pixels": moves_pixels()},
        }
        with folder_lock(self.args.output, create=False):
            known = [origin] * (1 + self.detector.flip)
            metrics = write_evaluation(
                self.config, self.data, evaluation, known, self.args.output, self.started, self.baked_rescore
            )
        if self.args.report is not None:
            from dekr_infer.cli.report import write_run_report

            write_run_report(
                self.args.report,
                self.config,
                self.data,
                evaluation.results,
                evaluation.evaluated,
                run=metrics,
                expected=self.args.expect,
                tolerance=self.args.tolerance,
                times={one.image_id: one.milliseconds for one in found},
                input_sizes=self.network.input_sizes,
            )
        if times:
            print(f"a pass takes {np.mean(times):.1f} ms (median {np.median(times):.1f})")
        return evaluation.metrics

    def _refuse_unreadable(self, frames: Sequence[Frame]) -> None:
        """Print the images that could not be read, and raise a `DekrError` if there are any."""
        failed = [(frame, self.shards.found[frame.key].error) for frame in frames]
        failed = [(frame, error) for frame, error in failed if error is not None]
        for _, error in failed:
            print(f"warning: {error}", file=sys.stderr)
        if failed:
            raise DekrError(
                f"{len(failed)} of {len(frames)} images could not be read, the first is {failed[0][0].name}; the "
                "metrics are of the others; put them right and run the same command again"
            )


def _print_of(files: ImageFiles) -> Callable[[Frame], str]:
    """Return a function from a frame to the fingerprint of its image; empty where the image cannot be read."""

    def fingerprint(frame: Frame) -> str:
        try:
            return files.fingerprint(frame.file_name)
        except DekrError:
            return ""

    return fingerprint


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
