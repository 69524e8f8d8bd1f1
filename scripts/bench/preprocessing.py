"""Preprocessing: two threads of ours, the reference's single thread, and two threads that only write the same files.

Each is timed from running threads to the last file in the system's cache, and to the last byte on the disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2

from dekr_infer.backends.tensor_folder import Converter
from dekr_infer.data.coco import ImageEntry
from dekr_infer.data.sources import ImageFiles
from dekr_infer.storage.atomic import folder_lock
from scripts.bench import reference_impl, roofline
from scripts.bench.timing import LIMIT, OURS, REFERENCE, UPSTREAM, Row, Ways, alternate
from scripts.bench.upstream import Upstream

THREADS = 2


def measure(
    images: Sequence[ImageEntry],
    files: ImageFiles,
    folders: tuple[Path, Path],
    rounds: int,
    upstream: Upstream | None = None,
) -> list[Row]:
    """Return the rows of this stage; both folders are emptied before each run."""

    def empty() -> None:
        for folder in folders:
            shutil.rmtree(folder)
            folder.mkdir()
        os.sync()

    def synced(way: Callable[[], object]) -> None:
        way()
        os.sync()

    cv2.setNumThreads(1)  # one for each of ours
    with folder_lock(folders[0]), folder_lock(folders[1]), ThreadPoolExecutor(THREADS) as pool:
        ways: Ways = {
            OURS: lambda: list(pool.map(Converter(files, folders), images)),
            REFERENCE: lambda: reference_impl.write_tensors(images, files, folders),
            LIMIT: lambda: list(pool.map(lambda image: roofline.write_tensors([image], folders), images)),
        }
        if upstream is not None:
            ways[UPSTREAM] = lambda: upstream.write_tensors(images, files, folders)
        to_disk: Ways = {name: partial(synced, way) for name, way in ways.items()}
        seconds = {
            goal: alternate(chosen, rounds, empty, len(images))
            for goal, chosen in (("into the system's cache", ways), ("onto the disk", to_disk))
        }
    return [
        Row(f"preprocessing, {goal}, per image", values, "writing alone", {"threads": THREADS})
        for goal, values in seconds.items()
    ]
