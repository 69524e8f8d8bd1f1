"""Slow, obvious references in float64: nested loops, one line per idea."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import nn


def slow_conv(x: np.ndarray, weight: np.ndarray, stride: int = 1) -> np.ndarray:
    """Convolution of (C, H, W) with (O, C, k, k), zero padding k // 2."""
    outputs, channels, k, _ = weight.shape
    _, h, w = x.shape
    out = np.zeros((outputs, -(-h // stride), -(-w // stride)))
    for o, y, column in np.ndindex(*out.shape):
        for c, i, j in product(range(channels), range(k), range(k)):
            row, col = y * stride + i - k // 2, column * stride + j - k // 2
            if 0 <= row < h and 0 <= col < w:
                out[o, y, column] += weight[o, c, i, j] * x[c, row, col]
    return out


def slow_bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """The value of (H, W) at a point in cells; every corner outside counts as 0."""
    top, left, total = int(np.floor(y)), int(np.floor(x)), 0.0
    for row, column in product((top, top + 1), (left, left + 1)):
        if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
            total += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
    return total


def slow_deform(x: np.ndarray, kernel_offset: np.ndarray, weight: np.ndarray, dilation: int) -> np.ndarray:
    """Deformable 3x3 convolution of (N, C, H, W); offsets (N, 18, H, W) as dy, dx of each tap in turn."""
    n, channels, h, w = x.shape
    out = np.zeros((n, len(weight), h, w))
    for image, o, row, column in np.ndindex(*out.shape):
        for c, i, j in product(range(channels), range(3), range(3)):
            dy, dx = kernel_offset[image, 2 * (3 * i + j) : 2 * (3 * i + j) + 2, row, column]
            point = row + dilation * (i - 1) + dy, column + dilation * (j - 1) + dx
            out[image, o, row, column] += weight[o, c, i, j] * slow_bilinear(x[image, c], *point)
    return out


def slow_norm(x: np.ndarray, norm: nn.Module) -> np.ndarray:
    """Batch norm of (C, H, W) with its running statistics."""
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, variance, weight, bias = (part.detach().double().tolist() for part in parts)
    out = np.empty_like(x)
    for c in range(len(x)):
        out[c] = (x[c] - mean[c]) / np.sqrt(variance[c] + norm.eps) * weight[c] + bias[c]
    return out


def slow_conv_norm(x: np.ndarray, conv: nn.Module, norm: nn.Module) -> np.ndarray:
    """Convolution without bias, then batch norm."""
    assert isinstance(conv, nn.Conv2d) and conv.bias is None
    return slow_norm(slow_conv(x, conv.weight.detach().double().numpy(), conv.stride[0]), norm)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def make_integer(module: nn.Module, seed: int) -> None:
    """Small whole numbers for all weights and norms (epsilon 0), so that float32 results are exact."""
    generator = torch.Generator().manual_seed(seed)

    def whole(like: torch.Tensor, low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high + 1, like.shape, generator=generator).to(like)

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.copy_(whole(part.weight, -2, 2))
                if part.bias is not None:
                    part.bias.copy_(whole(part.bias, -3, 3))
            elif isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None and part.running_var is not None
                part.eps = 0.0
                part.weight.copy_(whole(part.weight, 1, 2))
                part.bias.copy_(whole(part.bias, -3, 3))
                part.running_mean.copy_(whole(part.running_mean, -3, 3))
                part.running_var.copy_(whole(part.running_var, 0, 1) * 0.75 + 0.25)  # a quarter or one
    module.eval()


def whole_maps(seed: int, *shape: int) -> torch.Tensor:
    """Whole numbers from -3 to 3."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()
