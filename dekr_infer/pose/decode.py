"""Two passes of the network -> people: merge, candidates, poses, joint scores, duplicates. Numpy only.

Nothing of full size is computed: the maps may be memory-mapped files, and only the centre map, the offsets at the
candidates and four cells around each joint are read. Follows the DEKR reference; where two candidates tie exactly,
the one further up and left comes first (the reference leaves it open).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dekr_infer.geometry import STRIDE
from dekr_infer.skeleton import COCO_17

CENTRE = 17  # the heatmap channel of the person centre
JOINTS = COCO_17.offset_channels // 2


@dataclass(frozen=True)
class Passes:
    """The network's outputs for a picture and, if it was run too, for its flipped twin.

    heat (18, h, w) and offset (34, h, w) float32, in cells; `heat_flip` and `offset_flip` alike or `None`, as the
    network gave them for the flipped tensor.
    """

    heat: np.ndarray
    offset: np.ndarray
    heat_flip: np.ndarray | None = None
    offset_flip: np.ndarray | None = None


@dataclass(frozen=True)
class DecodeSettings:
    """What decoding can be told; the names of the configuration are in brackets.

    Args:
        max_people: candidates kept per picture [DATASET.MAX_NUM_PEOPLE].
        threshold: a centre must score more than this [TEST.KEYPOINT_THRESHOLD].
        nms_distance: joints are near below this share of a person's size [TEST.NMS_THRE].
        nms_joints: more near joints than this make a duplicate [TEST.NMS_NUM_THRE].
        pool_sides: mean side in cells above which a centre is the maximum of 7x7 and of 5x5 cells instead of 3x3
            [TEST.POOL_THRESHOLD1, TEST.POOL_THRESHOLD2].
    """

    max_people: int = 30
    threshold: float = 0.01
    nms_distance: float = 0.05
    nms_joints: int = 8
    pool_sides: tuple[int, int] = (300, 200)


class NotFiniteError(ValueError):
    """A value that decoding needs is NaN or infinite; the argument names the map (a field of `Passes`)."""


def decode(passes: Passes, settings: DecodeSettings) -> tuple[np.ndarray, np.ndarray]:
    """The people of one picture, in input size pixels.

    Returns:
        poses_input (people, 17, 3) float32: x, y, joint score; scores (people,) float32. Nobody: (0, 17, 3) and (0,).
    Raises:
        NotFiniteError: a value that matters is NaN or infinite.
    """
    cells_yx, centre_scores = find_centres(merged_centre(passes), settings)
    joints = joints_at(passes, cells_yx)
    heat = heat_at(passes, joints)
    mean_heat = heat.sum(1) / np.float32(JOINTS)
    kept = remove_duplicates(joints, mean_heat, settings)
    joint_scores = centre_scores[kept, None] * heat[kept]
    poses = np.concatenate((joints[kept], joint_scores[:, :, None]), axis=2)
    return poses, joint_scores.mean(1, dtype=np.float32)


def merged_centre(passes: Passes) -> np.ndarray:
    """The mean centre map of both passes: (h, w) float32."""
    centre = _finite(np.asarray(passes.heat[CENTRE]), "heat")
    if passes.heat_flip is None:
        return centre
    return (centre + _finite(np.asarray(passes.heat_flip[CENTRE]), "heat_flip")[:, ::-1]) / 2


def find_centres(centre: np.ndarray, settings: DecodeSettings) -> tuple[np.ndarray, np.ndarray]:
    """The candidates: cells that are the maximum of their neighbourhood, the highest first.

    Args:
        centre: (h, w) float32.
    Returns:
        cells (n, 2) int: y, x; scores (n,) float32; at most `max_people`, all above the threshold.
    """
    side = (centre.shape[0] + centre.shape[1]) / 2
    reach = 1 + sum(side > limit for limit in settings.pool_sides)
    values = centre.ravel()
    peaks = np.flatnonzero((centre == _maximum(centre, reach)) & (centre > np.float32(settings.threshold)))
    if len(peaks) > settings.max_people:
        heights = values[peaks]
        peaks = peaks[heights >= np.partition(heights, -settings.max_people)[-settings.max_people]]
    best = peaks[np.argsort(-values[peaks], kind="stable")[: settings.max_people]]
    return np.stack(np.divmod(best, centre.shape[1]), axis=1), values[best]


def _maximum(values: np.ndarray, reach: int) -> np.ndarray:
    """The maximum over the square of 2 * reach + 1 cells around each cell of (h, w)."""
    for axis in (0, 1):
        best = values.copy()
        for step in range(1, reach + 1):
            ahead, behind = _ahead(best, axis, step), _ahead(best, axis, -step)
            np.maximum(ahead, _ahead(values, axis, -step), out=ahead)
            np.maximum(behind, _ahead(values, axis, step), out=behind)
        values = best
    return values


def _ahead(values: np.ndarray, axis: int, step: int) -> np.ndarray:
    """`values` without its first `step` entries along an axis (the last ones when negative)."""
    chosen = [slice(None)] * values.ndim
    chosen[axis] = slice(step, None) if step > 0 else slice(None, step)
    return values[tuple(chosen)]


def joints_at(passes: Passes, cells_yx: np.ndarray) -> np.ndarray:
    """Where the people centred at some cells have their joints.

    Args:
        cells_yx: (n, 2) int.
    Returns:
        (n, 17, 2) float32: x, y in input size pixels.
    """
    y, x = cells_yx.T
    joints = _pose_cell(passes.offset, y, x, "offset")
    if passes.offset_flip is not None:
        width = passes.offset.shape[2]
        flipped = _pose_cell(passes.offset_flip, y, width - 1 - x, "offset_flip")[:, COCO_17.partners]
        flipped[:, :, 0] = width - flipped[:, :, 0] - 1
        joints = (joints + flipped) / 2
    return joints * np.float32(STRIDE)


def _pose_cell(offset: np.ndarray, y: np.ndarray, x: np.ndarray, name: str) -> np.ndarray:
    """cell - offset at some cells: (n, 17, 2) float32, x and y in cells."""
    moved = _finite(np.asarray(offset[:, y, x]), name).T.reshape(-1, JOINTS, 2)
    return np.stack((x, y), axis=1).astype(np.float32)[:, None] - moved


def heat_at(passes: Passes, joints: np.ndarray) -> np.ndarray:
    """The merged heat of each joint at its place, as read off maps up-sampled by the stride.

    Pixel p of the up-sampled map stands at cell p / 4, interpolated linearly, the last cell repeated; a joint is read
    at the pixel it lies in, brought to the border when it lies outside.

    Args:
        joints: (n, 17, 2) float32: x, y in input size pixels.
    Returns:
        (n, 17) float32.
    """
    h, w = passes.heat.shape[1:]
    x, x_share = _cell_and_share(joints[:, :, 0], w)
    y, y_share = _cell_and_share(joints[:, :, 1], h)
    x_next, y_next = np.minimum(x + 1, w - 1), np.minimum(y + 1, h - 1)
    rows, columns = np.stack((y, y, y_next, y_next)), np.stack((x, x_next, x, x_next))
    joint = np.arange(JOINTS)
    values = _finite(np.asarray(passes.heat[joint, rows, columns]), "heat")
    if passes.heat_flip is not None:
        flipped = passes.heat_flip[np.array(COCO_17.partners), rows, w - 1 - columns]
        values = (values + _finite(np.asarray(flipped), "heat_flip")) / 2
    upper = (1 - x_share) * values[0] + x_share * values[1]
    lower = (1 - x_share) * values[2] + x_share * values[3]
    return (1 - y_share) * upper + y_share * lower


def _cell_and_share(pixels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The cell at or before each pixel coordinate, and how far the pixel lies towards the next one (0 to 0.75)."""
    pixel = np.clip(np.floor(pixels), 0, STRIDE * (count - 1)).astype(np.int64)
    return pixel // STRIDE, (pixel % STRIDE).astype(np.float32) / np.float32(STRIDE)


def remove_duplicates(joints: np.ndarray, mean_heat: np.ndarray, settings: DecodeSettings) -> list[int]:
    """Which people stay, in the order in which they are kept.

    j duplicates i when enough of their joints are near by *i's* size; of i and its duplicates the one with the
    highest mean heat stays, unless an earlier group took it.

    Args:
        joints: (n, 17, 2) float32, candidates in the order of their centre scores.
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
        if not len(group):  # all joints in one point: no size, so not even its own duplicate; such a pose stays
            group = np.array([person])
        best = int(group[np.argmax(mean_heat[group])])
        if best in taken:
            continue
        kept.append(best)
        taken.update(group.tolist())
    return kept


def transform_poses(poses: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Poses (people, 17, 3) float32 with x, y carried by an affine (2, 3), computed in float64; scores as they are."""
    moved = poses.copy()
    moved[:, :, :2] = poses[:, :, :2].astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
    return moved


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise NotFiniteError(name)
    return values
