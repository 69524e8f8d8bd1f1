"""Proof of an export: the written file against torch, at every gear, on seeded inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dekr_infer.export.difference import SEED, Difference, difference_of, test_picture
from dekr_infer.geometry import Size
from dekr_infer.preprocess import normalise
from dekr_infer.runtime import open_network


def compare(network: nn.Module, path: Path, gears: Sequence[Size], threads: int) -> Iterator[Difference]:
    """Run torch's network and the written file on one picture per gear.

    Args:
        network: as it was before folding, in evaluation mode.
        path: the ONNX file, in either dialect.
    Raises:
        DekrError: the file cannot be run.
    """
    graph = open_network(path, threads, as_written=True)
    rng = np.random.default_rng(SEED)
    for gear in gears:
        image = normalise(test_picture(rng, gear))
        with torch.inference_mode():
            wanted = [output.numpy() for output in network(torch.from_numpy(image))]
        yield difference_of(gear, wanted, graph.run(image)[:2])
