"""Encoded images to pixels: their format, their announced size before memory is spent on it, and what damage cost.

OpenCV decodes everything but JPEG. There simplejpeg gives the same pixels (both are libjpeg-turbo), and names for each
image what its decoder complains about; OpenCV lets these complaints through to the terminal without a name.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from dekr_infer.errors import DekrError
from dekr_infer.geometry import Size
from dekr_infer.storage.atomic import read_regular

LARGEST_SIDE = 32_766  # pixels; OpenCV warps nothing larger
LARGEST_AREA = 1 << 28  # pixels, 0.8 GB decoded; launch.py tells OpenCV the same limit
JPEG, PNG = "JPEG", "PNG"
JPEG_END = b"\xff\xd9"
PIXELS_A_BYTE = {JPEG: 1 << 9, PNG: 1 << 13}  # at most: a block of 64 pixels takes a bit, deflate packs 1032 to 1
EXIF = b"Exif\0\0"
EXIF_WITHIN = 1 << 17  # bytes; the segment comes among the first, and each is shorter than 2^16
FOUR_COLOURS = ("CMYK", "YCCK")
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_KEPT = (b"tRNS", b"eXIf")  # besides the critical chunks
HARMLESS = re.compile(  # complaints of libjpeg after which every pixel is there
    r"unknown JFIF revision|unknown Adobe color transform|Corrupt JPEG data: [1-7] extraneous bytes before marker 0xd9"
)
CUT = "Premature end of JPEG file"
FORMATS = (
    (JPEG, re.compile(rb"\xff\xd8")),
    (PNG, re.compile(re.escape(PNG_START))),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM.{4}\0\0\0\0", re.DOTALL)),
    ("WebP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("TIFF", re.compile(rb"II\*\0|MM\0\*")),
    ("AVIF", re.compile(rb".{4}ftypavi[fs]", re.DOTALL)),
    ("HEIC", re.compile(rb".{4}ftyp(hei|hev|mif1)", re.DOTALL)),
    ("JPEG 2000", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
    ("HTML", re.compile(rb"\s*<(!doctype )?html", re.IGNORECASE)),
)

_log = logging.getLogger(__name__)


def decode_image(data: bytes, name: str, expected: Size | None = None) -> np.ndarray:
    """Decode an image: (h, w, 3) uint8 BGR, its EXIF orientation ignored as COCO's annotations do.

    Harmless damage is logged as a warning.

    Args:
        data: the encoded image, of any format that OpenCV decodes.
        name: the image's place, for messages.
        expected: the annotated size, where there is one.
    Raises:
        DekrError: the bytes are no image, pixels are lost, or the image has another size or too many pixels.
    """
    return _decode(data, name, expected, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)


def read_image(path: Path) -> np.ndarray:
    """Read an image of any format that OpenCV decodes: (h, w, 3) uint8 BGR, turned as its EXIF entry says.

    Raises:
        DekrError: the file is missing, no image, too large, or has lost pixels.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); check its name and your rights") from None
    return _decode(data, str(path), None, cv2.IMREAD_COLOR)


def image_format(data: bytes) -> str | None:
    """Return the name of an image's format by its first bytes; `None` where it is not known."""
    return next((name for name, start in FORMATS if start.match(data)), None)


def _decode(data: bytes, name: str, expected: Size | None, flags: int) -> np.ndarray:
    kind = image_format(data)
    pixels = None
    if kind == JPEG:
        pixels = _decode_jpeg(data, name, expected, flags)
    elif kind == PNG:
        pixels = _opencv(_checked_png(data, name, expected), flags)
    elif data:
        pixels = _opencv(data, flags)
    if pixels is None:
        found = "not an image, or damaged"
        if kind not in (None, JPEG):
            found = f"is {kind} by its content, damaged or not decoded by OpenCV"
        raise DekrError(f"{name}: {found}; download this file again, or save it as JPEG or PNG")
    _check_size(Size(*pixels.shape[:2]), expected, name, data)
    return pixels


def _opencv(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None  # more pixels than allowed, or damage that the decoder throws for


def _decode_jpeg(data: bytes, name: str, expected: Size | None, flags: int) -> np.ndarray | None:
    """Return the pixels of a JPEG; `None` where its header is not readable.

    Raises:
        DekrError: pixels are lost, or the image is too large or of another size.
    """
    try:
        h, w, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        return _opencv(data, flags)  # no header, or a rare sampling of colours
    _check_announced(Size(h, w), expected, name, data, JPEG)
    space = "CMYK" if space in FOUR_COLOURS else "BGR"
    pixels, complaint = _strictly(data, space)
    if complaint == CUT:
        pixels, complaint = _strictly(data + JPEG_END, space)
        if pixels is not None:
            _log.warning("%s: the end marker is missing; every pixel is there", name)
    if pixels is None and HARMLESS.search(complaint):
        pixels = _opencv(data, flags)
        _log.warning("%s: %s; every pixel is there", name, complaint)
    if pixels is None:
        raise DekrError(f"{name}: a damaged JPEG, pixels are lost ({complaint}); download this file again")
    is_turned = not flags & cv2.IMREAD_IGNORE_ORIENTATION and EXIF in data[:EXIF_WITHIN]
    return _opencv(data, flags) if space == "CMYK" or is_turned else pixels


def _strictly(data: bytes, space: str) -> tuple[np.ndarray | None, str]:
    """Return the pixels, or `None` and what the decoder complains about."""
    try:
        return simplejpeg.decode_jpeg(data, space, strict=True), ""
    except ValueError as error:
        return None, str(error)


def _checked_png(data: bytes, name: str, expected: Size | None) -> bytes:
    """Return a PNG with only the chunks that its pixels need: decoders have crashed on damage in those of animations.

    Raises:
        DekrError: a chunk that the pixels need is damaged or missing, or the image is too large or of another size.
    """
    kept = [PNG_START]
    size = None
    for chunk, whole in _png_chunks(data):
        kind = chunk[4:8]
        needed = kind[:1].isupper() or kind in PNG_KEPT
        if needed and not whole:
            raise DekrError(f"{name}: a damaged PNG, pixels are lost (chunk {kind!r}); download this file again")
        if not whole:
            _log.warning("%s: its chunk %r is damaged; every pixel is there", name, kind)
        if kind == b"IHDR" and size is None:
            size = Size(int.from_bytes(chunk[12:16], "big"), int.from_bytes(chunk[8:12], "big"))
            _check_announced(size, expected, name, data, PNG)
        kept += [chunk] if needed else []
    if size is None or kept[1][4:8] != b"IHDR" or kept[-1][4:8] != b"IEND":
        raise DekrError(f"{name}: a damaged PNG, its beginning or end is missing; download this file again")
    return b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield each chunk, and whether it is whole and has its checksum."""
    position = len(PNG_START)
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        chunk = data[position:end]
        yield chunk, end <= len(data) and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if chunk[4:8] == b"IEND":
            return
        position = end


def bgr(image: Any, name: str = "image") -> np.ndarray:
    """Return an array that is an image, (h, w, 3) uint8 BGR, as it is.

    Raises:
        DekrError: it is something else, such as `None`, which `cv2.imread` returns for a file that it cannot read.
    """
    if not isinstance(image, np.ndarray):
        raise DekrError(f"{name}: is {type(image).__name__}, expected a path or an array (h, w, 3) uint8 BGR")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise DekrError(f"{name}: is {image.shape} {image.dtype}, expected (h, w, 3) uint8 BGR")
    _check_limit(Size(*image.shape[:2]), name)
    return image


def _check_announced(size: Size, expected: Size | None, name: str, data: bytes, kind: str) -> None:
    """Raise a `DekrError` for a size that is not to be decoded."""
    _check_size(size, expected, name, data)
    if size.h * size.w > PIXELS_A_BYTE[kind] * len(data):
        raise DekrError(f"{name}: announces {size} pixels in {len(data)} bytes, which cannot be; download it again")


def _check_size(found: Size, expected: Size | None, name: str, data: bytes) -> None:
    if expected is not None and found != expected:
        remedy = "download both again"
        if found == (expected.w, expected.h) and EXIF in data[:EXIF_WITHIN]:
            remedy = "its EXIF entry turns it, which COCO ignores; annotate it as stored, or turn its pixels"
        raise DekrError(f"{name}: is {found} pixels, the annotation says {expected}; {remedy}")
    _check_limit(found, name)


def _check_limit(size: Size, name: str) -> None:
    if max(size) > LARGEST_SIDE or size.h * size.w > LARGEST_AREA:
        raise DekrError(
            f"{name}: is {size} pixels; this program takes at most {LARGEST_SIDE} a side and {LARGEST_AREA:,} in all; "
            "make it smaller"
        )
