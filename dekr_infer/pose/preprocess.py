"""Pictures -> network tensors: decode, warp into the input size, normalise, mirror; over all cores, to files.

A worker holds one picture and two tensors at a time, so memory does not grow with the data set.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path

import cv2
import numpy as np

from dekr_infer.data.coco import DataSet, ImageEntry
from dekr_infer.data.sources import ImageFiles
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.provenance import Making, refuse_others, write_records
from dekr_infer.geometry import FLIP_SHIFT, PUBLISHED_SIZES, Placement, Size
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.atomic import write_failure

MEAN = (0.485, 0.456, 0.406)  # RGB, of values in 0..1; Source: ImageNet, as the reference normalises
STD = (0.229, 0.224, 0.225)
PROBE, PROBE_INPUT = Size(37, 53), Size(64, 96)
PROBE_CRC = 748003970  # of the probe warped by OpenCV 4.10 to 4.12, on which the reference's figures rest
CHUNK = 4  # pictures a worker is handed at a time: few, so that all workers end together


@cache
def normalisation() -> np.ndarray:
    """Return the normalised value of each 8-bit value: (3, 256) float32 for R, G, B, bit-equal to the reference."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    return (values - mean[:, None]) / std[:, None]


def warp(image: np.ndarray, input_size: Size) -> np.ndarray:
    """Warp an image (h, w, 3) uint8 into the input: (H, W, 3) uint8, black beyond the image."""
    matrix = cv2.getAffineTransform(*Placement(Size(*image.shape[:2]), input_size).warp_points)
    return cv2.warpAffine(image, matrix, (input_size.w, input_size.h), flags=cv2.INTER_LINEAR)


def moves_pixels() -> bool:
    """Return whether this OpenCV warps an image to other values than those behind the reference's metrics."""
    y, x = np.mgrid[: PROBE.h, : PROBE.w]
    channels = (37 * x + 91 * y) % 251, (7 * x * y) % 253, (x**2 + 3 * y**2) % 255
    return zlib.crc32(warp(np.stack(channels, axis=2).astype(np.uint8), PROBE_INPUT).tobytes()) != PROBE_CRC


def mirror(warped: np.ndarray) -> np.ndarray:
    """Return the second pass's image: (h, w, 3) mirrored along w, moved left by the flip shift, last columns kept."""
    flipped = cv2.flip(warped, 1)
    flipped[:, :-FLIP_SHIFT] = flipped[:, FLIP_SHIFT:].copy()
    return flipped


def normalise(warped: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Convert (h, w, 3) uint8 BGR to (1, 3, h, w) float32 RGB, normalised, into `out` where it is given."""
    h, w, _ = warped.shape
    tensor = np.empty((1, 3, h, w), np.float32) if out is None else out
    for plane, table, values in zip(reversed(cv2.split(warped)), normalisation(), tensor[0], strict=True):
        cv2.LUT(plane, table, dst=values)
    return tensor


@dataclass
class Summary:
    """What a run of preprocessing did."""

    pictures: int = 0
    skipped: int = 0  # both tensors were there already
    written: int = 0  # bytes
    input_sizes: Counter[Size] = field(default_factory=Counter)  # of all pictures, done now or before


@dataclass(frozen=True)
class Job:
    """What every worker needs to know; sent to it once."""

    source: Path
    split: str
    folders: tuple[Path, Path]


class _Worker:
    """The state of a worker process: the open zip and one pair of buffers per input size."""

    def __init__(self, job: Job) -> None:
        self.files = ImageFiles(job.source, job.split)
        self.folders = job.folders
        self.buffers: dict[Size, np.ndarray] = {}

    def convert(self, picture: ImageEntry) -> int:
        """Make both tensors of a picture; returns the bytes written."""
        image = self.files.decode(picture)
        input_size = PUBLISHED_SIZES.place(picture.size).input
        buffer = self.buffers.setdefault(input_size, np.empty((1, 3, *input_size), np.float32))
        warped = warp(image, input_size)
        written = 0
        for folder, pixels in zip(self.folders, (warped, mirror(warped)), strict=True):
            written += tensors.write(folder, picture.stem + tensors.SUFFIX, normalise(pixels, buffer))
        return written


_worker: _Worker


def start_worker(job: Job) -> None:
    """Make this process a worker; what a pool's `initializer` calls."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    _worker = _Worker(job)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def convert_chunk(pictures: Sequence[ImageEntry]) -> tuple[int, int]:
    """Make the tensors of some pictures, in a worker; returns the number of pictures and the bytes written."""
    return len(pictures), sum(_worker.convert(picture) for picture in pictures)


def write_tensors(
    data: DataSet,
    source: Path,
    split: str,
    folders: tuple[Path, Path],
    *,
    limit: int | None = None,
    workers: int = 1,
    overwrite: bool = False,
    making: Making | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Write the original and the flipped tensor of every picture that has not got both yet.

    Args:
        source: the zip or folder of pictures (`image_source`).
        folders: for the original and the flipped tensors; created when absent.
        limit: only the first so many pictures of the data set.
        overwrite: write all of them anew.
        making: noted beside both folders, with what tells the pictures, before anything is written into them.
        advance: called with the number of pictures that have just been finished.
    Raises:
        DekrError: a picture is missing, damaged or of another size, tensors that are there were made of other pictures,
            or a file cannot be written; finished tensors stay.
    """
    chosen = data.images[:limit]
    files = ImageFiles(source, split)
    files.check_present([picture.file_name for picture in chosen])
    own = {picture.stem + tensors.SUFFIX for picture in data.images}
    with tensors.exclusive(folders[0]), tensors.exclusive(folders[1]):
        for folder in folders:
            tensors.refuse_foreign(folder, own, str(data.annotation))
        anew = chosen if overwrite else ()
        _begin(data, files, folders, chosen, anew, making)
        waiting = [picture for picture in chosen if not _is_done(picture, folders)]
        summary = Summary(
            len(chosen),
            len(chosen) - len(waiting),
            input_sizes=Counter(PUBLISHED_SIZES.place(p.size).input for p in chosen),
        )
        advance(summary.skipped)
        if waiting:
            summary.written = _convert_all(waiting, Job(source, split, folders), workers, advance)
    return summary


def _begin(
    data: DataSet,
    files: ImageFiles,
    folders: Sequence[Path],
    chosen: Sequence[ImageEntry],
    anew: Sequence[ImageEntry],
    making: Making | None,
) -> None:
    """Note how the tensors are made, and remove those to be made anew, lest a stopped run leaves some of before."""
    there = set().union(*map(tensors.names_in, folders))
    present = {p.stem for p in data.images if p.stem + tensors.SUFFIX in there}
    kept = present - {picture.stem for picture in anew}
    noted = kept | {picture.stem for picture in chosen}
    marks = {p.stem: files.fingerprint(p.file_name) for p in data.images if p.stem in noted} if making else {}
    if making:
        refuse_others(folders, making, {stem: mark for stem, mark in marks.items() if stem in kept})
    for picture in anew:
        for folder in folders:
            _remove(folder / (picture.stem + tensors.SUFFIX))
    if making:
        write_records(folders, making, marks, kept)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DekrError(write_failure(path, error)) from None


def _is_done(picture: ImageEntry, folders: Sequence[Path]) -> bool:
    shape = (1, 3, *PUBLISHED_SIZES.place(picture.size).input)
    return all(tensors.is_finished(folder / (picture.stem + tensors.SUFFIX), shape) for folder in folders)


def _convert_all(pictures: Sequence[ImageEntry], job: Job, workers: int, advance: Callable[[int], None]) -> int:
    chunks = [pictures[start : start + CHUNK] for start in range(0, len(pictures), CHUNK)]
    context = multiprocessing.get_context("spawn")
    count = min(workers, len(chunks))
    written = 0
    with ProcessPoolExecutor(count, context, initializer=start_worker, initargs=(job,)) as pool:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by the workers, which start here
            try:
                futures = [pool.submit(convert_chunk, chunk) for chunk in chunks]
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            for future in as_completed(futures):
                done, size = future.result()
                written += size
                advance(done)
        except BrokenProcessPool:
            raise DekrError("a worker was killed, most likely for want of memory; try again with --workers 1") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return written


def input_size_table(input_sizes: Counter[Size]) -> str:
    """How many pictures each input size got, as one line: `512x768: 41, ...` (height x width)."""
    return ", ".join(f"{input_size}: {input_sizes[input_size]}" for input_size in PUBLISHED_SIZES)
