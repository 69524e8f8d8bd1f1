"""One forward pass: the exported graph on the CPU, torch, and matrix products of as many multiply-adds."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.export.trace import build_graph
from dekr_infer.geometry import Size
from dekr_infer.model.blocks import DeformConv
from dekr_infer.pose.preprocess import normalise
from scripts.bench.roofline import gemm_rate
from scripts.bench.timing import LIMIT, OURS, REFERENCE, UPSTREAM, Row, Ways, alternate

SMALL = Size(64, 64)  # for counting multiply-adds, which grow with the area


def ways_of(network: nn.Module, threads: int) -> Callable[[Size], Ways]:
    """Export a network and return a function from an input size to our and the reference's way of one pass."""
    model = build_graph(network)
    onnx.helper.set_model_props(model, {"input_sizes": "64,64"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        onnx.save(model, path)
        runner = OnnxRuntime(path, threads)

    def ways(size: Size) -> Ways:
        image = random_input(size)
        return {OURS: partial(runner.run, image), REFERENCE: partial(run_torch, network, image)}

    return ways


def random_input(size: Size) -> np.ndarray:
    """Return a random image as the network's input, (1, 3, H, W) float32."""
    return normalise(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))


def run_torch(network: nn.Module, image: np.ndarray) -> None:
    """Run one forward pass in torch."""
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network(torch.from_numpy(image))


def measure(
    network: nn.Module, upstream: nn.Module | None, sizes: Sequence[Size], threads: int, rounds: int
) -> list[Row]:
    """Return the rows of this stage, one for each input size; `upstream` is upstream's network, if measured."""
    torch.set_num_threads(threads)
    ways_for, rows = ways_of(network, threads), []
    for size in sizes:
        rates: list[float] = []
        ways = ways_for(size) | {LIMIT: lambda rates=rates: rates.append(gemm_rate())}
        if upstream is not None:
            ways[UPSTREAM] = partial(run_torch, upstream, random_input(size))
        seconds = alternate(ways, rounds)
        amount = multiply_adds(network, size)
        seconds[LIMIT] = [2 * amount / max(rates)] * rounds
        limit = f"{amount / 1e9:.1f} G multiply-adds at {max(rates) / 1e9:.0f} GFLOP/s"
        facts = {"multiply_adds": amount, "gemm_flops_per_s": rates, "threads": threads}
        rows.append(Row(f"forward {size}, per pass", seconds, limit, facts))
    return rows


def multiply_adds(network: nn.Module, size: Size) -> int:
    """Return the multiply-adds of all convolutions of a network, as in the checkpoint, for one input of this size."""
    total = 0

    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * module.get_parameter("weight")[0].numel()

    convolutions = [module for module in network.modules() if isinstance(module, (nn.Conv2d, DeformConv))]
    hooks = [module.register_forward_hook(count) for module in convolutions]
    with torch.inference_mode():
        network(torch.zeros(1, 3, *SMALL))
    for hook in hooks:
        hook.remove()
    return total * size.h * size.w // (SMALL.h * SMALL.w)
