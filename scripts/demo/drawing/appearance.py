"""The appearance of a drawn person, sampled: skin, hair and clothes. Colours are RGB triples, 0 to 255."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]

SKIN = np.array(
    [(252, 222, 196), (240, 196, 158), (222, 172, 130), (194, 136, 94), (146, 94, 62), (98, 64, 44)], np.float64
)
HAIR = np.array([(30, 24, 22), (62, 40, 26), (110, 70, 36), (205, 165, 90), (160, 70, 30), (170, 168, 165)], np.float64)
NEUTRAL = np.array(
    [(35, 36, 42), (90, 92, 98), (175, 175, 178), (238, 236, 230), (58, 78, 118), (176, 152, 112)], float
)
HAIR_STYLES = ("short", "bob", "long", "tail", "bun", "bald", "cap", "curls")
PATTERNS = ("plain", "stripes", "badge", "buttons", "dots", "block")


@dataclass(frozen=True)
class Appearance:
    """Clothing and colours of one person."""

    skin: Colour
    hair: Colour
    hair_style: str
    shirt: Colour
    accent: Colour  # stripes, badge, cap, bag
    pattern: str
    sleeve: float  # how far it covers the arm: 0 none, 1 to the elbow, 2 to the wrist
    trousers: Colour
    trouser_leg: float  # how far it covers the leg: 1 to the knee, 2 to the ankle
    skirt: float  # 0 none, else its length along the thigh
    shoes: Colour
    bag: bool

    @property
    def sleeves(self) -> Colour:
        """Colour of the shirt at the arms."""
        return self.accent if self.pattern == "block" else self.shirt


def vivid(rng: np.random.Generator) -> Colour:
    """Sample a colour of any hue, mostly saturated."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.35, 0.95), rng.uniform(0.4, 0.98))
    return 255 * red, 255 * green, 255 * blue


def shade(colour: Colour, factor: float) -> Colour:
    """Return a lighter (factor above 1) or darker colour, within range."""
    red, green, blue = (float(min(255.0, max(0.0, factor * channel))) for channel in colour)
    return red, green, blue


def _between(rng: np.random.Generator, palette: np.ndarray) -> Colour:
    """Sample a colour between two neighbours of the palette."""
    place = rng.uniform(0, len(palette) - 1)
    low = int(place)
    red, green, blue = (1 - place + low) * palette[low] + (place - low) * palette[low + 1] + rng.normal(0, 5, 3)
    return shade((red, green, blue), 1.0)


def cloth(rng: np.random.Generator, neutral: float) -> Colour:
    """Sample a clothing colour; neutral with the given probability."""
    if rng.random() >= neutral:
        return vivid(rng)
    red, green, blue = NEUTRAL[rng.integers(len(NEUTRAL))] + rng.normal(0, 10, 3)
    return shade((red, green, blue), 1.0)


def sample_appearance(rng: np.random.Generator) -> Appearance:
    """Sample a complete appearance."""
    skirt = float(rng.uniform(0.55, 1.0)) if rng.random() < 0.18 else 0.0
    return Appearance(
        skin=_between(rng, SKIN),
        hair=vivid(rng) if rng.random() < 0.05 else _between(rng, HAIR),
        hair_style=str(rng.choice(HAIR_STYLES, p=[0.3, 0.13, 0.15, 0.1, 0.08, 0.06, 0.1, 0.08])),
        shirt=cloth(rng, 0.3),
        accent=cloth(rng, 0.25),
        pattern=str(rng.choice(PATTERNS, p=[0.35, 0.2, 0.15, 0.12, 0.08, 0.1])),
        sleeve=float(rng.choice([0.0, 0.55, 1.0, 2.0], p=[0.12, 0.38, 0.1, 0.4])),
        trousers=cloth(rng, 0.65),
        trouser_leg=float(rng.choice([0.5, 0.9, 1.4, 2.0], p=[0.12, 0.15, 0.08, 0.65])) if not skirt else 0.0,
        skirt=skirt,
        shoes=cloth(rng, 0.6),
        bag=bool(rng.random() < 0.14),
    )
