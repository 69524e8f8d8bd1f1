"""Anti-aliased painting of round, shaded shapes, with a map of whom each pixel shows.

Points are (x, y) in pixels, or (x, y, z) of which z is ignored; integers are pixel centres.
"""

from __future__ import annotations

import cv2
import numpy as np

from scripts.demo.drawing.appearance import Colour, shade

SUBPIXEL_BITS = 4
_ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)  # (20, 2)
_HALF = np.linspace(-np.pi / 2, np.pi / 2, 9)
HALF_CIRCLE = np.stack([np.cos(_HALF), np.sin(_HALF)], 1)  # (9, 2), around +x
LIGHT = np.array([-0.55, -0.83])  # towards the light, which comes from above left


def capsule_outline(a: np.ndarray, b: np.ndarray, radius_a: float, radius_b: float) -> np.ndarray:
    """Return the outline of two discs and the band between them.

    Returns:
        (18, 2) float64, convex; a disc's outline if one disc holds the other.
    """
    along = b[:2] - a[:2]
    length = float(np.hypot(*along))
    if length <= abs(radius_a - radius_b) + 1e-6:
        centre, radius = (a, radius_a) if radius_a >= radius_b else (b, radius_b)
        return centre[:2] + radius * CIRCLE
    frame = np.array([along, (-along[1], along[0])]) / length
    arc = HALF_CIRCLE @ frame
    return np.concatenate([b[:2] + radius_b * arc, a[:2] - radius_a * arc])


def ellipsoid_outline(centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return the outline of an ellipsoid seen along z, (20, 2); `axes` (3, 3) holds the half axes as columns."""
    flat = axes[:2]
    return centre[:2] + CIRCLE @ np.linalg.cholesky(flat @ flat.T + 1e-9 * np.eye(2)).T


class Painter:
    """Paints into an RGB image and into its map of owners.

    Attributes:
        image: (h, w, 3) uint8.
        owners: (h, w) uint8; `owner` is written wherever a shape is painted. Zero is nobody.
    """

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.owners: np.ndarray = np.zeros(image.shape[:2], np.uint8)
        self.owner = 0

    def fill(self, outline: np.ndarray, colour: Colour, *, claim: bool = True) -> None:
        """Fill a convex outline, (n, 2); `claim` also enters the shape in `owners`."""
        points = np.rint(outline * (1 << SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillConvexPoly(self.image, points, colour, cv2.LINE_AA, SUBPIXEL_BITS)
        if claim:
            cv2.fillConvexPoly(self.owners, points, self.owner, cv2.LINE_8, SUBPIXEL_BITS)

    def fill_any(self, outline: np.ndarray, colour: Colour) -> None:
        """Fill an outline that need not be convex, (n, 2), and enter the shape in `owners`."""
        points = [np.rint(outline * (1 << SUBPIXEL_BITS)).astype(np.int32)]
        cv2.fillPoly(self.image, points, colour, cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.fillPoly(self.owners, points, self.owner, cv2.LINE_8, SUBPIXEL_BITS)

    def solid(self, outline: np.ndarray, colour: Colour, thickness: float) -> None:
        """Fill a convex outline so that it looks round: a dark rim, the body, a bright patch towards the light.

        `thickness` is half the shape's smaller extent in pixels and bounds the shift of the shading.
        """
        self.fill(outline, shade(colour, 0.74))
        if thickness < 1.2:
            return
        inwards = _inwards(outline)
        rim = min(0.3 * thickness, 1.1 + 0.08 * thickness)
        self.fill(outline + rim * inwards + 0.1 * thickness * LIGHT, colour, claim=False)
        if thickness > 4:
            lit = outline + 0.62 * thickness * inwards + 0.26 * thickness * LIGHT
            self.fill(lit, shade(colour, 1.07), claim=False)

    def capsule(self, a: np.ndarray, b: np.ndarray, radius_a: float, radius_b: float, colour: Colour) -> None:
        """Paint a shaded limb from a to b."""
        self.solid(capsule_outline(a, b, radius_a, radius_b), colour, (radius_a + radius_b) / 2)

    def ellipsoid(self, centre: np.ndarray, axes: np.ndarray, colour: Colour) -> None:
        """Paint a shaded ellipsoid; `axes` as in `ellipsoid_outline`."""
        self.solid(ellipsoid_outline(centre, axes), colour, float(np.linalg.norm(axes, axis=0).min()))

    def hull(self, points: np.ndarray, colour: Colour, thickness: float = 0.0) -> None:
        """Paint the convex hull of (n, 2) points; shaded if it has a thickness."""
        outline = cv2.convexHull(points.astype(np.float32)).reshape(-1, 2).astype(np.float64)
        if thickness:
            self.solid(outline, colour, thickness)
        else:
            self.fill(outline, colour)


def _inwards(outline: np.ndarray) -> np.ndarray:
    """Return the inward unit normal at every point of a convex outline: (n, 2)."""
    closed = np.concatenate([outline[-1:], outline, outline[:1]])
    tangent = closed[2:] - closed[:-2]
    length = np.maximum(np.hypot(tangent[:, 0], tangent[:, 1]), 1e-9)
    normal = np.stack([-tangent[:, 1] / length, tangent[:, 0] / length], 1)
    return normal if ((outline.mean(0) - outline) * normal).sum() > 0 else -normal
