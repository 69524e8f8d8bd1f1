"""Compare two runs of the network on the same input: seeded images, tolerances, and the proof of an export.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dekr_infer.geometry import Size
from dekr_infer.pose.preprocess import normalise

if TYPE_CHECKING:
    from torch import nn

HEAT_TOLERANCE = 1e-4
OFFSET_TOLERANCE = 5e-3  # cells; offsets are tens of cells
PATCH = 16  # pixels: the side of the patches of a sample image
SEED = 0


class Difference(NamedTuple):
    """The largest absolute differences at an input size, and the largest absolute values of the expected outputs."""

    input_size: Size
    heat: float
    offset: float
    largest_heat: float
    largest_offset: float

    @property
    def holds(self) -> bool:
        """Whether both differences are within what float32 allows (NaN is not)."""
        return self.heat <= HEAT_TOLERANCE and self.offset <= OFFSET_TOLERANCE

    @property
    def heat_share(self) -> float:
        """The heatmap's difference as a fraction of its largest value."""
        return _share(self.heat, self.largest_heat)

    @property
    def offset_share(self) -> float:
        """The offset's difference as a fraction of its largest value."""
        return _share(self.offset, self.largest_offset)


def _share(difference: float, largest: float) -> float:
    if difference == 0:
        return 0.0
    return difference / largest if largest else math.inf


def difference_of(input_size: Size, expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> Difference:
    """Return the difference between two pairs of heatmap and offset."""
    heat, offset = (float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
    return Difference(input_size, heat, offset, *(float(np.abs(output).max()) for output in expected))


def sample_image(rng: np.random.Generator, input_size: Size) -> np.ndarray:
    """Return coloured patches and noise: (h, w, 3) uint8."""
    patches = rng.integers(0, 200, (input_size.h // PATCH, input_size.w // PATCH, 3), np.uint8)
    coarse = patches.repeat(PATCH, 0).repeat(PATCH, 1)
    return coarse + rng.integers(0, 56, coarse.shape, np.uint8)


def compare_with_torch(
    network: nn.Module, path: Path, input_sizes: Iterable[Size], threads: int
) -> Iterator[Difference]:
    """Run torch's network and the written file on one sample image per input size.

    Args:
        network: as it was before folding, in evaluation mode.
        path: the ONNX file, in either dialect.
        input_sizes: multiples of 32 pixels.
        threads: for ONNX Runtime.
    Raises:
        DekrError: the file cannot be run.
    """
    import torch

    from dekr_infer.backends.onnxruntime import OnnxRuntime

    graph = OnnxRuntime(path, threads, as_written=True)
    rng = np.random.default_rng(SEED)
    for input_size in input_sizes:
        warped = sample_image(rng, input_size)
        with torch.inference_mode():
            expected = [output.numpy() for output in network(torch.from_numpy(normalise(warped)))]
        yield difference_of(input_size, expected, graph.run(graph.tensor_of(warped))[:2])
