"""Gears, the affine and the flip shift: [5], [6] and [9] of the reference's facts."""

import cv2
import numpy as np
import pytest

from dekr_infer.geometry import (
    FLIP_SHIFT,
    GEARS,
    STRIDE,
    Size,
    cells,
    gear_for,
    gear_to_image,
    image_to_gear,
    warp_points,
)

SIZES = [Size(427, 640), Size(640, 427), Size(333, 333), Size(480, 853), Size(701, 384), Size(31, 400), Size(2000, 99)]


def slow_gear(image: Size) -> Size:
    """Line [5], branch by branch."""
    landscape = image.w >= image.h
    short, long = (image.h, image.w) if landscape else (image.w, image.h)
    wanted = int((512 / short * long + 63) // 64 * 64)  # in doubles, in this order
    if wanted <= 512:
        side = 512
    elif wanted <= 768:
        side = 768
    else:
        side = 1024
    return Size(512, side) if landscape else Size(side, 512)


@pytest.mark.parametrize(
    ("long", "gear_long"),
    [(512, 512), (513, 768), (576, 768), (640, 768), (704, 768), (767, 768), (768, 768)]
    + [(769, 1024), (832, 1024), (896, 1024), (960, 1024), (1024, 1024), (1025, 1024), (5000, 1024)],
)
def test_the_gear_is_the_smallest_that_holds_the_long_side_rounded_up_to_64(long, gear_long):
    assert gear_for(Size(512, long)) == Size(512, gear_long)
    assert gear_for(Size(long, 512)) == Size(gear_long, 512)


def test_a_fraction_of_a_pixel_above_a_multiple_rounds_down():
    assert abs(512 / 640 * 961 - 768.8) < 1e-9
    assert gear_for(Size(640, 961)) == Size(512, 768)
    assert gear_for(Size(961, 640)) == Size(768, 512)
    assert gear_for(Size(640, 963)) == Size(512, 1024)  # 770.4: more than a pixel above


def test_a_square_is_the_square_gear_whatever_its_size():
    for side in range(1, 3000):
        assert gear_for(Size(side, side)) == Size(512, 512), side


def test_gears_agree_with_the_branchy_twin_and_turn_with_the_picture():
    rng = np.random.default_rng(0)
    for h, w in rng.integers(1, 1500, (20_000, 2)).tolist():
        assert gear_for(Size(h, w)) == slow_gear(Size(h, w)), (h, w)
        assert gear_for(Size(w, h)) == Size(*gear_for(Size(h, w))[::-1]), (h, w)


def test_there_are_five_gears_and_their_maps_are_a_quarter():
    assert sorted(GEARS) == [(512, 512), (512, 768), (512, 1024), (768, 512), (1024, 512)]
    assert {gear_for(size) for size in (*SIZES, Size(500, 700), Size(600, 601))} <= set(GEARS)
    assert cells(Size(768, 512)) == Size(192, 128)
    assert str(Size(768, 512)) == "512x768"  # width x height


def test_the_flip_shift_is_the_stride_less_one():
    assert STRIDE == 4
    assert FLIP_SHIFT == 3
    width = 20  # pixels: 5 cells; what the flipped pass sees at cell x must be what the first saw at cell 4 - x
    mirrored = list(range(width))[::-1]
    moved = mirrored[FLIP_SHIFT:]
    assert [moved[STRIDE * x] for x in range(5)] == [STRIDE * (4 - x) for x in range(5)]


def slow_affine(image: Size, gear: Size) -> np.ndarray:
    """Line [6]: three points in float32, then OpenCV's solver."""
    scale = 512 / min(image)
    centre = np.array([int(image.w / 2 + 0.5), int(image.h / 2 + 0.5)], np.float64)
    target = np.array([gear.w * 0.5, gear.h * 0.5])
    up_source, up_target = np.array([0, gear.w / scale * -0.5]), np.array([0, gear.w * -0.5])
    points = []
    for middle, up in ((centre, up_source), (target, up_target)):
        first, second = np.float32(middle), np.float32(middle + up)
        arm = first - second
        points.append(np.stack([first, second, second + np.array([-arm[1], arm[0]], np.float32)]))
    return cv2.getAffineTransform(*points)


@pytest.mark.parametrize("image", SIZES, ids=str)
def test_the_warp_is_opencvs_three_point_affine_to_the_last_bit(image):
    gear = gear_for(image)
    np.testing.assert_array_equal(cv2.getAffineTransform(*warp_points(image, gear)), slow_affine(image, gear))


def test_the_warp_agrees_to_the_last_bit_on_many_sizes():
    for h, w in np.random.default_rng(1).integers(20, 1500, (500, 2)).tolist():
        image = Size(h, w)
        source, target = warp_points(image, gear_for(image))
        assert source.dtype == target.dtype == np.float32
        np.testing.assert_array_equal(
            cv2.getAffineTransform(source, target), slow_affine(image, gear_for(image)), err_msg=str(image)
        )


@pytest.mark.parametrize("image", SIZES, ids=str)
def test_the_affine_has_one_scale_and_lays_the_rounded_centre_on_the_gears_centre(image):
    gear = gear_for(image)
    matrix = image_to_gear(image, gear)
    scale = 512 / min(image)
    np.testing.assert_allclose(matrix[:, :2], [[scale, 0], [0, scale]])
    centre = [(image.w + 1) // 2, (image.h + 1) // 2, 1]  # half a pixel off when a side is odd
    np.testing.assert_allclose(matrix @ centre, [gear.w / 2, gear.h / 2], atol=1e-9)
    np.testing.assert_allclose(matrix, slow_affine(image, gear), atol=2e-4)


def test_an_odd_side_shifts_the_picture_by_half_a_pixel():
    even, odd = (image_to_gear(Size(512, w), Size(512, 768))[0, 2] for w in (700, 701))
    assert even == 768 / 2 - 350
    assert odd == 768 / 2 - 351


@pytest.mark.parametrize("image", SIZES, ids=str)
def test_the_inverse_carries_gear_pixels_back(image):
    gear = gear_for(image)
    there, back = (np.vstack([f(image, gear), [0, 0, 1]]) for f in (image_to_gear, gear_to_image))
    np.testing.assert_allclose(back @ there, np.eye(3), atol=1e-10)
    assert gear_to_image(image, gear).dtype == np.float64


@pytest.mark.parametrize("size", [Size(0, 5), Size(5, 0), Size(-1, 5)])
@pytest.mark.parametrize("function", [lambda s: gear_for(s), lambda s: image_to_gear(s, GEARS[0])])
def test_a_picture_without_area_is_refused(size, function):
    with pytest.raises(ValueError, match="no area"):
        function(size)
