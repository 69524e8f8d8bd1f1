"""The variants of the deformable convolutions that --deform offers; all compute the same.

separate  one operator per adaptive block, as published (34 for W32)
padded    the same operators, the channels of each joint padded to 16
grouped   one operator per level for all joints (2 for W32); experimental
gather    none: bilinear sampling in plain operators; experimental

The experimental variants have never run on an NPU. Importing this module does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SEPARATE, PADDED, GROUPED, GATHER = VARIANTS = ("separate", "padded", "grouped", "gather")
# Node types that only a variant's graph may hold; none of these here depends on a shape.
ALLOWED: dict[str, set[str]] = {GATHER: {"Gather", "Transpose", "MatMul"}}
_ARRANGE = {PADDED: "pad_branches", GROUPED: "group_branches", GATHER: "gather_branches"}


def arrange_branches(network: nn.Module, variant: str) -> None:
    """Arrange the branches of a network whose adaptive blocks are folded as a variant has them, in place.

    Raises:
        DekrError: the network does not have the parts that the variant arranges.
    """
    if variant != SEPARATE:
        module = importlib.import_module(f"dekr_infer.export.variants.{variant}")
        getattr(module, _ARRANGE[variant])(network)
