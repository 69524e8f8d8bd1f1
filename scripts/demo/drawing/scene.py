"""A scene: an image of several drawn people with exact labels for joints, visibility and silhouettes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import cv2
import numpy as np

from dekr_infer.geometry import Size
from scripts.demo.drawing import backdrop
from scripts.demo.drawing.appearance import cloth, sample_appearance
from scripts.demo.drawing.body import assemble, sample_build, sample_pose, view
from scripts.demo.drawing.drawn_person import HIDDEN, PARTS_PER_PERSON, DrawnPerson
from scripts.demo.drawing.painter import Painter

MAX_PEOPLE = 6  # fits the uint8 map of owners
REFERENCE_SIDE = 480  # pixels: the short side of an image to which heights and distances refer
HEIGHTS = (66, 500)  # pixels: body heights
MIN_DISTANCE = 36  # pixels: between the middles of two people, at REFERENCE_SIDE
NORMAL_QUANTILES = np.array([NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(256)])


@dataclass(frozen=True)
class LabelledPerson:
    """The label of one person.

    Attributes:
        keypoints: (17, 3) float64, x, y in pixels and v: 2 seen, 1 hidden, 0 outside the image (x = y = 0).
        mask: (h, w) uint8 of the box only: 1 where the person shows.
        corner: x, y of the mask's first pixel.
    """

    keypoints: np.ndarray
    mask: np.ndarray
    corner: tuple[int, int]

    @property
    def bbox(self) -> list[float]:
        """Box around the visible pixels: x, y, width, height."""
        height, width = self.mask.shape
        return [float(self.corner[0]), float(self.corner[1]), float(width), float(height)]

    @cached_property
    def area(self) -> float:
        """Number of visible pixels."""
        return float(cv2.countNonZero(self.mask))

    @cached_property
    def segmentation(self) -> list[list[float]]:
        """COCO polygons [x0, y0, x1, y1, ...] around the visible pixels; holes are filled."""
        contours, _ = cv2.findContours(self.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=self.corner)
        simple = [cv2.approxPolyDP(contour, 0.7, True).reshape(-1) for contour in contours]
        return [polygon.astype(float).tolist() for polygon in simple if len(polygon) >= 6]


@dataclass(frozen=True)
class Scene:
    """An image, (h, w, 3) uint8 RGB, and the labels of its people."""

    image: np.ndarray
    people: list[LabelledPerson]


def draw_scene(rng: np.random.Generator, size: Size, people: int | None = None) -> Scene:
    """Return a drawn scene.

    Args:
        rng: the source of all randomness.
        size: of the image, in pixels.
        people: how many to draw, 0 to 6; 1 to 6 at random if not given. Fewer where they would not fit.
    Returns:
        The scene; a person without a visible pixel or without a joint in the image has no label.
    Raises:
        ValueError: `people` is out of range.
    """
    count = int(rng.choice(np.arange(1, 7), p=[0.2, 0.25, 0.21, 0.15, 0.11, 0.08])) if people is None else people
    if not 0 <= count <= MAX_PEOPLE:
        raise ValueError(f"a scene has 0 to {MAX_PEOPLE} people, not {count}")
    painter = backdrop.paint_backdrop(rng, size)
    backdrop.paint_clutter(rng, painter, int(rng.integers(0, 9)))
    cast = sorted(_cast(rng, size, count), key=lambda person: float(_feet(person)[:, 1].max()))  # the lower, the nearer
    if rng.random() < 0.6:
        for person in cast:
            _shadow(painter, person)
    shown = []
    for number, person in enumerate(cast, start=1):
        if person.body.seated and rng.random() < 0.8:
            _stool(rng, painter, person)
        shown.append(person.paint(painter, number))
    joints = [person.joints() for person in cast]
    backdrop.paint_front(rng, painter, lambda box: all(_inside(points, box) < 0.5 for points in joints))
    numbers = painter.owners // PARTS_PER_PERSON
    labelled = [_label(numbers, number + 1, joints[number], shown[number]) for number in range(len(cast))]
    return Scene(_develop(rng, painter.image), [person for person in labelled if person is not None])


def _cast(rng: np.random.Generator, size: Size, count: int) -> list[DrawnPerson]:
    """Return up to `count` people of related sizes, at places where each is distinct from the others."""
    zoom = min(size) / REFERENCE_SIDE
    smallest, largest = np.log(90), np.log(HEIGHTS[1] / max(1, count - 1) ** 0.3)
    usual = np.exp(smallest + (largest - smallest) * rng.random() ** 0.75)
    crowding = rng.uniform(0.1, 0.55)  # the greatest share of a person's joints within another's box
    cast: list[DrawnPerson] = []
    for _ in range(count):
        for _attempt in range(12):
            height = zoom * float(np.clip(usual * np.exp(rng.normal(0, 0.25)), *HEIGHTS))
            friend = cast[rng.integers(len(cast))] if cast and rng.random() < 0.4 else None
            person = _place(rng, size, height, friend)
            if _on_image(person.joints(), size).any() and all(
                _distinct(person, other, crowding, size) for other in cast
            ):
                cast.append(person)
                break
    return cast


def _place(rng: np.random.Generator, size: Size, height: float, friend: DrawnPerson | None) -> DrawnPerson:
    """Return a new person next to a friend or anywhere; mostly whole, otherwise with 40 % of the joints inside."""
    lying = rng.random() < 0.05
    lean = rng.choice((-1, 1)) * rng.uniform(60, 115) if lying else rng.normal(0, 25 if rng.random() < 0.08 else 6)
    facing = rng.normal(0, 45) if rng.random() < 0.45 else rng.uniform(-180, 180)
    frame = view(np.deg2rad(facing), rng.uniform(-0.05, 0.35), np.deg2rad(lean))
    pose = sample_pose(rng, rng.choice(("rest", "stand")) if lying else None)
    person = DrawnPerson(assemble(sample_build(rng), pose, frame), sample_appearance(rng), np.zeros(2), height)
    joints, margin = person.joints(), np.array([0.05, 0.06]) * height
    low, high = joints.min(0) - margin, joints.max(0) + margin
    frame_wh = np.array([size.w, size.h], float)
    room = frame_wh - (high - low)
    if room.min() > 0 and rng.random() < 0.8:
        origin = rng.uniform(0, 1, 2) * room - low
        if friend:
            step = rng.choice((-1, 1)) * rng.uniform(0.15, 0.45), rng.normal(0, 0.08)
            origin = np.clip(friend.origin[:2] + np.array(step) * friend.height, -low, room - low)
        return person.moved(origin)
    for _ in range(8):
        origin = rng.uniform(0, 1, 2) * frame_wh - joints.mean(0)
        if _on_image(joints + origin, size).mean() >= 0.4:
            break
    return person.moved(origin)


def _inside(points: np.ndarray, box: np.ndarray) -> float:
    """Return the share of (n, 2) points within left, top, right, bottom."""
    return float(((points >= box[:2]) & (points <= box[2:])).all(1).mean())


def _distinct(person: DrawnPerson, other: DrawnPerson, crowding: float, size: Size) -> bool:
    """Return whether two people overlap little and the middles of their joints in the image are far apart."""
    pair = person.joints(), other.joints()
    middles = [points[_on_image(points, size)].mean(0) for points in pair]
    least = max(MIN_DISTANCE * min(size) / REFERENCE_SIDE, 0.15 * min(person.height, other.height))
    if np.hypot(*(middles[0] - middles[1])) < least:
        return False
    boxes = [np.concatenate([points.min(0), points.max(0)]) for points in pair]
    return _inside(pair[0], boxes[1]) <= crowding and _inside(pair[1], boxes[0]) <= crowding


def _on_image(joints: np.ndarray, size: Size) -> np.ndarray:
    """Return which joints (17, 2) lie on a pixel: (17,) bool."""
    return np.all((joints >= 0) & (joints <= (size.w - 1, size.h - 1)), axis=1)


def _feet(person: DrawnPerson) -> np.ndarray:
    """Return heels and toes, (4, 2) pixels."""
    return person.at(np.concatenate([person.body.heel, person.body.toe]))[:, :2]


def _shadow(painter: Painter, person: DrawnPerson) -> None:
    feet = _feet(person)
    width = np.ptp(feet[:, 0]) / 2 + 0.09 * person.height
    centre = np.array([feet[:, 0].mean() + 0.03 * person.height, feet[:, 1].max()])
    backdrop.paint_shadow(painter, centre, np.array([width, 0.2 * width]))


def _stool(rng: np.random.Generator, painter: Painter, person: DrawnPerson) -> None:
    """Paint a stool under a person whose legs hang in front of it."""
    if person.body.pelvis[2, 2] > -0.3:
        seat = person.origin[:2] + np.array([0.0, 0.05 * person.height])
        floor = float(_feet(person)[:, 1].max())
        backdrop.paint_stool(painter, seat, floor, rng.uniform(0.2, 0.32) * person.height, cloth(rng, 0.6))


def _label(numbers: np.ndarray, number: int, joints: np.ndarray, shown: np.ndarray) -> LabelledPerson | None:
    """Return the label of a person; `None` if no pixel shows the person.

    Args:
        numbers: (h, w) uint8, the number of the person that each pixel shows.
        number: of this person.
        joints: (17, 2) pixels.
        shown: (17,) SEEN or HIDDEN, before others were painted.
    """
    h, w = numbers.shape
    inside = _on_image(joints, Size(h, w))
    x, y = np.rint(joints[inside]).astype(int).T
    keypoints = np.zeros((17, 3))
    keypoints[inside, :2] = joints[inside]
    keypoints[inside, 2] = np.where(numbers[y, x] == number, shown[inside], HIDDEN)
    mask = (numbers == number).view(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    if not inside.any() or not width:
        return None
    return LabelledPerson(keypoints, mask[top : top + height, left : left + width].copy(), (left, top))


def _develop(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Return the image as a camera sees it: with exposure, colour cast, blur and noise."""
    levels = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.75, 1.35)
    levels = 0.5 + rng.uniform(0.7, 1.1) * (levels - 0.5) + rng.normal(0, 0.05)
    table = np.clip(255 * levels * rng.uniform(0.9, 1.1, 3), 0, 255).astype(np.uint8)
    image = cv2.LUT(image, table[None])
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.4) * min(image.shape[:2]) / REFERENCE_SIDE)
    if rng.random() < 0.6:
        image = _noisy(rng, image, rng.uniform(1, 9))
    return image


def _noisy(rng: np.random.Generator, image: np.ndarray, sigma: float) -> np.ndarray:
    """Return the image with Gaussian noise, looked up from uniform bytes by its quantiles, which is fast."""
    uniform = rng.integers(0, 256, image.shape, np.uint8)
    quantiles = np.rint(sigma * NORMAL_QUANTILES)
    brighter = cv2.LUT(uniform, np.maximum(quantiles, 0).astype(np.uint8))
    darker = cv2.LUT(uniform, np.maximum(-quantiles, 0).astype(np.uint8))
    return cv2.subtract(cv2.add(image, brighter), darker)
