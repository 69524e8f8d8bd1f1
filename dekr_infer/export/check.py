"""Proof of an export: the written file against torch, at every input size, on seeded inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dekr_infer.backends.onnxruntime import open_network
from dekr_infer.export.difference import SEED, Difference, difference_of, test_picture
from dekr_infer.geometry import Size
from dekr_infer.pose.preprocess import normalise


def compare(network: nn.Module, path: Path, input_sizes: Iterable[Size], threads: int) -> Iterator[Difference]:
    """Run torch's network and the written file on one picture per input size.

    Args:
        network: as it was before folding, in evaluation mode.
        path: the ONNX file, in either dialect.
    Raises:
        DekrError: the file cannot be run.
    """
    graph = open_network(path, threads, as_written=True)
    rng = np.random.default_rng(SEED)
    for input_size in input_sizes:
        image = normalise(test_picture(rng, input_size))
        with torch.inference_mode():
            wanted = [output.numpy() for output in network(torch.from_numpy(image))]
        yield difference_of(input_size, wanted, graph.run(image)[:2])
