"""The rescoring net: 74 features of a final pose -> how much its score should count. Numpy only.

The checkpoint is a torch file, so torch is imported when one is read, and only then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dekr_infer.errors import DekrError

# Joint pairs whose differences are features. Source: the DEKR reference's link lists for COCO.
PAIR_FROM = (0, 0, 1, 1, 2, 3, 4, 5, 5, 5, 6, 6, 7, 8, 11, 11, 12, 13, 14)
PAIR_TO = (1, 2, 2, 3, 4, 5, 6, 6, 7, 11, 8, 12, 9, 10, 12, 13, 14, 15, 16)
TORSO_PAIRS = (9, 11)  # left and right shoulder to hip: their mean length is the unit
LARGEST_WEIGHT = 1e6  # trained ones are below 100; three layers of these stay finite in float32
FEATURES = 3 * len(PAIR_FROM) + 17


def features(poses: np.ndarray) -> np.ndarray:
    """What the net looks at.

    Args:
        poses: (people, 17, 3) float32: x, y in image pixels, joint score.
    Returns:
        (people, 74) float32: 19 differences (x, y), 19 lengths, both in torso lengths (at least a pixel), 17 scores.
    """
    joints, scores = poses[:, :, :2], poses[:, :, 2]
    difference = joints[:, PAIR_FROM] - joints[:, PAIR_TO]
    length = np.sqrt((difference**2).sum(2))
    torso = np.maximum(length[:, TORSO_PAIRS].sum(1) / 2, 1)
    people = len(poses)
    parts = ((difference / torso[:, None, None]).reshape(people, 2 * len(PAIR_FROM)), length / torso[:, None], scores)
    return np.concatenate(parts, axis=1).astype(np.float32)


@dataclass(frozen=True)
class RescoreNet:
    """Three linear layers with ReLU between them: weights (out, in) and biases (out,), float32."""

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    def __call__(self, poses: np.ndarray) -> np.ndarray:
        """Factors (people,) float32 for the scores of poses (people, 17, 3) in image pixels; NaN becomes 0."""
        values = features(poses)
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            values = np.maximum(values @ weight.T + bias, 0)
        factors = (values @ last[0].T + last[1])[:, 0]
        return np.where(np.isnan(factors), np.float32(0), factors)


def load_rescore_net(path: str | Path, hidden: int = 256) -> RescoreNet:
    """Read a rescoring checkpoint, strictly.

    Args:
        hidden: the width of the hidden layers (RESCORE.HIDDEN_LAYER).
    Raises:
        DekrError: torch is not installed, or the file is not such a checkpoint.
    """
    try:
        from torch import nn

        from dekr_infer.model.checkpoint import load_network
    except ImportError:
        raise DekrError(
            f"{path}: reading it needs torch; install torch, or evaluate without rescoring by RESCORE.VALID False"
        ) from None
    net = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in layer_shapes(hidden).items()})
    load_network(net, path)
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    if any(np.abs(value).max() > LARGEST_WEIGHT for value in state.values()):
        raise DekrError(f"{path}: holds weights beyond all bounds; fetch or train it again")
    return RescoreNet(
        tuple(state[f"{name}.weight"] for name in layer_shapes(hidden)),
        tuple(state[f"{name}.bias"] for name in layer_shapes(hidden)),
    )


def layer_shapes(hidden: int) -> dict[str, tuple[int, int]]:
    """The three layers by their names in the checkpoint: (inputs, outputs)."""
    return {"l1": (FEATURES, hidden), "l2": (hidden, hidden), "l3": (hidden, 1)}
