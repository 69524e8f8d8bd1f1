"""--deform padded: every joint's branch with its channels padded to a multiple of 16 by channels that stay 0.

The accelerator's kernel for deformable convolutions computes whole blocks of channels. The added channels have zero
weights, move no tap and reach no output, so the result is the same.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dekr_infer.errors import DekrError
from dekr_infer.export.fold import FoldedAdaptBlock, parameter
from dekr_infer.export.variants.branches import Branches, branches_of, set_width

BLOCK = 16  # channels


def pad_branches(network: nn.Module) -> None:
    """Pad the branches of a network whose adaptive blocks are folded, in place.

    Raises:
        DekrError: the network has no such branches.
    """
    branches = branches_of(network)
    more = -branches.width % BLOCK
    _pad_transition(network.get_submodule("transition_offset"), branches, more)
    for block in (block for level in branches.levels for block in level):
        _pad_block(block, more)
    for conv in branches.finals:
        _store(conv, _pad(conv.weight, 1, more), conv.bias)
    set_width(network, branches.width + more)


def _pad_transition(transition: nn.Module, branches: Branches, more: int) -> None:
    """Pad the convolution before the branches: (joints * C, ...) -> (joints * (C + more), ...)."""
    conv, *others = (transition, *transition.children())[1:] or (None,)
    if not isinstance(conv, nn.Conv2d) or any(isinstance(other, nn.BatchNorm2d) for other in others):
        raise DekrError("transition_offset is no convolution with a batch norm; --deform padded cannot export it")

    def padded(values: Tensor) -> nn.Parameter:
        by_joint = values.unflatten(0, (branches.joints, branches.width))
        return parameter(_pad(by_joint, 1, more).flatten(0, 1), values)

    _store(conv, padded(conv.weight), None if conv.bias is None else padded(conv.bias))


def _pad_block(block: FoldedAdaptBlock, more: int) -> None:
    _store(block.offsets, _pad(block.offsets.weight, 1, more), block.offsets.bias)
    block.weight = _pad(_pad(block.weight, 0, more), 1, more)
    block.bias = _pad(block.bias, 0, more)


def _store(conv: nn.Conv2d, weight: nn.Parameter, bias: Any) -> None:
    conv.out_channels, conv.in_channels = weight.shape[:2]
    conv.weight, conv.bias = weight, bias


def _pad(values: Tensor, axis: int, more: int) -> nn.Parameter:
    """Return values with `more` zeros after the last entry along an axis."""
    after = [0, 0] * (values.dim() - 1 - axis) + [0, more]
    return parameter(F.pad(values, after), values)
