"""Gears, the affine between a picture and its gear, and the flip shift: every geometric constant once.

Numpy only. Sizes are (h, w); points are (x, y); integer coordinates are pixel centres.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Size(NamedTuple):
    """Height and width, in pixels unless said otherwise."""

    h: int
    w: int

    def __str__(self) -> str:
        return f"{self.w}x{self.h}"


SHORT_SIDE = 512  # pixels: the short side of every gear
LONG_SIDES = (512, 768, 1024)  # pixels: what the long side may be
GEARS = (Size(512, 768), Size(512, 512), Size(768, 512), Size(512, 1024), Size(1024, 512))
STRIDE = 4  # gear pixels per feature cell; column c of a map sits at pixel STRIDE * c
FLIP_SHIFT = STRIDE - 1  # pixels: moves the flipped picture so that cell x meets cell w - 1 - x exactly
HEATMAP_CHANNELS = 18  # 17 joints, then the person centre
OFFSET_CHANNELS = 34  # x then y of each of the 17 joints


def cells(gear: Size) -> Size:
    """The size of a gear's feature maps, in cells."""
    return Size(gear.h // STRIDE, gear.w // STRIDE)


def gear_for(image: Size) -> Size:
    """The gear a picture is warped into.

    The long side is brought to the multiple of 64 that the reference computes (in doubles, in its order: a fraction
    of a pixel above a multiple rounds down), then to the smallest gear that holds it; beyond 1024 the ends are cut.

    Args:
        image: the picture's size in pixels.
    Raises:
        ValueError: a side is zero or negative.
    Source: the DEKR reference's rule at scale 1, and the five gears of the Ascend sample.

    >>> gear_for(Size(427, 640))
    Size(h=512, w=768)
    """
    _check(image)
    short, long = min(image), max(image)
    wanted = int((SHORT_SIDE / short * long + 63) // 64 * 64)
    long_side = next((side for side in LONG_SIDES if side >= wanted), LONG_SIDES[-1])
    return Size(long_side, SHORT_SIDE) if image.w < image.h else Size(SHORT_SIDE, long_side)


def _check(*sizes: Size) -> None:
    for size in sizes:
        if min(size) <= 0:
            raise ValueError(f"a picture of {size} pixels has no area")


def _centres(image: Size, gear: Size) -> tuple[tuple[float, float], tuple[float, float]]:
    """The points (x, y) that the affine lays on each other: the picture's centre rounded half up, the gear's centre."""
    return (int(image.w / 2 + 0.5), int(image.h / 2 + 0.5)), (gear.w / 2, gear.h / 2)


def warp_points(image: Size, gear: Size) -> tuple[np.ndarray, np.ndarray]:
    """Three points of the picture and where they go in the gear: what `cv2.getAffineTransform` is given.

    The points are the centres, the middle of the upper edge, and the latter turned by 90 degrees. All are exact in
    float32, so OpenCV's own solver yields the reference's matrix to the last bit, which its fixed-point warp needs.

    Returns:
        source and target, each (3, 2) float32, (x, y) in pixels.
    Source: the three-point warp of the DEKR reference at angle 0.
    """
    _check(image, gear)
    (sx, sy), (tx, ty) = _centres(image, gear)
    reach = gear.w / min(gear) * min(image) / 2
    source = np.array([(sx, sy), (sx, sy - reach), (sx - reach, sy - reach)], np.float32)
    target = np.array([(tx, ty), (tx, ty - gear.w / 2), (tx - gear.w / 2, ty - gear.w / 2)], np.float32)
    return source, target


def image_to_gear(image: Size, gear: Size) -> np.ndarray:
    """Affine that carries image pixels into the gear: one scale, centre on centre, no rotation.

    Args:
        image, gear: sizes in pixels, every side positive.
    Returns:
        (2, 3) float64; multiplies columns (x, y, 1).
    Raises:
        ValueError: a side is zero or negative.

    >>> image_to_gear(Size(256, 256), Size(512, 512)).tolist()
    [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    """
    _check(image, gear)
    (sx, sy), (tx, ty) = _centres(image, gear)
    scale = min(gear) / min(image)
    return np.array([[scale, 0.0, tx - scale * sx], [0.0, scale, ty - scale * sy]])


def gear_to_image(image: Size, gear: Size) -> np.ndarray:
    """The inverse of `image_to_gear`: (2, 3) float64, gear pixels to image pixels.

    >>> gear_to_image(Size(256, 256), Size(512, 512)).tolist()
    [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]
    """
    _check(image, gear)
    (sx, sy), (tx, ty) = _centres(image, gear)
    scale = min(image) / min(gear)
    return np.array([[scale, 0.0, sx - scale * tx], [0.0, scale, sy - scale * ty]])
