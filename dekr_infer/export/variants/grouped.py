"""--deform grouped: the joints side by side in one deformable convolution per level, groups = offset groups = joints.

The accelerator's operator wants the offsets of all groups planar (all dx, all dy, all masks), while a grouped
convolution would yield them group by group, and something would have to shuffle them. So the offset convolution is a
plain one with block-diagonal weights, whose output channels may stand in any order. That costs `joints` times the
multiply-adds, on a unit made for wide matrices (nobody has measured it there); on a CPU the lowering to the standard
operator makes it a grouped convolution again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dekr_infer.export.fold import TAPS, FoldedAdaptBlock
from dekr_infer.export.variants.branches import biases, branches_of, join_finals, replace_branches

PLANES = 3  # dx, dy, mask


def group_branches(network: nn.Module) -> None:
    """Join the branches of a network whose adaptive blocks are folded, in place.

    Raises:
        DekrError: it has no such branches.
    """
    branches = branches_of(network)
    levels = [join_blocks(level) for level in branches.levels]
    replace_branches(network, nn.Sequential(*levels, join_finals(branches)))


def join_blocks(blocks: Sequence[FoldedAdaptBlock]) -> FoldedAdaptBlock:
    """Blocks of equal form as one with a group for each: (N, joints * C, H, W) in and out, in the given order."""
    joints, (width, _, *kernel) = len(blocks), blocks[0].weight.shape
    channels = joints * width
    weight = torch.zeros(PLANES, joints, TAPS, joints, width, *kernel)
    bias = torch.zeros(PLANES, joints, TAPS)
    for joint, block in enumerate(blocks):
        weight[:, joint, :, joint] = block.offsets.weight.detach().unflatten(0, (PLANES, TAPS))
        bias[:, joint] = biases(block.offsets).detach().unflatten(0, (PLANES, TAPS))
    offsets = nn.Conv2d(channels, joints * PLANES * TAPS, 3, 1, 1)
    offsets.weight = nn.Parameter(weight.reshape(-1, channels, *kernel), requires_grad=False)
    offsets.bias = nn.Parameter(bias.flatten(), requires_grad=False)
    own_weight = torch.cat([block.weight.detach() for block in blocks])
    own_bias = torch.cat([block.bias.detach() for block in blocks])
    return FoldedAdaptBlock(offsets, own_weight, own_bias, blocks[0].dilation, joints)
