"""--deform padded: every joint's branch with its channels padded to a multiple of 16, which stay 0 throughout.

The accelerator's kernel for deformable convolutions wants whole blocks of channels. The added ones are made by zero
weights, move no tap and reach no output, so the result is the same.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dekr_infer.errors import DekrError
from dekr_infer.export.fold import FoldedAdaptBlock
from dekr_infer.export.variants.branches import Branches, branches_of, set_width

BLOCK = 16  # channels


def pad_branches(network: nn.Module) -> None:
    """Pad the branches of a network whose adaptive blocks are folded, in place.

    Raises:
        DekrError: it has no such branches.
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
    """Convolution and batch norm in front of the branches: (joints * C, ...) -> (joints * (C + more), ...)."""
    conv, norm = (*transition.children(), None, None)[:2]
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        raise DekrError("transition_offset is no convolution with a batch norm; --deform padded cannot export it")

    def widened(values: Tensor) -> Tensor:
        by_joint = values.detach().unflatten(0, (branches.joints, branches.width))
        return _pad(by_joint, 1, more).flatten(0, 1)

    _store(conv, widened(conv.weight), None if conv.bias is None else widened(conv.bias))
    norm.num_features = conv.out_channels
    for name, values in norm.state_dict().items():
        if values.dim() == 1:  # not the counter of batches
            setattr(norm, name, _like(getattr(norm, name), widened(values)))


def _pad_block(block: FoldedAdaptBlock, more: int) -> None:
    _store(block.offsets, _pad(block.offsets.weight, 1, more), block.offsets.bias)
    block.weight = nn.Parameter(_pad(_pad(block.weight, 0, more), 1, more), requires_grad=False)
    block.bias = nn.Parameter(_pad(block.bias, 0, more), requires_grad=False)


def _like(old: Tensor, values: Tensor) -> Tensor:
    return nn.Parameter(values, requires_grad=False) if isinstance(old, nn.Parameter) else values


def _store(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    conv.out_channels, conv.in_channels = weight.shape[:2]
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


def _pad(values: Tensor, axis: int, more: int) -> Tensor:
    """`more` zeros after the last entry along an axis."""
    after = [0, 0] * (values.dim() - 1 - axis) + [0, more]
    return F.pad(values.detach(), after)
