#!/usr/bin/env python3
"""Notice when a stage has become slow: ratios to the reference's way on small work, with generous limits.

No absolute time is looked at, so a slow or busy machine passes as well as a fast one. Takes well under a minute and
needs nothing but the packages of the tests. Ends with exit code 1 when a ratio is beyond its limit.

  python3 scripts/bench/guard.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import torch

from dekr_infer.backends.onnxruntime import open_network
from dekr_infer.cli import export as export_command
from dekr_infer.cli.app import Arguments, Parser, run
from dekr_infer.cli.postprocess import settings_of
from dekr_infer.config.load import load_config
from dekr_infer.data.coco import DataSet, PictureFiles, load_data_set, picture_source
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.evaluate import process
from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.model.checkpoint import load_network
from dekr_infer.model.head import build_network
from dekr_infer.pose import preprocess
from dekr_infer.pose.encode import Encoding, noisy, write_dumps
from scripts.bench import plain
from scripts.bench.quietly import quietly
from scripts.demo.people import write_data_set

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "scripts/demo/weights"
CONFIG = str(ROOT / "dekr_infer/config/demo.yaml")
PICTURES, SEED, SPLIT, ROUNDS = 4, 2017, "val2017", 5
INPUT_SIZE = Size(256, 256)


@dataclass(frozen=True)
class Check:
    """How many times faster than the reference's way a stage must be, by processor time on one thread."""

    stage: str
    least: float
    ours: Callable[[], object]
    reference: Callable[[], object]

    def ratio(self) -> float:
        """The shortest times of some rounds against each other, the ways taking turns."""
        rounds = [(_seconds(self.reference), _seconds(self.ours)) for _ in range(ROUNDS)]
        reference, ours = map(min, zip(*rounds, strict=True))
        return reference / ours


def _seconds(way: Callable[[], object]) -> float:
    started = time.thread_time()  # other threads would only spin while they wait
    way()
    return time.thread_time() - started


def main(argv: Arguments = None) -> int:
    """The command; returns its exit code."""
    Parser(__doc__).parse_args(argv)

    def work() -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        slow = []
        with tempfile.TemporaryDirectory() as folder:
            for check in checks(Path(folder)):
                ratio = check.ratio()
                print(f"{check.stage}: {ratio:.1f} times faster than the reference's way (at least {check.least:g})")
                slow += [check.stage] * (ratio < check.least)
        if slow:
            raise DekrError(f"slower than it should be: {', '.join(slow)}; find out why with scripts/bench/run.py")

    return run(work)


def checks(folder: Path) -> list[Check]:
    """What is looked at, on a few drawn pictures and the demo network."""
    write_data_set(folder / "data", SPLIT, PICTURES, SEED)
    data = load_data_set(folder / "data", SPLIT)
    return [_preprocessing(data), _forward(folder), _postprocessing(data, folder)]


def _preprocessing(data: DataSet) -> Check:
    files = PictureFiles(picture_source(data.annotation.parents[1], SPLIT), SPLIT)
    encoded = [(files.read(picture.file_name), picture) for picture in data.pictures]

    def ours() -> None:
        for content, picture in encoded:
            warped = preprocess.warp(
                preprocess.decode(content, picture.file_name), PUBLISHED_SIZES.place(picture.size).input
            )
            preprocess.normalise(warped)
            preprocess.normalise(preprocess.mirror(warped))

    def reference() -> None:
        for content, picture in encoded:
            plain.tensors_of(content, picture)

    return Check("preprocessing", 1.0, ours, reference)


def _forward(folder: Path) -> Check:
    config = load_config(CONFIG, ())
    checkpoint, graph = WEIGHTS / "pose_dekr_demo.pth", folder / "demo.onnx"
    network = build_network(config)
    load_network(network, checkpoint)
    flags = ("--skip_check", "--threads", 1, "--output", graph, "--cfg", CONFIG)
    quietly(export_command.main, *flags, "TEST.MODEL_FILE", checkpoint)
    runner = open_network(graph, 1)
    image = preprocess.normalise(np.random.default_rng(0).integers(0, 256, (*INPUT_SIZE, 3), np.uint8))

    def reference() -> None:
        with torch.inference_mode():
            network(torch.from_numpy(image))

    return Check("forward", 1.5, lambda: runner.run(image), reference)


def _postprocessing(data: DataSet, folder: Path) -> Check:
    rescore = WEIGHTS / "rescore_demo.pth"
    settings = settings_of(load_config(CONFIG, ["RESCORE.MODEL_FILE", str(rescore), "TEST.MATCH_HMP", "False"]))
    dumps = write_dumps(data, folder / "dumps", Encoding(distort=noisy))
    return Check(
        "postprocessing",
        3,
        lambda: process(data, data.pictures, dumps, settings),
        lambda: plain.find_people(data.pictures, dumps, settings.decode, rescore),
    )


if __name__ == "__main__":
    sys.exit(main())
