"""TEST.MATCH_HMP: move joints to the heatmap's peaks and refine them by a Gaussian fit, as the reference does.

Only this module needs full-size maps and scipy. Where a window is cut by the border and not square, the reference's fit
uses a grid of the wrong shape. The setting is defined by what the reference computes, so `refine` does the same.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from dekr_infer.geometry import STRIDE
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.structures import Passes

PEAK_REACH = 2  # pixels: a peak is the maximum of 5 x 5
FIT_EVALUATIONS = 300


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
    heat = full_size(merged_joints(passes, skeleton))
    moved = absorb(poses, heat, settings)
    for joint in range(len(skeleton)):
        refine(moved[:, joint], heat[joint], settings)
    return moved


def merged_joints(passes: Passes, skeleton: Skeleton = COCO_17) -> np.ndarray:
    """Return the mean heatmaps of both passes, joints only: (J, h, w) float32."""
    heat = np.asarray(passes.original.heatmap[: len(skeleton)])
    if passes.flipped is None:
        return heat
    return (heat + np.asarray(passes.flipped.heatmap)[list(skeleton.partners), :, ::-1]) / 2


def full_size(maps: np.ndarray) -> np.ndarray:
    """Return maps (J, h, w) up-sampled by the stride: corner on corner, last row and column repeated; float32."""
    for axis in (1, 2):
        count = maps.shape[axis]
        pixel = np.minimum(np.arange(STRIDE * count), STRIDE * (count - 1))
        shape = [1, 1, 1]
        shape[axis] = -1
        share = ((pixel % STRIDE) / np.float32(STRIDE)).astype(np.float32).reshape(shape)
        before = maps.take(pixel // STRIDE, axis)
        after = maps.take(np.minimum(pixel // STRIDE + 1, count - 1), axis)
        maps = (1 - share) * before + share * after
    return maps


def absorb(poses: np.ndarray, heat: np.ndarray, settings: RefineSettings) -> np.ndarray:
    """Return poses whose joints moved to the nearest of the joint's highest peaks, where one is near enough."""
    moved = poses.copy()
    for joint, values in enumerate(heat):
        peaks = _peaks(values, settings.max_people)
        distance = np.sqrt(((poses[:, joint, None, :2] - peaks) ** 2).sum(2))
        nearest = distance.argmin(1)
        close = distance[np.arange(len(poses)), nearest] < settings.absorb_distance
        moved[close, joint, :2] = peaks[nearest[close]]
    return moved


def _peaks(values: np.ndarray, count: int) -> np.ndarray:
    """Return the highest local maxima of (h, w) as (count, 2) float32: x, y in pixels; of equal ones the upper."""
    from scipy.ndimage import maximum_filter

    highest = maximum_filter(values, 2 * PEAK_REACH + 1, mode="constant", cval=-np.inf)
    only_peaks = np.where(values == highest, values, 0).ravel()
    last = np.partition(only_peaks, -count)[-count]
    higher = np.flatnonzero(only_peaks > last)
    best = np.concatenate((higher, np.flatnonzero(only_peaks == last)[: count - len(higher)]))
    y, x = np.divmod(best, values.shape[1])
    return np.stack((x, y), axis=1).astype(np.float32)


def _gaussian(at: np.ndarray, height: float, y0: float, x0: float, sigma: float) -> np.ndarray:
    y, x = at
    return np.asarray(height * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * sigma**2)))


def refine(joints: np.ndarray, heat: np.ndarray, settings: RefineSettings) -> None:
    """Refine one joint of all people, (people, 3) in input pixels, in place, on its full-size map (h, w).

    A joint whose fit does not converge is kept. People whose joints fall on the same pixel get the same result.
    """
    from scipy.optimize import OptimizeWarning, curve_fit

    h, w = heat.shape
    known: dict[tuple[int, int], tuple[float, float]] = {}
    for person in joints:
        if not person[2] > settings.threshold:
            continue
        pixel = int(person[1] + 0.5), int(person[0] + 0.5)
        if pixel not in known:
            row, column = min(max(0, pixel[0]), h - 1), min(max(0, pixel[1]), w - 1)
            top, left = max(0, row - settings.reach), max(0, column - settings.reach)
            window = heat[top : row + settings.reach + 1, left : column + settings.reach + 1]
            # (column count, row count): equal to the window's shape only where that is square
            grid = np.indices(window.shape[::-1], dtype=np.float64)
            guess = (heat[row, column], row - top, column - left, settings.sigma)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", OptimizeWarning)
                    fit, _ = curve_fit(_gaussian, grid.reshape(2, -1), window.ravel(), p0=guess, maxfev=FIT_EVALUATIONS)
            except (RuntimeError, TypeError, ValueError):
                continue
            known[pixel] = (top + fit[1], left + fit[2])
        person[1], person[0] = known[pixel]
