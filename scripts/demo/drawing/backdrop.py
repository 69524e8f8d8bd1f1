"""The surroundings of the drawn people: places, textures, objects behind the people and in front of them.

Lengths are pixels; everything here belongs to nobody (owner 0).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from dekr_infer.geometry import Size
from scripts.demo.drawing.appearance import HAIR, SKIN, Colour, cloth, shade, vivid
from scripts.demo.drawing.painter import CIRCLE, Painter


def _pastel(rng: np.random.Generator) -> Colour:
    """Sample a muted colour for a wall, a road or a field."""
    grey = rng.uniform(60, 235)
    mix = rng.uniform(0.1, 0.55)
    red, green, blue = (grey + mix * (np.array(vivid(rng)) - grey)).tolist()
    return red, green, blue


def _smooth(rng: np.random.Generator, size: Size, base: Colour, contrast: float, cells: int) -> np.ndarray:
    """Return (h, w, 3) uint8: a colour that drifts across the image."""
    grid = (
        np.array(base) + rng.normal(0, contrast, (cells, cells, 1)) + rng.normal(0, 0.4 * contrast, (cells, cells, 3))
    )
    small = np.clip(grid, 0, 255).astype(np.uint8)
    return cv2.resize(small, (size.w, size.h), interpolation=cv2.INTER_LINEAR)


def _grain(rng: np.random.Generator, image: np.ndarray, strength: int, cell: int) -> None:
    """Add a texture with features of `cell` pixels, in place."""
    h, w = image.shape[:2]
    small = rng.integers(0, 2 * strength, (h // cell + 2, w // cell + 2), np.uint8)
    texture = cv2.cvtColor(cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR), cv2.COLOR_GRAY2RGB)
    cv2.add(image, texture, dst=image)
    cv2.subtract(image, np.full(4, strength, np.float64), dst=image)


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _room(rng: np.random.Generator, painter: Painter) -> None:
    """Paint a floor with boards, and frames or windows on the wall."""
    h, w = painter.owners.shape
    horizon = rng.uniform(0.45, 0.8) * h
    floor = _pastel(rng)
    painter.fill(_box(-1, horizon, w, h), floor)
    vanishing = rng.uniform(0, w)
    for x in np.linspace(-w, 2 * w, int(rng.integers(6, 22))):
        line = np.array([(vanishing + 0.4 * (x - vanishing), horizon), (x, h), (x + 2, h)])
        painter.fill(line, shade(floor, 0.85))
    painter.fill(_box(-1, horizon - 0.02 * h, w, horizon), shade(floor, 1.25))
    for _ in range(rng.integers(0, 4)):
        x, y = rng.uniform(0, 0.9) * w, rng.uniform(0.02, 0.3) * h
        wide, high = rng.uniform(0.08, 0.22) * w, rng.uniform(0.1, 0.3) * h
        painter.fill(_box(x, y, x + wide, y + high), cloth(rng, 0.5))
        rim = 0.012 * w
        painter.fill(_box(x + rim, y + rim, x + wide - rim, y + high - rim), _pastel(rng))


def _field(rng: np.random.Generator, painter: Painter) -> None:
    """Paint clouds, hills and trees on the sky."""
    h, w = painter.owners.shape
    for _ in range(rng.integers(0, 4)):
        x, y, r = rng.uniform(0, w), rng.uniform(0, 0.3) * h, rng.uniform(0.03, 0.08) * w
        for dx in (-1, 0, 1.1):
            painter.fill((x + dx * r, y) + CIRCLE * (r, (0.6 - 0.1 * abs(dx)) * r), (240.0, 243.0, 246.0))
    for level in np.sort(rng.uniform(0.35, 0.8, rng.integers(1, 4))):
        xs = np.linspace(0, w, 24)
        ys = h * (level + rng.uniform(0.01, 0.08) * np.sin(xs / w * rng.uniform(2, 9) + rng.uniform(0, 6)))
        ground = shade((rng.uniform(60, 190), rng.uniform(110, 190), rng.uniform(40, 120)), rng.uniform(0.6, 1.1))
        painter.fill_any(np.concatenate([np.stack([xs, ys], 1), [(w + 1, h + 1), (-1, h + 1)]]), ground)
        for _ in range(rng.integers(0, 3)):
            _tree(rng, painter, rng.uniform(0, w), h * (level + 0.06), rng.uniform(0.15, 0.45) * h)


def _street(rng: np.random.Generator, painter: Painter) -> None:
    """Paint houses with windows along a road."""
    h, w = painter.owners.shape
    ground = rng.uniform(0.5, 0.75) * h
    x = -rng.uniform(0, 0.2) * w
    while x < w:
        wide, top = rng.uniform(0.15, 0.4) * w, rng.uniform(0.02, 0.35) * h
        wall, pane = _pastel(rng), _pastel(rng)
        painter.fill(_box(x, top, x + wide, ground), wall)
        columns, rows = int(rng.integers(2, 5)), int(rng.integers(2, 5))
        for cx in x + wide * (np.arange(columns) + 0.3) / columns:
            for cy in top + (ground - top) * (np.arange(rows) + 0.3) / rows:
                painter.fill(_box(cx, cy, cx + 0.4 * wide / columns, cy + 0.5 * (ground - top) / rows), pane)
        x += wide
    road = shade((110, 110, 114), rng.uniform(0.6, 1.7))
    painter.fill(_box(-1, ground, w, h), road)
    painter.fill(_box(-1, ground, w, ground + 0.03 * h), shade(road, 1.25))


def _tree(rng: np.random.Generator, painter: Painter, x: float, y: float, size: float) -> None:
    radius = 0.05 * size
    painter.capsule(np.array([x, y]), np.array([x, y - 0.6 * size]), radius, 0.7 * radius, (104.0, 76.0, 52.0))
    crown = shade((70, 130, 62), rng.uniform(0.6, 1.4))
    for dx, dy in rng.uniform(-0.16, 0.16, (3, 2)) * size:
        painter.solid((x + dx, y - 0.72 * size + dy) + CIRCLE * rng.uniform(0.14, 0.24, 2) * size, crown, 0.15 * size)


def paint_backdrop(rng: np.random.Generator, size: Size) -> Painter:
    """Return a painter on a new image with a place painted on it."""
    place = rng.choice(5, p=[0.22, 0.26, 0.2, 0.17, 0.15])
    base = (rng.uniform(120, 200), rng.uniform(170, 220), rng.uniform(210, 250)) if place == 2 else _pastel(rng)
    cells = int(rng.integers(2, 12)) if place in (0, 4) else 2
    painter = Painter(_smooth(rng, size, base, rng.uniform(15, 60) if cells > 2 else 14, cells))
    scenery: dict[int, Callable[[np.random.Generator, Painter], None]] = {1: _room, 2: _field, 3: _street}
    if place in scenery:
        scenery[int(place)](rng, painter)
    for _ in range(rng.integers(1, 3) if place == 4 else int(rng.random() < 0.4)):
        _grain(rng, painter.image, int(rng.integers(6, 40 if place == 4 else 16)), int(rng.choice([2, 3, 6, 14, 30])))
    return painter


def _crate(rng: np.random.Generator, painter: Painter, x: float, y: float, size: float) -> None:
    """Paint a box with a lit top and a dark side; a long or tall box resembles a table or a cupboard."""
    wide, high = size * rng.uniform(0.3, 1.0), size * rng.uniform(0.3, 1.1)
    deep, colour = size * rng.uniform(0.08, 0.2), cloth(rng, 0.5)
    up, back = y - high, (x + deep, y - deep)
    painter.fill(np.array([(x, y), back, (back[0], back[1] - high), (x, up)]), shade(colour, 0.7))
    painter.fill(
        np.array([(x, up), (x + deep, up - deep), (x + deep - wide, up - deep), (x - wide, up)]), shade(colour, 1.15)
    )
    painter.fill(_box(x - wide, y - high, x, y), colour)
    for shelf in np.linspace(0, 1, int(rng.integers(1, 5)))[1:-1]:
        painter.fill(_box(x - wide, y - high * shelf - 1, x, y - high * shelf + 1), shade(colour, 0.75))


def _ball(rng: np.random.Generator, painter: Painter, x: float, y: float, size: float) -> None:
    """Paint a ball, or a balloon on a string: round like a head, without a face."""
    palette = SKIN if rng.random() < 0.3 else HAIR
    colour = vivid(rng) if rng.random() < 0.5 else tuple(palette[rng.integers(len(palette))].tolist())
    radii = size * rng.uniform(0.07, 0.16) * np.array([1.0, rng.uniform(0.9, 1.35)])
    if rng.random() < 0.4:
        painter.fill(np.array([(x, y), (x + 1.5, y), (x + 0.06 * size, y + 0.7 * size)]), (90.0, 90.0, 90.0))
    painter.solid((x, y) + CIRCLE * radii, colour, float(radii[0]))


def _stick(rng: np.random.Generator, painter: Painter, x: float, y: float, size: float) -> None:
    """Paint one to three joined capsules that resemble a limb, in clothing or skin colours."""
    colour = cloth(rng, 0.3) if rng.random() < 0.65 else tuple(SKIN[rng.integers(len(SKIN))].tolist())
    radius, angle, start = size * rng.uniform(0.02, 0.05), rng.uniform(0, 2 * np.pi), np.array([x, y])
    for _ in range(rng.integers(1, 4)):
        end = start + size * rng.uniform(0.15, 0.35) * np.array([np.cos(angle), np.sin(angle)])
        painter.capsule(start, end, radius, 0.8 * radius, colour)
        start, angle = end, angle + rng.normal(0, 0.9)


def _lamp(rng: np.random.Generator, painter: Painter, x: float, y: float, size: float) -> None:
    """Paint a pole with a round or oval lamp on top."""
    colour, radius = cloth(rng, 0.7), size * rng.uniform(0.012, 0.03)
    painter.capsule(np.array([x, y]), np.array([x, y - size]), radius, radius, colour)
    painter.solid((x, y - size) + CIRCLE * size * rng.uniform(0.05, 0.13, 2), cloth(rng, 0.3), 0.05 * size)


OBJECTS = (_crate, _ball, _stick, _lamp, _tree)


def paint_clutter(rng: np.random.Generator, painter: Painter, count: int) -> None:
    """Paint `count` objects at random places, behind everything that is painted later."""
    h, w = painter.owners.shape
    painter.owner = 0
    for _ in range(count):
        paint_object = OBJECTS[rng.choice(len(OBJECTS), p=[0.32, 0.2, 0.28, 0.12, 0.08])]
        paint_object(rng, painter, rng.uniform(0, w), rng.uniform(0.25, 1.0) * h, rng.uniform(0.12, 0.75) * min(h, w))


def paint_stool(painter: Painter, seat: np.ndarray, floor: float, width: float, colour: Colour) -> None:
    """Paint a block from a seat (x, y) down to the floor, all in pixels."""
    painter.owner = 0
    (x, y), rim = seat, 0.16 * width
    painter.fill(_box(x - width / 2, y, x + width / 2, max(floor, y + rim)), shade(colour, 0.8))
    painter.fill(_box(x - width / 2, y, x + width / 2, y + rim), colour)


def paint_shadow(painter: Painter, centre: np.ndarray, radii: np.ndarray) -> None:
    """Darken an ellipse (pixels) on the ground."""
    h, w = painter.owners.shape
    low = np.maximum(np.floor(centre - radii).astype(int), 0)
    high = np.minimum(np.ceil(centre + radii).astype(int) + 1, (w, h))
    if (high - low).min() < 2:
        return
    ground = painter.image[low[1] : high[1], low[0] : high[0]]
    mask = np.zeros(ground.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.rint(centre - low + CIRCLE * radii).astype(np.int32), 255)
    cv2.copyTo(cv2.convertScaleAbs(ground, alpha=0.72), mask, ground)


def paint_front(rng: np.random.Generator, painter: Painter, may_cover: Callable[[np.ndarray], bool]) -> None:
    """Paint a post, a bush or a crate in front of everybody, sometimes.

    An object is painted only where `may_cover` allows its box: (left, top, right, bottom) in pixels.
    """
    h, w = painter.owners.shape
    painter.owner = 0
    if rng.random() < 0.22:
        x, half, top = rng.uniform(0, w), rng.uniform(0.008, 0.03) * min(h, w), rng.uniform(-0.2, 0.4) * h
        colour = cloth(rng, 0.7)
        if may_cover(np.array([x - half, top, x + half, h])):
            painter.capsule(np.array([x, top]), np.array([x, h + 2 * half]), half, half, colour)
    if rng.random() < 0.2:
        x, y, size = rng.uniform(0, w), rng.uniform(0.75, 1.15) * h, rng.uniform(0.08, 0.2) * min(h, w)
        leaf = shade((80, 140, 66), rng.uniform(0.5, 1.4)) if rng.random() < 0.6 else cloth(rng, 0.4)
        blobs = rng.uniform(-0.8, 0.8, (5, 2)) * size
        if may_cover(np.array([x - 1.8 * size, y - 1.8 * size, x + 1.8 * size, y + 1.8 * size])):
            for blob in blobs:
                painter.solid((x, y) + blob + CIRCLE * size * 0.9, leaf, 0.5 * size)
    if rng.random() < 0.15:
        left, wide, top = rng.uniform(-0.1, 0.9) * w, rng.uniform(0.15, 0.5) * w, rng.uniform(0.7, 0.95) * h
        colour = cloth(rng, 0.6)
        if may_cover(np.array([left, top, left + wide, h])):
            painter.fill(_box(left, top, left + wide, h + 2), shade(colour, 0.8))
            painter.fill(_box(left, top, left + wide, top + 0.02 * h), shade(colour, 1.1))
