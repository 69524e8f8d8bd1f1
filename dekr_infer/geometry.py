"""Sizes, input sizes, and the placement of an image in the network's input: every geometric constant, once.

Numpy only. Sizes are (h, w); points are (x, y); integer coordinates are pixel centres. docs/conventions.md explains the
frames: image pixels, input pixels, and cells of the feature maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

STRIDE = 4  # input pixels per feature cell; column c of a map is at pixel STRIDE * c
FLIP_SHIFT = STRIDE - 1  # pixels: moves the flipped image so that cell x coincides with cell w - 1 - x
MULTIPLE = 64  # pixels: the reference rounds the long side up to a multiple of this


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
    """

    sizes: tuple[Size, ...]

    def place(self, image: Size) -> Placement:
        """Choose the input size of an image.

        The long side is brought to the multiple of 64 that the reference computes (in doubles, in its order: a fraction
        of a pixel above a multiple rounds down), then to the smallest size that holds it. Where none does, the largest
        is taken, and the ends of the image are cut.

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
        short = min(min(size) for size in self.sizes)
        wanted = int((short / min(image) * max(image) + MULTIPLE - 1) // MULTIPLE * MULTIPLE)
        sides = sorted(max(size) for size in self.sizes if size.h == size.w or (size.w < size.h) == (image.w < image.h))
        long = next((side for side in sides if side >= wanted), sides[-1])
        return Placement(image, Size(long, short) if image.w < image.h else Size(short, long))

    def __iter__(self) -> Iterator[Size]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Size:
        return self.sizes[index]

    def __contains__(self, size: object) -> bool:
        return size in self.sizes

    def __str__(self) -> str:
        """Return the sizes as atc's `--dynamic_dims` and the graph's metadata hold them: `512,768;512,512;...`."""
        return ";".join(f"{size.h},{size.w}" for size in self.sizes)

    @classmethod
    def parse(cls, text: str) -> InputSizes | None:
        """Return the sizes in a text of the form of `str(input_sizes)`; `None` for any other text.

        >>> InputSizes.parse("64,96;96,64").sizes
        (Size(h=64, w=96), Size(h=96, w=64))
        """
        try:
            sizes = tuple(Size(int(h), int(w)) for h, w in (part.split(",") for part in text.split(";")))
        except ValueError:
            return None
        return cls(sizes) if all(side > 0 for size in sizes for side in size) else None


PUBLISHED_SIZES = InputSizes((Size(512, 768), Size(512, 512), Size(768, 512), Size(512, 1024), Size(1024, 512)))
