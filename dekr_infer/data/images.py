"""Encoded images: their headers, and decoding to pixels. A header is read before memory is spent on its image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dekr_infer.errors import DekrError
from dekr_infer.geometry import Size
from dekr_infer.storage.atomic import read_regular

LARGEST_SIDE = 32_766  # pixels; OpenCV warps nothing larger
JPEG_START = b"\xff\xd8"
JPEG_SCAN = 0xDA  # the marker after which compressed pixels follow
JPEG_END = b"\xff\xd9"
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers of segments that hold the size
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_HEAD = b"IHDR"  # the first chunk's name: width and height follow


def decode_image(data: bytes, name: str, expected: Size | None = None) -> np.ndarray:
    """Decode a JPEG or a PNG: (h, w, 3) uint8 BGR, its EXIF orientation ignored as COCO's annotations do.

    Args:
        data: the encoded image.
        name: the image's place, for messages.
        expected: the annotated size, where there is one.
    Raises:
        DekrError: the bytes are no JPEG and no PNG, end too early, or hold an image of another size.
    """
    size, image = encoded_size(data), None
    if size is not None:  # other formats announce their size too late
        _check_size(size, expected, name)
        if not is_cut_short(data):
            try:
                image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            except cv2.error:
                image = None
    if image is None:
        raise DekrError(f"{name}: not an image, or damaged, or neither JPEG nor PNG; download this file again")
    _check_size(Size(*image.shape[:2]), expected, name)
    return image


def read_image(path: Path) -> np.ndarray:
    """Read an image of any format that OpenCV decodes: (h, w, 3) uint8 BGR, turned as its EXIF entry says.

    Raises:
        DekrError: the file is missing, no image, or damaged.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); check its name and your rights") from None
    _check_side(encoded_size(data), str(path))
    image = None
    if data and not is_cut_short(data):
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            image = None
    if image is None:
        raise DekrError(f"{path}: not an image that OpenCV decodes, or damaged; save it again as JPEG or PNG")
    return bgr(image, str(path))


def bgr(image: Any, name: str = "image") -> np.ndarray:
    """Return an array that is an image, (h, w, 3) uint8 BGR, as it is.

    Raises:
        DekrError: it is something else, such as `None`, which `cv2.imread` returns for a file that it cannot read.
    """
    if not isinstance(image, np.ndarray):
        raise DekrError(f"{name}: is {type(image).__name__}, expected a path or an array (h, w, 3) uint8 BGR")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise DekrError(f"{name}: is {image.shape} {image.dtype}, expected (h, w, 3) uint8 BGR")
    _check_side(Size(*image.shape[:2]), name)
    return image


def _check_side(size: Size | None, name: str) -> None:
    if size is not None and max(size) > LARGEST_SIDE:
        raise DekrError(f"{name}: is {size} pixels, at most {LARGEST_SIDE} a side are supported here; make it smaller")


def _check_size(found: Size, expected: Size | None, name: str) -> None:
    if expected is not None and found != expected:
        raise DekrError(f"{name}: is {found} pixels, the annotation says {expected}; download both again")


def is_cut_short(data: bytes) -> bool:
    """Return whether JPEG bytes end before their image does. Decoders fill the rest with grey without an error.

    The end marker of an embedded thumbnail does not count: header segments are skipped by their length.
    """
    if not data.startswith(JPEG_START):
        return False
    scan = next((start for marker, start in _segments(data) if marker == JPEG_SCAN), None)
    return scan is None or JPEG_END not in data[scan:]


def encoded_size(data: bytes) -> Size | None:
    """Return the size that a JPEG's or a PNG's header announces, without decoding it; `None` for everything else."""
    at = len(PNG_START) + 4  # after the chunk's length
    if data.startswith(PNG_START):
        head, width, height = (data[start : start + 4] for start in (at, at + 4, at + 8))
        return Size(int.from_bytes(height, "big"), int.from_bytes(width, "big")) if head == PNG_HEAD else None
    for marker, start in _segments(data):
        if marker in JPEG_FRAMES and start + 9 <= len(data):
            return Size(*(int.from_bytes(data[start + at : start + at + 2], "big") for at in (5, 7)))
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the marker and position of each segment of a JPEG's header, up to its first scan."""
    position = len(JPEG_START) if data.startswith(JPEG_START) else len(data)
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        yield marker, position
        if marker == JPEG_SCAN:
            return
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
