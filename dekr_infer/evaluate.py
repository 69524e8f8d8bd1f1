"""Poses -> COCO results -> the ten keypoint figures, with pycocotools as the judge."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dekr_infer.coco import DataSet
from dekr_infer.decode import JOINTS
from dekr_infer.errors import DekrError

FIGURES = ("AP", "AP .5", "AP .75", "AP (M)", "AP (L)", "AR", "AR .5", "AR .75", "AR (M)", "AR (L)")


def person_category(data: DataSet) -> int:
    """The id of the annotation file's first category, which holds the keypoints.

    Raises:
        DekrError: there is none, or it has other joints than COCO's 17.
    """
    categories = data.content.get("categories")
    try:
        first = categories[0]  # type: ignore[index]
        number, joints = int(first["id"]), len(first.get("keypoints", ()) or range(JOINTS))
    except (TypeError, KeyError, IndexError, ValueError, AttributeError):
        raise DekrError(f"{data.annotation}: lists no category; it must be a COCO keypoint annotation") from None
    if joints != JOINTS:
        raise DekrError(f"{data.annotation}: its people have {joints} joints, COCO's have {JOINTS}")
    return number


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
    annotations = data.content.get("annotations")
    if not isinstance(annotations, list):
        raise DekrError(f"{data.annotation}: holds no annotations; the ten figures need them")
    known = {image["id"] for image in data.content["images"]}
    for entry in annotations:
        fits = (
            isinstance(entry, dict)
            and entry.get("image_id") in known
            and {"id", "area", "bbox", "iscrowd", "category_id", "num_keypoints"} <= entry.keys()
            and isinstance(entry.get("keypoints"), list)
            and len(entry["keypoints"]) == 3 * JOINTS
        )
        if not fits:
            raise DekrError(f"{data.annotation}: not a COCO keypoint annotation: {str(entry)[:80]}")
    truth = COCO()
    truth.dataset = {**data.content, "annotations": [dict(entry) for entry in annotations]}
    truth.createIndex()
    return truth


def figures_table(figures: Mapping[str, float]) -> str:
    """The ten figures as two lines, names over values."""
    names = "  ".join(f"{name:>6}" for name in figures)
    values = "  ".join(f"{value:6.3f}" for value in figures.values())
    return f"{names}\n{values}"
