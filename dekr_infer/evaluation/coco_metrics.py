"""Poses -> COCO results -> the ten keypoint figures, with pycocotools as the judge."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dekr_infer.data.coco import LARGEST_ID, DataSet
from dekr_infer.errors import DekrError, excerpt
from dekr_infer.pose.decode import JOINTS
from dekr_infer.skeleton import COCO_17
from dekr_infer.storage.atomic import read_json

LARGEST_NUMBER = 1e12  # pixels, or square pixels; beyond any picture, and NaN is not below it
FIGURES = ("AP", "AP .5", "AP .75", "AP (M)", "AP (L)", "AR", "AR .5", "AR .75", "AR (M)", "AR (L)")


def person_category(data: DataSet) -> int:
    """The id of the annotation file's first category, which holds the keypoints.

    Raises:
        DekrError: there is none, or it has other joints than COCO's 17.
    """
    categories = data.content.get("categories")
    known = isinstance(categories, list) and all(isinstance(c, dict) and _is_id(c.get("id")) for c in categories)
    if not known or not categories:
        raise DekrError(f"{data.annotation}: lists no category; it must be a COCO keypoint annotation")
    first = categories[0]
    names = first.get("keypoints") or COCO_17.joints
    if not isinstance(names, list | tuple) or len(names) != JOINTS:
        count = len(names) if isinstance(names, list | tuple) else "unknown"
        raise DekrError(f"{data.annotation}: its people have {count} joints, COCO's have {JOINTS}; use COCO's form")
    if tuple(names) != COCO_17.joints and set(map(str, names)) == set(COCO_17.joints):
        raise DekrError(f"{data.annotation}: its joints are COCO's in another order; bring them into COCO's order")
    return int(first["id"])


def results_of(image_id: int, category_id: int, poses: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """The entries of COCO's result file for one picture.

    Args:
        poses: (people, 17, 3) float32: x, y in image pixels, joint score.
        scores: (people,): the people's scores.
    Returns:
        One entry a person: keypoints [x, y, score] * 17, score, and the joints' box [x, y, w, h].
    """
    entries = []
    values = poses.astype(np.float64)
    lows, highs = values[:, :, :2].min(1), values[:, :, :2].max(1)
    for pose, score, low, high in zip(values, scores.tolist(), lows, highs, strict=True):
        entries.append(
            {
                "image_id": image_id,
                "category_id": category_id,
                "keypoints": pose.ravel().tolist(),
                "score": score,
                "bbox": [*low.tolist(), *(high - low).tolist()],
            }
        )
    return entries


def coco_figures(data: DataSet, results: Sequence[Mapping[str, Any]], image_ids: Sequence[int]) -> dict[str, float]:
    """COCO keypoint evaluation at up to 20 detections a picture.

    Args:
        results: entries of `results_of`; none at all is a valid result.
        image_ids: the pictures that count.
    Returns:
        The ten figures by name; -1 where nobody of that size is annotated.
    Raises:
        DekrError: the annotation file has no usable keypoint annotations.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _ground_truth(data)
        if results:
            found = truth.loadRes([dict(entry) for entry in results])
        else:
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, "keypoints")
        evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(FIGURES, map(float, evaluation.stats), strict=True))


def _ground_truth(data: DataSet) -> COCO:
    truth = COCO()
    truth.dataset = {**data.content, "annotations": [dict(entry) for entry in checked_annotations(data)]}
    truth.createIndex()
    return truth


def checked_annotations(data: DataSet) -> list[dict[str, Any]]:
    """The annotated people, crowds too; the categories are those that `person_category` takes.

    Raises:
        DekrError: there is no list of them, or one is not as COCO's are.
    """
    annotations = data.content.get("annotations")
    if not isinstance(annotations, list):
        raise DekrError(f"{data.annotation}: holds no annotations; the ten figures need them")
    images = {image["id"] for image in data.content["images"]}  # data.pictures may be some of them
    categories = {entry["id"] for entry in data.content["categories"]}
    numbers: set[int] = set()
    for entry in annotations:
        wrong = _wrong_in(entry, images, categories)
        if wrong:
            raise DekrError(
                f"{data.annotation}: not a COCO keypoint annotation ({wrong}): {excerpt(entry)}; correct it"
            )
        if entry["id"] in numbers:
            raise DekrError(f"{data.annotation}: two annotations have the id {entry['id']}; correct one")
        numbers.add(entry["id"])
    return annotations


def checked_results(path: Path, data: DataSet) -> list[dict[str, Any]]:
    """The entries of a COCO keypoint result file.

    Raises:
        DekrError: it is missing or another file, an entry is not as `results_of` makes them, or of another data set.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DekrError(f"{path}: not a COCO keypoint result file; make it with DEKR_postprocess.py")
    images = {picture.id for picture in data.pictures}
    for entry in entries:
        known = isinstance(entry, dict) and _is_id(entry.get("image_id"))
        if (
            not known
            or not _are_numbers(entry.get("keypoints"), 3 * JOINTS)
            or not _are_numbers([entry.get("score")], 1)
        ):
            raise DekrError(f"{path}: not a keypoint result: {excerpt(entry)}; make it with DEKR_postprocess.py")
        if entry["image_id"] not in images:
            raise DekrError(
                f"{path}: holds image {entry['image_id']}, which {data.annotation} does not; "
                "set DATASET.ROOT to the data set of these results"
            )
    return entries


def _wrong_in(entry: Any, images: Container[int], categories: Container[int]) -> str:
    """What pycocotools would stumble over, or silently count wrongly, in an annotation; empty when all is well."""
    if not isinstance(entry, dict):
        return "no object"
    checks = {
        "id": _is_id(entry.get("id")) and entry["id"] > 0,  # pycocotools takes 0 for "not matched"
        "image_id": _is_id(entry.get("image_id")) and entry["image_id"] in images,
        "category_id": _is_id(entry.get("category_id")) and entry["category_id"] in categories,
        "iscrowd": entry.get("iscrowd") in (0, 1),
        "area": _are_numbers([entry.get("area")], 1) and entry["area"] >= 0,
        "bbox": _are_numbers(entry.get("bbox"), 4),
        "keypoints": _are_numbers(entry.get("keypoints"), 3 * JOINTS),
    }
    wrong = [name for name, holds in checks.items() if not holds]
    if not wrong and entry.get("num_keypoints") != sum(value > 0 for value in entry["keypoints"][2::3]):
        wrong = ["num_keypoints"]
    return ", ".join(wrong)


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) <= LARGEST_ID


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and abs(value) <= LARGEST_NUMBER for value in values)
    )


def figures_table(figures: Mapping[str, float]) -> str:
    """The ten figures as two lines, names over values."""
    names = "  ".join(f"{name:>6}" for name in figures)
    values = "  ".join(f"{value:6.3f}" for value in figures.values())
    return f"{names}\n{values}"
