"""The joints' branches of a network's offset head, ours or upstream's: finding them, and running others in their place.

Both networks hold `transition_offset` (joint after joint, C channels each), `offset_feature_layers.{joint}.{block}`,
`offset_final_layer.{joint}`, and a width by which they hand each joint its channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from dekr_infer.errors import DekrError
from dekr_infer.export.fold import FoldedAdaptBlock

WIDTHS = ("per_joint", "offset_prekpt")  # what ours and upstream's call the width
PARTS = ("transition_offset", "offset_feature_layers", "offset_final_layer")
_NONE = "the network has no joint branches of adaptive blocks alone; only --deform separate can export it"
COORDINATES = 2  # channels that a branch yields: x and y


class Branches(NamedTuple):
    """The folded branches of all joints, which have the same form.

    `levels[level][joint]` is a block with `width` channels, `finals[joint]` a convolution from those to x and y.
    """

    levels: list[list[FoldedAdaptBlock]]
    finals: list[nn.Conv2d]
    width: int

    @property
    def joints(self) -> int:
        """How many branches there are."""
        return len(self.finals)


def branches_of(network: nn.Module) -> Branches:
    """The branches of a network whose adaptive blocks are folded.

    Raises:
        DekrError: it has no such branches, or they differ in form.
    """
    try:
        _, layers, finals = (network.get_submodule(name) for name in PARTS)
    except AttributeError:
        raise DekrError(_NONE) from None
    stacks = [_folded(stack) for stack in layers.children()]
    blocks = [block for stack in stacks for block in stack]
    last: list[nn.Conv2d] = list(finals.children())  # type: ignore[arg-type]
    forms = {(block.weight.shape, block.dilation) for block in blocks}
    lengths, forms_last = {len(stack) for stack in stacks}, {conv.weight.shape for conv in last}
    if max(len(forms), len(lengths), len(forms_last)) > 1 or len(last) != len(stacks):
        raise DekrError("the joints' branches differ in form; only --deform separate can export them")
    levels = [list(level) for level in zip(*stacks, strict=True)]
    return Branches(levels, last, len(blocks[0].weight))


def _folded(stack: nn.Module) -> list[FoldedAdaptBlock]:
    blocks = [block for block in stack.children() if isinstance(block, FoldedAdaptBlock)]
    if not blocks or len(blocks) < len(list(stack.children())):
        raise DekrError(_NONE)
    return blocks


def replace_branches(network: nn.Module, together: nn.Module) -> None:
    """Let one module do the work of all branches, in place.

    It runs behind `transition_offset` and yields x and y of every joint; the branches become passages for these two.

    Args:
        together: (1, joints * C, H, W) -> (1, 2 * joints, H, W), in joint order.
    """
    transition, layers, finals = (network.get_submodule(name) for name in PARTS)
    network.add_module("transition_offset", nn.Sequential(transition, together))
    for name, parts in (("offset_feature_layers", layers), ("offset_final_layer", finals)):
        network.add_module(name, nn.ModuleList(nn.Identity() for _ in parts.children()))
    set_width(network, COORDINATES)


def set_width(network: nn.Module, width: int) -> None:
    """How many channels of `transition_offset` the network hands each joint's branch from now on."""
    name = next(name for name in WIDTHS if hasattr(network, name))
    setattr(network, name, width)


def join_finals(branches: Branches) -> nn.Conv2d:
    """The last convolutions of all branches as one grouped one: (N, joints * C, H, W) -> (N, 2 * joints, H, W)."""
    first, joints = branches.finals[0], branches.joints
    kernel, channels = first.kernel_size[0], joints * branches.width
    joined = nn.Conv2d(channels, joints * COORDINATES, kernel, 1, kernel // 2, groups=joints)
    joined.weight = nn.Parameter(torch.cat([conv.weight for conv in branches.finals]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([biases(conv) for conv in branches.finals]), requires_grad=False)
    return joined


def biases(conv: nn.Conv2d) -> torch.Tensor:
    """A convolution's bias (O,); zeros where it has none."""
    return torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
