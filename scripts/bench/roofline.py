"""Upper bounds of the machine, measured in the same run: writing and reading the same bytes, matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from dekr_infer.data.coco import ImageEntry
from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.storage import npy

SIDE = 2048  # of the square matrices
PRODUCTS = 4  # in a row, so that the time is long compared with the clock's resolution


def gemm_rate() -> float:
    """Return floating-point operations per second (two per multiply-add) of large float32 matrix products.

    Uses all threads. The faster of numpy's and torch's libraries counts.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.random((SIDE, SIDE), np.float32) for _ in range(2))
    c = np.empty((SIDE, SIDE), np.float32)
    in_torch = [torch.from_numpy(matrix) for matrix in (a, b, c)]
    products: list[Callable[[], object]] = [
        lambda: np.matmul(a, b, out=c),
        lambda: torch.mm(in_torch[0], in_torch[1], out=in_torch[2]),
    ]
    seconds = []
    for product in products:
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            product()
        seconds.append(time.perf_counter() - started)
    return 2 * SIDE**3 * PRODUCTS / min(seconds)


@cache
def _blank(size: Size) -> np.ndarray:
    return np.ones((1, 3, *size), np.float32)


def write_tensors(images: Sequence[ImageEntry], folders: Sequence[Path]) -> int:
    """Write files of the names and sizes that preprocessing writes, with constant content; return the bytes."""
    written = 0
    for image in images:
        blank = _blank(PUBLISHED_SIZES.place(image.size).input)
        written += sum(npy.write(folder, image.stem + npy.SUFFIX, blank).size for folder in folders)
    return written


def read_files(folders: Sequence[Path]) -> int:
    """Read every tensor of some folders from end to end; return the bytes."""
    buffer, total = bytearray(1 << 20), 0
    for folder in folders:
        for name in sorted(npy.names_in(folder)):
            with open(folder / name, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total += count
    return total
