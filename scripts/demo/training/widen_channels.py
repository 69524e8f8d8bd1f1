"""Widening of a trained demo network: more channels for every joint in the offset head, with the same outputs.

The new channels begin at random and their outgoing weights at zero, so that training continues from the same outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dekr_infer.skeleton import COCO_17

JOINTS = len(COCO_17)

INPUT_AXIS = {
    "adaptive.shape.weight": 2,
    "adaptive.weight": 2,
    "final_weight": 3,
}  # with the joints' axis split off


@torch.no_grad()
def widened(state: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights `state` in the shapes of `fresh`.

    Args:
        state: grouped layout, with C channels for every joint.
        fresh: the same network with C or more channels for every joint, as initialised.
    Returns:
        `fresh` with `state` in the first C channels of every joint, and zero where the other channels are inputs.
    Raises:
        KeyError, RuntimeError: the two networks differ in more than that.
    """
    if extra := state.keys() - fresh.keys():
        raise KeyError(min(extra))
    result = {}
    for key, value in fresh.items():
        old, result[key] = state[key], value.clone()
        if old.shape == value.shape:
            result[key].copy_(old)
            continue
        old, new = old.unflatten(0, (JOINTS, -1)), result[key].unflatten(0, (JOINTS, -1))
        if key in INPUT_AXIS:
            axis = INPUT_AXIS[key]
            new.narrow(axis, old.shape[axis], new.shape[axis] - old.shape[axis]).zero_()
        new[tuple(map(slice, old.shape))] = old
    return result
