"""The accelerator's deformable convolution as a torch function that knows how to be exported.

While tracing it leaves one `DeformableConv2D` node with the attributes that the accelerator's parser demands; in torch
it computes the same by `deform_conv2d`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dekr_infer.export.operator_names import OPERATOR
from dekr_infer.model.deform import deform_conv2d

TRACE_DOMAIN = "dekr"  # torch wants a domain of ours while tracing; the finished graph has it in the default domain


def deformable_conv2d(x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """Deformable 3x3 convolution with planar offsets.

    Args:
        x: (N, C, H, W).
        weight: (O, C, 3, 3); bias: (O,).
        offsets: (N, 27, H, W): dx of the nine taps, then dy, then masks, which must be 1.
        dilation: cells between taps; also the padding.
    Returns:
        (N, O, H, W).
    """
    return _DeformableConv2D.apply(x, weight, offsets, bias, dilation)  # type: ignore[no-any-return]


class _DeformableConv2D(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor, dilation: int) -> Tensor:
        taps = weight.shape[2] * weight.shape[3]
        interleaved = torch.stack((offsets[:, taps : 2 * taps], offsets[:, :taps]), 2).flatten(1, 2)
        return deform_conv2d(x, interleaved, weight, dilation) + bias.view(1, -1, 1, 1)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, offsets: Any, bias: Any, dilation: int) -> Any:
        node = g.op(
            f"{TRACE_DOMAIN}::{OPERATOR}",
            x,
            weight,
            offsets,
            bias,
            strides_i=[1, 1],
            pads_i=[dilation, dilation],
            dilations_i=[dilation, dilation],
            groups_i=1,
            deformable_groups_i=1,
        )
        return node.setType(x.type())
