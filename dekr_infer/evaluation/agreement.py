"""How far the people of one run are those of another, where nobody is annotated, or the weights find nobody real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dekr_infer.data.coco import Category, DataSet, ImageEntry, PersonEntry
from dekr_infer.evaluation.coco_metrics import average_precision
from dekr_infer.evaluation.error_analysis import MOST
from dekr_infer.geometry import Size
from dekr_infer.structures import People

SHOWN = 0.1  # people that score less, of whom every network finds many, count for nothing; predict.py's default, too
MOVED = 1.0  # image pixels; an image whose joints move less counts as the same
CATEGORY = Category(1, "person")


class Agreement(NamedTuple):
    """How well a second run agrees with a first.

    Args:
        ap: of the second run's people, were those of the first run that score `SHOWN` the truth; -1 without any.
        changed: images in which a joint of somebody who scores `SHOWN` in either run is more than `MOVED` from the
            joint of the nearest person of the other run.
        people: who score `SHOWN`, in the first run and in the second.
        pixels: the mean distance of the joints of those of the first run, in image pixels; 0 without any.
    """

    ap: float
    changed: int
    people: tuple[int, int]
    pixels: float


def images_of(sizes: Sequence[Size]) -> DataSet:
    """Return images without annotations, with ids from 1, as a data set."""
    entries = tuple(ImageEntry(number, str(number), size, str(number)) for number, size in enumerate(sizes, 1))
    return DataSet(Path("images"), entries, None, CATEGORY)


def agreement(data: DataSet, first: Sequence[People], second: Sequence[People]) -> Agreement:
    """Compare the people that two runs have found in the images of a data set, in its order."""
    changed, distances, counts = 0, [], [0, 0]
    for a, b in zip(first, second, strict=True):
        both = joint_distances(a, b), joint_distances(b, a)
        changed += any(moved.max(initial=0) > MOVED for moved in both)
        counts = [count + len(moved) for count, moved in zip(counts, both, strict=True)]
        distances.append(both[0][np.isfinite(both[0])])
    everything = np.concatenate(distances) if distances else np.zeros(0)
    pixels = float(everything.mean()) if everything.size else 0.0
    return Agreement(_agreed_ap(data, first, second), changed, (counts[0], counts[1]), pixels)


def joint_distances(first: People, second: People) -> np.ndarray:
    """Return how far the joints of each person that scores `SHOWN` are from those of the nearest person of the other.

    Returns:
        (people, J), in image pixels; infinite where there is nobody else.
    """
    shown = first.poses[first.scores >= SHOWN]
    if not len(second):
        return np.full(shown.shape[:2], np.inf)
    found = np.empty(shown.shape[:2])
    for index, pose in enumerate(shown):
        to_each = np.linalg.norm(second.poses[:, :, :2] - pose[:, :2], axis=2)
        found[index] = to_each[to_each.mean(1).argmin()]
    return found


def _agreed_ap(data: DataSet, first: Sequence[People], second: Sequence[People]) -> float:
    """Return the second's AP with the first's people as the truth, at most as many as COCO evaluates of an image."""
    truth: list[PersonEntry] = []
    results = []
    for image, a, b in zip(data.images, first, second, strict=True):
        best = np.argsort(-a.scores, kind="stable")[:MOST]
        for index in best[a.scores[best] >= SHOWN]:
            joints = a.poses[index, :, :2].astype(float)
            low, high = joints.min(0), joints.max(0)
            area = max(float(np.prod(high - low)), 1.0)
            labelled = np.concatenate((joints, np.full((len(joints), 1), 2.0)), axis=1).ravel().tolist()
            box = [*low.tolist(), *(high - low).tolist()]
            truth.append(PersonEntry(len(truth) + 1, image.id, CATEGORY.id, area, box, labelled, 0, len(joints)))
        results += b.to_coco(image.id, CATEGORY.id)
    annotated = replace(data, people=tuple(truth), category=CATEGORY)
    return average_precision(annotated, results, [image.id for image in data.images])
