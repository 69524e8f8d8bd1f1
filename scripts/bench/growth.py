#!/usr/bin/env python3
"""Show that time grows in line with the number of pictures and that memory does not grow at all.

Runs the project's own commands, each in a process of its own, on data sets of several sizes that are made by linking a
few drawn pictures, tensors and dumps under new names. What preprocessing writes is removed as it comes,
so that 5,000 pictures need no 98 GB of disk. The runner has a narrow network and small tensors: it is the growth
that is looked at.

  python3 scripts/bench/growth.py --sizes 80,800,5000
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import onnx

from dekr_infer.cli.app import Arguments, Parser, positive_int, run
from dekr_infer.data.coco import annotation_path, load_data_set
from dekr_infer.errors import DekrError
from dekr_infer.geometry import InputSizes, Size
from dekr_infer.pose.encode import Encoding, noisy, write_dumps
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.atomic import write_json
from scripts.bench.machine import sentence
from scripts.demo.people import write_data_set

STAGES = PREPROCESS, RUNNER, POSTPROCESS = "preprocess", "runner", "postprocess"
SIZES = (80, 800, 5000)
DRAWN, SEED, SPLIT = 20, 2017, "val2017"
WEIGHTS = ROOT / "scripts/demo/weights"
NARROW = (
    *("MODEL.SPEC.STEM_CHANNELS", "4"),
    *("MODEL.SPEC.STAGES.NUM_MODULES", "[1,1,1]"),
    *("MODEL.SPEC.STAGES.NUM_BLOCKS", "[[1,1],[1,1,1],[1,1,1,1]]"),
    *("MODEL.SPEC.STAGES.NUM_CHANNELS", "[[4,8],[4,8,8],[4,8,8,8]]"),
    *("MODEL.SPEC.HEAD_OFFSET.NUM_CHANNELS_PERKPT", "2"),
    *("MODEL.SPEC.HEAD_OFFSET.NUM_BLOCKS", "1"),
)
INPUT_SIZE = Size(128, 128)  # of the runner's tensors
LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
from dekr_infer.data.coco import load_data_set
load_data_set(*sys.argv[2:])
"""
SWEEP = 0.2  # seconds between removals of what was written


@dataclass(frozen=True)
class Point:
    """What a stage cost at a size: seconds of wall time, and MiB of its largest process at its peak.

    `annotation_MiB` is what a process needs that only reads the annotation file.
    """

    stage: str
    pictures: int
    seconds: float
    peak_MiB: float
    annotation_MiB: float


def main(argv: Arguments = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--sizes", type=_sizes, default=SIZES, metavar="N,N", help="numbers of pictures")
    parser.add_argument("--only", type=_stages, default=STAGES, metavar="STAGES", help=f"of {','.join(STAGES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the points here as well")
    parser.add_argument("--work", type=Path, default=Path(), help="a folder with room (default: here)")
    args = parser.parse_args(argv)

    def work() -> None:
        args.work.mkdir(parents=True, exist_ok=True)
        print(
            f"{sentence()}\n\n"
            "| stage | pictures | seconds | ms per picture | peak memory | the annotation file alone |\n"
            "|---|--:|--:|--:|--:|--:|"
        )
        points = []
        with tempfile.TemporaryDirectory(prefix="growth-", dir=args.work) as folder:
            small = Small(Path(folder))
            for stage in args.only:
                for size in args.sizes:
                    point = small.measure(stage, size)
                    points.append(point)
                    print(
                        f"| {point.stage} | {point.pictures:,} | {point.seconds:.1f} | "
                        f"{1000 * point.seconds / point.pictures:.1f} | {point.peak_MiB:.0f} MiB | "
                        f"{point.annotation_MiB:.0f} MiB |",
                        flush=True,
                    )
        if args.json:
            write_json(args.json, [asdict(point) for point in points], indent=2)

    return run(work)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))


def _stages(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in STAGES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(STAGES)}")
    return names


class Small:
    """A few drawn pictures with their tensors and dumps, and larger data sets linked together from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "drawn"
        write_data_set(self.root, SPLIT, DRAWN, SEED)
        self.data = load_data_set(self.root, SPLIT)

    def measure(self, stage: str, size: int) -> Point:
        """Run a stage's command on so many pictures.

        Raises:
            DekrError: the command failed.
        """
        place = self.folder / f"{stage}-{size}"
        root = place / "data"
        self._enlarge(root, size, with_pictures=stage == PREPROCESS)
        words, consumed = getattr(self, f"_{stage}")(place, size)
        with _Sweeper(consumed):
            seconds, peak = measured([sys.executable, *map(str, words)], place)
        _, alone = measured([sys.executable, "-c", LOAD, ROOT, root, SPLIT], place)
        shutil.rmtree(place)
        return Point(stage, size, seconds, peak, alone)

    def _enlarge(self, root: Path, size: int, with_pictures: bool) -> None:
        """A data set of so many pictures: the drawn ones over and over, with names and ids of their own."""
        content: dict[str, Any] = {**self.data.content, "images": [], "annotations": []}
        people: dict[int, list[dict[str, Any]]] = {}
        for entry in self.data.content["annotations"]:
            people.setdefault(entry["image_id"], []).append(entry)
        sources = self.data.content["images"]
        for number in range(1, size + 1):
            image = sources[(number - 1) % len(sources)]
            content["images"].append({**image, "id": number, "file_name": f"{number:012d}.jpg"})
            for entry in people.get(image["id"], ()):
                content["annotations"].append({**entry, "image_id": number, "id": len(content["annotations"]) + 1})
        write_json(annotation_path(root, SPLIT), content)
        if with_pictures:
            (root / "images").mkdir()
            with (
                zipfile.ZipFile(self.root / "images" / f"{SPLIT}.zip") as drawn,
                zipfile.ZipFile(root / "images" / f"{SPLIT}.zip", "w") as many,
            ):
                for number in range(1, size + 1):
                    name = sources[(number - 1) % len(sources)]["file_name"]
                    many.writestr(f"{SPLIT}/{number:012d}.jpg", drawn.read(f"{SPLIT}/{name}"))

    def _link(self, source: Path, target: Path, size: int, suffixes: Sequence[str]) -> None:
        """Files of the drawn pictures, linked under the names of the many."""
        target.mkdir(parents=True)
        for number in range(1, size + 1):
            stem = self.data.pictures[(number - 1) % len(self.data.pictures)].stem
            for suffix in suffixes:
                os.link(source / f"{stem}{suffix}", target / f"{number:012d}{suffix}")

    def _preprocess(self, place: Path, size: int) -> tuple[list[object], list[Path]]:
        folders = [place / "prep", place / "prep_flip"]
        flags = ("--output", folders[0], "--output_flip", folders[1], "--workers", 2)
        return [ROOT / "DEKR_preprocess.py", *flags, "DATASET.ROOT", place / "data"], folders

    def _runner(self, place: Path, size: int) -> tuple[list[object], list[Path]]:
        source, graph = self.folder / "tensors", self.folder / "narrow.onnx"
        if not graph.is_file():
            weights = self.folder / "narrow.pth"
            random = (ROOT / "scripts/random_checkpoint.py", "--output", weights)
            measured([sys.executable, *random, "--output_rescore", self.folder / "unused.pth", *NARROW], self.folder)
            export = (ROOT / "DEKR_pth2onnx.py", "--skip_check", "--output", graph, *NARROW)
            measured([sys.executable, *export, "TEST.MODEL_FILE", weights], self.folder)
            model = onnx.load(graph)
            onnx.helper.set_model_props(model, {"input_sizes": str(InputSizes((INPUT_SIZE,)))})
            onnx.save(model, graph)
            with tensors.exclusive(source):
                for picture in self.data.pictures:
                    tensors.write(source, f"{picture.stem}.npy", np.ones((1, 3, *INPUT_SIZE)))
        self._link(source, place / "prep", size, [".npy"])
        out = ("--output", place, "--output_dirname", "out")
        words = [ROOT / "scripts/onnx_infer.py", "--model", graph, "--input", place / "prep", *out]
        return words, []

    def _postprocess(self, place: Path, size: int) -> tuple[list[object], list[Path]]:
        dumps = self.folder / "dumps"
        if not dumps.is_dir():
            write_dumps(self.data, dumps, Encoding(distort=noisy))
        for name in ("out", "out_flip"):
            self._link(dumps / name, place / name, size, ["_0.npy", "_1.npy"])
        flags = ("--dump_dir", place / "out", "--dump_dir_flip", place / "out_flip", "--output", place / "results")
        pairs = ("DATASET.ROOT", place / "data", "RESCORE.MODEL_FILE", WEIGHTS / "rescore_demo.pth")
        return [ROOT / "DEKR_postprocess.py", *flags, *pairs], []


class _Sweeper:
    """Removes the tensors that appear in some folders, as a reader that keeps up would free their room."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._sweep)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _sweep(self) -> None:
        while self.folders and not self.over.wait(SWEEP):
            for folder in self.folders:
                for file in folder.glob("*.npy"):
                    file.unlink()


def measured(words: Sequence[object], folder: Path) -> tuple[float, float]:
    """Run a command; returns its seconds and the MiB of its largest process.

    Raises:
        DekrError: it failed.
    """
    helper = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", helper, *map(str, words)], capture_output=True, text=True, cwd=folder, check=False
    )
    seconds = time.monotonic() - started
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DekrError(f"{words[1]}: {last.removeprefix('error: ')}")
    return seconds, int(done.stdout.splitlines()[-1]) / 1024  # Linux counts in KiB


if __name__ == "__main__":
    sys.exit(main())
