"""Images as arrays and as encoded files."""

from __future__ import annotations

import cv2
import numpy as np

from dekr_infer.geometry import Size


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    """(h, w, 3) uint8 BGR as the bytes of an image file."""
    done, data = cv2.imencode(suffix, image)
    assert done
    return data.tobytes()


def colourful(size: Size, seed: int = 0) -> np.ndarray:
    """(h, w, 3) uint8 BGR: smooth, different in every channel and corner."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    return cv2.resize(small, (size.w, size.h), interpolation=cv2.INTER_CUBIC)


def with_segment(jpeg: bytes, body: bytes) -> bytes:
    """Return the JPEG with an APP1 segment after its start."""
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


def with_thumbnail(jpeg: bytes) -> bytes:
    """Return the JPEG with an EXIF-like segment that holds a whole small JPEG, end marker included."""
    small = encode(colourful(Size(8, 8)), ".jpg")
    assert small.endswith(b"\xff\xd9")
    return with_segment(jpeg, b"Exif\0\0" + small)


def turned(jpeg: bytes) -> bytes:
    """Return the JPEG with an EXIF orientation of 6: shown rotated by 90 degrees."""
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    return with_segment(jpeg, b"Exif\0\0" + tiff)
