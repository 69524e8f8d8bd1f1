"""The accelerator's deformable convolution as a torch function that knows how to be exported.

While tracing it leaves one `DeformableConv2D` node with the attributes that the accelerator's parser demands; in torch
it computes the same by `deform_conv2d`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dekr_infer.model.deform import deform_conv2d
from dekr_infer.onnx_graph.operator_names import OPERATOR

TRACE_DOMAIN = "dekr"  # torch wants a domain of ours while tracing; the finished graph has it in the default domain


def deformable_conv2d(
    x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor, dilation: int, groups: int = 1
) -> Tensor:
    """Deformable 3x3 convolution with planar offsets.

    Args:
        x: (N, C, H, W).
        weight: (O, C / groups, 3, 3); bias: (O,).
        offsets: (N, 27 * groups, H, W): all dx, then all dy, then all masks, which must be 1; each (group, tap).
        dilation: cells between taps; also the padding.
        groups: how many equal parts the channels of x, of the result and of the offsets come in.
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
        node = g.op(
            f"{TRACE_DOMAIN}::{OPERATOR}",
            x,
            weight,
            offsets,
            bias,
            strides_i=[1, 1],
            pads_i=[dilation, dilation],
            dilations_i=[dilation, dilation],
            groups_i=groups,
            deformable_groups_i=groups,
        )
        return node.setType(x.type())
