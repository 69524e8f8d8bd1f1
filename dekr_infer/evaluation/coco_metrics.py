"""The keypoint metrics of a result file, COCO's ten or CrowdPose's nine, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dekr_infer.data.coco import DataSet, Id, Number
from dekr_infer.errors import DekrError
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.storage.atomic import read_json

CROWD_METRICS = ("AP", "AP .5", "AP .75", "AR", "AR .5", "AR .75", "AP easy", "AP medium", "AP hard")
CROWD_LEVELS = (0.2, 0.8)  # crowd indices from which images are medium and hard, as CrowdPose's evaluation has them
METRICS = ("AP", "AP .5", "AP .75", "AP (M)", "AP (L)", "AR", "AR .5", "AR .75", "AR (M)", "AR (L)")


def coco_metrics(data: DataSet, results: Sequence[Mapping[str, Any]], image_ids: Sequence[int]) -> dict[str, float]:
    """Evaluate keypoint results with up to 20 detections an image.

    Args:
        data: the ground truth.
        results: entries of `People.to_coco`; none at all is a valid result.
        image_ids: the images that count.
    Returns:
        The ten metrics by name; -1 where nobody of that size is annotated. Of a data set with crowd indices the nine
        metrics of CrowdPose's protocol: no sizes, but how crowded images are.
    Raises:
        DekrError: the data set has no annotations.
    """
    if all(image.crowd_index is not None for image in data.images):
        with contextlib.redirect_stdout(io.StringIO()):
            return _crowd_metrics(_prepared(data, results), data, image_ids)
    evaluation = coco_evaluation(data, results, image_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return dict(zip(METRICS, map(float, evaluation.stats), strict=True))


def average_precision(data: DataSet, results: Sequence[Mapping[str, Any]], image_ids: Sequence[int]) -> float:
    """Return AP alone, in a third of the time of `coco_metrics`; -1 where nobody is annotated.

    Args:
        data: the ground truth.
        results: entries of `People.to_coco`.
        image_ids: the images that count.
    Raises:
        DekrError: the data set has no annotations.
    """
    precision = coco_evaluation(data, results, image_ids, {}).eval["precision"]
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0


def coco_evaluation(
    data: DataSet,
    results: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
    sizes: Mapping[str, tuple[float, float]] | None = None,
) -> COCOeval:
    """Return pycocotools' evaluation of keypoint results, with its matches and precisions accumulated.

    Args:
        data: the ground truth.
        results: entries of `People.to_coco`.
        image_ids: the images that count.
        sizes: ranges of people's areas, in square pixels, by label, that follow COCO's first, all people; `None` for
            COCO's own.
    Returns:
        A `COCOeval`: the id of a detection is its place in `results`, from 1.
    Raises:
        DekrError: the data set has no annotations.
    """
    evaluation = _prepared(data, results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.params.imgIds = sorted(image_ids)
        if sizes is not None:
            evaluation.params.areaRngLbl = ["all", *sizes]
            evaluation.params.areaRng = [evaluation.params.areaRng[0], *map(list, sizes.values())]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _prepared(data: DataSet, results: Sequence[Mapping[str, Any]]) -> COCOeval:
    """Return pycocotools' evaluation of all images, which has not been run."""
    truth = _coco(data, [msgspec.to_builtins(person) for person in data.ground_truth()])
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        if results:
            found = truth.loadRes([dict(entry) for entry in results])
        else:
            found = _coco(data, [])
            found.createIndex()
        evaluation = COCOeval(truth, found, "keypoints")
    if data.skeleton != COCO_17:
        evaluation.params.kpt_oks_sigmas = np.array(data.skeleton.sigmas)
    return evaluation


def _crowd_metrics(evaluation: COCOeval, data: DataSet, image_ids: Sequence[int]) -> dict[str, float]:
    """Return the metrics of CrowdPose's protocol, from an evaluation that is set up and has not been run."""
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]

    def curves(ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return precision (thresholds, recalls) and recall (thresholds,) over some images; -1 without people."""
        thresholds, recalls = (len(evaluation.params.iouThrs), len(evaluation.params.recThrs))
        if not ids:  # pycocotools would take all
            return np.full((thresholds, recalls), -1.0), np.full(thresholds, -1.0)
        evaluation.params.imgIds = sorted(ids)
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation.eval["precision"][:, :, 0, 0, 0], evaluation.eval["recall"][:, 0, 0, 0]

    index = {image.id: image.crowd_index or 0.0 for image in data.images}
    levels = [[i for i in image_ids if sum(index[i] >= edge for edge in CROWD_LEVELS) == level] for level in range(3)]
    precision, recall = curves(image_ids)
    at = np.searchsorted(evaluation.params.iouThrs, (0.5 - 1e-9, 0.75 - 1e-9))
    parts = (precision, *precision[at], recall, *recall[at], *(curves(ids)[0] for ids in levels))
    return {name: float(np.mean(part)) for name, part in zip(CROWD_METRICS, parts, strict=True)}


def _coco(data: DataSet, annotations: list[dict[str, Any]]) -> COCO:
    """Return pycocotools' view of our own copy of the data set; nothing of the user's file is passed on as it is."""
    assert data.category is not None
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": image.id, "height": image.size.h, "width": image.size.w} for image in data.images],
        "categories": [{"id": data.category.id, "name": data.category.name}],
        "annotations": annotations,
    }
    return coco


class _Result(msgspec.Struct):
    """What is needed of an entry of a COCO keypoint result file."""

    image_id: Id
    keypoints: list[Number]
    score: Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]


def read_results(path: Path, data: DataSet, skeleton: Skeleton = COCO_17) -> list[dict[str, Any]]:
    """Read a COCO keypoint result file.

    Raises:
        DekrError: the file is missing or of another form, or belongs to another data set.
    """
    entries: list[dict[str, Any]] = read_json(path)
    remedy = "write it with DEKR_postprocess.py"
    try:
        checked = msgspec.convert(entries, list[_Result])
    except ValueError as error:  # of the wrong type, or a text with half a surrogate pair
        raise DekrError(f"{path}: not a COCO keypoint result file ({error}); {remedy}") from None
    images = {image.id for image in data.images}
    for index, entry in enumerate(checked, 1):
        if len(entry.keypoints) != 3 * len(skeleton):
            raise DekrError(
                f"{path}: result {index} has {len(entry.keypoints)} keypoint values, not {3 * len(skeleton)}; {remedy}"
            )
        if entry.image_id not in images:
            raise DekrError(
                f"{path}: result {index} is of image {entry.image_id}, which {data.annotation} does not list; "
                "set DATASET.ROOT to the data set of these results"
            )
    return entries


def metrics_table(metrics: Mapping[str, float]) -> str:
    """Return the metrics as two lines, names over values, and a third that explains -1 where it occurs."""
    names = "  ".join(f"{name:>6}" for name in metrics)
    values = "  ".join(f"{value:{max(6, len(name))}.3f}" for name, value in metrics.items())
    note = "\n(-1.000: nobody of that size is annotated)" if -1 in metrics.values() else ""
    return f"{names}\n{values}{note}"
