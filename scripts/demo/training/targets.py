"""Training targets of an image: heatmaps, and offsets around every person's centre.

Numpy only. Joints are in cells (input pixels / 4), (people, 17, 3): x, y, and v > 0 where labelled. `pose/encode.py` is
not used: the paper gives contested cells to the smaller person, keeps centres between cells and weights the offsets,
while the encoder must yield maps that decode to every person.
Source: Geng et al., Bottom-Up Human Pose Estimation Via Disentangled Keypoint Regression, 2021, section 3.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

JOINT_SIGMA = 2.0  # cells
CENTRE_SIGMA = 4.0  # cells
REACH = 3  # sigmas: the radius of a Gaussian
OFFSET_RADIUS = 4  # cells: offsets are taught in a square of twice that side
SMALLEST_AREA = 16.0  # cells squared: people with fewer than two joints have no area of their own


class OffsetTargets(NamedTuple):
    """Offset targets at the cells around the centres.

    Attributes:
        cells: (M,) int64, ascending indices into h * w.
        offset: (M, 17, 2) float32, cell minus joint in cells, x then y; 0 where the joint is not labelled.
        weight: (M, 17) float32, 1 / sqrt(area) of the person; 0 where the joint is not labelled.
    """

    cells: np.ndarray
    offset: np.ndarray
    weight: np.ndarray


def keep_inside(joints: np.ndarray, h: int, w: int) -> np.ndarray:
    """Return joints without labels outside a map of h x w cells, and without people that have no label left."""
    x, y = joints[..., 0], joints[..., 1]
    inside = (joints[..., 2] > 0) & (x >= 0) & (y >= 0) & (x <= w - 1) & (y <= h - 1)
    return np.where(inside[..., None], joints, 0.0)[inside.any(1)]


def centres(joints: np.ndarray) -> np.ndarray:
    """Return the mean of each person's labelled joints: (people, 2) x, y."""
    labelled = joints[..., 2:] > 0
    return np.where(labelled, joints[..., :2], 0).sum(1) / labelled.sum(1)


def areas(joints: np.ndarray) -> np.ndarray:
    """Return w^2 + h^2 of the box around each person's labelled joints, in cells squared: (people,)."""
    labelled = joints[..., 2:] > 0
    high = np.where(labelled, joints[..., :2], -np.inf).max(1)
    low = np.where(labelled, joints[..., :2], np.inf).min(1)
    return np.maximum(np.square(high - low).sum(1), SMALLEST_AREA)


def heat_targets(joints: np.ndarray, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Gaussians at joints and centres, cut at three sigmas; where two meet, the higher value.

    Returns:
        heat: (18, h, w) float32.
        foreground: (18, h, w) bool, the squares that the Gaussians fill.
    """
    heat = np.zeros((18, h, w), np.float32)
    foreground = np.zeros((18, h, w), bool)
    for person, centre in zip(joints, centres(joints), strict=True):
        for channel, (x, y, v) in enumerate((*person, (*centre, 2.0))):
            if v <= 0:
                continue
            sigma = JOINT_SIGMA if channel < len(person) else CENTRE_SIGMA
            reach = REACH * sigma
            rows = np.arange(max(int(np.ceil(y - reach)), 0), min(int(y + reach) + 1, h))
            columns = np.arange(max(int(np.ceil(x - reach)), 0), min(int(x + reach) + 1, w))
            square = np.s_[channel, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            falloff = -0.5 / sigma**2
            drop = np.exp(falloff * (rows - y) ** 2)[:, None] * np.exp(falloff * (columns - x) ** 2)
            heat[square] = np.maximum(heat[square], drop)
            foreground[square] = True
    return heat, foreground


def offset_targets(joints: np.ndarray, h: int, w: int) -> OffsetTargets:
    """Return offsets in a square around every centre; where squares overlap, the smaller person has the cells."""
    owner = np.full((h, w), -1)
    area, middle = areas(joints), centres(joints)
    for person in np.argsort(-area, kind="stable"):
        x, y = middle[person]
        rows = slice(max(int(y - OFFSET_RADIUS), 0), int(y + OFFSET_RADIUS))
        owner[rows, max(int(x - OFFSET_RADIUS), 0) : int(x + OFFSET_RADIUS)] = person
    cells = np.flatnonzero(owner >= 0)
    whose = joints[owner.flat[cells]]
    at = np.stack([cells % w, cells // w], 1)[:, None]
    labelled = whose[..., 2] > 0
    offset = np.where(labelled[..., None], at - whose[..., :2], 0).astype(np.float32)
    weight = labelled / np.sqrt(area[owner.flat[cells]])[:, None]
    return OffsetTargets(cells, offset, weight.astype(np.float32))
