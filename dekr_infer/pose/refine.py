"""TEST.MATCH_HMP: move joints to the heatmap's peaks and refine them by a Gaussian fit, as the reference does.

The reference works on maps up-sampled by the stride: corner on corner, linear, the last row and column repeated. Here
only the pixels that matter are interpolated, from maps in cells. Numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from dekr_infer.geometry import STRIDE
from dekr_infer.pose.decode import maximum_around, stride_at
from dekr_infer.pose.gaussian_fit import fit_gaussians
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.structures import Passes

PEAK_REACH = 2  # pixels: a peak is the maximum of 5 x 5


@dataclass(frozen=True)
class RefineSettings:
    """Settings of the refinement; the configuration's keys are in brackets.

    Args:
        max_people: peaks per joint [DATASET.MAX_NUM_PEOPLE].
        absorb_distance: pixels within which a joint moves to a peak [TEST.MAX_ABSORB_DISTANCE].
        threshold: joints scoring more are refined [TEST.ADJUST_THRESHOLD].
        reach: pixels of the fitted window on each side [TEST.GUASSIAN_KERNEL].
        sigma: the fit's first guess, in pixels [DATASET.SIGMA].
    """

    max_people: int
    absorb_distance: float
    threshold: float
    reach: int
    sigma: float


def match_to_heatmap(
    poses: np.ndarray, passes: Passes, settings: RefineSettings, skeleton: Skeleton = COCO_17
) -> np.ndarray:
    """Return poses (people, J, 3) in input pixels with their joints moved; the scores are kept."""
    heat = merged_joints(passes, skeleton)
    return refine(absorb(poses, heat, settings), heat, settings)


def match_to_scales(
    poses: np.ndarray, scales: Mapping[float, Passes], settings: RefineSettings, skeleton: Skeleton = COCO_17
) -> np.ndarray:
    """Return poses in input pixels of scale 1, moved by the mean of the heatmaps of all scales; the scores are kept."""
    order = sorted(scales, reverse=True)
    maps = (_enlarged(merged_joints(scales[s], skeleton), stride_at(s)) for s in order)
    heat = reduce(np.add, maps) / np.float32(len(order))
    return refine(absorb(poses, heat, settings, stride=1), heat, settings, stride=1)


def _enlarged(heat: np.ndarray, stride: int) -> np.ndarray:
    """Return maps (J, h, w) up-sampled as the reference does: (J, stride * h, stride * w)."""
    for axis in (1, 2):
        count = heat.shape[axis]
        before, after, share = _neighbours(np.arange(stride * count), count, stride)
        share = share[:, None] if axis == 1 else share
        heat = (1 - share) * heat.take(before, axis) + share * heat.take(after, axis)
    return heat


def merged_joints(passes: Passes, skeleton: Skeleton = COCO_17) -> np.ndarray:
    """Return the mean heatmaps of both passes, joints only: (J, h, w) float32."""
    heat = np.asarray(passes.original.heatmap[: len(skeleton)], np.float32)
    if passes.flipped is None:
        return heat
    return (heat + np.asarray(passes.flipped.heatmap, np.float32)[list(skeleton.partners), :, ::-1]) / 2


def absorb(poses: np.ndarray, heat: np.ndarray, settings: RefineSettings, stride: int = STRIDE) -> np.ndarray:
    """Return poses whose joints moved to the nearest of the joint's highest peaks, where one is near enough.

    Args:
        poses: (people, J, 3) in input pixels.
        heat: (J, h, w) in cells.
        settings: the number of peaks, and the distance.
        stride: input pixels per cell: that of the maps, or 1 for maps that are up-sampled already.
    """
    moved = poses.copy()
    peaks = highest_peaks(heat, settings.max_people) if stride > 1 else _pixel_peaks(heat, settings.max_people)
    distance = np.sqrt(((poses[:, :, None, :2] - peaks) ** 2).sum(3))
    person, joint = np.nonzero(distance.min(2) < settings.absorb_distance)
    moved[person, joint, :2] = peaks[joint, distance.argmin(2)[person, joint]]
    return moved


def highest_peaks(heat: np.ndarray, count: int) -> np.ndarray:
    """Return the highest peaks of each up-sampled map (J, h, w): pixels that are the maximum of 5 x 5.

    Only a cell, or a repetition of the last one, can be a peak, because the map is linear in between. The maximum
    around it is in the middle, or at an edge or corner of the 5 x 5: two pixels further. Where fewer peaks are
    positive, the remaining entries are the first pixels that are no peaks: the reference sets these to 0, and finds
    them next.

    Returns:
        (J, count, 2) float32: x, y in input pixels, the highest first; of equal ones the upper, then the left.
    """
    h, w = heat.shape[1:]
    padded = np.pad(heat, ((0, 0), (1, 1), (1, 1)), mode="edge")
    upright = np.maximum(np.maximum(padded[:, :-2], padded[:, 2:]), padded[:, 1:-1])
    level = np.maximum(padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    # enough: no neighbour is higher; necessary: none is in the row or column, but the last cells' repetitions ignore it
    certain = heat >= np.maximum(np.maximum(upright[:, :, :-2], upright[:, :, 2:]), upright[:, :, 1:-1])
    possible = heat >= np.maximum(upright[:, :, 1:-1], level)
    possible[:, -1], possible[:, :, -1] = heat[:, -1] >= level[:, -1], heat[:, :, -1] >= upright[:, :, -2]
    possible[:, -1, -1] = True
    heights = [np.sort(values[peaks]) for values, peaks in zip(heat, certain, strict=True)]
    last = np.array([own[-count] if len(own) >= count and own[-count] > 0 else -np.inf for own in heights])
    joint, row, column = np.nonzero(possible & (heat >= last[:, None, None]) & (heat != 0))

    down, right = np.indices((STRIDE, STRIDE)).reshape(2, -1)  # to a cell's repetitions
    repeated = ((down == 0) | (row[:, None] == h - 1)) & ((right == 0) | (column[:, None] == w - 1))
    cell, repetition = np.nonzero(repeated)
    joint, y, x = joint[cell], STRIDE * row[cell] + down[repetition], STRIDE * column[cell] + right[repetition]
    reach = np.array([-PEAK_REACH, 0, PEAK_REACH])
    around = at_pixels(heat, joint, y[:, None, None] + reach[:, None], x[:, None, None] + reach)
    height = around[:, 1, 1]
    is_peak = height == around.max((1, 2))
    return _highest(joint[is_peak], height[is_peak], y[is_peak], x[is_peak], STRIDE * w, len(heat), count)


def _pixel_peaks(heat: np.ndarray, count: int) -> np.ndarray:
    """Return the highest peaks of maps (J, h, w) in pixels, as `highest_peaks` does for maps in cells."""
    around = np.stack([maximum_around(values, PEAK_REACH) for values in heat])
    joint, y, x = np.nonzero((heat == around) & (heat != 0))
    return _highest(joint, heat[joint, y, x], y, x, heat.shape[2], len(heat), count)


def _highest(
    joint: np.ndarray, height: np.ndarray, y: np.ndarray, x: np.ndarray, width: int, joints: int, count: int
) -> np.ndarray:
    """Return the highest of the peaks (n,) of each joint; see `highest_peaks`. `width` is in pixels."""
    pixel = width * y + x
    found = np.empty((joints, count), np.int64)
    for own, best in enumerate(found):
        order = np.lexsort((pixel[joint == own], -height[joint == own]))
        peaks = pixel[joint == own][order]
        positive = peaks[: min(count, np.count_nonzero(height[joint == own] > 0))]
        best[: len(positive)] = positive
        if len(positive) < count:
            best[len(positive) :] = np.setdiff1d(np.arange(count + len(peaks)), peaks)[: count - len(positive)]
    return np.stack((found % width, found // width), axis=2).astype(np.float32)


def _neighbours(pixels: np.ndarray, count: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cells before and after pixels of a side of `count` cells, and the latter's share (below 1)."""
    pixels = np.clip(pixels, 0, stride * (count - 1))
    before = pixels // stride
    return before, np.minimum(before + 1, count - 1), (pixels % stride / stride).astype(np.float32)


def refine(poses: np.ndarray, heat: np.ndarray, settings: RefineSettings, stride: int = STRIDE) -> np.ndarray:
    """Return poses whose joints moved to the centre of a Gaussian fitted around them; where the fit fails they stay.

    Where a window is cut by the border and not square, the reference reads its values as if it stood upright. The
    setting is defined by what the reference computes, so this function does the same.

    Args:
        poses: (people, J, 3) in input pixels.
        heat: (J, h, w) in cells.
        settings: the score above which a joint is fitted, the window, and the first sigma.
        stride: see `absorb`.
    """
    h, w = (stride * side for side in heat.shape[1:])
    person, joint = np.nonzero(poses[:, :, 2] > settings.threshold)
    pixel = (poses[person, joint, 1::-1] + 0.5).astype(int)  # y, x; towards zero
    # people on the same pixel share a fit
    fits, fit_of = np.unique(np.column_stack((joint, pixel)), axis=0, return_inverse=True)
    middle = np.clip(fits[:, 1:], 0, (h - 1, w - 1))
    first = np.maximum(middle - settings.reach, 0)
    shape = np.minimum(middle + settings.reach + 1, (h, w)) - first
    # entry k of a window of r rows and c columns is at row k // c of the map, and at row k // r of the fit
    along, across = np.indices((2 * settings.reach + 1,) * 2)
    k = along * shape[:, :1, None] + across
    inside = (along < shape[:, 1:, None]) & (across < shape[:, :1, None])
    row, column = np.divmod(np.where(inside, k, 0), shape[:, 1:, None])
    rows, columns = first[:, :1, None] + row, first[:, 1:, None] + column
    windows = np.where(inside, at_pixels(heat, fits[:, 0], rows, columns, stride), 0)
    heights = at_pixels(heat, fits[:, 0], middle[:, :1, None], middle[:, 1:, None], stride).ravel()
    guess = np.column_stack((heights, middle - first, np.full(len(fits), settings.sigma)))
    fitted, converged = fit_gaussians(windows, shape[:, ::-1], guess)
    moved = poses.copy()
    places = (first + fitted[:, 1:3])[fit_of]
    good = converged[fit_of]
    moved[person[good], joint[good], 1::-1] = places[good]
    return moved


def at_pixels(heat: np.ndarray, joint: np.ndarray, y: np.ndarray, x: np.ndarray, stride: int = STRIDE) -> np.ndarray:
    """Return maps (J, h, w) in cells, interpolated at pixels y, x (n, a, b) of the maps `joint` (n,)."""
    upper, lower, y_share = _neighbours(y, heat.shape[1], stride)
    left, right, x_share = _neighbours(x, heat.shape[2], stride)
    joint = joint[:, None, None]
    before = (1 - y_share) * heat[joint, upper, left] + y_share * heat[joint, lower, left]
    after = (1 - y_share) * heat[joint, upper, right] + y_share * heat[joint, lower, right]
    return np.asarray((1 - x_share) * before + x_share * after)
