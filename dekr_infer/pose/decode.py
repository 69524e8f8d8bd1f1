"""Decode the network's outputs of one image into scored poses: merge, candidates, poses, joint scores, duplicates.

An image may have been fed at several scales; positions are then in input pixels of scale 1.

Numpy only. Nothing of full size is computed: only the centre map, the offsets at the candidates and four cells around
each joint are looked at. Follows the DEKR reference; where two candidates tie
exactly, the one further up and left comes first (the reference leaves the order open).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from dekr_infer.geometry import STRIDE, Size
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.structures import Maps, Passes

CENTRE = -1  # the heatmap channel of the person centre
EVERYWHERE = slice(None)


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of decoding; the configuration's keys are in brackets.

    Args:
        max_people: candidates kept per image [DATASET.MAX_NUM_PEOPLE].
        threshold: a centre must score more than this [TEST.KEYPOINT_THRESHOLD].
        nms_distance: joints are near below this share of a person's size [TEST.NMS_THRE].
        nms_joints: more near joints than this make a duplicate [TEST.NMS_NUM_THRE].
        pool_sides: mean side in cells above which a centre is the maximum of 7x7 and of 5x5 cells instead of 3x3
            [TEST.POOL_THRESHOLD1, TEST.POOL_THRESHOLD2].
        decrease: factor of the scores of candidates from other scales than 1 [TEST.DECREASE].
    """

    max_people: int
    threshold: float
    nms_distance: float
    nms_joints: int
    pool_sides: tuple[int, int]
    decrease: float = 1.0


def decode(passes: Passes, settings: DecodeSettings, skeleton: Skeleton = COCO_17) -> tuple[np.ndarray, np.ndarray]:
    """Find the people of one image.

    Returns:
        poses_input (people, J, 3) float32: x, y in input pixels, joint score; scores (people,) float32.
        Nobody: (0, J, 3) and (0,).
    Raises:
        DekrError: a value that matters is NaN or infinite.
    """
    return decode_scales({1.0: passes}, settings, skeleton)


def decode_scales(
    scales: Mapping[float, Passes], settings: DecodeSettings, skeleton: Skeleton = COCO_17
) -> tuple[np.ndarray, np.ndarray]:
    """Find the people of one image that was fed at several scales.

    Args:
        scales: the network's outputs by scale; 1 is among them.
        settings: of decoding.
        skeleton: of the network.
    Returns:
        See `decode`; the poses are in input pixels of scale 1.
    Raises:
        DekrError: a value that matters is NaN or infinite.
    """
    order = sorted(scales, reverse=True)
    found = {scale: find_centres(merged_centre(scales[scale]), settings) for scale in order}
    joints = np.concatenate([joints_at(scales[s], found[s][0], skeleton) / np.float32(s) for s in order])
    centre_scores = np.concatenate([_scores_at(scale, found, settings) for scale in order])
    heat = reduce(np.add, (heat_at(scales[s], joints, skeleton, s) for s in order)) / np.float32(len(order))
    mean_heat = heat.sum(1) / np.float32(len(skeleton))
    kept = remove_duplicates(joints, mean_heat, settings)
    if len(kept) > settings.max_people:
        kept = [kept[index] for index in np.argsort(-mean_heat[kept], kind="stable")[: settings.max_people]]
    joint_scores = centre_scores[kept, None] * heat[kept]
    poses = np.concatenate((joints[kept], joint_scores[:, :, None]), axis=2)
    return poses, joint_scores.mean(1, dtype=np.float32)


def _scores_at(
    scale: float, found: Mapping[float, tuple[np.ndarray, np.ndarray]], settings: DecodeSettings
) -> np.ndarray:
    """Return the centre scores of a scale's candidates, brought to those of scale 1 by the highest of each."""
    scores = found[scale][1]
    if scale == 1:
        return scores
    best, best_here = (np.float32(found[s][1].max() if len(found[s][1]) else 1) for s in (1.0, scale))
    return scores / best_here * best * np.float32(settings.decrease)


def merged_centre(passes: Passes) -> np.ndarray:
    """Return the mean centre map of both passes: (h, w) float32."""
    centre = passes.original.heat_at(CENTRE, EVERYWHERE, EVERYWHERE)
    if passes.flipped is None:
        return centre
    return (centre + passes.flipped.heat_at(CENTRE, EVERYWHERE, EVERYWHERE)[:, ::-1]) / 2


def find_centres(centre: np.ndarray, settings: DecodeSettings) -> tuple[np.ndarray, np.ndarray]:
    """Find the candidates: cells that are the maximum of their neighbourhood, the highest first.

    Args:
        settings: the limits.
        centre: (h, w) float32.
    Returns:
        cells (n, 2) int: y, x; scores (n,) float32; at most `max_people`, all above the threshold.
    """
    reach = pool_reach(Size(*centre.shape), settings)
    values = centre.ravel()
    peaks = np.flatnonzero((centre == maximum_around(centre, reach)) & (centre > np.float32(settings.threshold)))
    if len(peaks) > settings.max_people:
        heights = values[peaks]
        peaks = peaks[heights >= np.partition(heights, -settings.max_people)[-settings.max_people]]
    best = peaks[np.argsort(-values[peaks], kind="stable")[: settings.max_people]]
    return np.stack(np.divmod(best, centre.shape[1]), axis=1), values[best]


def pool_reach(cells: Size, settings: DecodeSettings) -> int:
    """Return how many cells around it a centre must be the maximum of, in maps of this size."""
    return 1 + sum(sum(cells) / 2 > limit for limit in settings.pool_sides)


def maximum_around(values: np.ndarray, reach: int) -> np.ndarray:
    """Return the maximum over the square of 2 * reach + 1 cells around each cell of (h, w)."""
    for axis in (0, 1):
        best = values.copy()
        for step in range(1, reach + 1):
            later, earlier = _without(best, axis, step), _without(best, axis, -step)
            np.maximum(later, _without(values, axis, -step), out=later)
            np.maximum(earlier, _without(values, axis, step), out=earlier)
        values = best
    return values


def _without(values: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Return `values` without its first `step` entries along an axis (the last ones when negative)."""
    chosen = [slice(None)] * values.ndim
    chosen[axis] = slice(step, None) if step > 0 else slice(None, step)
    return values[tuple(chosen)]


def joints_at(passes: Passes, cells_yx: np.ndarray, skeleton: Skeleton = COCO_17) -> np.ndarray:
    """Return the joints of the people centred at some cells.

    Args:
        passes: the network's outputs.
        skeleton: says which joints are partners.
        cells_yx: (n, 2) int.
    Returns:
        (n, J, 2) float32: x, y in input pixels.
    """
    y, x = cells_yx.T
    joints = _pose_cell(passes.original, y, x)
    if passes.flipped is not None:
        width = passes.original.cells.w
        flipped = _pose_cell(passes.flipped, y, width - 1 - x)[:, skeleton.partners]
        flipped[:, :, 0] = width - flipped[:, :, 0] - 1
        joints = (joints + flipped) / 2
    return joints * np.float32(STRIDE)


def _pose_cell(maps: Maps, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return cell - offset at some cells: (n, J, 2) float32, x and y in cells."""
    return np.stack((x, y), axis=1).astype(np.float32)[:, None] - maps.offset_at(y, x)


def heat_at(passes: Passes, joints: np.ndarray, skeleton: Skeleton = COCO_17, scale: float = 1.0) -> np.ndarray:
    """Return the merged heat of each joint at its place, as read off maps up-sampled to the input of scale 1.

    Pixel p of the up-sampled map is at cell p / stride, interpolated linearly, the last cell repeated; a joint is read
    at the pixel that contains it, clamped to the border when it is outside.

    Args:
        passes: the network's outputs.
        skeleton: says which joints are partners.
        joints: (n, J, 2) float32: x, y in input pixels of scale 1.
        scale: of the passes.
    Returns:
        (n, J) float32.
    """
    h, w = passes.original.cells
    x, x_share = _cell_and_share(joints[:, :, 0], w, stride_at(scale))
    y, y_share = _cell_and_share(joints[:, :, 1], h, stride_at(scale))
    x_next, y_next = np.minimum(x + 1, w - 1), np.minimum(y + 1, h - 1)
    rows, columns = np.stack((y, y, y_next, y_next)), np.stack((x, x_next, x, x_next))
    values = passes.original.heat_at(np.arange(len(skeleton)), rows, columns)
    if passes.flipped is not None:
        flipped = passes.flipped.heat_at(np.array(skeleton.partners), rows, w - 1 - columns)
        values = (values + flipped) / 2
    upper = (1 - x_share) * values[0] + x_share * values[1]
    lower = (1 - x_share) * values[2] + x_share * values[3]
    return (1 - y_share) * upper + y_share * lower


def _cell_and_share(pixels: np.ndarray, count: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cell at or before each pixel coordinate, and the share of the way to the next one (0 to 0.75)."""
    pixel = np.clip(np.floor(pixels), 0, stride * (count - 1)).astype(np.int64)
    return pixel // stride, (pixel % stride).astype(np.float32) / np.float32(stride)


def stride_at(scale: float) -> int:
    """Return the input pixels of scale 1 in a cell of another scale."""
    return int(STRIDE / scale)


def remove_duplicates(joints: np.ndarray, mean_heat: np.ndarray, settings: DecodeSettings) -> list[int]:
    """Return the people to keep, in the order in which they are kept.

    j duplicates i when enough of their joints are near by *i's* size. Of i and its duplicates the one with the highest
    mean heat is kept, unless an earlier group contains it.

    Args:
        settings: the limits.
        joints: (n, J, 2) float32, candidates in the order of their centre scores.
        mean_heat: (n,) float32.
    """
    extent = joints.max(1) - joints.min(1)
    area = (extent**2).sum(1)
    x, y = np.ascontiguousarray(joints[:, :, 0]), np.ascontiguousarray(joints[:, :, 1])
    distance = np.sqrt((x[:, None] - x) ** 2 + (y[:, None] - y) ** 2)
    near = distance < np.float32(settings.nms_distance) * np.sqrt(area)[:, None, None]
    duplicates = near.sum(2) > settings.nms_joints
    kept: list[int] = []
    taken: set[int] = set()
    for person, row in enumerate(duplicates):
        if person in taken:
            continue
        group = np.flatnonzero(row)
        if not len(group):  # all joints in one point: no size, so it is not even its own duplicate; keep it
            group = np.array([person])
        best = int(group[np.argmax(mean_heat[group])])
        if best in taken:
            continue
        kept.append(best)
        taken.update(group.tolist())
    return kept


def transform_poses(poses: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return poses (people, J, 3) float32 with x, y mapped by an affine (2, 3) in float64; the scores are kept."""
    moved = poses.copy()
    moved[:, :, :2] = poses[:, :, :2].astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
    return moved
