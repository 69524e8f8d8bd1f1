"""Overlays, contact sheets and PNG files."""

import errno
from dataclasses import replace

import cv2
import numpy as np
import pytest

from dekr_infer.errors import DekrError
from dekr_infer.geometry import Size
from dekr_infer.skeleton import COCO_17
from dekr_infer.visualization.overlay import (
    CAPTION,
    GUTTER,
    LEFT,
    RIGHT,
    RIM,
    contact_sheet,
    draw_poses,
    side_colour,
    write_png,
)

J = {name: index for index, name in enumerate(COCO_17.joints)}


def grid_pose(score: float = 1.0) -> np.ndarray:
    """(17, 3): no two joints near each other, in an image of 400 x 300."""
    joints = np.arange(17)
    return np.stack([40 + 60 * (joints % 6), 40 + 80 * (joints // 6), np.full(17, score)], 1).astype(float)


def test_partners_are_the_other_side_and_limbs_join_all_joints():
    for joint, partner in enumerate(COCO_17.partners):
        assert COCO_17.partners[partner] == joint
        swapped = COCO_17.joints[joint].replace("left", "?").replace("right", "left").replace("?", "right")
        assert COCO_17.joints[partner] == swapped
    assert len(COCO_17.limbs) == len(set(COCO_17.limbs)) == 19
    assert {joint for limb in COCO_17.limbs for joint in limb} == set(range(17))
    mirrored = {frozenset(COCO_17.partners[joint] for joint in limb) for limb in COCO_17.limbs}
    assert mirrored == {frozenset(limb) for limb in COCO_17.limbs}


def test_joints_and_limbs_are_drawn_in_the_colour_of_their_side():
    image = np.zeros((300, 400, 3), np.uint8)
    pose = grid_pose(0.0)
    for name in ("left_elbow", "left_wrist", "right_ankle"):
        pose[J[name], 2] = 1
    drawn = draw_poses(image, pose[None])
    elbow, wrist, ankle = (pose[J[name], :2].astype(int) for name in ("left_elbow", "left_wrist", "right_ankle"))
    assert tuple(drawn[elbow[1], elbow[0]]) == LEFT
    assert tuple(drawn[ankle[1], ankle[0]]) == RIGHT
    middle = (elbow + wrist) // 2
    assert tuple(drawn[middle[1], middle[0]]) == LEFT
    assert not image.any(), "the picture itself stays as it was"
    assert side_colour(J["left_hip"], J["right_hip"]) not in (LEFT, RIGHT)


def test_the_sides_are_those_of_the_skeleton():
    right_first = replace(COCO_17, partners=(1, 0, *range(2, 17)))  # joint 0 is on the left, joint 1 on the right
    pose = grid_pose(0.0)
    pose[:2, 2] = 1
    drawn = draw_poses(np.zeros((300, 400, 3), np.uint8), pose[None], skeleton=right_first)
    assert [tuple(drawn[int(y), int(x)]) for x, y in pose[:2, :2]] == [LEFT, RIGHT]


def test_what_is_not_above_the_threshold_is_left_out():
    image = np.full((300, 400, 3), 90, np.uint8)
    pose = grid_pose(0.3)
    pose[J["nose"], 2] = np.nan
    np.testing.assert_array_equal(draw_poses(image, pose[None], [0.5], joint_threshold=0.3), image)
    drawn = draw_poses(image, pose[None], joint_threshold=0.2)
    assert (drawn[40 + 80, 40] != 90).any()  # right_shoulder
    assert (drawn[30:50, 30:50] == 90).all()  # around the nose


def test_scores_are_written_and_nobody_draws_nothing():
    image = np.full((300, 400, 3), 90, np.uint8)
    poses = np.stack([grid_pose(), grid_pose()])
    assert (draw_poses(image, poses, np.array([0.9, 0.1])) != draw_poses(image, poses)).any()
    np.testing.assert_array_equal(draw_poses(image, np.zeros((0, 17, 3)), np.zeros(0)), image)


def test_joints_far_outside_do_no_harm():
    pose = grid_pose()
    pose[J["left_wrist"], :2] = (1e12, -1e12)
    assert draw_poses(np.zeros((30, 40, 3), np.uint8), pose[None], [1.0]).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("poses", "scores", "message"),
    [(np.zeros((17, 3)), None, r"\(people, 17, 3\)"), (np.zeros((2, 17, 3)), np.zeros(3), "as many scores")],
)
def test_wrong_shapes_are_named(poses, scores, message):
    with pytest.raises(ValueError, match=message):
        draw_poses(np.zeros((30, 40, 3), np.uint8), poses, scores)


def test_a_sheet_letterboxes_each_image_in_its_tile():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    shapes = [(50, 100), (120, 30), (7, 9)]
    images = [np.full((*shape, 3), colour, np.uint8) for shape, colour in zip(shapes, colours, strict=True)]
    sheet = contact_sheet(images, ["", "", ""], columns=2, tile=Size(60, 80))
    assert sheet.shape == (2 * (60 + CAPTION), 160 + GUTTER, 3)
    corners = ((CAPTION, 0), (CAPTION, 80 + GUTTER), (86 + CAPTION, 0))
    tiles = [sheet[row : row + 60, left : left + 80] for row, left in corners]
    assert (sheet[:, 80 : 80 + GUTTER] == RIM).all()
    for tile, colour, (h, w) in zip(tiles, colours, shapes, strict=True):
        assert tuple(tile[30, 40]) == colour
        filled = (tile == colour).all(2)
        scale = min(60 / h, 80 / w)
        assert filled.any(1).sum() == round(h * scale) and filled.any(0).sum() == round(w * scale)
        assert (tile[~filled] == RIM).all()
    captioned = contact_sheet(images, ["a", "", ""], columns=2, tile=Size(60, 80))
    assert (captioned[:CAPTION, :80] != sheet[:CAPTION, :80]).any()
    np.testing.assert_array_equal(captioned[CAPTION:], sheet[CAPTION:])


def test_a_sheet_needs_a_label_for_each_image():
    with pytest.raises(ValueError, match="1 images, 2 labels"):
        contact_sheet([np.zeros((4, 4, 3), np.uint8)], ["a", "b"], 1, Size(8, 8))
    assert contact_sheet([], [], 3, Size(8, 9)).shape == (8 + CAPTION, 3 * (9 + GUTTER) - GUTTER, 3)


def test_png_files_come_back_as_they_were_and_appear_whole(tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / "new" / "picture.png"
    write_png(path, image)
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], image)

    def full_disk(self, data):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(DekrError, match="the disk is full"):
        write_png(path, 255 - image)
    assert [entry.name for entry in path.parent.iterdir()] == ["picture.png"]
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], image)
