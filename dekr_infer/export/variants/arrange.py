"""The forms in which the deformable convolutions can be exported; all compute the same.

separate  one operator per adaptive block, as published (34 for W32)
padded    the same, the channels of each joint padded to 16
grouped   one operator per level for all joints (2 for W32)
gather    none: bilinear sampling in plain operators
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dekr_infer.export.variants.gather import gather_branches
from dekr_infer.export.variants.grouped import group_branches
from dekr_infer.export.variants.names import GATHER, GROUPED, PADDED, SEPARATE, VARIANTS
from dekr_infer.export.variants.padded import pad_branches

# What a variant's graph may hold although other graphs must not; none of these here depends on a shape.
ALLOWED: dict[str, set[str]] = {variant: set() for variant in VARIANTS} | {GATHER: {"Gather", "Transpose", "MatMul"}}
_ARRANGE: dict[str, Callable[[nn.Module], None]] = {
    SEPARATE: lambda _network: None,
    PADDED: pad_branches,
    GROUPED: group_branches,
    GATHER: gather_branches,
}


def arrange_branches(network: nn.Module, variant: str) -> None:
    """Bring a network whose adaptive blocks are folded into the form of a variant, in place.

    Raises:
        DekrError: it has not the parts that the variant arranges.
    """
    _ARRANGE[variant](network)
