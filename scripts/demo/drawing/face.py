"""The head of a drawn person: where nose, eyes and ears are, and how it is painted.

Landmarks live on the unit sphere that the head's ellipsoid stretches: x to the person's left, y down, z forwards.
"""

from __future__ import annotations

import numpy as np

from scripts.demo.drawing.appearance import Appearance, Colour, shade
from scripts.demo.drawing.body import Body
from scripts.demo.drawing.painter import CIRCLE, Painter

LANDMARKS = np.array(
    [(0, 0.22, 1.08), (0.355, -0.02, 0.89), (-0.355, -0.02, 0.89), (1.0, 0.1, -0.1), (-1.0, 0.1, -0.1)]
)  # nose, eyes, ears
SEEN_FROM = np.array([-0.05, 0.1, 0.1, -0.3, -0.3])  # smallest z of the outward normal at which each landmark shows
COVERED_EARS = ("bob", "long", "curls")
Point = tuple[float, float, float]  # on the unit sphere
VOLUME = {"bald": 1.0, "curls": 1.22}  # size of hair and skull against the head; 1.07 for the other styles


def head_axes(body: Body) -> np.ndarray:
    """Return the head's half axes as columns, in body heights: (3, 3)."""
    return body.head @ np.diag(np.array([0.39, 0.5, 0.44]) * body.build.head)


def landmarks(body: Body) -> np.ndarray:
    """Return nose, eyes and ears, left before right: (5, 3) in body heights."""
    return body.head_point + LANDMARKS @ head_axes(body).T


def landmarks_seen(body: Body, appearance: Appearance) -> np.ndarray:
    """Return which of the five landmarks the head itself does not hide: (5,) bool."""
    normals = LANDMARKS @ np.linalg.inv(head_axes(body))
    seen = normals[:, 2] / np.linalg.norm(normals, axis=1) > SEEN_FROM
    if appearance.hair_style in COVERED_EARS:
        seen[3:] = False
    return seen


def cap_outline(axes: np.ndarray, direction: np.ndarray, angle: float) -> np.ndarray:
    """Return the outline of the part of an ellipsoid within `angle` of a direction, as far as it faces the viewer.

    Args:
        axes: (3, 3), half axes as columns.
        direction: (3,), on the unit sphere before `axes` stretches it.
        angle: radians.
    Returns:
        (n, 2) relative to the middle, not always convex; n = 0 where the whole part is turned away.
    """
    pole = direction / np.linalg.norm(direction)
    viewer = np.linalg.solve(axes, np.array([0.0, 0.0, 1.0]))
    viewer /= np.linalg.norm(viewer)
    edge = np.cos(angle) * pole + np.sin(angle) * _great_circle(pole)
    limb = _great_circle(viewer)
    edge, limb = _run(edge, edge @ viewer >= 0), _run(limb, limb @ pole >= np.cos(angle))
    if len(edge) and len(limb) and np.sum((edge[-1] - limb[0]) ** 2) > np.sum((edge[-1] - limb[-1]) ** 2):
        limb = limb[::-1]
    return np.concatenate([edge, limb]) @ axes[:2].T


def _run(points: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return the kept points of a closed line, which are consecutive, from the first after the gap."""
    start = int(np.argmax(keep & ~np.roll(keep, 1)))
    return np.roll(points, -start, 0)[np.roll(keep, -start)]


def _great_circle(pole: np.ndarray) -> np.ndarray:
    """Return (20, 3) points of the unit sphere at right angles to `pole`."""
    x, y, z = pole
    across = np.array([z, 0.0, -x]) if abs(y) < 0.9 else np.array([0.0, z, -y])
    across /= np.linalg.norm(across)
    return CIRCLE @ np.stack([across, _cross(pole, across)])


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the vector product of two (3,), without the overhead of numpy's function."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


class Head:
    """The head of one person, ready to paint.

    Args:
        centre: (3,) in pixels.
        height: pixels per body height.
    """

    def __init__(self, body: Body, appearance: Appearance, centre: np.ndarray, height: float) -> None:
        self.appearance = appearance
        self.axes, self.centre = head_axes(body) * height, centre
        self.forward = body.head[:, 2]
        self.seen = landmarks_seen(body, appearance)
        self.size = body.build.head * height  # pixels, chin to crown

    def _place(self, point: Point) -> np.ndarray:
        """Return a point given relative to the unit sphere in pixels: (3,)."""
        return self.centre + self.axes @ np.array(point)

    def _cap(self, painter: Painter, direction: Point, degrees: float, volume: float, colour: Colour) -> None:
        """Paint the part of the head around a direction."""
        outline = cap_outline(self.axes * volume, np.array(direction), np.deg2rad(degrees))
        if len(outline) > 2:
            painter.fill_any(self.centre[:2] + outline, colour)

    def _patch(self, painter: Painter, point: Point, width: float, height: float, colour: Colour) -> None:
        """Paint an ellipse that lies on the skin and turns with it; width and height on the unit sphere."""
        middle = np.array(point) / np.linalg.norm(point)
        right = np.array([middle[2], 0.0, -middle[0]]) / np.hypot(middle[0], middle[2])
        ring = middle + CIRCLE @ np.stack([width * right, height * _cross(middle, right)])
        painter.fill(self.centre[:2] + ring @ self.axes[:2].T, colour, claim=False)

    def paint(self, painter: Painter) -> None:
        """Paint hair, ears, face and cap, from back to front."""
        style, skin, hair = self.appearance.hair_style, self.appearance.skin, self.appearance.hair
        facing = self.forward[2] > 0
        if style == "cap" and not facing:
            self._brim(painter)
        self._ears(painter, in_front=False)
        if not self.seen[0]:
            self._nose(painter)
        if style == "bun":
            painter.ellipsoid(self._place((0, -0.95, -0.55)), 0.42 * self.axes, hair)
        if style in ("bob", "long"):
            painter.ellipsoid(self._place((0, 0.18, -0.12)), 1.14 * self.axes, hair)
        painter.ellipsoid(self.centre, VOLUME.get(style, 1.07) * self.axes, skin if style == "bald" else hair)
        if style != "bald":
            self._cap(painter, (0, 0.42, 1), 64 if style in COVERED_EARS else 73, 1.0, skin)
        self._ears(painter, in_front=True)
        self._features(painter)
        if style == "cap":
            self._cap(painter, (0, -1, 0.12), 68, 1.16, self.appearance.accent)
            if facing:
                self._brim(painter)

    def _ears(self, painter: Painter, in_front: bool) -> None:
        if self.appearance.hair_style in COVERED_EARS:
            return
        for ear, seen in zip(LANDMARKS[3:], self.seen[3:], strict=True):
            if seen == in_front:
                painter.ellipsoid(
                    self._place(tuple(ear)), self.axes * (0.14, 0.2, 0.17), shade(self.appearance.skin, 0.94)
                )

    def _nose(self, painter: Painter) -> None:
        painter.ellipsoid(self._place((0, 0.2, 1.0)), self.axes * (0.13, 0.15, 0.2), shade(self.appearance.skin, 0.88))

    def _brim(self, painter: Painter) -> None:
        ring = np.array([0, -0.42, 0.85]) + np.stack([0.85 * CIRCLE[:, 0], 0.1 * CIRCLE[:, 1], 0.75 * CIRCLE[:, 1]], 1)
        painter.hull(self.centre[:2] + ring @ self.axes[:2].T, shade(self.appearance.accent, 0.75))

    def _features(self, painter: Painter) -> None:
        skin, dark = self.appearance.skin, (40.0, 26.0, 26.0)
        for eye, seen in zip(LANDMARKS[1:3], self.seen[1:3], strict=True):
            if not seen:
                continue
            x, y, z = eye
            if self.size > 14:
                self._patch(painter, (x, y, z), 0.17, 0.16, (250.0, 250.0, 250.0))
            self._patch(painter, (x, y + 0.01, z), 0.1, 0.12, dark)
            if self.size > 20:
                self._patch(painter, (x, y - 0.25, z), 0.19, 0.035, shade(self.appearance.hair, 0.7))
                self._patch(painter, (x * 1.55, y + 0.33, z), 0.14, 0.1, _blush(skin))
        if self.size > 14 and self._facing((0, 0.58, 0.8)) > 0.05:
            self._patch(painter, (0, 0.6, 0.8), 0.22, 0.055, (168.0, 66.0, 66.0))
        if self.seen[0]:
            self._nose(painter)

    def _facing(self, point: Point) -> float:
        """Return the z of the outward normal at a point of the unit sphere."""
        normal = np.array(point) @ np.linalg.inv(self.axes)
        return float(normal[2] / np.linalg.norm(normal))


def _blush(skin: Colour) -> Colour:
    return shade((skin[0] * 1.02, skin[1] * 0.86, skin[2] * 0.86), 1.0)
