"""The torso of a drawn person: elliptic cross sections from the neck to the crotch, and the clothes on it."""

from __future__ import annotations

import numpy as np

from scripts.demo.drawing.appearance import Appearance, Colour, shade
from scripts.demo.drawing.body import Body
from scripts.demo.drawing.painter import CIRCLE, LIGHT, Painter

HEM = 4  # index of the ring where the shirt ends
BANDS = 9  # of a striped shirt


class Torso:
    """Cross sections in pixels.

    Attributes:
        centres, across, through: (6, 3) each: a ring's middle and its two half axes, to the left and forwards.
            Rings: neck, shoulders, chest, waist, hem, crotch.
    """

    def __init__(self, body: Body, appearance: Appearance, origin: np.ndarray, height: float) -> None:
        self.appearance, self.height = appearance, height
        build, chest, pelvis = body.build, body.chest, body.pelvis
        middle = (chest + pelvis) / 2
        frames = (chest, chest, chest, middle, pelvis, pelvis)
        points = (
            body.neck_point + chest @ (0.0, 0.004, 0.0),
            body.neck_point + chest @ (0.0, 0.034, 0.0),
            body.neck_point + chest @ (0.0, 0.095, 0.0),
            body.waist_point,
            pelvis @ (0.0, -0.025, 0.0),
            pelvis @ (0.0, 0.035, 0.0),
        )
        girth = build.girth
        widths = np.array([0.042, build.shoulders + 0.006, build.shoulders * 0.93, 0.073 * girth,
                           build.hips + 0.03 * girth, build.hips + 0.02 * girth])  # fmt: skip
        depths = np.array([0.036, 0.044, 0.06 * girth, 0.056 * girth, 0.06 * girth, 0.052])
        self.centres = origin + height * np.array(points)
        self.across = height * widths[:, None] * np.array([frame[:, 0] for frame in frames])
        self.through = height * depths[:, None] * np.array([frame[:, 2] for frame in frames])

    def ring(self, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return centre and half axes, each (3,), at a level between two rings; level 0 is the neck."""
        low = min(int(level), 4)
        part = level - low
        centre, across, through = (
            (1 - part) * rows[low] + part * rows[low + 1] for rows in (self.centres, self.across, self.through)
        )
        return centre, across, through

    def outline(self, level: float, inset: float = 0.0) -> np.ndarray:
        """Return the outline of a level, (20, 2) pixels, shrunk by `inset` pixels and then moved towards the light."""
        centre, across, through = self.ring(level)
        points = CIRCLE @ np.stack([across[:2], through[:2]])
        if inset:
            reach = np.hypot(points[:, 0], points[:, 1]).max()
            points = points * max(0.3, 1 - inset / max(reach, 1e-6)) + 0.5 * inset * LIGHT
        return centre[:2] + points

    def surface(self, level: float, angle: float) -> tuple[np.ndarray, float]:
        """Return a point on the surface, (3,) pixels, and how much it faces the viewer (1 fully, negative: away).

        `angle` is in radians from the middle of the front to the person's left.
        """
        centre, across, through = self.ring(level)
        point = centre + np.sin(angle) * across + np.cos(angle) * through
        normal = np.sin(angle) * across / (across @ across) + np.cos(angle) * through / (through @ through)
        return point, float(normal[2] / np.linalg.norm(normal))

    def bands(self, painter: Painter, edges: np.ndarray, colours: list[Colour]) -> None:
        """Paint the torso between consecutive levels, the farthest band first, each with a dark rim."""
        order = np.argsort([self.ring(level)[0][2] for level in (edges[:-1] + edges[1:]) / 2], kind="stable")
        rim = 0.012 * self.height
        for band in order:
            pair = (self.outline(edges[band]), self.outline(edges[band + 1]))
            painter.hull(np.concatenate(pair), shade(colours[band], 0.7))
        for band in order:
            pair = (self.outline(edges[band], rim), self.outline(edges[band + 1], rim))
            painter.hull(np.concatenate(pair), colours[band])

    def paint_shirt(self, painter: Painter) -> None:
        """Paint the shirt with its pattern, and the straps of a bag."""
        appearance = self.appearance
        if appearance.pattern == "stripes":
            edges = np.interp(np.linspace(0, 1, BANDS + 1), np.linspace(0, 1, 5), np.arange(5))
            self.bands(painter, edges, [(appearance.shirt, appearance.accent)[band % 2] for band in range(BANDS)])
        elif appearance.pattern == "block":
            self.bands(painter, np.array([0, 1, 2, 2.3, 3, 4]), [appearance.accent] * 3 + [appearance.shirt] * 2)
        else:
            self.bands(painter, np.arange(5.0), [appearance.shirt] * 4)
        if appearance.pattern == "badge":
            self._mark(painter, 1.9, 0.0, 0.034)
        elif appearance.pattern == "buttons":
            for level in np.linspace(1.2, 3.8, 6):
                self._mark(painter, float(level), 0.0, 0.009)
        elif appearance.pattern == "dots":
            for level in (1.3, 2.1, 2.8, 3.5):
                for angle in np.arange(6) * np.pi / 3 + level:
                    self._mark(painter, level, float(angle), 0.013)
        if appearance.bag:
            for angle in (0.62, -0.62):
                for level in np.linspace(0.9, 3.0, 8):
                    self._mark(painter, float(level), angle, 0.011, shade(appearance.accent, 0.6))

    def paint_pelvis(self, painter: Painter) -> None:
        """Paint trousers or skirt from the waist to the crotch."""
        colour = self.appearance.shirt if self.appearance.skirt > 0.85 else self.appearance.trousers
        self.bands(painter, np.array([3.6, 4.0, 5.0]), [colour] * 2)

    def _mark(self, painter: Painter, level: float, angle: float, radius: float, colour: Colour | None = None) -> None:
        """Paint a disc of `radius` body heights that lies on the torso and turns with it."""
        point, facing = self.surface(level, angle)
        if facing < 0.1:
            return
        _, across, through = self.ring(level)
        sideways = np.cos(angle) * across - np.sin(angle) * through
        downwards = self.ring(min(level + 0.3, 5))[0] - self.ring(max(level - 0.3, 0))[0]
        axes = np.stack([axis[:2] / max(np.linalg.norm(axis), 1e-6) for axis in (sideways, downwards)])
        painter.fill(point[:2] + radius * self.height * CIRCLE @ axes, colour or self.appearance.accent, claim=False)
