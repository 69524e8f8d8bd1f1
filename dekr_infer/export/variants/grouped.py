"""--deform grouped: the joints side by side in one deformable convolution per level, groups = offset groups = joints.

Experimental: it has never run on an NPU.

The accelerator's operator expects the offsets of all groups planar (all dx, all dy, all masks), while a grouped
convolution would yield them group by group, so that its channels would have to be permuted. So the offset convolution
is a plain one with block-diagonal weights, whose output channels may be in any order. That costs `joints` times the
multiply-adds, on a unit made for wide matrices; on a CPU the lowering to the standard operator makes it a grouped
convolution again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dekr_infer.export.fold import TAPS, FoldedAdaptBlock, convolution, parameter
from dekr_infer.export.variants.branches import biases, branches_of, concatenated, join_finals, replace_branches

PLANES = 3  # dx, dy, mask


def group_branches(network: nn.Module) -> None:
    """Join the branches of a network whose adaptive blocks are folded, in place.

    Raises:
        DekrError: the network has no such branches.
    """
    branches = branches_of(network)
    levels = [join_blocks(level) for level in branches.levels]
    replace_branches(network, nn.Sequential(*levels, join_finals(branches)))


def join_blocks(blocks: Sequence[FoldedAdaptBlock]) -> FoldedAdaptBlock:
    """Return blocks of equal form as one with a group for each, in order: (N, joints * C, H, W) in and out."""
    joints, (width, _, *kernel) = len(blocks), blocks[0].weight.shape
    channels = joints * width
    weight = torch.zeros(PLANES, joints, TAPS, joints, width, *kernel)
    bias = torch.zeros(PLANES, joints, TAPS)
    for joint, block in enumerate(blocks):
        weight[:, joint, :, joint] = block.offsets.weight.detach().unflatten(0, (PLANES, TAPS))
        bias[:, joint] = biases(block.offsets).detach().unflatten(0, (PLANES, TAPS))
    predictors = [block.offsets for block in blocks]
    offsets = convolution(
        parameter(weight.reshape(-1, channels, *kernel), *(conv.weight for conv in predictors)),
        parameter(bias.flatten(), *map(biases, predictors)),
    )
    own_weight, own_bias = (concatenated([getattr(block, name) for block in blocks]) for name in ("weight", "bias"))
    return FoldedAdaptBlock(offsets, own_weight, own_bias, blocks[0].dilation, joints)
