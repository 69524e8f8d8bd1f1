"""Pictures to tensors: docs/reference.md [2] and [5] to [9]."""

import cv2
import numpy as np
import pytest

from dekr_infer.data.images import decode_image
from dekr_infer.errors import DekrError
from dekr_infer.geometry import PUBLISHED_SIZES, Placement, Size
from dekr_infer.pose.preprocess import as_tensor, mirror, moves_pixels, normalisation, normalise, warp
from tests.support.images import colourful, encode, turned, with_segment
from tests.support.reference_tensors import ONE_OF_EACH, reference_normalise, reference_tensors

# -- values ------------------------------------------------------------------------------------------------------------


def test_the_normalisation_table_is_bit_equal_to_torchs_arithmetic():
    every = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    expected = reference_normalise(every)[0, :, :, 0].numpy()
    assert normalisation().tobytes() == expected.tobytes()


def test_channels_go_from_bgr_to_rgb_and_in_front():
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 5] = (10, 20, 30)  # blue, green, red
    tensor = normalise(image)
    assert tensor.shape == (1, 3, 4, 6) and tensor.dtype == np.float32
    table = normalisation()
    assert tensor[0, :, 1, 5].tolist() == [table[0, 30], table[1, 20], table[2, 10]]
    assert tensor[0, :, 0, 0].tolist() == table[:, 0].tolist()
    buffer = np.empty_like(tensor)
    assert normalise(image, buffer) is buffer
    np.testing.assert_array_equal(buffer, tensor)


def test_a_tensor_is_of_the_dtype_that_the_graph_takes():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    plain, normalised = as_tensor(image, "uint8"), as_tensor(image, "float32")
    assert plain.dtype == np.uint8 and np.array_equal(plain, image[None, :, :, ::-1].transpose(0, 3, 1, 2))
    assert np.array_equal(normalised, normalise(image)) and normalised.dtype == np.float32


@pytest.mark.parametrize("size", ONE_OF_EACH, ids=str)
def test_both_tensors_are_the_references_to_the_last_bit(size):
    image = colourful(size, seed=size.w)
    warped = warp(image, PUBLISHED_SIZES.place(size).input)
    original, flipped = reference_tensors(image)
    np.testing.assert_array_equal(normalise(warped), original)
    np.testing.assert_array_equal(normalise(mirror(warped)), flipped)


def slow_warp(image: np.ndarray, input_size: Size, points: list[tuple[int, int]]) -> np.ndarray:
    """Bilinear values of the image, black around it, at input size points (x, y)."""
    h, w = image.shape[:2]
    matrix = Placement(Size(h, w), input_size).to_image
    values = []
    for point in points:
        x, y = matrix @ [*point, 1]
        left, top = int(np.floor(x)), int(np.floor(y))
        value = np.zeros(3)
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= row < h and 0 <= column < w:
                value += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
        values.append(value)
    return np.array(values)


@pytest.mark.parametrize("size", ONE_OF_EACH, ids=str)
def test_the_warp_is_bilinear_interpolation_at_the_affines_places(size):
    input_size = PUBLISHED_SIZES.place(size).input
    image = cv2.blur(colourful(size, seed=3), (9, 9))
    rng = np.random.default_rng(0)
    points = list(
        zip(rng.integers(0, input_size.w, 400).tolist(), rng.integers(0, input_size.h, 400).tolist(), strict=True)
    )
    found = warp(image, input_size)[[y for _, y in points], [x for x, _ in points]]
    inside = np.array([cv2.pointPolygonTest(_frame(size, input_size), (float(x), float(y)), True) for x, y in points])
    border = 3 + 512 / min(size)  # where the picture falls to black, OpenCV's places, in 1/32 pixel, make a difference
    difference = np.abs(found - slow_warp(image, input_size, points)).max(axis=1)
    assert difference[np.abs(inside) > border].max() < 2
    assert (found[inside < -border] == 0).all()


def _frame(size: Size, input_size: Size) -> np.ndarray:
    """The image's outline in the input size."""
    corners = np.array([[0, 0, 1], [size.w - 1, 0, 1], [size.w - 1, size.h - 1, 1], [0, size.h - 1, 1]])
    return (corners @ Placement(size, input_size).to_input.T).astype(np.float32)


def test_beyond_the_image_is_black_before_normalising():
    size = Size(256, 270)  # 540 of the input size's 768 columns
    tensor = normalise(warp(np.full((*size, 3), 200, np.uint8), PUBLISHED_SIZES.place(size).input))[0]
    black, grey = normalisation()[:, 0], normalisation()[:, 200]
    for side in (slice(0, 113), slice(-113, None)):
        assert (tensor[:, :, side] == black[:, None, None]).all()
    assert (tensor[:, 3:-3, 120:-120] == grey[:, None, None]).all()


def test_an_image_longer_than_the_input_size_loses_its_ends_on_both_sides():
    size = Size(100, 400)
    image = np.zeros((*size, 3), np.uint8)
    image[:, 90:310] = 255  # 100 to 300 is what fits
    assert PUBLISHED_SIZES.place(size).input == Size(512, 1024)
    assert (warp(image, PUBLISHED_SIZES.place(size).input)[2:-6] == 255).all()


# -- the flipped tensor ------------------------------------------------------------------------------------------------


def test_the_flipped_last_six_columns_are_source_columns_2_1_0_2_1_0():
    numbered = np.broadcast_to(np.arange(20, dtype=np.uint8)[None, :, None], (5, 20, 3)).copy()
    flipped = mirror(numbered)
    assert flipped[3, -6:, 1].tolist() == [2, 1, 0, 2, 1, 0]
    assert flipped[3, :, 1].tolist() == [*range(16, -1, -1), 2, 1, 0]
    assert numbered[0, :, 0].tolist() == list(range(20)), "the picture itself stays as it was"


@pytest.mark.parametrize("input_size", PUBLISHED_SIZES, ids=str)
def test_a_cell_of_the_flipped_pass_has_its_partners_pixel(input_size):
    original = normalise(colourful(input_size))[0]
    flipped = normalise(mirror(colourful(input_size)))[0]
    cells = input_size.w // 4
    for cell in range(cells):
        np.testing.assert_array_equal(flipped[:, :, 4 * cell], original[:, :, 4 * (cells - 1 - cell)])


@pytest.mark.parametrize("size", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize("at", [(0.5, 0.5), (0.3, 0.6), (0.81, 0.27)])
def test_one_lit_spot_and_one_keypoint_take_the_same_path(size, at):
    x, y = round(at[0] * size.w), round(at[1] * size.h)
    rows, columns = np.mgrid[: size.h, : size.w]
    spot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    input_size = PUBLISHED_SIZES.place(size).input
    warped = warp(np.repeat(spot[:, :, None], 3, 2).astype(np.uint8), input_size)
    expected = Placement(size, input_size).to_input @ [x, y, 1]
    np.testing.assert_allclose(_brightest(warped), expected, atol=0.1)
    flipped = _brightest(mirror(warped))
    np.testing.assert_allclose(flipped, [input_size.w - 1 - expected[0] - 3, expected[1]], atol=0.1)
    back = Placement(size, input_size).to_image @ [input_size.w - 4 - flipped[0], flipped[1], 1]
    np.testing.assert_allclose(back, [x, y], atol=0.1)


def _brightest(image: np.ndarray) -> list[float]:
    """The centre of the brightness (x, y)."""
    values = image[:, :, 0].astype(float)
    rows, columns = np.mgrid[: values.shape[0], : values.shape[1]]
    return [(values * columns).sum() / values.sum(), (values * rows).sum() / values.sum()]


# -- decoding ----------------------------------------------------------------------------------------------------------


def test_the_orientation_in_exif_is_ignored():
    jpeg = encode(colourful(Size(20, 30)), ".jpg")
    by_default = cv2.imdecode(np.frombuffer(turned(jpeg), np.uint8), cv2.IMREAD_COLOR)
    assert by_default.shape == (30, 20, 3), "the picture does say that it is turned"
    np.testing.assert_array_equal(decode_image(turned(jpeg), "x"), decode_image(jpeg, "x"))


def test_a_grey_image_becomes_colour():
    grey = np.arange(30, dtype=np.uint8).reshape(5, 6)
    np.testing.assert_array_equal(decode_image(encode(grey), "x"), np.repeat(grey[:, :, None], 3, 2))


def test_a_truncated_jpeg_with_a_thumbnails_end_marker_is_refused():
    jpeg = encode(colourful(Size(90, 120)), ".jpg")
    whole = with_segment(jpeg, b"Exif\0\0" + encode(colourful(Size(8, 8)), ".jpg"))
    assert decode_image(whole, "x").shape == (90, 120, 3)
    cut = whole[: len(whole) * 3 // 4]
    assert b"\xff\xd9" in cut, "the thumbnail's"
    with pytest.raises(DekrError, match=r"cat\.jpg: a damaged JPEG, pixels are lost"):
        decode_image(cut, "cat.jpg")


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8", b"\xff\xd8\xff\xd9"])
def test_bytes_that_are_no_image_are_refused(data):
    with pytest.raises(DekrError, match=r"cat\.jpg: not an image"):
        decode_image(data, "cat.jpg")


def test_the_opencv_of_the_requirements_leaves_pixels_where_they_are():
    assert not moves_pixels()
