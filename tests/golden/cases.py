"""The inputs of the golden tests: pictures, weights and maps made from formulas, equal to the bit on every machine.

Random numbers are whole ones from numpy's generator, scaled by powers of two; so nothing here is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dekr_infer.geometry import Size

# (h, w): every input size, odd sides, just above a multiple of 64 (333 x 500), ends cut (100 x 250).
PICTURE_SIZES = tuple(
    Size(*size)
    for size in ((427, 640), (480, 480), (641, 425), (333, 500), (301, 599), (640, 320), (100, 250), (257, 255))
)
TINY = (
    ("MODEL.SPEC.STAGES.NUM_CHANNELS", "[[4,6],[4,6,8],[4,6,8,10]]"),
    ("MODEL.SPEC.STAGES.NUM_MODULES", "[1,1,1]"),
    ("MODEL.SPEC.STAGES.NUM_BLOCKS", "[[1,1],[1,1,1],[1,1,1,1]]"),
    ("MODEL.SPEC.HEAD_HEATMAP.NUM_CHANNELS", "4"),
    ("MODEL.SPEC.HEAD_OFFSET.NUM_CHANNELS_PERKPT", "3"),
)
NETWORK_INPUT = Size(64, 96)  # pixels
MAP = Size(24, 40)  # cells
IMAGE = Size(90, 151)  # pixels: the picture that the maps are of, in a input size of MAP * 4
SCALES = (2.0, 1.0, 0.5)  # of the input, in the order in which upstream adds them up
SWAPPED = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]


class Maps(NamedTuple):
    """Both passes: heat (18, h, w), offset (34, h, w), float32, and the flipped pass's as the network gives them."""

    heat: np.ndarray
    offset: np.ndarray
    heat_flip: np.ndarray
    offset_flip: np.ndarray


def picture(size: Size) -> np.ndarray:
    """(h, w, 3) uint8 BGR: coloured noise of several grains."""
    rng = np.random.default_rng((size.h, size.w))
    image = np.zeros((size.h, size.w, 3), np.int64)
    for grain in (1, 5, 40):
        rows, columns = -(-size.h // grain), -(-size.w // grain)
        part = rng.integers(0, 86, (rows, columns, 3)).repeat(grain, 0).repeat(grain, 1)
        image += part[: size.h, : size.w]
    return image.astype(np.uint8)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Float32 values for a network's parameters and buffers, by name; the fixed grid of taps is left out."""
    rng = np.random.default_rng(20)
    values = {}
    for name in sorted(shapes):
        shape = shapes[name]
        noise = rng.integers(-64, 65, shape) / 64
        if name.endswith(("regular_matrix", "num_batches_tracked")):
            continue
        if name.endswith("running_var"):
            values[name] = 1 + np.abs(noise) / 2
        elif "transform_matrix_conv.bias" in name:
            values[name] = np.array([1, 0, 0, 1]) + noise / 4
        elif len(shape) < 2:
            values[name] = noise / 8 + name.endswith("weight")
        else:
            fan_in = int(np.prod(shape[1:]))
            values[name] = noise * 2.0 ** -round(np.log2(fan_in) / 2)
        values[name] = values[name].astype(np.float32)
    return values


def network_input() -> np.ndarray:
    """(1, 3, H, W) float32."""
    return (np.random.default_rng(21).integers(-128, 129, (1, 3, *NETWORK_INPUT)) / 64).astype(np.float32)


def map_cases() -> dict[str, Maps]:
    """The hand-made maps by name."""
    return {
        "people": _maps(1, [(5, 7, 4.0), (5, 20, 3.0), (15, 11, 5.0), (17, 30, 2.5)]),
        "borders and outside": _maps(2, [(0, 0, 4.0), (0, 39, 6.0), (23, 39, 3.0), (23, 0, 9.0), (12, 20, 30.0)]),
        "overlapping": _maps(3, _near(10, 10, 6) + _near(12, 28, 6), spread=0.05),
        "one on another": _maps(4, _near(8, 9, 9) + _near(16, 27, 9), spread=0.015),
        "crowd": _maps(5, [(y, x, 2.0) for y in range(1, 24, 4) for x in range(1, 40, 5)]),
        "tiny": _maps(9, [(6, 10, 0.25), (14, 25, 0.5), (18, 33, 1.0)]),
        "at the threshold": _at_threshold(_maps(10, [(5, 7, 4.0), (15, 30, 3.0)]), 12, 20),
        "no size": _maps(6, [(6, 10, 0.0), (6, 13, 0.0), (14, 25, 3.0)]),
        "hills": _with_hills(_maps(7, [(9, 10, 5.0), (13, 22, 4.0), (10, 31, 5.0)])),
        "nobody": Maps(*(np.zeros((n, *MAP), np.float32) for n in (18, 34, 18, 34))),
    }


def scale_cases() -> dict[str, dict[float, Maps]]:
    """The hand-made maps of one picture at several scales, by name: the same people, each scale with its own noise."""
    people = {
        "people": [(5, 7, 4.0), (5, 20, 3.0), (15, 11, 5.0), (17, 30, 2.5)],
        "found at some scales": [(6, 8, 3.0), (6, 24, 2.0), (16, 12, 4.0), (16, 32, 1.0)],
    }
    cases = {}
    for seed, (name, centres) in enumerate(people.items(), 30):
        cases[name] = {scale: _maps_at(scale, seed, centres) for scale in SCALES}
    for rank, scale in enumerate(SCALES):  # one person is not found there
        y, x, _ = people["found at some scales"][rank]
        maps = cases["found at some scales"][scale]
        for heat, column in ((maps.heat, x), (maps.heat_flip, MAP.w - 1 / scale - x)):
            heat[17, int(y * scale), int(column * scale)] = 0
    cases["hills"] = {scale: _with_hills(_maps_at(scale, 7, [(9, 10, 5.0), (13, 22, 4.0)])) for scale in SCALES}
    return cases


def _maps_at(scale: float, seed: int, centres: list[tuple[int, int, float]]) -> Maps:
    cells = Size(int(MAP.h * scale), int(MAP.w * scale))
    scaled = [(int(y * scale), int(x * scale), size * scale) for y, x, size in centres]
    return _maps(cells.h, scaled, cells=cells, bodies=np.random.default_rng(seed))


def _at_threshold(maps: Maps, y: int, x: int) -> Maps:
    """One more centre, whose score is exactly the threshold in both passes."""
    for heat, column in ((maps.heat, x), (maps.heat_flip, MAP.w - 1 - x)):
        heat[17, y - 1 : y + 2, column - 1 : column + 2] = 0
        heat[17, y, column] = np.float32(0.01)
    return maps


def _with_hills(maps: Maps) -> Maps:
    """The joints' maps as hills of two cells' width, to which a Gaussian can be fitted."""
    y, x = np.mgrid[: maps.heat.shape[1], : maps.heat.shape[2]]
    heat, heat_flip = maps.heat.copy(), maps.heat_flip.copy()
    rng = np.random.default_rng(8)
    heat[:17] = 0
    for centre in np.argwhere(maps.heat[17] > 0.5):
        joints = centre[::-1] - maps.offset[:, centre[0], centre[1]].reshape(17, 2) + rng.integers(-4, 5, (17, 2)) / 8
        hills = [np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 8) for at in joints]
        heat[:17] = np.maximum(heat[:17], np.round(np.array(hills) * 1024) / 1024)
    heat_flip[:17] = heat[SWAPPED][:, :, ::-1]
    return maps._replace(heat=heat, heat_flip=heat_flip)


def _near(y: int, x: int, count: int) -> list[tuple[int, int, float]]:
    """Centres side by side, their people of growing size: near by one's measure, not always by the other's."""
    return [(y + 2 * (index % 3), x + 2 * (index // 3), 4.0 + index / 4) for index in range(count)]


def _maps(
    seed: int,
    centres: list[tuple[int, int, float]],
    spread: float = 1.0,
    cells: Size = MAP,
    bodies: np.random.Generator | None = None,
) -> Maps:
    """People at cells (y, x), of a size in cells; `spread` says by how much people of one picture differ in shape."""
    rng = np.random.default_rng(seed)
    bodies = bodies or rng

    def noise(channels: int, scale: float) -> np.ndarray:
        return rng.integers(-32, 33, (channels, *cells)) * (scale / 32)

    heat, offset = noise(18, 0.25) + 0.3, noise(34, 0.125)
    heat[17] = noise(1, 2.0**-9)[0]
    shape = bodies.integers(-64, 65, (17, 2)) / 64
    anchor = np.array([centres[0][1], centres[0][0]], float)
    for rank, (y, x, size) in enumerate(centres):
        own = shape + bodies.integers(-64, 65, (17, 2)) / 64 * spread
        middle = np.array([x, y]) if spread == 1.0 else anchor + (np.array([x, y]) - anchor) // 12 * 12
        joints = middle + own * size
        heat[17, y, x] = 0.75 - rank / 64
        offset[:, y, x] = (np.array([x, y]) - joints).ravel() + offset[:, y, x]
    flipped = heat[[*SWAPPED, 17]][:, :, ::-1] + noise(18, 2.0**-8)
    cells_x = np.arange(cells.w)
    poses_x = cells_x - offset[0::2]
    offset_flip = np.empty_like(offset)
    offset_flip[0::2] = (cells_x - (cells.w - 1 - poses_x[:, :, ::-1]))[SWAPPED]
    offset_flip[1::2] = offset[1::2][:, :, ::-1][SWAPPED]
    offset_flip += noise(34, 2.0**-5)
    return Maps(*(values.astype(np.float32) for values in (heat, offset, flipped, offset_flip)))
