"""Three people in two images, results that find them without any error, and joints to move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dekr_infer.data.coco import DataSet, load_data_set
from dekr_infer.geometry import Size
from tests.support.coco_files import person, write_annotation

IDS = [1000, 999]


def figure(x: float, y: float) -> np.ndarray:
    """(17, 3): a person of about 120 x 240 pixels whose joints are far from each other."""
    grid = np.array([(joint % 4, joint // 4) for joint in range(17)], float)
    return np.column_stack((grid * (40, 60) + (x, y), np.full(17, 2.0)))


FIGURES = (figure(50, 50), figure(250, 60), figure(60, 40))  # two in the first image, one in the second
CROWD = figure(500, 50)
SIZE = Size(700, 900)


def write_people(root: Path, *file_names: str) -> DataSet:
    """Three people, a crowd in the first image, and somebody without labelled joints in the second; more are empty."""
    crowd, unlabelled = person(8, 1000, CROWD), person(9, 999, CROWD * (1, 1, 0))
    people = [person(1, 1000, FIGURES[0]), person(2, 1000, FIGURES[1]), person(3, 999, FIGURES[2])]
    people += [crowd | {"iscrowd": 1}, unlabelled]
    write_annotation(root, dict.fromkeys(file_names or ("a.jpg", "b.jpg"), SIZE), people)
    return load_data_set(root, "val2017")


def result(pose: np.ndarray, image_id: int, score: float) -> dict[str, Any]:
    keypoints = np.column_stack((pose[:, :2], np.full(17, 0.5))).ravel().tolist()
    return {"image_id": image_id, "category_id": 1, "keypoints": keypoints, "score": score}


def perfect() -> list[dict[str, Any]]:
    """The first scores least, so that errors planted in it are no errors of the ranking."""
    return [result(FIGURES[0], 1000, 0.7), result(FIGURES[1], 1000, 0.8), result(FIGURES[2], 999, 0.9)]


def moved(entry: dict[str, Any], *joints: int, by: float = 0.0, to: np.ndarray | None = None) -> None:
    """Move joints to the right by pixels, or each to a place."""
    pose = np.reshape(entry["keypoints"], (17, 3))
    if to is None:
        pose[list(joints), 0] += by
    else:
        pose[list(joints), :2] = to
    entry["keypoints"] = pose.ravel().tolist()
