"""Deformable 3x3 convolution (version 1: no mask), in plain torch.

It is the judge of the exported graphs and what training differentiates; the graphs themselves run on the runtime's
own operator.
"""

from __future__ import annotations

import torch
from torch import Tensor


def deform_conv2d(x: Tensor, kernel_offset: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Convolve x with a square kernel (stride 1, same size out) whose taps are moved per cell.

    Every sample is bilinear; of its four corners those outside the map count as 0.

    Args:
        x: (N, C, H, W) float.
        kernel_offset: (N, 2 * k * k, H, W), cells; channel 2t moves tap t down, channel 2t + 1 right.
        weight: (O, C, k, k) with k odd.
        dilation: cells between neighbouring taps before they are moved; also the padding per half kernel.
    Returns:
        (N, O, H, W).
    Source: Dai et al., Deformable Convolutional Networks, 2017, eq. 2 to 4, with the usual (dy, dx) channel order.
    """
    n, channels, h, w = x.shape
    outputs, _, k, _ = weight.shape
    moved = kernel_offset.view(n, k * k, 2, h, w)
    grid = (torch.arange(k, device=x.device, dtype=x.dtype) - k // 2) * dilation
    rows = torch.arange(h, device=x.device, dtype=x.dtype).view(1, 1, h, 1)
    columns = torch.arange(w, device=x.device, dtype=x.dtype).view(1, 1, 1, w)
    y = rows + grid.repeat_interleave(k).view(1, -1, 1, 1) + moved[:, :, 0]
    x_at = columns + grid.repeat(k).view(1, -1, 1, 1) + moved[:, :, 1]
    samples = _bilinear(x, y.reshape(n, -1), x_at.reshape(n, -1))
    return torch.matmul(weight.flatten(1), samples.view(n, channels * k * k, h * w)).view(n, outputs, h, w)


def _bilinear(x: Tensor, y: Tensor, x_at: Tensor) -> Tensor:
    """Values of x (N, C, H, W) at points (N, P) in cells: (N, C, P); 0 beyond the border."""
    n, channels, h, w = x.shape
    flat = x.flatten(2)
    top, left = y.floor(), x_at.floor()
    total = x.new_zeros(())
    for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_weight in ((left, left + 1 - x_at), (left + 1, x_at - left)):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            index = (row.clamp(0, h - 1) * w + column.clamp(0, w - 1)).long()
            share = row_weight * column_weight * inside
            values = flat.gather(2, index.unsqueeze(1).expand(n, channels, -1))
            total = total + values * share.unsqueeze(1)
    return total
