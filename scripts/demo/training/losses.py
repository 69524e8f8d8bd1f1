"""The two losses of the DEKR paper."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BACKGROUND_WEIGHT = 0.1
OFFSET_FACTOR = 0.03
BETA = 1 / 9  # cells: where the offset loss turns from square to straight


def heat_loss(heat: Tensor, target: Tensor, foreground: Tensor) -> Tensor:
    """Return the mean square error of heatmaps (N, 18, h, w); the background counts a tenth."""
    weight = torch.where(foreground, 1.0, BACKGROUND_WEIGHT)
    return ((heat - target).square() * weight).mean()


def offset_loss(offset: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return smooth L1 of offsets (M, J, 2) times weights (M, J), per labelled number; 0 without a label."""
    loss = F.smooth_l1_loss(offset, target, beta=BETA, reduction="none") * weight.unsqueeze(-1)
    return loss.sum() / (2 * (weight > 0).sum()).clamp(min=1)


def total_loss(heat: Tensor, offset: Tensor) -> Tensor:
    """Return the weighted sum of both losses, which training minimises."""
    return heat + OFFSET_FACTOR * offset
