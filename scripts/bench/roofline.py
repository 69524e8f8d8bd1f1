"""What the machine allows, measured in the same run: writing and reading the bytes, decoding JPEG, matrix products."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from dekr_infer.data.coco import Picture, PictureFiles
from dekr_infer.geometry import PUBLISHED_SIZES
from dekr_infer.pose.preprocess import decode
from dekr_infer.storage import npy as tensors

SIDE = 2048  # of the square matrices
PRODUCTS = 4  # in a row, so that one is not over before the clock is read


def gemm_rate(rounds: int) -> float:
    """Floating-point operations a second (two per multiply-add) of large float32 matrix products, on all threads.

    The better of numpy's and torch's libraries, each at its fastest round: a limit should not be one by accident.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.random((SIDE, SIDE), np.float32) for _ in range(2))
    c = np.empty((SIDE, SIDE), np.float32)
    in_torch = [torch.from_numpy(matrix) for matrix in (a, b, c)]
    ways: list[Callable[[], object]] = [
        lambda: np.matmul(a, b, out=c),
        lambda: torch.mm(in_torch[0], in_torch[1], out=in_torch[2]),
    ]
    best = min(_seconds(way) for _ in range(rounds) for way in ways)
    return 2 * SIDE**3 * PRODUCTS / best


def _seconds(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(PRODUCTS):
        way()
    return time.perf_counter() - started


def decode_seconds(pictures: Sequence[Picture], files: PictureFiles) -> float:
    """Seconds that decoding a picture takes on one core, nothing else done; the mean over the pictures."""
    encoded = [(picture.file_name, files.read(picture.file_name)) for picture in pictures]
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    started = time.perf_counter()
    for name, data in encoded:
        decode(data, name)
    seconds = time.perf_counter() - started
    cv2.setNumThreads(before)
    return seconds / len(pictures)


def write_tensors(pictures: Sequence[Picture], folders: Sequence[Path]) -> int:
    """Write as many bytes as preprocessing does into files of the same names; what is in them does not matter."""
    written = 0
    for picture in pictures:
        blank = _blank(picture)
        for folder in folders:
            written += tensors.write(folder, picture.stem + tensors.SUFFIX, blank)
    return written


_blanks: dict[tuple[int, ...], np.ndarray] = {}


def _blank(picture: Picture) -> np.ndarray:
    shape = (1, 3, *PUBLISHED_SIZES.place(picture.size).input)
    return _blanks.setdefault(shape, np.ones(shape, np.float32))


def read_files(folders: Sequence[Path]) -> int:
    """Read every tensor of some folders from end to end; returns the bytes."""
    total = 0
    for folder in folders:
        for name in sorted(tensors.names_in(folder)):
            with open(folder / name, "rb", buffering=0) as file:
                while count := file.readinto(_sink):
                    total += count
    return total


_sink = bytearray(1 << 20)


def forget(folders: Sequence[Path]) -> None:
    """Have the files of some folders on the disk, and no longer in memory."""
    os.sync()
    for folder in folders:
        for name in tensors.names_in(folder):
            handle = os.open(folder / name, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def median_seconds(way: Callable[[], object], rounds: int, between: Callable[[], object] = lambda: None) -> float:
    """The median time of a way, `between` being called before each."""
    seconds = []
    for _ in range(rounds):
        between()
        started = time.perf_counter()
        way()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
