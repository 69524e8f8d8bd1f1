"""The building blocks: convolution + batch norm, the two residual blocks, and the adaptive block.

Module names are those of upstream's state dict; so `conv1`, `bn1`, `adapt_conv` and the like are fixed.
All maps are float32 (N, C, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dekr_infer.model.deform import deform_conv2d

# The 3x3 kernel's taps as (dy, dx) columns, row by row: the reference's `regular_matrix`.
REGULAR_MATRIX = ((-1, -1, -1, 0, 0, 0, 1, 1, 1), (-1, 0, 1, -1, 0, 1, -1, 0, 1))


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool) -> nn.Sequential:
    """Convolution without bias (same padding), batch norm and, if asked for, ReLU: entries 0, 1 and 2."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection, `channels` in and out."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual sum, of x's shape."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a skip connection; `width` inside, 4 * `width` out."""

    expansion = 4

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = conv_bn(inputs, outputs, 1, relu=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual sum: (N, 4 * width, H, W)."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class DeformConv(nn.Module):
    """The weight of a deformable 3x3 convolution without bias: (outputs, inputs, 3, 3)."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.dilation = dilation
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor, kernel_offset: Tensor) -> Tensor:
        """Convolve x with taps moved by `kernel_offset`: (N, outputs, H, W)."""
        return deform_conv2d(x, kernel_offset, self.weight, self.dilation)


class AdaptBlock(nn.Module):
    """A residual block whose 3x3 taps are moved per cell by an affine map that is read off its own input.

    With A the 2x2 matrix and t the translation predicted at a cell, and R the regular taps, the taps stand at
    A R + t; the deformable convolution is given what that adds to R.
    """

    regular_matrix: Tensor

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.register_buffer("regular_matrix", torch.tensor(REGULAR_MATRIX, dtype=torch.float32))
        self.transform_matrix_conv = nn.Conv2d(channels, 4, 3, 1, 1)
        self.translation_conv = nn.Conv2d(channels, 2, 3, 1, 1)
        self.adapt_conv = DeformConv(channels, channels, dilation)
        self.bn = nn.BatchNorm2d(channels)

    def kernel_offset(self, x: Tensor) -> Tensor:
        """How far each tap moves, in cells: (N, 18, H, W), channel 2k the dy of tap k and 2k + 1 its dx."""
        n, _, h, w = x.shape
        matrix = self.transform_matrix_conv(x).view(n, 2, 2, h, w)
        translation = self.translation_conv(x).view(n, 2, 1, h, w)
        taps = torch.einsum("nijhw,jk->nikhw", matrix, self.regular_matrix)
        moved = taps - self.regular_matrix.view(1, 2, 9, 1, 1) + translation
        return moved.transpose(1, 2).reshape(n, 18, h, w)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual sum, of x's shape."""
        return torch.relu(self.bn(self.adapt_conv(x, self.kernel_offset(x))) + x)
