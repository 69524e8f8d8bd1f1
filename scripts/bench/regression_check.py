"""Check that no stage has become slow: ratios to the reference's way on small work, with generous limits.

Absolute times do not matter, so a slow or busy machine passes as well as a fast one. Takes well under a minute. Exits
with code 1 when a ratio is below its limit.

  python3 scripts/bench/regression_check.py
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as of torch and OpenCV below; numpy reads it when it is imported

ROOT = Path(__file__).resolve().parents[2]
if __package__ in (None, ""):  # run as a script: the repository is not on the path yet
    sys.path.insert(0, str(ROOT))

import cv2
import numpy as np
import torch

from dekr_infer.cli.app import Arguments, Parser, run
from dekr_infer.config.load import load_config
from dekr_infer.data.coco import DataSet, load_data_set
from dekr_infer.data.images import decode_image
from dekr_infer.data.sources import ImageFiles, image_source
from dekr_infer.errors import DekrError
from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.model.checkpoint import load_network
from dekr_infer.model.head import build_network
from dekr_infer.pose.encode import Encoding, noisy, write_dumps
from dekr_infer.pose.preprocess import mirror, normalise, warp
from scripts.bench import forward, postprocessing, reference_impl
from scripts.bench.timing import OURS, REFERENCE, Ways
from scripts.demo.people import write_data_set

WEIGHTS = ROOT / "scripts/demo/weights"
IMAGES, SEED, SPLIT, ROUNDS = 4, 2017, "val2017", 15
LEAST = {"preprocessing": 1.0, "forward": 1.5, "postprocessing": 3.0}  # times faster than the reference's way


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    Parser(__doc__).parse_args(argv)

    def work() -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        with tempfile.TemporaryDirectory() as folder:
            check(small_work(Path(folder)))

    return run(work)


def small_work(folder: Path) -> dict[str, Ways]:
    """Return our and the reference's way of each stage, on a few drawn images and the demo network."""
    write_data_set(folder / "data", SPLIT, IMAGES, SEED)
    data = load_data_set(folder / "data", SPLIT)
    config = load_config("demo", ["RESCORE.MODEL_FILE", str(WEIGHTS / "rescore_demo.pth")])
    network = build_network(config)
    load_network(network, WEIGHTS / "pose_dekr_demo.pth")
    outputs = write_dumps(data, folder / "outputs", Encoding(distort=noisy))
    return {
        "preprocessing": _preprocessing(data),
        "forward": forward.ways_of(network, threads=1)(Size(256, 256)),
        "postprocessing": postprocessing.ways_of(data, outputs, config),
    }


def _preprocessing(data: DataSet) -> Ways:
    files = ImageFiles(image_source(data.annotation.parents[1], SPLIT))
    encoded = [(files.read(image.file_name), image) for image in data.images]
    buffers = {size: np.empty((1, 3, *size), np.float32) for size in PUBLISHED_SIZES}  # as each worker has them

    def ours() -> None:
        for content, image in encoded:
            pixels = decode_image(content, image.file_name, image.size)
            input_size = PUBLISHED_SIZES.place(image.size).input
            warped = warp(pixels, input_size)
            normalise(warped, buffers[input_size])
            normalise(mirror(warped), buffers[input_size])

    def reference() -> None:
        for content, image in encoded:
            reference_impl.tensors_of(content, image)

    return {OURS: ours, REFERENCE: reference}


def check(stages: Mapping[str, Ways], least: Mapping[str, float] = LEAST) -> None:
    """Print for each stage how many times faster than the reference's way ours is.

    Raises:
        DekrError: a stage is slower than `least` allows.
    """
    slow = []
    for stage, ways in stages.items():
        rounds = [(_seconds(ways[REFERENCE]), _seconds(ways[OURS])) for _ in range(ROUNDS)]
        reference, ours = map(min, zip(*rounds, strict=True))
        print(f"{stage}: {reference / ours:.1f} times faster than the reference's way (at least {least[stage]:g})")
        slow += [stage] * (reference / ours < least[stage])
    if slow:
        raise DekrError(f"slower than the limit: {', '.join(slow)}; measure the parts with scripts/bench/run.py")


def _seconds(way: Callable[[], object]) -> float:
    started = time.process_time()  # the processor time of all threads, so that a busy machine counts for little
    way()
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(main())
