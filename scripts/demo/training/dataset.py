"""An endless dataset of batches of drawn people: a batch depends on the seed and its number alone.

A scene is drawn at the size of an ordinary image, then rotated, scaled, mirrored and cropped to a square at the scale
of the network's input. Small crops hold many small people cheaply, large crops teach large people.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from dekr_infer.geometry import PUBLISHED_SIZES, STRIDE, Size
from dekr_infer.pose.preprocess import MEAN, STD
from dekr_infer.skeleton import COCO_17
from scripts.demo.drawing.scene import Scene, draw_scene
from scripts.demo.training.targets import heat_targets, keep_inside, offset_targets

SHORT_SIDES = (300, 521)  # pixels: the sides of scenes before they are scaled


class Crop(NamedTuple):
    """A kind of batch: `per_scene` squares of `side` pixels from each of `scenes` scenes, drawn with chance `share`."""

    side: int
    scenes: int
    per_scene: int
    zoom: tuple[float, float]
    share: float


CROPS = (
    Crop(256, 3, 2, (0.5, 0.95), 0.35),
    Crop(384, 3, 1, (0.65, 1.1), 0.3),
    Crop(512, 2, 1, (0.8, 1.2), 0.35),
)
VALIDATION_CROP = Crop(512, 4, 1, (1.0, 1.0), 1.0)


class Batch(NamedTuple):
    """Tensors of one step; h = w = side / 4.

    Attributes:
        image: (N, side, side, 3) uint8 RGB.
        heat, foreground: (N, 18, h, w) float32 and bool.
        cells: (M,) int64, ascending indices into N * h * w.
        offset, weight: (M, 17, 2) and (M, 17) float32.
    """

    image: Tensor
    heat: Tensor
    foreground: Tensor
    cells: Tensor
    offset: Tensor
    weight: Tensor


def normalised(image: Tensor) -> Tensor:
    """Return (N, H, W, 3) uint8 RGB as the network's input, (N, 3, H, W) float32 in channels_last order."""
    mean, std = (torch.tensor(v, device=image.device) * 255 for v in (MEAN, STD))
    return ((image.float() - mean) / std).permute(0, 3, 1, 2)


def crop_affine(rng: np.random.Generator, scene: Scene, crop: Crop, upright: bool = False) -> np.ndarray:
    """Return an affine from scene pixels to the pixels of a square with a whole person: (2, 3) float64.

    It may mirror (its determinant is then negative). `upright` asks for the whole scene, centred.
    """
    short = min(scene.image.shape[:2])
    zoom = min(PUBLISHED_SIZES.sizes[0]) / short * np.exp(rng.uniform(*np.log(crop.zoom)))
    angle = np.deg2rad(rng.normal(0, 12) if rng.random() < 0.5 else 0.0)
    mirror = rng.choice((-1.0, 1.0))
    if upright:
        angle, mirror = 0.0, 1.0
    cosine, sine = zoom * np.cos(angle), zoom * np.sin(angle)
    matrix = np.array([[mirror * cosine, -sine], [mirror * sine, cosine]])
    middle = np.array(scene.image.shape[1::-1]) / 2
    free = np.maximum(short * zoom - crop.side, 0.1 * crop.side) / 2
    shift = crop.side / 2 - matrix @ middle
    for _ in range(0 if upright else 10):
        shift = crop.side / 2 - matrix @ middle + rng.uniform(-free, free, 2)
        points = [p.keypoints[p.keypoints[:, 2] > 0, :2] @ matrix.T + shift for p in scene.people]
        if any(((at > 0) & (at < crop.side - STRIDE)).all(1).any() for at in points):
            break
    return np.concatenate([matrix, shift[:, None]], 1)


def transform_joints(joints: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return joints (people, 17, 3) carried through an affine; a mirrored person's left and right are swapped."""
    moved = np.concatenate([joints[..., :2] @ affine[:, :2].T + affine[:, 2], joints[..., 2:]], -1)
    return moved[:, list(COCO_17.partners)] if np.linalg.det(affine[:, :2]) < 0 else moved


def make_batch(seed: tuple[int, ...], crop: Crop | None = None, upright: bool = False) -> Batch:
    """Return a drawn batch of the kind `crop`, or of a random kind."""
    rng = np.random.default_rng(seed)
    crop = crop or CROPS[rng.choice(len(CROPS), p=[kind.share for kind in CROPS])]
    cells_side = crop.side // STRIDE
    images, heats, foregrounds, offsets = [], [], [], []
    for _ in range(crop.scenes):
        side = int(rng.integers(*SHORT_SIDES))
        scene = draw_scene(rng, Size(side, side))
        joints = np.array([person.keypoints for person in scene.people]).reshape(-1, 17, 3)
        for _ in range(crop.per_scene):
            affine = crop_affine(rng, scene, crop, upright)
            images.append(cv2.warpAffine(scene.image, affine, (crop.side, crop.side), flags=cv2.INTER_LINEAR))
            at = transform_joints(joints, affine) * (1 / STRIDE, 1 / STRIDE, 1)
            at = keep_inside(at, cells_side, cells_side)
            heat, foreground = heat_targets(at, cells_side, cells_side)
            heats.append(heat)
            foregrounds.append(foreground)
            offsets.append(offset_targets(at, cells_side, cells_side))
    parts = (
        np.stack(images),
        np.stack(heats),
        np.stack(foregrounds),
        np.concatenate([entry.cells + index * cells_side**2 for index, entry in enumerate(offsets)]),
        np.concatenate([entry.offset for entry in offsets]),
        np.concatenate([entry.weight for entry in offsets]),
    )
    return Batch(*map(torch.from_numpy, parts))


class DrawnBatches(IterableDataset):
    """The batches of one training process, beginning at step `first`."""

    def __init__(self, seed: int, rank: int, first: int, crop: Crop | None = None) -> None:
        self.seed, self.rank, self.step, self.crop = seed, rank, first, crop

    def __iter__(self) -> Iterator[Batch]:
        cv2.setNumThreads(0)
        while True:
            yield make_batch((self.seed, self.rank, self.step), self.crop)
            self.step += 1
