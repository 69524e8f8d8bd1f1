"""TEST.MATCH_HMP as the reference defines it: joints go to the nearest peak, then a Gaussian is fitted around them."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit, leastsq

from dekr_infer.pose import gaussian_fit
from dekr_infer.pose.gaussian_fit import fit_gaussians
from dekr_infer.pose.refine import (
    _enlarged,
    _pixel_peaks,
    absorb,
    at_pixels,
    highest_peaks,
    match_to_heatmap,
    match_to_scales,
    merged_joints,
    refine,
)
from dekr_infer.structures import Maps, Passes
from tests.support.recipe import REFINE, passes_of

PARTNER = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
H, W = 23, 34  # cells


def hills(seed: int, flip: bool = True) -> Passes:
    """Heatmaps with Gaussian hills of all heights on a little noise, alike in both passes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W]
    heat = 0.02 * rng.uniform(size=(18, H, W))
    for channel in heat:
        for top, row, column in zip(rng.uniform(0.3, 1, 5), rng.uniform(0, H, 5), rng.uniform(0, W, 5), strict=True):
            channel += top * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 4)
    offset = np.zeros((34, H, W), np.float32)
    flipped = heat[[*PARTNER, 17]][:, :, ::-1] + 0.02 * rng.uniform(size=heat.shape)
    heat = heat.astype(np.float32)
    return passes_of(heat, offset, flipped.astype(np.float32), offset) if flip else passes_of(heat, offset)


def poses_near(seed: int, people: int = 4) -> np.ndarray:
    """(people, 17, 3) in input size pixels, some a little outside; a third of the scores below the threshold."""
    rng = np.random.default_rng(seed + 100)
    poses = rng.uniform(-0.05, 1.05, (people, 17, 3)) * (4 * W, 4 * H, 1)
    poses[:, :, 2] = rng.choice([0.04, 0.3, 0.9], (people, 17))
    return poses.astype(np.float32)


def slow_full_size(maps: np.ndarray) -> np.ndarray:
    """Corner on corner to 4n - 3, the last three rows and columns repeated."""
    h, w = maps.shape[1:]
    large = torch.nn.functional.interpolate(
        torch.from_numpy(maps.copy())[None], size=(4 * h - 3, 4 * w - 3), mode="bilinear", align_corners=True
    )
    return torch.nn.ReplicationPad2d((0, 3, 0, 3))(large)[0].numpy()


def slow_absorb(poses: np.ndarray, heat: np.ndarray, most: int = 30, distance: float = 75) -> np.ndarray:
    """Each joint to the nearest of the highest 5 x 5 maxima, if it is less than 75 pixels away."""
    moved = poses.copy()
    for joint, values in enumerate(torch.from_numpy(heat)):
        is_peak = torch.nn.MaxPool2d(5, 1, 2)(values[None])[0] == values
        _, places = (values * is_peak).flatten().topk(most)
        peaks = [(int(place) % heat.shape[2], int(place) // heat.shape[2]) for place in places]
        for person in range(len(poses)):
            x, y = poses[person, joint, :2]
            nearest = min(peaks, key=lambda peak: (peak[0] - x) ** 2 + (peak[1] - y) ** 2)
            if np.hypot(nearest[0] - x, nearest[1] - y) < distance:
                moved[person, joint, :2] = nearest
    return moved


def slow_refine(joints: np.ndarray, heat: np.ndarray, reach: int = 6, threshold: float = 0.05) -> np.ndarray:
    """A Gaussian of four parameters fitted in the window around each joint; at the border the window is cut, and the
    reference then takes its values in rows as if it stood upright."""

    def model(at, height, y0, x0, sigma):
        return height * np.exp(-((at[1] - x0) ** 2 + (at[0] - y0) ** 2) / (2 * sigma**2))

    moved = joints.copy()
    h, w = heat.shape
    known: dict[tuple[int, int], tuple[float, float]] = {}
    for person, (x, y, score) in enumerate(joints):
        if score <= threshold:
            continue
        row, column = int(y + 0.5), int(x + 0.5)
        if (row, column) not in known:
            middle_row, middle_column = min(max(row, 0), h - 1), min(max(column, 0), w - 1)
            rows = range(max(0, middle_row - reach), min(h - 1, middle_row + reach) + 1)
            columns = range(max(0, middle_column - reach), min(w - 1, middle_column + reach) + 1)
            values = [heat[r, c] for r in rows for c in columns]
            places = np.array([(k // len(rows), k % len(rows)) for k in range(len(values))], float).T
            start = (heat[middle_row, middle_column], middle_row - rows[0], middle_column - columns[0], 2.0)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    (_, y0, x0, _), _ = curve_fit(model, places, values, p0=start, maxfev=300)
            except RuntimeError:
                continue
            known[row, column] = rows[0] + y0, columns[0] + x0
        moved[person, 1], moved[person, 0] = known[row, column]
    return moved


def gaussian(cx: float, cy: float, h: int = 60, w: int = 85, sigma: float = 3.0) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2)).astype(np.float32)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_poses_are_those_of_the_twin(seed, flip):
    passes, poses = hills(seed, flip), poses_near(seed)
    heat = slow_full_size(merged_joints(passes))
    expected = slow_absorb(poses, heat)
    for joint in range(17):
        expected[:, joint] = slow_refine(expected[:, joint], heat[joint])
    moved = match_to_heatmap(poses, passes, REFINE)
    np.testing.assert_array_equal(moved[:, :, 2], poses[:, :, 2])
    close = np.abs(moved - expected).max(2) < 0.02
    assert close.mean() > 0.97, "a fit that hardly converges may end elsewhere; nearly all do"


@pytest.mark.parametrize("flip", [True, False])
def test_the_joints_maps_are_merged_with_partners_swapped(flip):
    passes = hills(3, flip)
    merged = merged_joints(passes)
    assert merged.shape == (17, H, W)
    for joint in range(17):
        for y in range(H):
            for x in range(W):
                expected = passes.original.heatmap[joint, y, x]
                if flip:
                    expected = (expected + passes.flipped.heatmap[PARTNER[joint], y, W - 1 - x]) / 2
                assert merged[joint, y, x] == expected


def test_maps_are_upsampled_corner_on_corner():
    maps = np.random.default_rng(0).normal(size=(17, 9, 14)).astype(np.float32)
    y, x = np.indices((36, 56))
    found = at_pixels(maps, np.arange(17), y[None], x[None])
    assert found.shape == (17, 36, 56) and found.dtype == np.float32
    np.testing.assert_allclose(found, slow_full_size(maps), atol=1e-6)


@pytest.mark.parametrize("distance", [75, 12])
def test_joints_go_to_the_nearest_peak_within_the_distance(distance):
    poses, heat = poses_near(5), merged_joints(hills(5))
    moved = absorb(poses, heat, replace(REFINE, absorb_distance=distance))
    np.testing.assert_array_equal(moved, slow_absorb(poses, slow_full_size(heat), distance=distance))
    assert 0 < (moved != poses).any(2).mean() <= 1 and (distance == 75 or (moved == poses).all(2).any())


def test_only_the_highest_peaks_draw_joints():
    heat = np.zeros((17, 10, 15), np.float32)
    heat[:, 1, 1], heat[:, 8, 10] = 0.5, 0.9
    pose = np.full((1, 17, 3), (7, 7, 1), np.float32)
    assert (absorb(pose, heat, replace(REFINE, max_people=1))[0, :, :2] == (40, 32)).all()
    assert (absorb(pose, heat, replace(REFINE, max_people=2))[0, :, :2] == (4, 4)).all()


@pytest.mark.parametrize("seed", range(4))
def test_peaks_are_the_maxima_of_five_by_five_pixels_up_to_every_border(seed):
    heat = np.random.default_rng(seed).uniform(-0.2, 1, (17, 9, 14)).astype(np.float32)
    heat[8:] **= 2  # flatter, with negative cells gone
    large = slow_full_size(heat)
    pools = torch.nn.MaxPool2d(5, 1, 2)(torch.from_numpy(large)).numpy()
    repeated = 0
    for values, full, pool in zip(heat, large, pools, strict=True):
        rows, columns = np.nonzero((full == pool) & (full > 0))
        found = highest_peaks(values[None], len(rows))[0].astype(int)
        assert sorted(map(tuple, found.tolist())) == sorted(zip(columns.tolist(), rows.tolist(), strict=True))
        heights = full[found[:, 1], found[:, 0]]
        assert (np.diff(heights) <= 1e-6).all()
        inner = torch.nn.MaxPool2d(3, 1, 1)(torch.from_numpy(values)[None])[0].numpy() == values
        for count in (len(rows) // 2, int((inner & (values > 0)).sum())):
            np.testing.assert_array_equal(highest_peaks(values[None], count)[0], found[:count])
        repeated += ((rows % 4 > 0) | (columns % 4 > 0)).sum()
    assert repeated > 20


def test_a_higher_cell_next_to_it_hides_a_peak_and_one_across_a_corner_only_when_high_enough():
    heat = np.zeros((3, 12, 12), np.float32)
    heat[:, 5, 5] = 0.3
    heat[0, 5, 6], heat[1, 6, 6], heat[2, 6, 6] = 0.31, 0.89, 0.91  # halfway along the diagonal: (0.3 + value) / 4
    found = highest_peaks(heat, 2).tolist()
    assert [20, 20] not in found[0] and [20, 20] in found[1] and [20, 20] not in found[2]


def test_fewer_peaks_are_filled_up_with_the_first_pixels_that_are_none():
    heat = np.zeros((1, 12, 12), np.float32)
    heat[0, 0, 1], heat[0, 7, 7] = 0.4, 0.9
    assert highest_peaks(heat, 8)[0].tolist() == [[28, 28], [4, 0], *([x, 0] for x in (0, 1, 2, 3, 5, 6))]


def fit_around(joints: np.ndarray, heat: np.ndarray, reach: int = 6) -> np.ndarray:
    """Return joints (people, 3) inside a full-size map, moved by `fit_gaussians`."""
    windows, shapes, guesses, firsts = [], [], [], []
    for x, y in (joints[:, :2] + 0.5).astype(int):
        top, left = max(y - reach, 0), max(x - reach, 0)
        window = heat[top : y + reach + 1, left : x + reach + 1]
        turned = window.reshape(window.shape[::-1])
        windows.append(np.pad(turned, [(0, 2 * reach + 1 - side) for side in turned.shape]))
        shapes.append(turned.shape)
        guesses.append((heat[y, x], y - top, x - left, 2.0))
        firsts.append((top, left))
    fitted, converged = fit_gaussians(np.array(windows), np.array(shapes), np.array(guesses))
    moved = joints.copy()
    moved[converged, 1::-1] = (np.array(firsts) + fitted[:, 1:3])[converged]
    return moved


BORDERS = [(31.3, 22.8), (40.75, 50.25), (2.3, 22.8), (81.2, 30.4), (30.4, 1.7), (33.3, 57.6), (1.2, 1.9)]


@pytest.mark.parametrize(("cx", "cy"), BORDERS)
def test_the_fit_is_the_references_in_the_middle_and_at_every_border(cx, cy):
    heat = gaussian(cx, cy)
    joints = np.array([[round(cx) + 1, round(cy) - 1, 0.5]], np.float32)
    expected = slow_refine(joints, heat)
    if 8 < cx < 76 and 8 < cy < 51:
        np.testing.assert_allclose(expected[0, :2], [cx, cy], atol=1e-3)
    np.testing.assert_allclose(fit_around(joints, heat), expected, atol=2e-3)


@pytest.mark.parametrize(("cx", "cy"), BORDERS)
def test_a_joint_moves_as_on_the_upsampled_map(cx, cy):
    heat = np.repeat(gaussian(cx / 4, cy / 4, 15, 21, sigma=1.5)[None], 17, axis=0)
    poses = np.full((1, 17, 3), (round(cx) + 1, round(cy) - 1, 0.5), np.float32)
    expected = slow_refine(poses[0, :1], slow_full_size(heat)[0])
    np.testing.assert_allclose(refine(poses, heat, REFINE)[0], expected.repeat(17, axis=0), atol=2e-3)


def test_people_on_the_same_pixel_get_the_same_place_and_weak_joints_stay():
    heat = gaussian(7.8, 5.7, 15, 21, sigma=1.5)[None]
    joints = np.array([[32.2, 22.1, 0.5], [31.6, 21.9, 0.9], [32, 22, 0.05], [32, 22, 0.04]], np.float32)
    moved = refine(joints[:, None], heat, REFINE)[:, 0]
    np.testing.assert_array_equal(moved[0, :2], moved[1, :2])
    np.testing.assert_allclose(moved, slow_refine(joints, slow_full_size(heat)[0]), atol=1e-3)
    assert (moved[:2, :2] != joints[:2, :2]).all() and moved[2:].tolist() == joints[2:].tolist()


def test_a_joint_whose_fit_fails_stays():
    heat = np.random.default_rng(0).choice([0.0, 1.0], (60, 85)).astype(np.float32)
    before = np.random.default_rng(1).uniform(5, 55, (25, 3)).astype(np.float32)
    joints = fit_around(before, heat)
    stayed = (joints == before).all(1)
    assert stayed.any() and np.isfinite(joints).all()
    np.testing.assert_array_equal(stayed, (slow_refine(before, heat) == before).all(1))


def test_a_window_that_cannot_be_fitted_fails_alone():
    good = gaussian(6.3, 5.8, 13, 13)
    holed, large = good.copy(), good.copy()
    holed[3, 4], large[3, 4] = np.nan, np.inf
    windows = np.stack((good, holed, large, np.zeros_like(good), good))
    shape = np.array([(13, 13)] * 4 + [(1, 3)])
    guess = np.array([(1, 6, 6, 2)] * 3 + [(0, 6, 6, 2), (1, 0, 1, 2)])
    fitted, converged = fit_gaussians(windows, shape, guess)
    assert converged.tolist() == [True, False, False, True, False]  # zeros fit at once
    np.testing.assert_allclose(fitted[0], [1, 5.8, 6.3, 3], atol=1e-5)
    np.testing.assert_array_equal(fitted[3], guess[3])


def test_a_search_takes_the_steps_of_minpack(monkeypatch):
    """The model is computed as often, on clean and noisy windows, from near and far: each step was as long."""
    rng, pixel, counts = np.random.default_rng(0), np.arange(13.0), []

    def model(at, y, x):
        return at[0] * np.exp(-((y - at[1]) ** 2 + (x - at[2]) ** 2) / (2 * at[3] ** 2))

    def jacobian(at, y, x):
        hill, dy, dx = model([1, *at[1:]], y, x), y - at[1], x - at[2]
        steep = at[0] * hill / at[3] ** 2
        return np.array([hill, steep * dy, steep * dx, steep * (dy**2 + dx**2) / at[3]])

    def counted(*given):
        counts[-1][0] += 1
        return evaluate(*given)

    evaluate = gaussian_fit._evaluate
    monkeypatch.setattr(gaussian_fit, "_evaluate", counted)
    y, x = (places.ravel() for places in np.meshgrid(pixel, pixel, indexing="ij"))
    for noise in (0, 0.01, 0.1, 0.3) * 40:
        true = (rng.uniform(0.1, 1), *rng.uniform(3, 9, 2), rng.uniform(1, 4))
        values = model(true, y, x) + rng.normal(0, noise, y.size)
        guess = np.array((values.max(), *rng.uniform(2, 10, 2), rng.uniform(0.5, 4)))
        with np.errstate(all="ignore"):
            _, _, theirs, _, code = leastsq(
                lambda at, wanted: model(at, y, x) - wanted,
                guess,
                (values,),
                lambda at, _: jacobian(at, y, x),
                full_output=True,
                col_deriv=True,
                maxfev=40,
            )
        if code < 5:  # converged
            counts.append([0, theirs["nfev"]])
            _, converged = fit_gaussians(values.reshape(1, 13, 13), np.array([(13, 13)]), guess[None])
            assert converged[0]
    assert len(counts) > 100 and max(theirs for _, theirs in counts) > 20
    same = sum(ours == theirs for ours, theirs in counts)
    assert same >= 0.93 * len(counts), counts  # rounding parts a few of the longest


def test_a_map_with_holes_keeps_its_joints():
    heat = np.full((1, 15, 21), np.nan, np.float32)
    poses = np.array([[[32, 22, 0.5]]], np.float32)
    np.testing.assert_array_equal(refine(poses, heat, REFINE), poses)


def test_nobody_stays_nobody():
    assert match_to_heatmap(np.zeros((0, 17, 3), np.float32), hills(0), REFINE).shape == (0, 17, 3)


def test_peaks_of_up_sampled_maps_are_those_of_the_maps_in_cells():
    heat = merged_joints(hills(4))
    np.testing.assert_array_equal(_pixel_peaks(_enlarged(heat, 4), 30), highest_peaks(heat, 30))


def test_the_heatmaps_of_several_scales_move_joints_by_their_mean():
    passes, poses = hills(1), poses_near(1)
    alone = match_to_scales(poses, {1.0: passes}, REFINE)
    np.testing.assert_allclose(alone, match_to_heatmap(poses, passes, REFINE), atol=1e-3)
    twice = Passes(*(Maps(maps.heatmap.repeat(2, 1).repeat(2, 2), maps.offset) for maps in passes))
    assert (match_to_scales(poses, {1.0: passes, 2.0: twice}, REFINE) != alone).any()


def test_pixels_without_heat_are_no_peaks_and_one_is_a_height_like_others():
    heat = np.zeros((1, 12, 12), np.float32)
    heat[0, 1, 1], heat[0, 7, 7] = 1, 0.5
    np.testing.assert_array_equal(_pixel_peaks(_enlarged(heat, 4), 8), highest_peaks(heat, 8))
    assert highest_peaks(heat, 2)[0].tolist() == [[4, 4], [28, 28]]
