"""Draw poses over images, sheets of captioned images, and PNG files.

Images are (h, w, 3) uint8 RGB. Left limbs are warm, right limbs cool, what lies between is light.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dekr_infer.geometry import Size
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.storage.atomic import atomic_write

LEFT, RIGHT, CENTRE = (255, 130, 40), (60, 160, 255), (250, 240, 170)
RIM = (20, 20, 24)
SUBPIXEL_BITS = 4
CAPTION = 26  # pixels: the height of the strip above a tile
GUTTER = 8  # pixels between tiles in a row


def side_colour(*joints: int, skeleton: Skeleton = COCO_17) -> tuple[int, int, int]:
    """Return the colour of a joint, or of a limb between joints: that of its side if all are on one side."""
    lefts, rights = ({pair[side] for pair in skeleton.sides} for side in (0, 1))
    return LEFT if lefts.issuperset(joints) else RIGHT if rights.issuperset(joints) else CENTRE


def draw_poses(
    image: np.ndarray,
    poses: np.ndarray,
    scores: np.ndarray | None = None,
    *,
    joint_threshold: float = 0.0,
    skeleton: Skeleton = COCO_17,
) -> np.ndarray:
    """Draw poses over a copy of an image.

    Args:
        image: (h, w, 3) uint8 RGB.
        poses: (people, J, 3) float: x, y in image pixels, and a score (or COCO's visibility).
        scores: (people,) float, written at each person's highest joint; the least first, so that the best lies on top.
        joint_threshold: joints whose score is not above it are left out, with their limbs.
        skeleton: of the people.
    Returns:
        (h, w, 3) uint8, a new array.
    Raises:
        ValueError: a shape is wrong.
    """
    poses = np.asarray(poses, np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (len(skeleton), 3):
        raise ValueError(f"poses are (people, {len(skeleton)}, 3), not {poses.shape}")
    if scores is not None and np.shape(scores) != (len(poses),):
        raise ValueError(f"{len(poses)} poses need as many scores, not {np.shape(scores)}")
    canvas = np.ascontiguousarray(image).copy()
    order = range(len(poses)) if scores is None else np.argsort(scores, kind="stable")
    for person in order:
        _draw_pose(canvas, poses[person], joint_threshold, skeleton)
    for person in order if scores is not None else ():
        _write_score(canvas, poses[person], float(np.asarray(scores)[person]), joint_threshold)
    return canvas


def _drawn(pose: np.ndarray, threshold: float) -> np.ndarray:
    """Return the joints to draw: (J,) bool."""
    return (pose[:, 2] > threshold) & np.isfinite(pose).all(1)


def _fixed(point: np.ndarray) -> tuple[int, int]:
    """Return a point (x, y) as OpenCV takes it with SUBPIXEL_BITS, clipped to its integers' range."""
    x, y = np.rint(np.clip(point, -1e4, 1e5) * (1 << SUBPIXEL_BITS)).astype(int)
    return int(x), int(y)


def _draw_pose(canvas: np.ndarray, pose: np.ndarray, threshold: float, skeleton: Skeleton) -> None:
    drawn = _drawn(pose, threshold)
    width = max(1, round(min(canvas.shape[:2]) / 200))
    limbs = [pair for pair in skeleton.limbs if drawn[list(pair)].all()]
    for rim in (True, False):
        for a, b in limbs:
            colour, thick = (RIM, width + 2) if rim else (side_colour(a, b, skeleton=skeleton), width)
            cv2.line(canvas, _fixed(pose[a, :2]), _fixed(pose[b, :2]), colour, thick, cv2.LINE_AA, SUBPIXEL_BITS)
    for joint in np.flatnonzero(drawn):
        at, radius = _fixed(pose[joint, :2]), int((0.6 + 0.7 * width) * (1 << SUBPIXEL_BITS))
        cv2.circle(canvas, at, radius + (1 << SUBPIXEL_BITS), RIM, -1, cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.circle(canvas, at, radius, side_colour(int(joint), skeleton=skeleton), -1, cv2.LINE_AA, SUBPIXEL_BITS)


def _write_score(canvas: np.ndarray, pose: np.ndarray, score: float, threshold: float) -> None:
    drawn = pose[_drawn(pose, threshold), :2]
    if not len(drawn):
        return
    scale = max(0.35, min(canvas.shape[:2]) / 1000)
    (wide, high), _ = cv2.getTextSize(f"{score:.2f}", cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    top = drawn[drawn[:, 1].argmin()]
    x = int(np.clip(top[0] - wide / 2, 0, max(0, canvas.shape[1] - wide)))
    y = int(np.clip(top[1] - 1.5 * high, high + 1, canvas.shape[0] - 2))
    _write(canvas, f"{score:.2f}", (x, y), scale)


def _write(canvas: np.ndarray, text: str, corner: tuple[int, int], scale: float) -> None:
    """Write white letters with a dark rim; `corner` is their lower left."""
    for colour, thick in ((RIM, 3), ((255, 255, 255), 1)):
        cv2.putText(canvas, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thick, cv2.LINE_AA)


def contact_sheet(images: Sequence[np.ndarray], labels: Sequence[str], columns: int, tile: Size) -> np.ndarray:
    """Arrange images of any sizes in rows, each scaled to fit into a tile and captioned.

    Args:
        images: (h, w, 3) uint8 RGB each.
        labels: one caption for each; ASCII, since OpenCV's letters are.
        columns: tiles in a row.
        tile: the space for an image; the caption's strip comes on top.
    Returns:
        (rows * (tile.h + CAPTION), columns * (tile.w + GUTTER) - GUTTER, 3) uint8; without images a single empty row.
    Raises:
        ValueError: not as many labels as images, or no column.
    """
    if len(images) != len(labels) or columns < 1:
        raise ValueError(f"{len(images)} images, {len(labels)} labels, {columns} columns do not make a sheet")
    rows = max(1, -(-len(images) // columns))
    row, column = tile.h + CAPTION, tile.w + GUTTER
    sheet = np.full((rows * row, columns * column - GUTTER, 3), RIM, np.uint8)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        top, left = index // columns * row, index % columns * column
        scale = min(tile.h / image.shape[0], tile.w / image.shape[1])
        h, w = (max(1, round(side * scale)) for side in image.shape[:2])
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        y, x = top + CAPTION + (tile.h - h) // 2, left + (tile.w - w) // 2
        sheet[y : y + h, x : x + w] = cv2.resize(image, (w, h), interpolation=method)
        _write(sheet[top : top + CAPTION, left : left + tile.w], label, (6, CAPTION - 8), 0.5)
    return sheet


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write an image, (h, w, 3) uint8 RGB, all or nothing; create the folder."""
    path = Path(path)
    done, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    if not done:
        raise ValueError(f"{path}: {image.shape} {image.dtype} is no image")
    with atomic_write(path) as beside:
        beside.write_bytes(data.tobytes())
