"""Input sizes, the affine and the flip shift: docs/reference.md [5], [6] and [9]."""

import cv2
import numpy as np
import pytest

from dekr_infer.geometry import FLIP_SHIFT, PUBLISHED_SIZES, STRIDE, InputSizes, Placement, Size, cells

SIZES = [Size(427, 640), Size(640, 427), Size(333, 333), Size(480, 853), Size(701, 384), Size(31, 400), Size(2000, 99)]


def slow_input_size(image: Size) -> Size:
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
    ("long", "long_input"),
    [(512, 512), (513, 768), (576, 768), (640, 768), (704, 768), (767, 768), (768, 768)]
    + [(769, 1024), (832, 1024), (896, 1024), (960, 1024), (1024, 1024), (1025, 1024), (5000, 1024)],
)
def test_the_smallest_input_size_that_holds_the_long_side_is_taken(long, long_input):
    assert PUBLISHED_SIZES.place(Size(512, long)).input == Size(512, long_input)
    assert PUBLISHED_SIZES.place(Size(long, 512)).input == Size(long_input, 512)


def test_a_fraction_of_a_pixel_above_a_multiple_rounds_down():
    assert abs(512 / 640 * 961 - 768.8) < 1e-9
    assert PUBLISHED_SIZES.place(Size(640, 961)).input == Size(512, 768)
    assert PUBLISHED_SIZES.place(Size(961, 640)).input == Size(768, 512)
    assert PUBLISHED_SIZES.place(Size(640, 963)).input == Size(512, 1024)  # 770.4: more than a pixel above


def test_a_square_is_the_square_input_size_whatever_its_size():
    for side in range(1, 3000):
        assert PUBLISHED_SIZES.place(Size(side, side)).input == Size(512, 512), side


def test_input_sizes_equal_the_slow_reference_and_turn_with_the_image():
    rng = np.random.default_rng(0)
    for h, w in rng.integers(1, 1500, (20_000, 2)).tolist():
        assert PUBLISHED_SIZES.place(Size(h, w)).input == slow_input_size(Size(h, w)), (h, w)
        assert PUBLISHED_SIZES.place(Size(w, h)).input == Size(*PUBLISHED_SIZES.place(Size(h, w)).input[::-1]), (h, w)


def test_there_are_five_input_sizes_and_their_maps_are_a_quarter():
    assert sorted(PUBLISHED_SIZES) == [(512, 512), (512, 768), (512, 1024), (768, 512), (1024, 512)]
    assert {PUBLISHED_SIZES.place(size).input for size in (*SIZES, Size(500, 700), Size(600, 601))} <= set(
        PUBLISHED_SIZES
    )
    assert cells(Size(768, 512)) == Size(192, 128)
    assert str(Size(768, 512)) == "768x512"  # height x width


def test_the_flip_shift_is_the_stride_less_one():
    assert STRIDE == 4
    assert FLIP_SHIFT == 3
    width = 20  # pixels: 5 cells; what the flipped pass sees at cell x must be what the first saw at cell 4 - x
    mirrored = list(range(width))[::-1]
    moved = mirrored[FLIP_SHIFT:]
    assert [moved[STRIDE * x] for x in range(5)] == [STRIDE * (4 - x) for x in range(5)]


def slow_affine(image: Size, input_size: Size) -> np.ndarray:
    """Line [6]: three points in float32, then OpenCV's solver."""
    scale = 512 / min(image)
    centre = np.array([int(image.w / 2 + 0.5), int(image.h / 2 + 0.5)], np.float64)
    target = np.array([input_size.w * 0.5, input_size.h * 0.5])
    up_source, up_target = np.array([0, input_size.w / scale * -0.5]), np.array([0, input_size.w * -0.5])
    points = []
    for middle, up in ((centre, up_source), (target, up_target)):
        first, second = np.float32(middle), np.float32(middle + up)
        arm = first - second
        points.append(np.stack([first, second, second + np.array([-arm[1], arm[0]], np.float32)]))
    return cv2.getAffineTransform(*points)


@pytest.mark.parametrize("image", SIZES, ids=str)
def test_the_warp_is_opencvs_three_point_affine_to_the_last_bit(image):
    input_size = PUBLISHED_SIZES.place(image).input
    np.testing.assert_array_equal(
        cv2.getAffineTransform(*Placement(image, input_size).warp_points), slow_affine(image, input_size)
    )


def test_the_warp_agrees_to_the_last_bit_on_many_sizes():
    for h, w in np.random.default_rng(1).integers(20, 1500, (500, 2)).tolist():
        image = Size(h, w)
        source, target = Placement(image, PUBLISHED_SIZES.place(image).input).warp_points
        assert source.dtype == target.dtype == np.float32
        np.testing.assert_array_equal(
            cv2.getAffineTransform(source, target),
            slow_affine(image, PUBLISHED_SIZES.place(image).input),
            err_msg=str(image),
        )


@pytest.mark.parametrize("image", SIZES, ids=str)
def test_the_affine_has_one_scale_and_maps_centre_to_centre(image):
    input_size = PUBLISHED_SIZES.place(image).input
    matrix = Placement(image, input_size).to_input
    scale = 512 / min(image)
    np.testing.assert_allclose(matrix[:, :2], [[scale, 0], [0, scale]])
    centre = [(image.w + 1) // 2, (image.h + 1) // 2, 1]  # half a pixel off when a side is odd
    np.testing.assert_allclose(matrix @ centre, [input_size.w / 2, input_size.h / 2], atol=1e-9)
    np.testing.assert_allclose(matrix, slow_affine(image, input_size), atol=2e-4)


def test_an_odd_side_shifts_the_image_by_half_a_pixel():
    even, odd = (Placement(Size(512, w), Size(512, 768)).to_input[0, 2] for w in (700, 701))
    assert even == 768 / 2 - 350
    assert odd == 768 / 2 - 351


@pytest.mark.parametrize("image", SIZES, ids=str)
def test_the_inverse_carries_input_size_pixels_back(image):
    input_size = PUBLISHED_SIZES.place(image).input
    placement = Placement(image, input_size)
    there, back = (np.vstack([matrix, [0, 0, 1]]) for matrix in (placement.to_input, placement.to_image))
    np.testing.assert_allclose(back @ there, np.eye(3), atol=1e-10)
    assert Placement(image, input_size).to_image.dtype == np.float64


@pytest.mark.parametrize("size", [Size(0, 5), Size(5, 0), Size(-1, 5)])
@pytest.mark.parametrize(
    "function", [lambda s: PUBLISHED_SIZES.place(s).input, lambda s: Placement(s, PUBLISHED_SIZES[0]).to_input]
)
def test_an_image_without_area_is_refused(size, function):
    with pytest.raises(ValueError, match="no area"):
        function(size)


@pytest.mark.parametrize("input_size", [Size(0, 512), Size(512, -1)])
def test_an_input_size_without_area_is_refused(input_size):
    with pytest.raises(ValueError, match="no area"):
        Placement(Size(5, 5), input_size).to_input  # noqa: B018


def test_only_sizes_that_lie_as_the_image_does_are_considered():
    sizes = InputSizes((Size(512, 512), Size(512, 768), Size(1024, 512)))
    assert sizes.place(Size(427, 640)).input == Size(512, 768)
    assert sizes.place(Size(640, 427)).input == Size(1024, 512)
    assert sizes.place(Size(400, 1000)).input == Size(512, 768), "the largest that lies so"
    assert sizes.place(Size(300, 300)).input == Size(512, 512)


def test_a_text_of_sizes_comes_back_and_any_other_is_none():
    assert InputSizes.parse(str(PUBLISHED_SIZES)) == PUBLISHED_SIZES and hash(PUBLISHED_SIZES)
    for text in ("", "512", "512,768;", "512,0", "-64,64", "a,b", "64,64,64"):
        assert InputSizes.parse(text) is None, text


def upstream_size(image: Size, side: int) -> Size:
    """The size that upstream's `get_multi_scale_size` gives an image at scale 1."""
    short, long = min(image), max(image)
    wanted = int((side / short * long + 63) // 64 * 64)
    return Size(wanted, side) if image.w < image.h else Size(side, wanted)


@pytest.mark.parametrize("side", [512, 640])
def test_exact_input_sizes_are_upstreams_own(side):
    exact = InputSizes.of_short_side(side, exact=True)
    rng = np.random.default_rng(1)
    for h, w in rng.integers(200, 1500, (2000, 2)).tolist():
        placement = exact.place(Size(h, w))
        assert placement.input == upstream_size(Size(h, w), side), (h, w)
        assert placement.input in exact
    assert Size(side, side + 32) not in exact and Size(side - 64, side) not in exact
    assert exact.place(Size(2, 3000)).input == Size(side, 16 * side)


def test_w48_has_the_same_rule_at_640():
    sizes = InputSizes.of_short_side(640)
    assert list(sizes) == [(640, 960), (640, 640), (960, 640), (640, 1280), (1280, 640)]
    assert sizes.place(Size(480, 640)).input == Size(640, 960)  # upstream's own is 896 wide
    assert InputSizes.of_short_side(512) == PUBLISHED_SIZES


@pytest.mark.parametrize("sizes", [PUBLISHED_SIZES, InputSizes.of_short_side(640, exact=True)])
def test_input_sizes_are_read_from_their_text(sizes):
    assert InputSizes.parse(str(sizes)) == sizes


@pytest.mark.parametrize("text", ["", "exact", "exact 0", "exact 500", "exact 99999999", "exact  512", "512", "0,512"])
def test_other_texts_are_no_input_sizes(text):
    assert InputSizes.parse(text) is None


def test_an_image_of_a_single_pixel_has_a_place_and_one_without_area_has_none():
    placement = PUBLISHED_SIZES.place(Size(1, 1))
    assert placement.input == Size(512, 512) and placement.to_input.tolist() == [[512, 0, -256], [0, 512, -256]]
    for image, size in ((Size(0, 5), Size(64, 64)), (Size(5, 5), Size(64, 0))):
        with pytest.raises(ValueError, match="no area"):
            _ = Placement(image, size).to_image
