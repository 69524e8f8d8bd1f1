"""The rescoring net: features of a final pose -> a factor for its score. Numpy only.

The checkpoint is a torch file, so torch is imported when one is read, and only then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dekr_infer.errors import DekrError
from dekr_infer.model.weights import TRAINED, weights_kind
from dekr_infer.skeleton import COCO_17, Skeleton

LARGEST_WEIGHT = 1e6  # trained ones are below 100; three layers of these stay finite in float32


def features(poses: np.ndarray, skeleton: Skeleton = COCO_17) -> np.ndarray:
    """Compute the net's input.

    Args:
        skeleton: says which pairs of joints count.
        poses: (people, J, 3) float32: x, y in image pixels, joint score.
    Returns:
        (people, 3 P + J) float32 for P pairs: P differences (x, y), P lengths, both in torso lengths (at least a
        pixel), J scores. COCO: 74.
    """
    joints, scores = poses[:, :, :2], poses[:, :, 2]
    start, end = map(list, zip(*skeleton.rescore_pairs, strict=True))
    difference = joints[:, start] - joints[:, end]
    length = np.sqrt((difference**2).sum(2))
    torso = np.maximum(length[:, skeleton.torso_pairs].sum(1) / 2, 1)
    parts = ((difference / torso[:, None, None]).reshape(len(poses), 2 * len(start)), length / torso[:, None], scores)
    return np.concatenate(parts, axis=1).astype(np.float32)


def feature_count(skeleton: Skeleton = COCO_17) -> int:
    """Return the width of the net's input."""
    return 3 * len(skeleton.rescore_pairs) + len(skeleton)


@dataclass(frozen=True)
class RescoreNet:
    """Three linear layers with ReLU between them: weights (out, in) and biases (out,), float32; `kind` is theirs."""

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    skeleton: Skeleton = COCO_17
    kind: str = TRAINED

    def __call__(self, poses: np.ndarray) -> np.ndarray:
        """Return factors (people,) float32 for the scores of poses (people, J, 3) in image pixels; NaN becomes 0."""
        values = features(poses, self.skeleton)
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            values = np.maximum(values @ weight.T + bias, 0)
        factors = (values @ last[0].T + last[1])[:, 0]
        return np.where(np.isnan(factors), np.float32(0), factors)


def load_rescore_net(path: str | Path, hidden: int, skeleton: Skeleton = COCO_17) -> RescoreNet:
    """Read a rescoring checkpoint, strictly.

    Args:
        path: the checkpoint.
        skeleton: decides the width of the input.
        hidden: the width of the hidden layers (RESCORE.HIDDEN_LAYER).
    Raises:
        DekrError: torch is not installed, or the file is not such a checkpoint.
    """
    try:
        from torch import nn

        from dekr_infer.model.checkpoint import load_state, read_state
    except ModuleNotFoundError:
        raise DekrError(
            f"{path}: reading it needs torch; install torch, or evaluate without rescoring by RESCORE.VALID False"
        ) from None
    if not Path(path).is_file():
        raise DekrError(
            f"{path}: no such rescoring checkpoint; put it there, name it with RESCORE.MODEL_FILE, or do without it by "
            "RESCORE.VALID False"
        )
    read = read_state(path)
    first = read.get("l1.weight")
    if first is not None and len(first) != hidden:
        raise DekrError(
            f"{path}: its hidden layers have {len(first)} neurons, RESCORE.HIDDEN_LAYER says {hidden}; add "
            f"RESCORE.HIDDEN_LAYER {len(first)}"
        )
    net = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in layer_shapes(hidden, skeleton).items()})
    load_state(net, read, path)
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    if any(np.abs(value).max() > LARGEST_WEIGHT for value in state.values()):
        raise DekrError(f"{path}: holds weights beyond all bounds; download or train it again")
    names = layer_shapes(hidden, skeleton)
    weights, biases = (tuple(state[f"{name}.{part}"] for name in names) for part in ("weight", "bias"))
    return RescoreNet(weights, biases, skeleton, weights_kind(Path(path)))


def layer_shapes(hidden: int, skeleton: Skeleton = COCO_17) -> dict[str, tuple[int, int]]:
    """Return the three layers by their names in the checkpoint: (inputs, outputs)."""
    return {"l1": (feature_count(skeleton), hidden), "l2": (hidden, hidden), "l3": (hidden, 1)}
