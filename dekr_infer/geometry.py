"""Sizes, input sizes, and the placement of an image in the network's input: every geometric constant, once.

Numpy only. Sizes are (h, w); points are (x, y); integer coordinates are pixel centres. docs/conventions.md explains the
frames: image pixels, input pixels, and cells of the feature maps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

STRIDE = 4  # input pixels per feature cell; column c of a map is at pixel STRIDE * c
FLIP_SHIFT = STRIDE - 1  # pixels: moves the flipped image so that cell x coincides with cell w - 1 - x
MULTIPLE = 64  # pixels: the reference rounds the long side up to a multiple of this
LONGEST = 16  # short sides: longer images are cut even at exact sizes
EXACT = "exact"  # instead of fixed sizes, in TEST.INPUT_SIZES and in a graph's metadata


class Size(NamedTuple):
    """Height and width, in pixels unless stated otherwise; printed in this order.

    >>> str(Size(512, 768))
    '512x768'
    """

    h: int
    w: int

    def __str__(self) -> str:
        return f"{self.h}x{self.w}"


def cells(input_size: Size) -> Size:
    """Return the size of the feature maps, in cells, of an input in pixels."""
    return Size(input_size.h // STRIDE, input_size.w // STRIDE)


class Placement(NamedTuple):
    """Where an image is in the network's input: computed once per image, and kept with it.

    `image` and `input` are sizes in pixels with positive sides. The image is scaled by one factor and not rotated; its
    centre, rounded half up, is laid on the input's centre.
    """

    image: Size
    input: Size

    @property
    def cells(self) -> Size:
        """The size of the feature maps, in cells."""
        return cells(self.input)

    def scaled(self, scale: float) -> Placement:
        """Return the image's place in an input of another scale, as upstream's TEST.SCALE_FACTOR has it.

        >>> Placement(Size(256, 256), Size(512, 768)).scaled(0.5).input
        Size(h=256, w=384)
        """
        return Placement(self.image, Size(int(self.input.h * scale), int(self.input.w * scale)))

    @property
    def to_input(self) -> np.ndarray:
        """Affine from image pixels to input pixels: (2, 3) float64; multiplies columns (x, y, 1).

        >>> Placement(Size(256, 256), Size(512, 512)).to_input.tolist()
        [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
        """
        (sx, sy), (tx, ty) = self._centres
        scale = min(self.input) / min(self.image)
        return np.array([[scale, 0.0, tx - scale * sx], [0.0, scale, ty - scale * sy]])

    @property
    def to_image(self) -> np.ndarray:
        """Affine from input pixels to image pixels, the inverse of `to_input`: (2, 3) float64.

        >>> Placement(Size(256, 256), Size(512, 512)).to_image.tolist()
        [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]
        """
        (sx, sy), (tx, ty) = self._centres
        scale = min(self.image) / min(self.input)
        return np.array([[scale, 0.0, sx - scale * tx], [0.0, scale, sy - scale * ty]])

    @property
    def warp_points(self) -> tuple[np.ndarray, np.ndarray]:
        """Three points of the image and their targets in the input, as `cv2.getAffineTransform` takes them.

        The points are the centres, the middle of the upper edge, and the latter turned by 90 degrees. All are exact in
        float32, so OpenCV's own solver yields the reference's matrix to the last bit, which its fixed-point warp needs.

        Returns:
            source and target, each (3, 2) float32, (x, y) in pixels.
        Source: the three-point warp of the DEKR reference at angle 0.
        """
        (sx, sy), (tx, ty) = self._centres
        reach = self.input.w / min(self.input) * min(self.image) / 2
        half = self.input.w / 2
        source = np.array([(sx, sy), (sx, sy - reach), (sx - reach, sy - reach)], np.float32)
        target = np.array([(tx, ty), (tx, ty - half), (tx - half, ty - half)], np.float32)
        return source, target

    @property
    def _centres(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The points (x, y) that are laid on each other: the rounded centre of the image, the centre of the input."""
        image, size = self.image, self.input
        if min(image) <= 0 or min(size) <= 0:
            raise ValueError(f"an image of {image} pixels in an input of {size}: one of them has no area")
        return (int(image.w / 2 + 0.5), int(image.h / 2 + 0.5)), (size.w / 2, size.h / 2)


@dataclass(frozen=True)
class InputSizes:
    """The sizes that the network may be fed, in the order in which atc is given them.

    All have the same short side. The order of the sizes has no influence on the choice.

    Args:
        sizes: the sizes; with `exact`, those at which an exported graph is compared with torch.
        exact: feed every image at the reference's own size, whatever its long side; for backends without fixed sizes.
    """

    sizes: tuple[Size, ...]
    exact: bool = False

    @classmethod
    def of_short_side(cls, side: int, exact: bool = False) -> InputSizes:
        """Return the Ascend sample's rule for a short side: a long side of once, 1.5 times and twice the short one.

        Args:
            side: a multiple of 64, in pixels.
            exact: see the class.

        >>> str(InputSizes.of_short_side(640))
        '640,960;640,640;960,640;640,1280;1280,640'
        """
        middle, long = side * 3 // 2, 2 * side
        sizes = Size(side, middle), Size(side, side), Size(middle, side), Size(side, long), Size(long, side)
        return cls(sizes, exact)

    @property
    def short_side(self) -> int:
        """The short side of all sizes, in pixels."""
        return min(min(size) for size in self.sizes)

    def place(self, image: Size) -> Placement:
        """Choose the input size of an image.

        The long side is brought to the multiple of 64 that the reference computes (in doubles, in its order: a fraction
        of a pixel above a multiple rounds down) and, unless `exact`, to the smallest size that holds it. Where none
        does, the largest is taken, and the ends of the image are cut.

        Args:
            image: the image's size in pixels.
        Raises:
            ValueError: a side is zero or negative.
        Source: the DEKR reference's rule at scale 1, and the five sizes of the Ascend sample.

        >>> PUBLISHED_SIZES.place(Size(427, 640)).input
        Size(h=512, w=768)
        """
        if min(image) <= 0:
            raise ValueError(f"an image of {image} pixels has no area")
        short = self.short_side
        long = int((short / min(image) * max(image) + MULTIPLE - 1) // MULTIPLE * MULTIPLE)
        if self.exact:
            long = min(long, LONGEST * short)
        else:
            upright = image.w < image.h
            sides = sorted(max(size) for size in self.sizes if size.h == size.w or (size.w < size.h) == upright)
            long = next((side for side in sides if side >= long), sides[-1])
        return Placement(image, Size(long, short) if image.w < image.h else Size(short, long))

    def __iter__(self) -> Iterator[Size]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Size:
        return self.sizes[index]

    def __contains__(self, size: object) -> bool:
        if self.exact and isinstance(size, Size):
            return min(size) == self.short_side and max(size) % MULTIPLE == 0
        return size in self.sizes

    def __str__(self) -> str:
        """Return the text in a graph's metadata: `512,768;512,512;...` as atc's `--dynamic_dims`, or `exact 512`."""
        if self.exact:
            return f"{EXACT} {self.short_side}"
        return ";".join(f"{size.h},{size.w}" for size in self.sizes)

    @classmethod
    def parse(cls, text: str) -> InputSizes | None:
        """Return the sizes in a text of the form of `str(input_sizes)`; `None` for any other text.

        >>> InputSizes.parse("64,96;96,64").sizes
        (Size(h=64, w=96), Size(h=96, w=64))
        >>> InputSizes.parse("exact 640").place(Size(427, 640)).input
        Size(h=640, w=960)
        """
        word, _, side = text.partition(" ")
        if word == EXACT and re.fullmatch(r"[1-9]\d{1,3}", side) and int(side) % MULTIPLE == 0:
            return cls.of_short_side(int(side), exact=True)
        try:
            sizes = tuple(Size(int(h), int(w)) for h, w in (part.split(",") for part in text.split(";")))
        except ValueError:
            return None
        return cls(sizes) if all(side > 0 for size in sizes for side in size) else None


PUBLISHED_SIZES = InputSizes.of_short_side(512)
