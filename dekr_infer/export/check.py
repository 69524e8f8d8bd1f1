"""Proof of an export: the written file against torch, at every gear, on seeded inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from dekr_infer.geometry import Size
from dekr_infer.preprocess import normalise
from dekr_infer.runtime import open_network

HEAT_TOLERANCE = 1e-4
OFFSET_TOLERANCE = 5e-3  # cells; offsets are tens of cells
PATCH = 16  # pixels: the grain of the test pictures
SEED = 0


class Difference(NamedTuple):
    """The largest absolute differences at a gear, and the largest values they stand against."""

    gear: Size
    heat: float
    offset: float
    largest_heat: float
    largest_offset: float

    @property
    def holds(self) -> bool:
        """Whether both are within tolerance (NaN is not)."""
        return self.heat <= HEAT_TOLERANCE and self.offset <= OFFSET_TOLERANCE


def compare(network: nn.Module, path: Path, gears: Sequence[Size], threads: int) -> Iterator[Difference]:
    """Run torch's network and the written file on one picture per gear.

    Args:
        network: as it was before folding, in evaluation mode.
        path: the ONNX file, in either dialect.
    Raises:
        DekrError: the file cannot be run.
    """
    graph = open_network(path, threads)
    rng = np.random.default_rng(SEED)
    for gear in gears:
        image = normalise(test_picture(rng, gear))
        with torch.inference_mode():
            wanted = [output.numpy() for output in network(torch.from_numpy(image))]
        found = graph.run(image)[:2]
        heat, offset = (float(np.abs(a - b).max()) for a, b in zip(wanted, found, strict=True))
        yield Difference(gear, heat, offset, *(float(np.abs(output).max()) for output in wanted))


def test_picture(rng: np.random.Generator, gear: Size) -> np.ndarray:
    """Coloured patches and noise: (h, w, 3) uint8."""
    patches = rng.integers(0, 200, (gear.h // PATCH, gear.w // PATCH, 3), np.uint8)
    coarse = patches.repeat(PATCH, 0).repeat(PATCH, 1)
    return coarse + rng.integers(0, 56, coarse.shape, np.uint8)
