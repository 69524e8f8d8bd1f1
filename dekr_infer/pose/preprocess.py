"""Pixel arithmetic from an image to the network's input: decode, warp into the input size, normalise, mirror."""

from __future__ import annotations

import zlib
from functools import cache

import cv2
import numpy as np

from dekr_infer.geometry import FLIP_SHIFT, Placement, Size

MEAN = (0.485, 0.456, 0.406)  # RGB, of values in 0..1; Source: ImageNet, as the reference normalises
STD = (0.229, 0.224, 0.225)
PROBE, PROBE_INPUT = Size(37, 53), Size(64, 96)
PROBE_CRC = 748003970  # of the probe warped by OpenCV 4.10 to 4.12, on which the reference's figures rest


@cache
def normalisation() -> np.ndarray:
    """Return the normalised value of each 8-bit value: (3, 256) float32 for R, G, B, bit-equal to the reference."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    return (values - mean[:, None]) / std[:, None]


def warp(image: np.ndarray, input_size: Size) -> np.ndarray:
    """Warp an image (h, w, 3) uint8 into the input: (H, W, 3) uint8, black beyond the image."""
    matrix = cv2.getAffineTransform(*Placement(Size(*image.shape[:2]), input_size).warp_points)
    return cv2.warpAffine(image, matrix, (input_size.w, input_size.h), flags=cv2.INTER_LINEAR)


def moves_pixels() -> bool:
    """Return whether this OpenCV warps an image to other values than those behind the reference's metrics."""
    y, x = np.mgrid[: PROBE.h, : PROBE.w]
    channels = (37 * x + 91 * y) % 251, (7 * x * y) % 253, (x**2 + 3 * y**2) % 255
    return zlib.crc32(warp(np.stack(channels, axis=2).astype(np.uint8), PROBE_INPUT).tobytes()) != PROBE_CRC


def mirror(warped: np.ndarray) -> np.ndarray:
    """Return the second pass's image: (h, w, 3) mirrored along w, moved left by the flip shift, last columns kept."""
    flipped = cv2.flip(warped, 1)
    flipped[:, :-FLIP_SHIFT] = flipped[:, FLIP_SHIFT:].copy()
    return flipped


def normalise(warped: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Convert (h, w, 3) uint8 BGR to (1, 3, h, w) float32 RGB, normalised, into `out` where it is given."""
    h, w, _ = warped.shape
    tensor = np.empty((1, 3, h, w), np.float32) if out is None else out
    for plane, table, values in zip(reversed(cv2.split(warped)), normalisation(), tensor[0], strict=True):
        cv2.LUT(plane, table, dst=values)
    return tensor


def as_uint8(warped: np.ndarray) -> np.ndarray:
    """Convert (h, w, 3) uint8 BGR to (1, 3, h, w) uint8 RGB, for a graph that normalises."""
    return np.stack(cv2.split(warped)[::-1])[None]


def as_tensor(warped: np.ndarray, dtype: str) -> np.ndarray:
    """Convert (h, w, 3) uint8 BGR to the network's input (1, 3, h, w): `as_uint8` for uint8, else `normalise`."""
    return as_uint8(warped) if dtype == "uint8" else normalise(warped)
