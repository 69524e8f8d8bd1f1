"""How far two runs of the network on the same input lie apart, and the seeded pictures on which they are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dekr_infer.geometry import Size

HEAT_TOLERANCE = 1e-4
OFFSET_TOLERANCE = 5e-3  # cells; offsets are tens of cells
PATCH = 16  # pixels: the grain of the test pictures
SEED = 0


class Difference(NamedTuple):
    """The largest absolute differences at a input size, and the largest values they stand against."""

    input_size: Size
    heat: float
    offset: float
    largest_heat: float
    largest_offset: float

    @property
    def holds(self) -> bool:
        """Whether both are within what float32 allows (NaN is not)."""
        return self.heat <= HEAT_TOLERANCE and self.offset <= OFFSET_TOLERANCE

    @property
    def heat_share(self) -> float:
        """The heatmap's difference as a share of its largest value."""
        return _share(self.heat, self.largest_heat)

    @property
    def offset_share(self) -> float:
        """The same of the offset."""
        return _share(self.offset, self.largest_offset)


def _share(difference: float, largest: float) -> float:
    if difference == 0:
        return 0.0
    return difference / largest if largest else math.inf


def difference_of(input_size: Size, wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> Difference:
    """Of heatmap and offset, as they should be and as they are."""
    heat, offset = (float(np.abs(a - b).max()) for a, b in zip(wanted, found, strict=True))
    return Difference(input_size, heat, offset, *(float(np.abs(output).max()) for output in wanted))


def test_picture(rng: np.random.Generator, input_size: Size) -> np.ndarray:
    """Coloured patches and noise: (h, w, 3) uint8."""
    patches = rng.integers(0, 200, (input_size.h // PATCH, input_size.w // PATCH, 3), np.uint8)
    coarse = patches.repeat(PATCH, 0).repeat(PATCH, 1)
    return coarse + rng.integers(0, 56, coarse.shape, np.uint8)
