"""Evaluate a detector on a data set: people of every frame, and what is counted on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dekr_infer.data.coco import DataSet
from dekr_infer.detector import Detector
from dekr_infer.evaluation.coco_metrics import coco_metrics
from dekr_infer.evaluation.diagnostics import (
    COMPARED_IMAGES,
    MATCHED_IMAGES,
    Counts,
    compare_passes,
    count_matches,
    spread,
    warnings_of,
)
from dekr_infer.structures import Frame

ANNOTATION_DOUBTS = {"area", "joints_outside", "joints_normalised", "joint_names"}


@dataclass
class Evaluation:
    """What a detector found in a data set.

    Args:
        results: entries of COCO's result file.
        evaluated: ids of the images that were evaluated.
        empty: images without people.
        seconds: of detection.
        metrics: the ten metrics by name.
        counts: for the plausibility warnings.
        warnings: by name; see `diagnostics`.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    empty: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    warnings: dict[str, str] = field(default_factory=dict)


def evaluate(
    detector: Detector, data: DataSet, frames: Sequence[Frame], advance: Callable[[int], None] = lambda count: None
) -> Evaluation:
    """Find the people of every frame and compute the ten metrics.

    Args:
        detector: over the backend to evaluate.
        data: the ground truth.
        frames: of the images that count, from `frames_of`.
        advance: called after each frame.
    Raises:
        DekrError: the data set has no annotations, or a frame cannot be evaluated.
    """
    data.ground_truth()
    evaluation, started = Evaluation(), time.perf_counter()
    compared = {frame.key for frame in spread(frames, COMPARED_IMAGES)}
    sampled = {frame.key for frame in spread(frames, MATCHED_IMAGES)}
    decoded: list[dict[str, Any]] = []  # the sampled images' results with the scores before rescoring
    category = data.category.id if data.category else 0
    for frame in frames:
        people, passes = detector.detect(frame)
        if frame.key in compared:
            compare_passes(evaluation.counts, passes, detector.settings, detector.skeleton)
        assert frame.image_id is not None
        entries = people.to_coco(frame.image_id, category)
        if people.decoded_scores is not None and frame.key in sampled:
            pairs = zip(entries, people.decoded_scores.tolist(), strict=True)
            decoded += [entry | {"score": score} for entry, score in pairs]
        evaluation.results += entries
        evaluation.evaluated.append(frame.image_id)
        evaluation.empty += not len(people)
        advance(1)
    evaluation.seconds = time.perf_counter() - started
    evaluation.metrics = coco_metrics(data, evaluation.results, evaluation.evaluated)
    count_matches(evaluation.counts, data, evaluation.evaluated, evaluation.results, detector.skeleton)
    if decoded:
        ids = {entry["image_id"] for entry in decoded}
        both = (decoded, [entry for entry in evaluation.results if entry["image_id"] in ids])
        evaluation.counts.decoded_ap, evaluation.counts.rescored_ap = (
            coco_metrics(data, entries, sorted(ids))["AP"] for entries in both
        )
    evaluation.warnings = warnings_of(
        evaluation.counts, evaluation.metrics, len(evaluation.evaluated), len(data.images), detector.skeleton
    )
    if data.warnings.keys() & ANNOTATION_DOUBTS:  # look at the annotation before blaming the network
        evaluation.warnings.pop("nobody_found", None)
    return evaluation
