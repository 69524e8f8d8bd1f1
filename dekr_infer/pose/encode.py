"""Encode ground truth as the network's outputs: what a perfect network would return for a data set.

Positions are in cells of the maps (input pixels / 4). The flipped pass is built as the flipped tensor shows it: what
stands at cell x of the first pass stands at cell w - 1 - x, and left joints are the flipped person's right ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dekr_infer.data.coco import DataSet, ImageEntry
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Placement, Size
from dekr_infer.skeleton import COCO_17
from dekr_infer.structures import output_files

# Written a second time, so that a mistake in the project's own constants shows.
STRIDE = 4  # input size pixels per cell
SHIFT = 3  # pixels that the flipped tensor is moved by
SWAPPED = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
JOINT_SIGMA, CENTRE_SIGMA = 2.0, 4.0  # cells
OFFSET_REACH = 4  # cells around a centre that carry its offsets
HEAT_NOISE, OFFSET_NOISE = 0.02, 0.7  # standard deviations; the latter in cells
CENTRE_GAP = 2  # cells between two centres at least: nearer ones would not both be maxima

Distort = Callable[[np.ndarray, np.ndarray, np.random.Generator], None]


@dataclass(frozen=True)
class Encoding:
    """How the outputs are encoded; all but the defaults are mistakes or noise.

    Args:
        flip_shift: pixels by which the flipped tensor was moved.
        swap_joints: whether the flipped pass has left and right joints exchanged.
        offset_sign: -1 writes joint - cell instead of cell - joint.
        distort: changes heatmap (J + 1, h, w) and offset (2 J, h, w) in place.
        order: of the joints of a mirrored person.
    """

    flip_shift: int = SHIFT
    swap_joints: bool = True
    offset_sign: int = 1
    distort: Distort | None = None
    order: Sequence[int] = SWAPPED


@dataclass(frozen=True)
class Encoded:
    """The people of one image, in cells: joints (n, J, 2), which of them are labelled (n, J), and centres (n, 2)."""

    joints: np.ndarray
    labelled: np.ndarray
    centres: np.ndarray


def people_of(data: DataSet, image: ImageEntry, placement: Placement | None = None) -> Encoded:
    """Return an image's people: each centre is a cell of its own at the mean of the labelled joints.

    Joints that are not labelled are placed at that mean. The image is by default at its published input size.
    """
    placement, joints_of_all = placement or PUBLISHED_SIZES.place(image.size), len(data.skeleton)
    matrix = placement.to_input
    joints, labelled = [], []
    centres: list[np.ndarray] = []
    for person in data.ground_truth():
        if person.image_id != image.id or person.iscrowd or not person.num_keypoints:
            continue
        keypoints = np.array(person.keypoints, float).reshape(joints_of_all, 3)
        there = keypoints[:, 2] > 0
        places = (keypoints[:, :2] @ matrix[:, :2].T + matrix[:, 2]) / STRIDE
        middle = places[there].mean(0)
        places[~there] = middle
        joints.append(places)
        labelled.append(there)
        centres.append(_free_cell(middle, centres, placement.cells))
    count = len(joints)
    return Encoded(
        np.array(joints).reshape(count, joints_of_all, 2), np.array(labelled, bool).reshape(count, joints_of_all),
        np.array(centres, float).reshape(count, 2),
    )  # fmt: skip


def _free_cell(wanted: np.ndarray, taken: list[np.ndarray], size: Size) -> np.ndarray:
    """Return the cell (x, y) of the map that is nearest to a place and not next to another centre."""
    y, x = np.mgrid[: size.h, : size.w]
    distance = (x - wanted[0]) ** 2 + (y - wanted[1]) ** 2
    for other in taken:
        distance[np.maximum(np.abs(x - other[0]), np.abs(y - other[1])) < CENTRE_GAP] = np.inf
    row, column = np.unravel_index(distance.argmin(), distance.shape)
    return np.array([column, row], float)


def flipped(people: Encoded, width: int, encoding: Encoding) -> Encoded:
    """Return the people as the flipped tensor shows them, in a map of `width` cells."""
    order = list(encoding.order if encoding.swap_joints else range(people.joints.shape[1]))
    last = (STRIDE * width - 1 - encoding.flip_shift) / STRIDE  # where the first column went
    joints, centres = people.joints[:, order].copy(), people.centres.copy()
    joints[:, :, 0] = last - joints[:, :, 0]
    centres[:, 0] = last - centres[:, 0]
    return Encoded(joints, people.labelled[:, order], centres)


def outputs(people: Encoded, size: Size, encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """Return heatmap (J + 1, h, w) and offset (2 J, h, w), float32, of a map of `size` cells."""
    count = people.joints.shape[1]
    heat = np.zeros((count + 1, *size), np.float32)
    offset = np.zeros((count, 2, *size), np.float32)
    nearest = np.full(size, np.inf)
    for joints, labelled, centre in zip(people.joints, people.labelled, people.centres, strict=True):
        for channel, place in enumerate(joints):
            if labelled[channel]:
                _add_hill(heat[channel], place, JOINT_SIGMA)
        _add_hill(heat[-1], centre, CENTRE_SIGMA)
        rows, columns = _window(centre, OFFSET_REACH, size)
        y, x = np.mgrid[rows, columns]
        distance = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
        own = distance < nearest[rows, columns]
        nearest[rows, columns][own] = distance[own]
        for axis, cell in enumerate((x, y)):
            moved = encoding.offset_sign * (cell - joints[:, axis, None, None])
            offset[:, axis, rows, columns][:, own] = moved[:, own]
    return heat, offset.reshape(2 * count, *size)


def _window(place: np.ndarray, reach: float, size: Size) -> tuple[slice, slice]:
    """Return rows and columns of the cells within reach of a place (x, y); none where it is far outside."""
    first = np.clip(np.ceil(place - reach), 0, size[::-1]).astype(int)
    end = np.clip(np.floor(place + reach) + 1, 0, size[::-1]).astype(int)
    return slice(first[1], end[1]), slice(first[0], end[0])


def _add_hill(channel: np.ndarray, place: np.ndarray, sigma: float) -> None:
    """Raise the cells below a Gaussian of height 1, cut at three sigma, to it."""
    rows, columns = _window(place, 3 * sigma, Size(*channel.shape))
    y, x = np.ogrid[rows, columns]
    part = channel[rows, columns]
    hill = np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * sigma**2))
    np.maximum(part, hill, out=part, casting="same_kind")


def outputs_of(
    data: DataSet,
    image: ImageEntry,
    encoding: Encoding,
    rng: np.random.Generator,
    placement: Placement | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Encode an image and its flipped twin: heatmap (J + 1, h, w) and offset (2 J, h, w) of each."""
    placement = placement or PUBLISHED_SIZES.place(image.size)
    size, people = placement.cells, people_of(data, image, placement)
    if data.skeleton != COCO_17:
        encoding = replace(encoding, order=data.skeleton.partners)
    passes = []
    for seen in (people, flipped(people, size.w, encoding)):
        heat, offset = outputs(seen, size, encoding)
        if encoding.distort is not None:
            encoding.distort(heat, offset, rng)
        passes.append((heat, offset))
    return passes


def noisy(heat: np.ndarray, offset: np.ndarray, rng: np.random.Generator) -> None:
    """Add seeded noise to every cell, in place."""
    heat += HEAT_NOISE * rng.standard_normal(heat.shape, dtype=np.float32)
    offset += OFFSET_NOISE * rng.standard_normal(offset.shape, dtype=np.float32)


def write_dumps(
    data: DataSet,
    folder: Path,
    encoding: Encoding = Encoding(),
    seed: int = 0,
    input_sizes: InputSizes = PUBLISHED_SIZES,
) -> tuple[Path, Path]:
    """Write both passes' outputs for every image into `out` and `out_flip` below a folder; return the two."""
    rng = np.random.default_rng(seed)
    folders = folder / "out", folder / "out_flip"
    for place in folders:
        place.mkdir(parents=True)
    for image in data.images:
        for place, (heat, offset) in zip(
            folders, outputs_of(data, image, encoding, rng, input_sizes.place(image.size)), strict=True
        ):
            for name, values in zip(output_files(image.stem), (heat, offset), strict=True):
                write_sparse(place / name, values[None])
    return folders


def write_sparse(path: Path, array: np.ndarray) -> None:
    """Save an array as `np.save` does, with holes where it is 0, so that mostly empty maps take little disk."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        start = file.tell()
        values = array.reshape(-1)
        for position in range(0, len(values), 4096):
            block = values[position : position + 4096]
            if block.any():
                file.seek(start + block.itemsize * position)
                file.write(block.tobytes())
        file.truncate(start + array.nbytes)
