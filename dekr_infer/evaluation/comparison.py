"""Two runs on the same images: which metrics moved, whether by luck, and which images and joints moved most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dekr_infer.data.coco import DataSet
from dekr_infer.evaluation.coco_metrics import coco_evaluation, coco_metrics
from dekr_infer.evaluation.error_analysis import find_errors
from dekr_infer.evaluation.report import LISTED, SHOWN, flat, image_entry
from dekr_infer.skeleton import COCO_17, Skeleton

RESAMPLES = 1000
CONFIDENCE = 0.95
SAME = 1e-6  # metrics and losses closer than this count as equal
PARTS = ("settings", "versions", "sha256", "counts", "warnings")


class Resampling:
    """AP of results on any selection of images, fast: pycocotools matches once, only the curves are drawn again.

    Args:
        data: the ground truth.
        results: entries of COCO's result file.
        image_ids: the images, in the order of the weights.
    """

    def __init__(self, data: DataSet, results: Sequence[Mapping[str, Any]], image_ids: Sequence[int]) -> None:
        evaluation = coco_evaluation(data, results, image_ids, {})
        self.recalls = evaluation.params.recThrs
        place = {number: index for index, number in enumerate(image_ids)}
        everybody = [seen for seen in evaluation.evalImgs if seen is not None]
        self.annotated = np.zeros(len(image_ids))
        images, scores, found, counted = [], [], [], []
        for seen in everybody:
            index = place[seen["image_id"]]
            self.annotated[index] = (np.array(seen["gtIgnore"]) == 0).sum()
            images.append(np.full(len(seen["dtScores"]), index))
            scores.append(np.array(seen["dtScores"], float))
            found.append(seen["dtMatches"].reshape(len(evaluation.params.iouThrs), -1) > 0)
            counted.append(~seen["dtIgnore"].reshape(len(evaluation.params.iouThrs), -1).astype(bool))
        order = np.argsort(-np.concatenate(scores or [np.zeros(0)]), kind="stable")
        self.images = np.concatenate(images or [np.zeros(0, int)])[order]
        steps = np.zeros((len(evaluation.params.iouThrs), 0), bool)
        is_found, is_counted = (np.concatenate(flags or [steps], axis=1)[:, order] for flags in (found, counted))
        # Of each threshold, places in the ranking: the true detections, and those on crowds, which do not count.
        self.true = [np.flatnonzero(row) for row in is_found & is_counted]
        self.left_out = [np.flatnonzero(row) for row in ~is_counted]

    def ap(self, weights: np.ndarray) -> float:
        """Return AP where image i counts `weights[i]` times; -1 where nobody is annotated.

        Copies of an image follow each other in the ranking, as pycocotools would rank them. Precision is needed only at
        the true detections: it falls from there to the next one.
        """
        annotated = float(weights @ self.annotated)
        if not annotated:
            return -1.0
        own = weights[self.images]
        ranked = np.cumsum(own)
        total = 0.0
        for true, left_out in zip(self.true, self.left_out, strict=True):
            above = np.concatenate(([0.0], np.cumsum(own[left_out])))[np.searchsorted(left_out, true)]
            found = np.cumsum(own[true])
            precision = found / np.maximum(ranked[true] - above, np.spacing(1))
            precision = np.maximum.accumulate(precision[::-1])[::-1]
            reached = np.searchsorted(found / annotated, self.recalls)
            total += float(precision[reached[reached < len(precision)]].sum())
        return total / (len(self.recalls) * len(self.true))


def bootstrap(
    data: DataSet,
    runs: Sequence[Sequence[Mapping[str, Any]]],
    image_ids: Sequence[int],
    resamples: int = RESAMPLES,
    seed: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, float]:
    """Return the interval of the AP difference of two runs, by resampling images, the same ones for both.

    Args:
        data: the ground truth.
        runs: the results of the first run and of the second.
        image_ids: the images that count.
        resamples: how many sets of images are drawn.
        seed: of the draws.
        advance: called after each.
    Returns:
        difference: second minus first, on all images; low, high: the percentile interval of `CONFIDENCE`;
        resamples, confidence.
    """
    first, second = (Resampling(data, results, image_ids) for results in runs)
    rng, count = np.random.default_rng(seed), len(image_ids)
    differences = []
    for _ in range(resamples):
        weights = np.bincount(rng.integers(0, count, count), minlength=count).astype(float)
        differences.append(second.ap(weights) - first.ap(weights))
        advance(1)
    low, high = np.quantile(differences, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    everything = np.ones(count)
    return {
        "difference": second.ap(everything) - first.ap(everything),
        "low": float(low),
        "high": float(high),
        "resamples": resamples,
        "confidence": CONFIDENCE,
    }


def metric_rows(first: Mapping[str, float], second: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return each metric of both runs with the difference, the second minus the first."""
    return [
        {"metric": name, "first": first[name], "second": second[name], "difference": second[name] - first[name]}
        for name in first
        if name in second
    ]


def cause_rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what differs between two metrics.json that may move metrics: settings, versions, hashes, counts."""
    rows = []
    for part in PARTS:
        before, after = (dict(flat(run.get(part))) for run in (first, second))
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name) and (part, name) != ("sha256", "results"):
                values = {side: str(run.get(name, "nothing")) for side, run in (("first", before), ("second", after))}
                rows.append({"name": f"{part}: {name}", **values})
    return rows


def comparison_content(
    data: DataSet,
    runs: Sequence[Sequence[Mapping[str, Any]]],
    image_ids: Sequence[int],
    skeleton: Skeleton = COCO_17,
    resamples: int = RESAMPLES,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Return the numbers of a comparison of the results of two runs, as values of JSON.

    Args:
        data: the ground truth.
        runs: the results of the first run and of the second.
        image_ids: the images that count.
        skeleton: of the people.
        resamples: see `bootstrap`.
        advance: see `bootstrap`.
    Raises:
        DekrError: the data set has no annotations.
    """
    errors = [find_errors(data, results, image_ids, skeleton) for results in runs]
    losses = [found.losses(data, results) for found, results in zip(errors, runs, strict=True)]
    counts = [found.counts() for found in errors]
    joints = [found.joint_counts(skeleton) for found in errors]
    people = [Counter(result["image_id"] for result in results) for results in runs]
    images = {image.id: image for image in data.images}
    moved = {number: losses[1].get(number, 0.0) - losses[0].get(number, 0.0) for number in image_ids}
    order = [number for number in sorted(moved, key=lambda number: -abs(moved[number])) if abs(moved[number]) > SAME]

    joint_rows: list[dict[str, Any]] = []
    for name in skeleton.joints:
        totals = [sum(by_joint[name].values()) for by_joint in joints]
        if all(totals):
            first, second = (by_joint[name]["good"] / total for by_joint, total in zip(joints, totals, strict=True))
            joint_rows.append({"joint": name, "first": first, "second": second, "difference": second - first})
    joint_rows.sort(key=lambda row: -abs(row["difference"]))
    return {
        "metrics": metric_rows(*(coco_metrics(data, results, image_ids) for results in runs)),
        "bootstrap": bootstrap(data, runs, image_ids, resamples, advance=advance),
        "kinds": [{"kind": kind, "first": counts[0][kind], "second": counts[1][kind]} for kind in counts[0]],
        "joints": joint_rows,
        "images": len(image_ids),
        "images_moved": len(order),
        "moved": [
            image_entry(images[number])
            | {"first": losses[0].get(number, 0.0), "second": losses[1].get(number, 0.0), "difference": moved[number]}
            | {"people": [found[number] for found in people]}
            for number in order[: max(SHOWN, LISTED)]
        ],
    }
