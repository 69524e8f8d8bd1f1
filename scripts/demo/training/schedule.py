"""The progress of a training run, its learning rate, and the running average of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WARM_UP = 0.03  # share of the run in which the learning rate rises
LAST = 0.01  # of the highest learning rate, at the end


@dataclass(frozen=True)
class Length:
    """A run's planned length: in steps (then it is repeatable) or in minutes of training."""

    steps: int | None = None
    minutes: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """Return the progress: 0 at the beginning, 1 or more at the end."""
        if self.steps is not None:
            return step / self.steps
        assert self.minutes is not None
        return seconds / (60 * self.minutes)


def rate(progress: float) -> float:
    """Return the learning rate as a share of its highest: a linear rise, then half a cosine.

    >>> [round(rate(p), 3) for p in (0.0, 0.015, 0.03, 0.515, 1.0)]
    [0.01, 0.5, 1.0, 0.505, 0.01]
    """
    if progress < WARM_UP:
        return max(progress / WARM_UP, LAST)
    fall = min((progress - WARM_UP) / (1 - WARM_UP), 1.0)
    return LAST + (1 - LAST) * (1 + math.cos(math.pi * fall)) / 2


class WeightAverage:
    """Exponential running average of a state dict, short at first."""

    def __init__(self, state: Mapping[str, Tensor], decay: float = 0.998) -> None:
        self.decay = decay
        self.state = {key: value.detach().clone() for key, value in state.items()}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor], step: int) -> None:
        """Include the weights after step number `step` (from 1)."""
        decay = min(self.decay, step / (step + 10))
        for key, value in state.items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)
