"""Algebra on weights: everything linear between two convolutions becomes part of them, in float64.

An adaptive block predicts a 2x2 matrix A and a translation t per cell and moves the nine taps by A R - R + t. Both are
linear in the block's input, so one 3x3 convolution yields the taps' movements directly; the batch norm behind the
deformable convolution goes into its weights.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dekr_infer.errors import DekrError
from dekr_infer.export.operator import deformable_conv2d

TAPS = 9  # of a 3x3 kernel


class FoldedAdaptBlock(nn.Module):
    """An adaptive block, or one of each joint side by side, as two convolutions, as the accelerator's operator wants.

    `offsets` yields 27 channels per group, planar: all dx, all dy, all masks (always 1), each (group, tap).
    `weight` is (C, C / groups, 3, 3), `bias` (C,).
    """

    def __init__(self, offsets: nn.Conv2d, weight: Tensor, bias: Tensor, dilation: int, groups: int = 1) -> None:
        super().__init__()
        self.offsets = offsets
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.dilation = dilation
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        out = deformable_conv2d(x, self.weight, self.offsets(x), self.bias, self.dilation, self.groups)
        return torch.relu(out + x)


def fold_adaptive_blocks(network: nn.Module) -> int:
    """Replace every adaptive block of a network, ours or upstream's, by its folded form, in place.

    Returns:
        How many there were.
    """
    count = 0
    for name, child in list(network.named_children()):
        if hasattr(child, "transform_matrix_conv") and hasattr(child, "adapt_conv"):
            setattr(network, name, fold_adaptive_block(child))
            count += 1
        else:
            count += fold_adaptive_blocks(child)
    return count


def fold_adaptive_block(block: nn.Module) -> FoldedAdaptBlock:
    """The folded form of one adaptive block (an `AdaptBlock`, or upstream's, which has the same parts).

    Raises:
        DekrError: the block has a stride, groups or a down-sampling, which the folded form has not.
    """
    state = {key: _double(value) for key, value in block.state_dict().items()}
    dilation = _dilation(block)
    matrix, matrix_bias = state["transform_matrix_conv.weight"], state["transform_matrix_conv.bias"]
    translation, translation_bias = state["translation_conv.weight"], state["translation_conv.bias"]
    taps = state["regular_matrix"]  # (2, 9): rows dy, dx
    weights, biases = [], []
    for axis in (1, 0):  # dx first, then dy
        row = slice(2 * axis, 2 * axis + 2)  # A's row that yields this axis
        weights.append(np.einsum("jk,jcyx->kcyx", taps, matrix[row]) + translation[axis])
        biases.append(taps.T @ matrix_bias[row] - taps[axis] + translation_bias[axis])
    channels = matrix.shape[1]
    weights.append(np.zeros((TAPS, channels, 3, 3)))
    biases.append(np.ones(TAPS))
    offsets = nn.Conv2d(channels, 3 * TAPS, 3, 1, 1)
    offsets.weight.data = _single(np.concatenate(weights))
    offsets.bias = nn.Parameter(_single(np.concatenate(biases)))
    norm = block.get_submodule("bn")
    assert isinstance(norm, nn.BatchNorm2d)
    weight, bias = fold_batch_norm(
        state["adapt_conv.weight"],
        np.zeros(len(state["bn.weight"])),
        (state["bn.weight"], state["bn.bias"], state["bn.running_mean"], state["bn.running_var"]),
        norm.eps,
    )
    return FoldedAdaptBlock(offsets, _single(weight), _single(bias), dilation)


def fold_batch_norm(
    weight: np.ndarray,
    bias: np.ndarray,
    norm: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:
    """A convolution's weight (O, C, k, k) and bias (O,) with the batch norm behind it taken in; float64.

    Args:
        norm: its scale, shift, running mean and running variance, each (O,).
    """
    scale, shift, mean, variance = (np.asarray(part, np.float64) for part in norm)
    factor = scale / np.sqrt(variance + epsilon)
    return np.asarray(weight, np.float64) * factor[:, None, None, None], (bias - mean) * factor + shift


def _dilation(block: nn.Module) -> int:
    conv = block.get_submodule("adapt_conv")
    values = {key: np.ravel(getattr(conv, key, 1)) for key in ("stride", "groups", "dilation")}
    plain = all((values[key] == 1).all() for key in ("stride", "groups"))
    if not plain or getattr(block, "downsample", None) is not None:
        raise DekrError("an adaptive block with a stride, groups or a down-sampling cannot be exported")
    return int(values["dilation"][0])


def _double(value: Tensor) -> np.ndarray:
    return value.detach().cpu().double().numpy()


def _single(value: np.ndarray) -> Tensor:
    return torch.from_numpy(value.astype(np.float32))
