"""Find the people in images and videos of your own: drawings over them, and all people as JSON.

INPUT is an image of any format that OpenCV decodes, a folder with everything below it, a glob pattern, or a video.
Images are turned as their EXIF entry says; the COCO evaluation ignores that entry, as COCO's annotations do.
The drawings form the same tree below --output. The JSON holds all people, also those that score too little to be
drawn: entries of COCO's result form with file_name (and frame, in videos), or, in a .jsonl file, a line for each image.
A file that cannot be read is reported, the others are done, and the exit code is 1.

  python3 scripts/predict.py --model models/dekr_bs1.onnx --rescore models/final_rescore_coco_kpt.pth photos/
  python3 scripts/predict.py --model models/dekr_bs1.onnx --every 2 --json clip.jsonl clip.mp4
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2

from dekr_infer.backends.base import open_network
from dekr_infer.cli.app import (
    Arguments,
    Parser,
    add_devices,
    cores,
    non_negative_int,
    positive_int,
    print_note,
    run,
    worker_count,
)
from dekr_infer.cli.progress import progress
from dekr_infer.config.load import load_config, skeleton_of
from dekr_infer.config.settings import baked_config, decode_settings, refine_settings, require_fit
from dekr_infer.data.media import MediaFrame, Source, camera, find_sources, frames_of_media
from dekr_infer.detector import Detector
from dekr_infer.errors import ConfigError, DekrError, one_line
from dekr_infer.pose.rescore import load_rescore_net
from dekr_infer.storage.atomic import atomic_write
from dekr_infer.structures import People
from dekr_infer.visualization.video import require_pyav, write_video

PERSON = 1  # COCO's id of the category
KEPT_FORMATS = (".jpg", ".jpeg", ".png", ".mp4")  # of inputs; the drawings over others are JPEG or MP4
NAMED = 20  # how many inputs the last line names


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--model", "-m", type=Path, required=True, help="ONNX file, or .om for an NPU")
    parser.add_argument("--rescore", type=Path, metavar="FILE", help="checkpoint of the rescoring net")
    parser.add_argument("--cfg", metavar="FILE", help="settings of decoding, in upstream's form (default: W32 on COCO)")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder for the drawings")
    parser.add_argument("--json", type=Path, metavar="FILE", help=".json or .jsonl (default: people.json in --output)")
    parser.add_argument("--min_score", type=share, default=0.1, help="draw people from this score on")
    parser.add_argument("--min_joint_score", type=share, default=0.05, help="draw joints above this score")
    parser.add_argument("--no_overlays", action="store_true", help="write the JSON alone")
    parser.add_argument("--every", type=positive_int, default=1, metavar="N", help="of a video, every Nth frame")
    parser.add_argument("--camera", type=non_negative_int, metavar="N", help="the camera's number; Ctrl-C ends it")
    parser.add_argument("--threads", type=worker_count, default=cores(), metavar="N", help="(default: all cores)")
    parser.add_argument("--provider", help="ONNX Runtime's execution provider (default: the CPU's)")
    add_devices(parser)
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="images, folders, glob patterns, videos")
    args = parser.parse_args(argv)
    if not args.inputs and args.camera is None:
        parser.error("name images, folders or videos, or a --camera")
    target = args.json or args.output / "people.json"
    if target.suffix.lower() not in (".json", ".jsonl"):
        parser.error(f"--json {target}: its name must end in .json or .jsonl")

    def work() -> None:
        failures = Failures()
        sources = find_sources(args.inputs, failures.add, args.every, args.output)
        sources += [camera(args.camera)] if args.camera is not None else []
        if not sources:
            failures.check()
        places = {} if args.no_overlays else overlay_places(sources, args.output)
        network = open_network(args.model, args.threads, args.provider, args.device)
        baked = network.baked
        config = baked_config(load_config(args.cfg), baked, args.model)
        skeleton = skeleton_of(config)
        require_fit(config, args.model, network.input_sizes, network.joints)
        if baked is not None and args.rescore:
            inside = "holds its rescoring net" if baked.rescore_sha256 else "was exported without rescoring"
            raise ConfigError(f"--rescore {args.rescore}: {args.model} yields people and {inside}; leave --rescore out")
        detector = Detector(
            network,
            decode_settings(config),
            flip=config.TEST.FLIP_TEST,
            refine=refine_settings(config),
            rescore=load_rescore_net(args.rescore, config.RESCORE.HIDDEN_LAYER, skeleton) if args.rescore else None,
            skeleton=skeleton,
            scales=config.TEST.SCALE_FACTOR,
        )
        print_note(detector.weights)
        limits = {"min_score": args.min_score, "min_joint_score": args.min_joint_score}
        predict(detector, sources, target, places, limits, args.every, failures)
        print(f"drawings: {args.output}; all people: {target}" if places else f"all people: {target}")
        failures.check()

    return run(work)


def share(text: str) -> float:
    """Parse a score, from 0 to 1 (an argument type)."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


class Failures:
    """The inputs that could not be read, each reported at once."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def add(self, name: str, error: DekrError) -> None:
        """Report an input."""
        self.names.append(name)
        print(f"warning: {one_line(str(error))}", file=sys.stderr, flush=True)

    def check(self) -> None:
        """Raise a `DekrError` that names them, where there are any."""
        if self.names:
            more = f" and {len(self.names) - NAMED} more" if len(self.names) > NAMED else ""
            names = ", ".join(self.names[:NAMED])
            raise DekrError(f"inputs that failed: {len(self.names)}: {names}{more}; the warnings above say why")


def overlay_places(sources: Sequence[Source], output: Path) -> dict[Source, Path]:
    """Return the file for the drawings over each source.

    Raises:
        ConfigError: one would replace an input.
        DekrError: there are videos, and no PyAV.
    """
    if any(source.rate is not None for source in sources):
        require_pyav()
    inputs = {os.path.realpath(source.name) for source in sources if source.camera is None}
    places: dict[Source, Path] = {}
    taken = {source.place for source in sources}
    for source in sources:
        place = source.place
        if place.suffix.lower() not in KEPT_FORMATS:
            place = place.with_name(place.name + (".jpg" if source.rate is None else ".mp4"))
            while place in taken:  # another input has this very name
                place = place.with_name("_" + place.name)
            taken.add(place)
        places[source] = output / place
        if os.path.join(os.path.realpath(places[source].parent), place.name) in inputs:
            raise ConfigError(f"--output {output}: {places[source]} is an input; name another folder")
    return places


def predict(
    detector: Detector,
    sources: Sequence[Source],
    target: Path,
    places: Mapping[Source, Path],
    limits: Mapping[str, float],
    every: int,
    failures: Failures,
) -> None:
    """Find the people of all sources; write the drawings and the JSON.

    Args:
        detector: to find them.
        sources: of `find_sources` and `camera`.
        target: the JSON file.
        places: of `overlay_places`; sources without one are not drawn.
        limits: `min_score` and `min_joint_score` of `People.draw`.
        every: of a video, take one frame of this many.
        failures: takes what cannot be read.
    Raises:
        DekrError: something cannot be written, or the network's outputs are not usable.
    """
    started, stop, images, found = time.monotonic(), threading.Event(), 0, 0
    counts = [source.frames for source in sources]
    total = None if None in counts else sum(filter(None, counts))
    with contextlib.ExitStack() as stack:
        if any(source.camera is not None for source in sources):
            stack.enter_context(_ctrl_c(stop))
        add = stack.enter_context(write_people(target))
        advance = stack.enter_context(progress("predict", total))
        frames = frames_of_media(sources, detector.backend.input_sizes, failures.add, every, stop.is_set)
        workers = getattr(detector.backend, "passes_at_once", 1) + 1  # one decodes, draws and writes
        for source, group in groupby(detector.stream(frames, workers), lambda pair: pair[0].source):
            with _drawing(places.get(source), source, limits, every) as draw:
                for frame, people in group:
                    add(frame, people)
                    draw(frame, people)
                    advance(1)
                    images, found = images + 1, found + len(people)
    print(f"{images} images, {found} people, in {time.monotonic() - started:.1f} s")


@contextlib.contextmanager
def _ctrl_c(stop: threading.Event) -> Iterator[None]:
    """End a camera's frames on Ctrl-C: what has been recorded is finished."""
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


Sink = Callable[[MediaFrame, People], None]


@contextlib.contextmanager
def write_people(path: Path) -> Iterator[Sink]:
    """Yield a function that adds a frame's people to a JSON or JSON lines file, written whole or not at all."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        lines = path.suffix.lower() == ".jsonl"
        between = "["

        def add(frame: MediaFrame, people: People) -> None:
            nonlocal between
            assert frame.image_id is not None
            names: dict[str, Any] = {"file_name": frame.file_name}
            names |= {} if frame.number is None else {"frame": frame.number}
            entries = people.to_coco(frame.image_id, PERSON)
            if lines:
                h, w = frame.placement.image
                image = {"image_id": frame.image_id, **names, "height": h, "width": w, "people": entries}
                file.write(json.dumps(image, allow_nan=False) + "\n")
                return
            for entry in entries:
                file.write(between + json.dumps(entry | names, allow_nan=False))
                between = ",\n"

        yield add
        if not lines:
            file.write(f"{'[' if between == '[' else ''}]\n")


@contextlib.contextmanager
def _drawing(path: Path | None, source: Source, limits: Mapping[str, float], every: int) -> Iterator[Sink]:
    """Yield a function that draws a frame's people: into an image file, into a video, or nowhere."""
    if path is None:
        yield lambda frame, people: None
    elif source.rate is not None:
        with write_video(path, source.rate, every) as add:
            yield lambda frame, people: add(people.draw(frame.read(), **limits), frame.number or 0)
    else:

        def draw(frame: MediaFrame, people: People) -> None:
            _, data = cv2.imencode(path.suffix, people.draw(frame.read(), **limits))
            with atomic_write(path) as temporary:
                temporary.write_bytes(data.tobytes())

        yield draw
