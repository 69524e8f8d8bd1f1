"""From maps to people: docs/reference.md [16] to [22], against slow references that compute everything at full size."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dekr_infer.errors import DekrError
from dekr_infer.geometry import Size
from dekr_infer.pose.decode import (
    decode,
    decode_scales,
    find_centres,
    heat_at,
    joints_at,
    merged_centre,
    pool_reach,
    remove_duplicates,
    transform_poses,
)
from dekr_infer.structures import Passes
from tests.support.recipe import DECODE, passes_of

PARTNER = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
H, W = 26, 38  # cells


def smooth(rng, channels: int, h: int, w: int) -> np.ndarray:
    """Random maps with hills a few cells wide, asymmetric: (channels, h, w) float32."""
    coarse = torch.from_numpy(rng.normal(size=(1, channels, h // 3 + 2, w // 3 + 2)))
    hills = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bicubic", align_corners=False)[0]
    return hills.numpy().astype(np.float32)


def random_passes(seed: int, h: int = H, w: int = W, flip: bool = True) -> Passes:
    rng = np.random.default_rng(seed)
    heat, heat_flip = smooth(rng, 18, h, w), smooth(rng, 18, h, w)
    offset, offset_flip = 5 * smooth(rng, 34, h, w), 5 * smooth(rng, 34, h, w)
    return passes_of(heat, offset, heat_flip, offset_flip) if flip else passes_of(heat, offset)


# -- the slow reference: every line of the text in its own loop --------------------------------------------------------


def slow_heat(passes: Passes) -> np.ndarray:
    """[16] the mean heatmap of both passes."""
    if passes.flipped is None:
        return passes.original.heatmap
    merged = np.empty_like(passes.original.heatmap)
    channels, h, w = merged.shape
    for channel in range(channels):
        partner = channel if channel == 17 else PARTNER[channel]
        for y in range(h):
            for x in range(w):
                merged[channel, y, x] = (
                    passes.original.heatmap[channel, y, x] + passes.flipped.heatmap[partner, y, w - 1 - x]
                ) / 2
    return merged


def slow_poses(passes: Passes) -> np.ndarray:
    """[16] the mean pose map: (h, w, 17, 2) float32, x and y in cells."""
    _, h, w = passes.original.offset.shape
    merged = np.empty((h, w, 17, 2), np.float32)
    for y in range(h):
        for x in range(w):
            for joint in range(17):
                first = (x - passes.original.offset[2 * joint, y, x], y - passes.original.offset[2 * joint + 1, y, x])
                if passes.flipped is None:
                    merged[y, x, joint] = first
                    continue
                partner, there = PARTNER[joint], w - 1 - x
                seen_x = there - passes.flipped.offset[2 * partner, y, there]
                seen_y = y - passes.flipped.offset[2 * partner + 1, y, there]
                merged[y, x, joint] = (first[0] + ((w - seen_x) - 1)) / 2, (first[1] + seen_y) / 2
    return merged


def slow_centres(centre: np.ndarray, pool: int = 3, most: int = 30, threshold: float = 0.01):
    """[17] cells (n, 2) as y, x, and their scores."""
    tensor = torch.from_numpy(centre.copy())[None]
    peaks = torch.nn.MaxPool2d(pool, 1, pool // 2)(tensor) == tensor
    values, places = (tensor * peaks).flatten().topk(most)
    above = values > threshold
    return np.stack(np.divmod(places[above].numpy(), centre.shape[1]), 1), values[above].numpy()


def full_size(heat: np.ndarray) -> np.ndarray:
    """[19] corner on corner to 4n - 3, then the last three rows and columns repeated."""
    _, h, w = heat.shape
    tensor = torch.from_numpy(heat.copy())[None]
    large = torch.nn.functional.interpolate(tensor, size=(4 * h - 3, 4 * w - 3), mode="bilinear", align_corners=True)
    return torch.nn.ReplicationPad2d((0, 3, 0, 3))(large)[0].numpy()


def slow_heat_at(heat: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """[19] read at the floor, clamped."""
    large = full_size(heat)
    found = np.empty(joints.shape[:2], np.float32)
    for person, pose in enumerate(joints):
        for joint, (x, y) in enumerate(pose):
            column = min(max(int(np.floor(x)), 0), large.shape[2] - 1)
            row = min(max(int(np.floor(y)), 0), large.shape[1] - 1)
            found[person, joint] = large[joint, row, column]
    return found


def slow_duplicates(joints: np.ndarray, mean_heat: np.ndarray, share: float = 0.05, count: int = 8) -> list[int]:
    """[21] who stays."""
    kept: list[int] = []
    dropped: list[int] = []
    for i in range(len(joints)):
        if i in dropped:
            continue
        w, h = np.ptp(joints[i, :, 0]), np.ptp(joints[i, :, 1])
        reach = np.float32(share) * np.sqrt(w * w + h * h)
        group = []
        for j in range(len(joints)):
            near = sum(np.sqrt(((joints[i, k] - joints[j, k]) ** 2).sum()) < reach for k in range(17))
            if near > count:
                group.append(j)
        best = group[0]
        for j in group:
            if mean_heat[j] > mean_heat[best]:
                best = j
        if best not in dropped:
            kept.append(best)
            dropped += group
    return kept


def slow_decode(passes: Passes, pool: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """[16] to [21] in a row."""
    heat = slow_heat(passes)
    cells, centre_scores = slow_centres(heat[17], pool)
    poses = slow_poses(passes)
    joints = np.array([4 * poses[y, x] for y, x in cells], np.float32).reshape(-1, 17, 2)
    heats = slow_heat_at(heat, joints)
    people = slow_duplicates(joints, np.array([values.mean() for values in heats]))
    scores = centre_scores[people, None] * heats[people]
    return np.concatenate([joints[people], scores[:, :, None]], 2), scores.mean(1)


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_people_equal_those_of_the_slow_reference(seed, flip):
    h, w = [(H, W), (31, 24), (26, 26)][seed % 3]
    passes = random_passes(seed, h, w, flip)
    poses, scores = decode(passes, DECODE)
    expected_poses, expected_scores = slow_decode(passes)
    assert len(expected_poses) >= 5
    assert poses.dtype == scores.dtype == np.float32
    np.testing.assert_allclose(poses[:, :, :2], expected_poses[:, :, :2], atol=1e-4)
    np.testing.assert_allclose(poses[:, :, 2], expected_poses[:, :, 2], atol=2e-6)
    np.testing.assert_allclose(scores, expected_scores, atol=2e-6)


def test_maps_may_be_files_read_where_they_are_touched(tmp_path):
    passes = random_passes(3)
    mapped = []
    for index, values in enumerate(
        (passes.original.heatmap, passes.original.offset, passes.flipped.heatmap, passes.flipped.offset)
    ):
        np.save(tmp_path / f"{index}.npy", values)
        mapped.append(np.load(tmp_path / f"{index}.npy", mmap_mode="r"))
    for one, other in zip(decode(passes, DECODE), decode(passes_of(*mapped), DECODE), strict=True):
        np.testing.assert_array_equal(one, other)


def test_nobody_is_an_empty_array_of_the_right_shape():
    passes = random_passes(0)
    passes.original.heatmap[17] = passes.flipped.heatmap[17] = 0.01  # not above the threshold
    poses, scores = decode(passes, DECODE)
    assert poses.shape == (0, 17, 3) and scores.shape == (0,)


# -- merge -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [True, False])
def test_the_centre_map_is_the_mean_of_the_first_and_the_mirrored_second_pass(flip):
    passes = random_passes(1, flip=flip)
    np.testing.assert_array_equal(merged_centre(passes), slow_heat(passes)[17])


@pytest.mark.parametrize("flip", [True, False])
def test_poses_of_both_passes_are_swapped_mirrored_and_averaged(flip):
    passes = random_passes(2, flip=flip)
    cells = np.argwhere(np.ones((H, W)))
    expected = 4 * slow_poses(passes).reshape(-1, 17, 2)
    np.testing.assert_allclose(joints_at(passes, cells), expected, atol=1e-4)


def test_two_passes_that_see_the_same_agree():
    """A flipped pass made from the first as the flipped tensor makes it changes nothing."""
    first = random_passes(4, flip=False)
    heat = first.original.heatmap[[*PARTNER, 17]][:, :, ::-1]
    offset = (
        first.original.offset.reshape(17, 2, H, W)[list(PARTNER)][:, :, :, ::-1]
        * np.array([-1, 1])[None, :, None, None]
    )
    both = passes_of(
        first.original.heatmap,
        first.original.offset,
        heat.astype(np.float32),
        offset.reshape(34, H, W).astype(np.float32),
    )
    poses, scores = decode(first, DECODE)
    poses_both, scores_both = decode(both, DECODE)
    np.testing.assert_allclose(poses_both, poses, atol=1e-4)
    np.testing.assert_allclose(scores_both, scores, atol=1e-6)


# -- candidates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "w", "pool"), [(30, 44, 3), (150, 252, 5), (230, 371, 7), (200, 200, 3), (300, 300, 5)])
def test_candidates_are_the_maxima_of_their_neighbourhood_highest_first(h, w, pool):
    centre = np.random.default_rng(h).normal(size=(h, w)).astype(np.float32)
    cells, scores = find_centres(centre, DECODE)
    expected_cells, expected_scores = slow_centres(centre, pool)
    np.testing.assert_array_equal(cells, expected_cells)
    np.testing.assert_array_equal(scores, expected_scores)
    assert len(scores) == 30


def test_maxima_at_the_border_and_in_the_corners_count():
    centre = np.zeros((9, 12), np.float32)
    for value, (y, x) in enumerate([(0, 0), (8, 11), (0, 11), (8, 0), (0, 6), (4, 11)], start=1):
        centre[y, x] = value
    cells, scores = find_centres(centre, DECODE)
    assert cells.tolist() == [[4, 11], [0, 6], [8, 0], [0, 11], [8, 11], [0, 0]]
    assert scores.tolist() == [6, 5, 4, 3, 2, 1]


def test_the_threshold_is_strict_and_in_float32():
    centre = np.zeros((5, 9), np.float32)
    threshold = np.float32(0.01)
    centre[2, 1], centre[2, 4], centre[2, 7] = threshold, np.nextafter(threshold, np.float32(1)), 0.0099
    assert find_centres(centre, DECODE)[0].tolist() == [[2, 4]]
    assert len(find_centres(centre, replace(DECODE, threshold=0.0))[0]) == 3


def test_no_more_than_the_highest_candidates_are_kept():
    centre = np.zeros((40, 40), np.float32)
    centre[::2, ::2] = np.random.default_rng(0).permutation(400).reshape(20, 20) + 1
    assert find_centres(centre, DECODE)[1].tolist() == list(range(400, 370, -1))
    assert find_centres(centre, replace(DECODE, max_people=3))[1].tolist() == [400, 399, 398]


def test_exact_ties_are_both_kept_the_upper_left_one_first():
    centre = np.zeros((6, 8), np.float32)
    centre[1, 2] = centre[1, 3] = centre[4, 1] = 0.5  # two neighbours on a plateau, one on its own
    assert find_centres(centre, DECODE)[0].tolist() == [[1, 2], [1, 3], [4, 1]]
    assert find_centres(centre, replace(DECODE, max_people=1))[0].tolist() == [[1, 2]]


# -- heat reading ------------------------------------------------------------------------------------------------------


def place(x: float, y: float) -> np.ndarray:
    """One person with all joints at a place in input size pixels."""
    return np.full((1, 17, 2), [x, y], np.float32)


def ramp_passes() -> Passes:
    """Heat that grows by 100 from row to row and by 1 from column to column, and by 10000 from joint to joint."""
    joint, y, x = np.mgrid[:18, :H, :W].astype(np.float32)
    return passes_of(10000 * joint + 100 * y + x, np.zeros((34, H, W), np.float32))


def test_heat_is_read_at_the_floor_of_a_joints_place():
    heat = heat_at(ramp_passes(), place(13.9, 22.99))[0]
    np.testing.assert_allclose(heat, 10000 * np.arange(17) + 100 * 22 / 4 + 13 / 4, rtol=1e-6)
    assert heat_at(ramp_passes(), place(14.0, 23.0))[0, 0] == 100 * 23 / 4 + 14 / 4


def test_heat_left_of_and_above_the_map_is_that_of_its_edge():
    assert heat_at(ramp_passes(), place(-0.5, -30))[0, 0] == 0  # the floor is -1; rounding towards zero would do too
    assert heat_at(ramp_passes(), place(-1e9, 8))[0, 0] == 200


def test_heat_beyond_the_last_cell_is_repeated():
    last_x, last_y = 4 * (W - 1), 4 * (H - 1)
    corner = 100 * (H - 1) + W - 1
    for beyond in (0, 1, 3.9, 4, 500):
        assert heat_at(ramp_passes(), place(last_x + beyond, last_y + beyond))[0, 0] == corner
    assert heat_at(ramp_passes(), place(last_x - 1, last_y))[0, 0] == corner - 0.25


@pytest.mark.parametrize("flip", [True, False])
def test_heat_is_read_as_if_the_map_were_upsampled_to_full_size(flip):
    passes = random_passes(5, flip=flip)
    rng = np.random.default_rng(1)
    joints = (rng.uniform(-0.2, 1.2, (60, 17, 2)) * (4 * W, 4 * H)).astype(np.float32)
    np.testing.assert_allclose(heat_at(passes, joints), slow_heat_at(slow_heat(passes), joints), atol=1e-6)


def test_joint_scores_are_centre_times_heat_and_the_persons_their_mean():
    passes = random_passes(6)
    passes.original.heatmap[:17] *= 40
    passes.flipped.heatmap[:17] *= 40
    poses, scores = decode(passes, DECODE)
    assert poses[:, :, 2].max() > 1 and poses[:, :, 2].min() < 0
    np.testing.assert_allclose(scores, poses[:, :, 2].mean(1), rtol=1e-6)
    cells, centres = slow_centres(slow_heat(passes)[17])
    joints = joints_at(passes, cells)
    for pose in poses:
        source = np.abs(joints - pose[:, :2]).sum((1, 2)).argmin()
        expected = centres[source] * slow_heat_at(slow_heat(passes), joints[source][None])[0]
        np.testing.assert_allclose(pose[:, 2], expected, rtol=1e-5, atol=1e-5)


# -- duplicates --------------------------------------------------------------------------------------------------------


def figure(size: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """(17, 2): joints on a slanted line whose box has a diagonal of `size`, so that near means 0.05 * size."""
    return (np.linspace(0, 1, 17)[:, None] * size * np.array([0.6, 0.8]) + (x, y)).astype(np.float32)


def kept(figures: list[np.ndarray], heats: list[float], **settings) -> list[int]:
    joints, heat = np.array(figures), np.array(heats, np.float32)
    found = remove_duplicates(joints, heat, replace(DECODE, **settings))
    assert found == slow_duplicates(joints, heat, settings.get("nms_distance", 0.05), settings.get("nms_joints", 8))
    return found


def test_of_duplicates_the_one_with_the_highest_mean_heat_stays():
    assert kept([figure(100), figure(100, 4.9)], [1, 2]) == [1]
    assert kept([figure(100), figure(100, 4.9)], [2, 1]) == [0]
    assert kept([figure(100), figure(100, 5.1)], [2, 1]) == [0, 1]


def test_of_duplicates_with_equal_heat_the_first_one_stays():
    assert kept([figure(100), figure(100, 2), figure(100, 1)], [3, 3, 3]) == [0]
    assert kept([figure(100), figure(100, 2), figure(100, 1)], [1, 3, 3]) == [1]


def test_eight_near_joints_are_not_enough_and_nine_are():
    for near, stays in ((8, [0, 1]), (9, [0])):
        other = figure(100)
        other[near:] += (40, 0)
        assert kept([figure(100), other], [2, 1]) == stays


def test_near_is_less_than_the_limit_not_equal_to_it():
    corners = np.zeros((17, 2), np.float32)
    corners[0], corners[1] = (0, 0), (60, 80)  # the box's diagonal is 100
    assert kept([corners, corners + np.float32([0, 25])], [2, 1], nms_distance=0.25) == [0, 1]
    assert kept([corners, corners + np.float32([0, 24.99])], [2, 1], nms_distance=0.25) == [0]


def test_the_size_that_counts_is_that_of_the_person_who_is_visited():
    large, small = figure(200), figure(100)
    small[:9] = large[:9] + (7, 0)  # nine joints are 7 away: near by the large one's 10, not by the small one's 5 or 6
    assert kept([large, small], [2, 1]) == [0]
    assert kept([small, large], [1, 2]) == [0, 1]  # the small one is alone; then the large one wins over it
    assert kept([small, large], [2, 1]) == [0]  # the large one's best is the small one, who is gone


def test_the_boxs_diagonal_is_the_size_in_both_directions():
    for wide, tall in ((100, 10), (10, 100)):
        line = (np.linspace(0, 1, 17)[:, None] * (wide, tall)).astype(np.float32)
        assert kept([line, line + np.float32([4.9, 0])], [2, 1]) == [0]
        assert kept([line, line + np.float32([0, 5.1])], [2, 1]) == [0, 1]


def test_a_group_whose_best_was_dropped_is_skipped_and_marks_nothing():
    row = [figure(100, x) for x in (0, 4, 8, 12)]  # each is near to its neighbours only
    # 0 takes {0, 1}; the group of 2 is {1, 2, 3}, its best, 1, is gone: skipped; the group of 3 is {2, 3}: 2 stays
    assert kept(row, [5, 4, 3, 2]) == [0, 2]


def test_people_stay_in_the_order_in_which_they_are_kept():
    far = [figure(100, 500 * place) for place in range(3)]
    assert kept([*far, figure(100, 2)], [1, 2, 3, 4]) == [3, 1, 2]  # the first group's best is the last candidate


def test_a_person_with_all_joints_in_one_point_stays():
    point = np.full((17, 2), 33, np.float32)
    found = remove_duplicates(
        np.array([figure(100), point, point, figure(100, 900)]), np.array([1, 2, 3, 4], np.float32), DECODE
    )
    assert found == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_duplicates_agree_with_the_loops_on_crowds_of_all_sizes(seed):
    rng = np.random.default_rng(seed)
    people = [figure(rng.uniform(40, 300), *rng.uniform(0, 25, 2)) + rng.normal(0, 2, (17, 2)) for _ in range(25)]
    found = kept(people, rng.uniform(0, 1, 25).tolist(), nms_distance=0.1)
    assert 1 < len(found) < 25


def test_nobody_has_no_duplicates():
    assert remove_duplicates(np.zeros((0, 17, 2), np.float32), np.zeros(0, np.float32), DECODE) == []


# -- what cannot be computed -------------------------------------------------------------------------------------------


def map_of(passes: Passes, name: str) -> np.ndarray:
    maps = passes.flipped if name.startswith("flipped") else passes.original
    return maps.heatmap if name.endswith("heatmap") else maps.offset


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["heatmap", "flipped heatmap", "offset", "flipped offset"])
def test_nan_that_matters_is_refused_with_the_name_of_its_map(name, bad):
    passes = random_passes(7)
    map_of(passes, name)[:] = bad
    if "offset" not in name:
        map_of(passes, name)[17] = 0.5
    with pytest.raises(DekrError, match=f"^{name}: holds NaN or infinite"):
        decode(passes, DECODE)


@pytest.mark.parametrize("name", ["heatmap", "flipped heatmap"])
def test_nan_anywhere_in_the_centre_map_is_refused(name):
    passes = random_passes(8)
    map_of(passes, name)[17, 3, 5] = np.nan
    with pytest.raises(DekrError, match=f"^{name}: holds NaN or infinite"):
        decode(passes, DECODE)


# -- back to the image -----------------------------------------------------------------------------------------------


def test_poses_are_carried_in_float64_and_stored_as_float32():
    poses = np.random.default_rng(0).uniform(-50, 1100, (4, 17, 3)).astype(np.float32)
    matrix = np.array([[1.2345678901, 0.1, -37.123456789], [-0.2, 0.987654321, 12345.678901]])
    moved = transform_poses(poses, matrix)
    assert moved.dtype == np.float32
    for before, after in zip(poses.reshape(-1, 3), moved.reshape(-1, 3), strict=True):
        x, y, score = (float(value) for value in before)
        expected = matrix @ np.array([x, y, 1.0])
        assert after.tolist() == [np.float32(expected[0]), np.float32(expected[1]), score]
    assert (moved[:, :, 0] < 0).any(), "places outside the picture are not clipped"
    assert transform_poses(poses[:0], matrix).shape == (0, 17, 3)


# -- several scales ----------------------------------------------------------------------------------------------------


def enlarged(heat: np.ndarray, ratio: int) -> np.ndarray:
    """Up-sample maps (C, h, w) by a whole ratio: corner on corner, the last row and column repeated."""
    h, w = heat.shape[1:]
    size = (ratio * (h - 1) + 1, ratio * (w - 1) + 1)
    maps = torch.from_numpy(heat.copy())[None]
    large = torch.nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    return np.pad(large[0].numpy(), ((0, 0), (0, ratio - 1), (0, ratio - 1)), mode="edge")


def slow_scales(scales: dict[float, Passes], decrease: float) -> tuple[np.ndarray, np.ndarray]:
    """Decode several scales at full size, as upstream merges them: joints (n, 17, 2) and scores (n,)."""
    order = sorted(scales, reverse=True)
    total = sum(enlarged(slow_heat(scales[s]), int(4 / s)) for s in order) / len(order)
    joints, centres, best = [], [], {}
    for scale in order:
        cells, scores = slow_centres(slow_heat(scales[scale])[17], most=90)
        best[scale] = max(scores, default=1.0)
        joints += [slow_poses(scales[scale])[y, x] * 4 / scale for y, x in cells]
        centres += [(scale, score) for score in scores]
    joints = np.array(joints, np.float32)
    centre_scores = np.array([v if s == 1 else v / best[s] * best[1.0] * decrease for s, v in centres], np.float32)
    heat = np.empty(joints.shape[:2], np.float32)
    for (person, joint), _ in np.ndenumerate(heat):
        x, y = np.floor(joints[person, joint]).astype(int)
        heat[person, joint] = total[joint, min(max(y, 0), total.shape[1] - 1), min(max(x, 0), total.shape[2] - 1)]
    kept = slow_duplicates(joints, heat.mean(1))
    return joints[kept], (centre_scores[:, None] * heat)[kept].mean(1)


@pytest.mark.parametrize("factors", [(1.0, 2.0), (0.5, 1.0, 2.0), (1.0, 0.5)])
def test_several_scales_are_merged_as_at_full_size(factors):
    scales = {f: random_passes(int(10 * f), int(16 * f), int(24 * f)) for f in factors}
    settings = replace(DECODE, decrease=0.9, max_people=90)
    poses, scores = decode_scales(scales, settings)
    wanted_joints, wanted_scores = slow_scales(scales, 0.9)
    assert len(poses) == len(wanted_joints) > len(decode(scales[1.0], settings)[0])
    np.testing.assert_allclose(poses[:, :, :2], wanted_joints, atol=1e-3)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-5)


def test_no_more_people_than_asked_for_are_kept_of_several_scales_those_of_the_highest_heat():
    scales = {f: random_passes(int(10 * f), int(16 * f), int(24 * f)) for f in (1.0, 2.0)}
    poses, _ = decode_scales(scales, replace(DECODE, max_people=5))
    assert len(poses) == 5


def test_one_scale_is_decoded_as_alone():
    passes = random_passes(3)
    for one, other in zip(decode(passes, DECODE), decode_scales({1.0: passes}, DECODE), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("cells", "reach"),
    [((200, 200), 1), ((200, 201), 2), ((100, 301), 2), ((300, 300), 2), ((300, 301), 3), ((128, 256), 1)],
)
def test_the_mean_side_decides_of_how_many_cells_a_centre_is_the_maximum(cells, reach):
    """[17] 3x3 cells up to a mean side of 200, 5x5 up to 300, 7x7 above."""
    assert DECODE.pool_sides == (300, 200) and pool_reach(Size(*cells), DECODE) == reach
