"""Torch functions that leave exactly one node each in a trace: the accelerator's operator, and two plain ones.

In torch they compute what their node means; torch's own functions would compute with sizes while being traced.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dekr_infer.model.deform import deform_conv2d
from dekr_infer.onnx_graph.operators import OPERATOR

TRACE_DOMAIN = "dekr"  # torch requires a domain for nodes that it does not know; `trace` removes it


def deformable_conv2d(
    x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor, dilation: int, groups: int = 1
) -> Tensor:
    """Deformable 3x3 convolution with planar offsets: one `DeformableConv2D`, with the attributes its parser demands.

    Args:
        x: (N, C, H, W).
        weight: (O, C / groups, 3, 3).
        offsets: (N, 27 * groups, H, W): all dx, then all dy, then all masks, which must be 1; each (group, tap).
        bias: (O,).
        dilation: cells between taps; also the padding.
        groups: the number of equal parts of the channels of x, of the result and of the offsets.
    Returns:
        (N, O, H, W).
    """
    return _DeformableConv2D.apply(x, weight, offsets, bias, dilation, groups)  # type: ignore[no-any-return]


class _DeformableConv2D(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor, dilation: int, groups: int
    ) -> Tensor:
        dx, dy, _ = offsets.chunk(3, 1)
        interleaved = torch.stack((dy, dx), 2).flatten(1, 2)  # (group, tap, axis): a group's channels are neighbours
        parts = zip(x.chunk(groups, 1), interleaved.chunk(groups, 1), weight.chunk(groups), strict=True)
        return torch.cat([deform_conv2d(*part, dilation) for part in parts], 1) + bias.view(1, -1, 1, 1)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, offsets: Any, bias: Any, dilation: int, groups: int) -> Any:
        pair = [dilation, dilation]
        attributes: dict[str, Any] = {"strides_i": [1, 1], "pads_i": pair, "dilations_i": pair}
        attributes |= {"groups_i": groups, "deformable_groups_i": groups}
        return g.op(f"{TRACE_DOMAIN}::{OPERATOR}", x, weight, offsets, bias, **attributes).setType(x.type())


def reshape(x: Tensor, *sizes: int) -> Tensor:
    """ONNX's Reshape: a size of 0 keeps the size of this axis, a size of -1 takes the remaining elements."""
    return _Reshape.apply(x, sizes)  # type: ignore[no-any-return]


class _Reshape(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return x.reshape([size or x.shape[axis] for axis, size in enumerate(sizes)])

    @staticmethod
    def symbolic(g: Any, x: Any, sizes: tuple[int, ...]) -> Any:
        # in our domain, because torch infers the shape of ONNX's own Reshape and knows no 0 without a -1
        node = g.op(f"{TRACE_DOMAIN}::Reshape", x, g.op("Constant", value_t=torch.tensor(sizes)))
        return node.setType(x.type().with_sizes([None] * len(sizes)))


def convolve_backwards(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """Convolution whose last tap is on the cell, so that a cell's result does not depend on the cells after it.

    Args:
        x: (N, C, H, W).
        weight: (O, C, kh, kw).
        bias: (O,).
        dilation: cells between taps.
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
        attributes = {"kernel_shape_i": kernel, "strides_i": [1, 1], "pads_i": [above, before, 0, 0]}
        return g.op("Conv", x, weight, bias, dilations_i=[dilation, dilation], group_i=1, **attributes)
