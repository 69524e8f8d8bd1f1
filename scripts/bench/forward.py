"""One forward pass: the exported graph on the CPU runner, torch, and matrix products of as many multiply-adds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dekr_infer.backends.onnxruntime import Network, open_network
from dekr_infer.export.parity import sample_image
from dekr_infer.geometry import Size
from dekr_infer.model.blocks import DeformConv
from dekr_infer.model.checkpoint import load_network
from dekr_infer.model.head import build_network
from dekr_infer.pose.preprocess import normalise
from scripts.bench.limits import gemm_rate
from scripts.bench.measure import LIMIT, OURS, REFERENCE, UPSTREAM, Row, alternate
from scripts.bench.upstream import Upstream

PUBLISHED_SIZES = (Size(512, 512), Size(512, 768))
MOST_OF_LIMIT = 1.35  # times the matrix products' time
LEAST_FASTER = 3.0  # than torch


def measure(
    config: CfgNode,
    checkpoint: Path,
    graph: Path,
    threads: int,
    rounds: int,
    upstream: Upstream | None,
    input_sizes: Sequence[Size] = PUBLISHED_SIZES,
) -> tuple[list[Row], dict[str, float]]:
    """The rows of this stage, one a input size, and the rate of matrix products that the limit rests on."""
    torch.set_num_threads(threads)
    network = build_network(config)
    load_network(network, checkpoint)
    theirs = upstream.network(checkpoint) if upstream is not None else None
    runner = open_network(graph, threads)
    rows = [_row(input_size, runner, network, theirs, threads, rounds) for input_size in input_sizes]
    return rows, {"gemm_GFLOP_per_s": max(max(row.facts["gemm_flops_per_s"]) for row in rows) / 1e9}


def _row(
    input_size: Size, runner: Network, network: nn.Module, theirs: nn.Module | None, threads: int, rounds: int
) -> Row:
    image = normalise(sample_image(np.random.default_rng(0), input_size))
    rates: list[float] = []
    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: runner.run(image),
        REFERENCE: lambda: _in_torch(network, image),
        LIMIT: lambda: rates.append(gemm_rate(1)),
    }
    if theirs is not None:
        ways[UPSTREAM] = lambda: _in_torch(theirs, image)
    alternate(ways, 1)  # buffers are made in the first pass of a size
    rates.clear()
    seconds = alternate(ways, rounds)
    amount = multiply_adds(network, input_size)
    seconds[LIMIT] = [2 * amount / max(rates)] * rounds
    limit = f"{amount / 1e9:.1f} G multiply-adds at {max(rates) / 1e9:.0f} GFLOP/s"
    facts = {"multiply_adds": amount, "gemm_flops_per_s": rates, "threads": threads}
    return Row(f"forward {input_size}", "per pass", seconds, limit, MOST_OF_LIMIT, LEAST_FASTER, facts)


def _in_torch(network: nn.Module, image: np.ndarray) -> None:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network(torch.from_numpy(image))


def multiply_adds(network: nn.Module, input_size: Size) -> int:
    """Those of all convolutions of a network, as the checkpoint has them, for one picture of a input size.

    They are counted on a small picture: every convolution's number is in proportion to the area.
    """
    small = Size(64, 64)
    total = 0

    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        weight = module.get_parameter("weight")
        total += output.numel() * weight[0].numel()

    kinds = (nn.Conv2d, DeformConv)
    hooks = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, kinds)]
    with torch.inference_mode():
        network(torch.zeros(1, 3, *small))
    for hook in hooks:
        hook.remove()
    return total * input_size.h * input_size.w // (small.h * small.w)
