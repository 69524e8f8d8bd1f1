"""Torch functions that leave exactly one plain node in a trace, where torch's own would compute with sizes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dekr_infer.export.operator import TRACE_DOMAIN


def reshape(x: Tensor, *sizes: int) -> Tensor:
    """ONNX's Reshape: a size of 0 keeps the size at its place, one of -1 takes what is left."""
    return _Reshape.apply(x, sizes)  # type: ignore[no-any-return]


class _Reshape(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return x.reshape([size or x.shape[axis] for axis, size in enumerate(sizes)])

    @staticmethod
    def symbolic(g: Any, x: Any, sizes: tuple[int, ...]) -> Any:
        # in our domain, because torch would reason about ONNX's own and knows no 0 without a -1
        node = g.op(f"{TRACE_DOMAIN}::Reshape", x, g.op("Constant", value_t=torch.tensor(sizes)))
        return node.setType(x.type().with_sizes([None] * len(sizes)))


def convolve_backwards(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """A convolution that looks only back, so that a cell's result does not depend on what follows.

    Args:
        x: (N, C, H, W); weight: (O, C, kh, kw), whose last tap lies on the cell; bias: (O,).
    Returns:
        (N, O, H, W).
    """
    return _ConvolveBackwards.apply(x, weight, bias, dilation)  # type: ignore[no-any-return]


class _ConvolveBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        above, before = (dilation * (size - 1) for size in weight.shape[2:])
        return F.conv2d(F.pad(x, (before, 0, above, 0)), weight, bias, dilation=dilation)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, dilation: int) -> Any:
        kernel = weight.type().sizes()[2:]
        above, before = (dilation * (size - 1) for size in kernel)
        return g.op(
            "Conv",
            x,
            weight,
            bias,
            kernel_shape_i=kernel,
            strides_i=[1, 1],
            pads_i=[above, before, 0, 0],
            dilations_i=[dilation, dilation],
            group_i=1,
        )
