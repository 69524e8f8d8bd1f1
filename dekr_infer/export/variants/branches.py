"""Find the joints' branches in the offset head of a network, ours or upstream's, and run others in their place.

Both networks hold `transition_offset` (joint after joint, C channels each), `offset_feature_layers.{joint}.{block}`,
`offset_final_layer.{joint}`, and a width by which they hand each joint its channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dekr_infer.errors import DekrError
from dekr_infer.export.fold import FoldedAdaptBlock, convolution, parameter

WIDTHS = ("per_joint", "offset_prekpt")  # the width's names in our network and in upstream's
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
        """The number of branches."""
        return len(self.finals)


def branches_of(network: nn.Module) -> Branches:
    """Return the branches of a network whose adaptive blocks are folded.

    Raises:
        DekrError: the network has no such branches, or they differ in form.
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
    """Replace all branches by one module, in place.

    It runs after `transition_offset` and yields x and y of every joint; the branches pass these two channels on.

    Args:
        network: changed in place.
        together: (1, joints * C, H, W) -> (1, 2 * joints, H, W), in joint order.
    """
    transition, layers, finals = (network.get_submodule(name) for name in PARTS)
    network.add_module("transition_offset", nn.Sequential(transition, together))
    for name, parts in (("offset_feature_layers", layers), ("offset_final_layer", finals)):
        network.add_module(name, nn.ModuleList(nn.Identity() for _ in parts.children()))
    set_width(network, COORDINATES)


def set_width(network: nn.Module, width: int) -> None:
    """Set how many channels of `transition_offset` the network hands to each joint's branch."""
    name = next(name for name in WIDTHS if hasattr(network, name))
    setattr(network, name, width)


def join_finals(branches: Branches) -> nn.Conv2d:
    """Return the last convolutions of all branches as a grouped one: (N, joints * C, H, W) -> (N, 2 * joints, H, W)."""
    weight, bias = (
        concatenated([conv.weight for conv in branches.finals]),
        concatenated(list(map(biases, branches.finals))),
    )
    return convolution(weight, bias, branches.joints)


def concatenated(parts: list[Tensor]) -> nn.Parameter:
    """Return the parameters of all joints as one, along the first axis."""
    return parameter(torch.cat(parts), *parts)


def biases(conv: nn.Conv2d) -> Tensor:
    """Return a convolution's bias (O,); zeros where it has none."""
    return torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
