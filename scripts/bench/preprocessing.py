"""Preprocessing: two threads of ours, the reference's single process, and two threads that only write the same files.

Each is timed from running threads to the last file written into the system's cache, and to the last byte on the disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2

from dekr_infer.backends.tensor_folder import Converter
from dekr_infer.data.coco import Picture, PictureFiles
from dekr_infer.geometry import PUBLISHED_SIZES
from dekr_infer.storage.atomic import folder_lock
from scripts.bench import limits, plain
from scripts.bench.measure import LIMIT, OURS, REFERENCE, UPSTREAM, Row, Ways, alternate
from scripts.bench.upstream import Upstream

WORKERS = 2
CACHE, DISK = "preprocessing, into the system's cache", "preprocessing, onto the disk"
MOST_OF_LIMIT = 1.3  # times the time of writing alone
LEAST_FASTER = 3.0  # than the reference's way


class Job(NamedTuple):
    """Where the pictures are, and the folders of both tensors."""

    source: Path
    split: str
    folders: tuple[Path, Path]


def measure(
    pictures: Sequence[Picture], job: Job, rounds: int, upstream: Upstream | None
) -> tuple[list[Row], dict[str, float]]:
    """The rows of this stage, and the machine's limits that belong to it.

    Args:
        job: where the pictures are, and two folders that are made, and emptied before each run.
    """
    files = PictureFiles(job.source, job.split)
    with workers(job) as both:
        ways: dict[str, Callable[[], object]] = {
            OURS: lambda: both(Converter(files, job.folders), pictures),
            REFERENCE: lambda: plain.write_tensors(pictures, files, job.folders),
            LIMIT: lambda: both(lambda picture: limits.write_tensors([picture], job.folders), pictures),
        }
        if upstream is not None:
            ways[UPSTREAM] = lambda: upstream.write_tensors(pictures, files, job.folders)
        rows = [_row(goal, pictures, _until(ways, goal), rounds, job) for goal in (CACHE, DISK)]
    return rows, _limits(pictures, files, job, rounds)


def _row(stage: str, pictures: Sequence[Picture], ways: Ways, rounds: int, job: Job) -> Row:
    alternate(ways, 1, lambda: _empty(job))  # the first round finds cold libraries
    seconds = alternate(ways, rounds, lambda: _empty(job))
    each = {way: [value / len(pictures) for value in values] for way, values in seconds.items()}
    return Row(stage, "per picture", each, "writing alone", MOST_OF_LIMIT, LEAST_FASTER, {"workers": WORKERS})


def _until(ways: Ways, goal: str) -> Ways:
    def with_sync(way: Callable[[], object]) -> Callable[[], object]:
        def whole() -> None:
            way()
            os.sync()

        return whole

    return ways if goal == CACHE else {name: with_sync(way) for name, way in ways.items()}


def _empty(job: Job) -> None:
    for folder in job.folders:
        shutil.rmtree(folder)
        folder.mkdir()
    os.sync()


@contextmanager
def workers(job: Job) -> Iterator[Callable[..., None]]:
    """Yields a function that lets two threads do something with every picture."""
    cv2.setNumThreads(1)
    with ExitStack() as stack:
        for folder in job.folders:
            stack.enter_context(folder_lock(folder))
        pool = stack.enter_context(ThreadPoolExecutor(WORKERS))

        def both(function: Callable[[Picture], object], pictures: Sequence[Picture]) -> None:
            list(pool.map(function, pictures))

        yield both


def _limits(pictures: Sequence[Picture], files: PictureFiles, job: Job, rounds: int) -> dict[str, float]:
    """Megabytes a second of writing and reading the same files by one process, and the decoding alone."""
    size = (
        sum(
            2 * 12 * PUBLISHED_SIZES.place(picture.size).input.h * PUBLISHED_SIZES.place(picture.size).input.w
            for picture in pictures
        )
        / 1e6
    )
    with ExitStack() as stack:
        for folder in job.folders:
            stack.enter_context(folder_lock(folder))

        def write() -> None:
            limits.write_tensors(pictures, job.folders)

        def write_through() -> None:
            write()
            os.sync()

        def read() -> None:
            limits.read_files(job.folders)

        def seconds(way: Callable[[], object], between: Callable[[], object]) -> float:
            return limits.median_seconds(way, rounds, between)

        return {
            "write_cache_MB_per_s": size / seconds(write, lambda: _empty(job)),
            "write_disk_MB_per_s": size / seconds(write_through, lambda: _empty(job)),
            "read_cache_MB_per_s": size / seconds(read, lambda: None),
            "read_disk_MB_per_s": size / seconds(read, lambda: limits.forget(job.folders)),
            "jpeg_decode_ms": 1000 * limits.decode_seconds(pictures, files),
        }
