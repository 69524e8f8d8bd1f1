"""Encoded images: formats, announced sizes, what damage costs, and the same pixels as OpenCV's."""

import logging
import struct
import zlib

import cv2
import numpy as np
import pytest

from dekr_infer.data.images import LARGEST_AREA, decode_image, image_format, read_image
from dekr_infer.errors import DekrError
from dekr_infer.geometry import Size
from dekr_infer.launch import ENVIRONMENT
from tests.support.images import colourful, encode, turned, with_segment, with_thumbnail

NOISE = np.random.default_rng(0).integers(0, 99, (90, 120, 3), np.uint8)
IMAGE = colourful(Size(90, 120)) // 2 + NOISE
PROGRESSIVE = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
GREY = IMAGE[:, :, 0]
SAMPLINGS = {
    name: [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}")]
    for name in ("411", "420", "422", "440", "444")
}


def jpeg(image: np.ndarray = IMAGE, flags: list[int] | None = None) -> bytes:
    done, data = cv2.imencode(".jpg", image, flags or [])
    assert done
    return data.tobytes()


def opencvs(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)


# -- the same pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        *(
            jpeg(flags=flags)
            for flags in (PROGRESSIVE, [cv2.IMWRITE_JPEG_QUALITY, 30], [cv2.IMWRITE_JPEG_RST_INTERVAL, 3])
        ),
        *(jpeg(flags=flags) for flags in SAMPLINGS.values()),
        *(jpeg(IMAGE[: side + 1, : 2 * side + 1]) for side in (0, 7, 8, 17)),
        *(jpeg(GREY), turned(jpeg()), with_thumbnail(jpeg()), jpeg() + b"padding after the end"),
    ],
)
def test_a_jpegs_pixels_are_those_of_opencv(data, caplog):
    np.testing.assert_array_equal(decode_image(data, "a.jpg"), opencvs(data))
    assert not caplog.records


def test_an_image_of_ones_own_is_turned_as_its_exif_entry_says(tmp_path):
    (tmp_path / "a.jpg").write_bytes(turned(jpeg()))
    pixels = read_image(tmp_path / "a.jpg")
    assert pixels.shape == (120, 90, 3)
    np.testing.assert_array_equal(pixels, cv2.imread(str(tmp_path / "a.jpg")))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tiff", ".gif", ".jp2"])
def test_other_formats_are_taken_whatever_the_name_says(suffix):
    data = encode(IMAGE, suffix)
    np.testing.assert_array_equal(decode_image(data, "a.jpg", Size(90, 120)), opencvs(data))
    assert image_format(data) == {".bmp": "BMP", ".webp": "WebP", ".tiff": "TIFF", ".jp2": "JPEG 2000"}.get(
        suffix, suffix[1:].upper()
    )


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (encode(IMAGE, ".webp")[:300], "is WebP by its content, damaged or not decoded"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "is HEIC by its content"),
        (b"<!DOCTYPE html><p>404", "is HTML by its content"),
        (b"GIF89a" + bytes(30), "is GIF by its content"),
    ],
)
def test_the_format_of_what_cannot_be_decoded_is_named(data, part):
    with pytest.raises(DekrError, match=rf"a\.jpg: {part}.* save it as JPEG or PNG"):
        decode_image(data, "a.jpg")


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], PROGRESSIVE], ids=["baseline", "progressive"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["cut", "with an end marker"])
def test_a_jpeg_that_lost_pixels_is_refused(share, flags, end, capfd):
    whole = jpeg(flags=flags)
    for data in (whole, with_thumbnail(whole)):
        with pytest.raises(DekrError, match=r"a\.jpg: a damaged JPEG, pixels are lost \(.*\); download"):
            decode_image(data[: int(len(data) * share)] + end, "a.jpg")
    assert capfd.readouterr() == ("", ""), "the decoder itself prints nothing"


def test_bytes_changed_inside_the_scan_are_noticed_or_decode_whole(caplog):
    whole, rng = jpeg(), np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        data[rng.integers(len(whole) // 2, len(whole) - 2)] ^= int(rng.integers(1, 256))
        try:
            assert decode_image(bytes(data), "a.jpg").shape == IMAGE.shape
        except DekrError as error:
            refused += "pixels are lost" in str(error)
    assert refused > 20, "most desynchronise the decoder"


def test_a_jpeg_that_only_lacks_its_end_marker_is_taken_with_a_warning(caplog):
    for count in (1, 2):
        np.testing.assert_array_equal(decode_image(jpeg()[:-count], "a.jpg"), opencvs(jpeg()))
    assert [record.getMessage() for record in caplog.records] == 2 * [
        "a.jpg: the end marker is missing; every pixel is there"
    ]


def test_a_harmless_complaint_is_a_warning_by_name(caplog):
    whole = jpeg()
    later = whole[:2] + whole[2:].replace(b"JFIF\0\x01", b"JFIF\0\x07", 1)
    np.testing.assert_array_equal(decode_image(later, "a.jpg"), opencvs(whole))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "a.jpg: Warning: unknown JFIF revision number 7.01; every pixel is there"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_chunks_that_pixels_do_not_need_never_reach_the_decoder(caplog):
    png = encode(IMAGE)
    animated = png[:33] + chunk(b"acTL", b"\xff" * 8) + chunk(b"fcTL", b"\xff" * 26) + png[33:]
    np.testing.assert_array_equal(decode_image(animated, "a.png"), IMAGE)
    assert not caplog.records
    spoilt = png[:33] + chunk(b"tEXt", b"Title\0x")[:-1] + b"?" + png[33:]
    np.testing.assert_array_equal(decode_image(spoilt, "a.png"), IMAGE)
    assert "a.png: its chunk b'tEXt' is damaged; every pixel is there" in caplog.text


@pytest.mark.parametrize("at", [20, 200, -20, -5])
def test_a_damaged_png_is_refused(at):
    data = bytearray(encode(IMAGE))
    data[at] ^= 1
    with pytest.raises(DekrError, match=r"a\.png: a damaged PNG, pixels are lost|a\.png: .*cannot be"):
        decode_image(bytes(data), "a.png")


@pytest.mark.parametrize("length", [8, 20, 33, 300, -12])
def test_a_png_cut_short_is_refused(length):
    with pytest.raises(DekrError, match=r"a\.png: a damaged PNG"):
        decode_image(encode(IMAGE)[:length], "a.png")


# -- sizes -------------------------------------------------------------------------------------------------------------


def announcing(size: Size, data: bytes) -> bytes:
    """Return a JPEG whose header announces another size."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + size.h.to_bytes(2, "big") + size.w.to_bytes(2, "big") + data[at + 4 :]


@pytest.mark.parametrize("size", [Size(20_000, 20_000), Size(40_000, 100), Size(60_000, 60_000)])
def test_more_pixels_than_are_supported_are_refused_before_they_are_decoded(size):
    for data in (announcing(size, jpeg()), encode(np.zeros((9, 9), np.uint8))):
        if data.startswith(b"\x89"):
            head = struct.pack(">IIBBBBB", size.w, size.h, 8, 0, 0, 0, 0)
            data = data[:8] + chunk(b"IHDR", head) + data[33:]
        with pytest.raises(DekrError, match=rf"a: (is|announces) {size} pixels"):
            decode_image(data, "a")
        with pytest.raises(DekrError, match=rf"a: is {size} pixels, the annotation says 90x120"):
            decode_image(data, "a", Size(90, 120))


def test_a_few_bytes_hold_no_millions_of_pixels():
    size = Size(9_000, 9_000)
    with pytest.raises(DekrError, match=r"announces 9000x9000 pixels in \d+ bytes, which cannot be"):
        decode_image(announcing(size, jpeg()), "a")


def test_opencv_is_told_the_same_limit():
    assert int(ENVIRONMENT["OPENCV_IO_MAX_IMAGE_PIXELS"]) == LARGEST_AREA


def test_a_marker_without_a_length_does_not_hide_the_size():
    data = jpeg()
    hidden = data[:2] + b"\xff\x01" + with_segment(data, b"x")[2:]
    with pytest.raises(DekrError, match="is 90x120 pixels, the annotation says 120x90"):
        decode_image(hidden, "a.jpg", Size(120, 90))


def test_an_image_turned_by_exif_says_so():
    with pytest.raises(
        DekrError, match="is 90x120 pixels, the annotation says 120x90; its EXIF entry turns it, which COCO"
    ):
        decode_image(turned(jpeg()), "a.jpg", Size(120, 90))
