"""A person to draw: limbs are painted as shaded capsules, the farthest first; then it is known which joints show.

Body units become pixels by `origin + height * point`; the map of owners gets `32 * number + part`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np

from scripts.demo.drawing.appearance import Appearance, Colour, shade
from scripts.demo.drawing.body import Body
from scripts.demo.drawing.face import Head, landmarks, landmarks_seen
from scripts.demo.drawing.painter import CIRCLE, Painter
from scripts.demo.drawing.torso import HEM, Torso

PARTS_PER_PERSON = 32
HIDDEN, SEEN = 1, 2  # COCO's visibility flags
SLEEVE = 0.006  # body heights that cloth adds to a limb's radius


class Part(IntEnum):
    """Body part of a painted pixel; a limb's number is that of the left side, the right side's is one higher."""

    HEAD, NECK, TORSO, PELVIS, SKIRT, HAIR, BAG = range(7)
    UPPER_ARM, FOREARM, THIGH, SHIN, FOOT = range(8, 18, 2)


Painting = tuple[float, int, Callable[[Painter], None]]  # depth (larger is nearer), part, painting function


def joint_points(body: Body) -> np.ndarray:
    """Return the 17 joints in COCO order: (17, 3) x, y, z in body heights."""
    limbs = (body.shoulder, body.elbow, body.wrist, body.hip, body.knee, body.ankle)
    return np.concatenate([landmarks(body), np.stack(limbs).reshape(12, 3)])


def _showing_parts() -> list[set[int]]:
    """Return for every joint its body parts: a pixel that shows one of these parts shows the joint."""
    showing: list[set[int]] = [{Part.HEAD} for _ in range(5)]
    for upper, lower, shared in (
        (Part.UPPER_ARM, Part.UPPER_ARM, {Part.TORSO}),
        (Part.UPPER_ARM, Part.FOREARM, set()),
        (Part.FOREARM, Part.FOREARM, set()),
        (Part.THIGH, Part.THIGH, {Part.TORSO, Part.PELVIS, Part.SKIRT}),
        (Part.THIGH, Part.SHIN, {Part.SKIRT}),
        (Part.SHIN, Part.FOOT, set()),
    ):
        showing += [{upper + side, lower + side, *shared} for side in (0, 1)]
    return showing


SHOWING_PARTS = _showing_parts()


class DrawnPerson:
    """A body with its appearance, at a place in the image.

    Args:
        origin: (2,), the pelvis in pixels.
        height: pixels per body height.
    """

    def __init__(self, body: Body, appearance: Appearance, origin: np.ndarray, height: float) -> None:
        self.body, self.appearance, self.height = body, appearance, height
        self.origin = np.array([origin[0], origin[1], 0.0])
        self.torso = Torso(body, appearance, self.origin, height)

    def moved(self, shift: np.ndarray) -> DrawnPerson:
        """Return the same person shifted by (2,) pixels, x and y."""
        return DrawnPerson(self.body, self.appearance, self.origin[:2] + shift, self.height)

    def at(self, point: np.ndarray) -> np.ndarray:
        """Return points in body heights as pixels; z is scaled too."""
        return self.origin + self.height * point

    def joints(self) -> np.ndarray:
        """Return the joints, (17, 2) x, y in pixels."""
        return self.at(joint_points(self.body))[:, :2]

    def paint(self, painter: Painter, number: int) -> np.ndarray:
        """Paint the whole person.

        Returns:
            (17,) int, SEEN or HIDDEN by the person's own body; joints outside the image are HIDDEN.
        """
        for _, part, paint in sorted(self._paintings(), key=lambda painting: painting[0]):
            painter.owner = PARTS_PER_PERSON * number + part
            paint(painter)
        return self._visibility(painter.owners, number)

    def _visibility(self, owners: np.ndarray, number: int) -> np.ndarray:
        points = joint_points(self.body)
        face_seen = landmarks_seen(self.body, self.appearance)
        result = np.full(17, HIDDEN)
        for joint, (x, y) in enumerate(np.rint(self.joints()).astype(int)):
            if not (0 <= x < owners.shape[1] and 0 <= y < owners.shape[0]):
                continue
            part = int(owners[y, x]) - PARTS_PER_PERSON * number
            shown = part in SHOWING_PARTS[joint] and (joint >= 5 or bool(face_seen[joint]))
            if joint >= 5 and part in (Part.TORSO, Part.PELVIS):
                partner = joint + 1 if joint % 2 else joint - 1
                across = points[partner] - points[joint]
                shown = shown and across[2] < 0.85 * np.linalg.norm(across)  # otherwise on the far side of the torso
            if shown:
                result[joint] = SEEN
        return result

    def _paintings(self) -> list[Painting]:
        body, appearance = self.body, self.appearance
        torso = (body.waist_point[2] + body.neck_point[2]) / 2 + 0.01
        head = Head(body, appearance, self.at(body.head_point), self.height)
        paintings: list[Painting] = [
            (body.head_point[2] + 0.03, Part.HEAD, head.paint),
            (min(torso + 0.004, body.head_point[2] + 0.029), Part.NECK, self._neck),
            (torso, Part.TORSO, self.torso.paint_shirt),
            (0.0, Part.PELVIS, self.torso.paint_pelvis),
        ]
        if appearance.skirt:
            thighs = (body.hip[:, 2] + body.knee[:, 2]) / 2
            paintings.append((float(thighs.max()) - 0.015, Part.SKIRT, self._skirt))
        if appearance.hair_style in ("long", "tail"):
            paintings.append((float(self._hair_axes()[0][2]), Part.HAIR, self._hair))
        if appearance.bag:
            paintings.append((float(self._bag_axes()[0][2]), Part.BAG, self._bag))
        for side in (0, 1):
            shoulder, elbow, wrist = body.shoulder[side, 2], body.elbow[side, 2], body.wrist[side, 2]
            hip, knee, ankle = body.hip[side, 2], body.knee[side, 2], body.ankle[side, 2]
            paintings += [
                ((shoulder + elbow) / 2 + 0.015, Part.UPPER_ARM + side, self._upper_arm(side)),
                ((elbow + wrist) / 2 + 0.02, Part.FOREARM + side, self._forearm(side)),
                ((hip + knee) / 2 - 0.02, Part.THIGH + side, self._thigh(side)),
                ((knee + ankle) / 2 - 0.005, Part.SHIN + side, self._shin(side)),
                ((ankle + body.toe[side, 2]) / 2, Part.FOOT + side, self._foot(side)),
            ]
        return paintings

    def _limb(
        self, painter: Painter, a: np.ndarray, b: np.ndarray, radii: tuple[float, float], cloth: Colour, covered: float
    ) -> None:
        """Paint a limb from a to b (body heights); cloth covers the fraction `covered`, beginning at a."""
        size = self.height * self.body.build.girth
        depth = 1 + 1.1 * float(np.clip((a[2] + b[2]) / 2, -0.16, 0.08))  # farther limbs are darker
        skin, cloth = shade(self.appearance.skin, depth), shade(cloth, depth)
        if covered < 1:
            painter.capsule(self.at(a), self.at(b), radii[0] * size, radii[1] * size, skin)
        if covered > 0:
            end = a + min(covered, 1.0) * (b - a)
            radius = radii[0] + min(covered, 1.0) * (radii[1] - radii[0])
            painter.capsule(self.at(a), self.at(end), (radii[0] + SLEEVE) * size, (radius + SLEEVE) * size, cloth)

    def _upper_arm(self, side: int) -> Callable[[Painter], None]:
        body, appearance = self.body, self.appearance
        return lambda painter: self._limb(
            painter, body.shoulder[side], body.elbow[side], (0.03, 0.024), appearance.sleeves, appearance.sleeve
        )

    def _forearm(self, side: int) -> Callable[[Painter], None]:
        body, appearance = self.body, self.appearance

        def paint(painter: Painter) -> None:
            size = self.height * body.build.girth
            skin = shade(appearance.skin, 1 + 1.1 * float(np.clip(body.wrist[side, 2], -0.16, 0.08)))
            painter.capsule(self.at(body.wrist[side]), self.at(body.hand[side]), 0.019 * size, 0.022 * size, skin)
            ends = body.elbow[side], body.wrist[side]
            self._limb(painter, *ends, (0.024, 0.0175), appearance.sleeves, appearance.sleeve - 1)

        return paint

    def _thigh(self, side: int) -> Callable[[Painter], None]:
        body, appearance = self.body, self.appearance
        return lambda painter: self._limb(
            painter, body.hip[side], body.knee[side], (0.046, 0.034), appearance.trousers, appearance.trouser_leg
        )

    def _shin(self, side: int) -> Callable[[Painter], None]:
        body, appearance = self.body, self.appearance
        return lambda painter: self._limb(
            painter, body.knee[side], body.ankle[side], (0.033, 0.021), appearance.trousers, appearance.trouser_leg - 1
        )

    def _foot(self, side: int) -> Callable[[Painter], None]:
        heel, toe = self.at(self.body.heel[side]), self.at(self.body.toe[side])
        return lambda painter: painter.capsule(
            heel, toe, 0.025 * self.height, 0.02 * self.height, self.appearance.shoes
        )

    def _neck(self, painter: Painter) -> None:
        top = self.at(self.body.head_point + self.body.head @ (0.0, 0.02, -0.01))
        radius = 0.027 * self.height
        painter.capsule(self.at(self.body.neck_point), top, radius * 1.1, radius, shade(self.appearance.skin, 0.9))

    def _skirt(self, painter: Painter) -> None:
        """Paint a skirt from the hem of the shirt around both thighs."""
        body, reach = self.body, self.appearance.skirt
        ends = self.at(body.hip + reach * (body.knee - body.hip))
        rings = [self.torso.outline(HEM)] + [end[:2] + (0.045 + 0.03 * reach) * self.height * CIRCLE for end in ends]
        colour = self.appearance.shirt if reach > 0.85 else self.appearance.trousers
        painter.hull(np.concatenate(rings), colour, thickness=0.07 * self.height)

    def _hair_axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return middle and half axes of hair that hangs down the back, in body heights."""
        middle, radii = (0.0, 0.5, -0.26), (0.42, 0.6, 0.2)
        if self.appearance.hair_style == "tail":
            middle, radii = (0.0, 0.1, -0.62), (0.13, 0.45, 0.13)
        axes = self.body.build.head * self.body.head
        return self.body.head_point + axes @ middle, axes * radii

    def _hair(self, painter: Painter) -> None:
        centre, axes = self._hair_axes()
        painter.ellipsoid(self.at(centre), axes * self.height, shade(self.appearance.hair, 0.95))

    def _bag_axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return middle and half axes of a bag on the back, in body heights."""
        chest = self.body.chest
        return self.body.neck_point + chest @ (0.0, 0.12, -0.09), chest * (0.075, 0.1, 0.05)

    def _bag(self, painter: Painter) -> None:
        centre, axes = self._bag_axes()
        painter.ellipsoid(self.at(centre), axes * self.height, self.appearance.accent)
