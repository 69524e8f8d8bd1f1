"""Preprocessing: two workers of ours, the reference's single process, and two workers that only write the same files.

Each is timed from running workers to the last file in the system's cache, and to the last byte on the disk.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from dekr_infer.data.coco import ImageEntry
from dekr_infer.data.sources import ImageFiles
from dekr_infer.pose import preprocess
from dekr_infer.storage import npy
from scripts.bench import reference_impl, roofline
from scripts.bench.timing import LIMIT, OURS, REFERENCE, UPSTREAM, Row, Ways, alternate
from scripts.bench.upstream import Upstream

WORKERS = 2


def measure(
    images: Sequence[ImageEntry], job: preprocess.Job, rounds: int, upstream: Upstream | None = None
) -> list[Row]:
    """Return the rows of this stage; `job` names the image source and two folders, which are emptied for each run."""
    files = ImageFiles(job.source, job.split)
    chunks = [images[start : start + preprocess.CHUNK] for start in range(0, len(images), preprocess.CHUNK)]

    def empty() -> None:
        for folder in job.folders:
            shutil.rmtree(folder)
            folder.mkdir()
        os.sync()

    def synced(way: Callable[[], object]) -> None:
        way()
        os.sync()

    spawn = multiprocessing.get_context("spawn")
    with (
        npy.exclusive(job.folders[0]),
        npy.exclusive(job.folders[1]),
        ProcessPoolExecutor(WORKERS, spawn, preprocess.start_worker, (job,)) as pool,
    ):
        ways: Ways = {
            OURS: lambda: list(pool.map(preprocess.convert_chunk, chunks)),
            REFERENCE: lambda: reference_impl.write_tensors(images, files, job.folders),
            LIMIT: lambda: list(pool.map(partial(roofline.write_tensors, folders=job.folders), chunks)),
        }
        if upstream is not None:
            ways[UPSTREAM] = lambda: upstream.write_tensors(images, files, job.folders)
        to_disk: Ways = {name: partial(synced, way) for name, way in ways.items()}
        seconds = {
            goal: alternate(chosen, rounds, empty, len(images))
            for goal, chosen in (("into the system's cache", ways), ("onto the disk", to_disk))
        }
    facts = {"workers": WORKERS}
    return [
        Row(f"preprocessing, {goal}, per image", values, "writing alone", facts) for goal, values in seconds.items()
    ]
