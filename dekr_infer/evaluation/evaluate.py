"""Evaluate a detector on a data set: people of every frame, and what is counted on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dekr_infer.data.coco import DataSet
from dekr_infer.detector import Detector, in_order
from dekr_infer.errors import DekrError
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
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.structures import Frame, People

ANNOTATION_DOUBTS = {"area", "joints_outside", "joints_normalised", "joint_names"}


@dataclass
class Evaluation:
    """What a detector found in a data set.

    Args:
        results: entries of COCO's result file.
        evaluated: ids of the images that were evaluated.
        empty: images without people.
        seconds: of detection.
        metrics: by name; none where the data set has no annotations.
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


@dataclass(frozen=True)
class Found:
    """What a detector found in one image.

    Args:
        image_id: of the annotation file.
        people: in image pixels.
        compared: people found in both passes, of those the same, and those exchanged, as `Counts` has them.
        milliseconds: of each forward pass that was run.
        error: why the image could not be read; then there are no people.
    """

    image_id: int
    people: People
    compared: tuple[int, int, int] = (0, 0, 0)
    milliseconds: list[float] = field(default_factory=list)
    error: str | None = None


def find_people(
    detector: Detector,
    frames: Iterable[Frame],
    workers: int = 1,
    *,
    compared: Container[str] | None = None,
    keep_unreadable: bool = False,
) -> Generator[tuple[Frame, Found], None, None]:
    """Find the people of every frame, in order; see `Detector.stream`.

    Args:
        detector: over the backend to evaluate.
        frames: from `frames_of`.
        workers: threads.
        compared: keys of the frames whose two passes are compared; by default all.
        keep_unreadable: yield images that cannot be read with their error, instead of raising it.
    Raises:
        DekrError: a frame cannot be evaluated.
    """

    def find(frame: Frame) -> Found:
        image_id = frame.image_id
        assert image_id is not None
        if keep_unreadable:
            try:
                image = frame.read()
            except DekrError as error:
                return Found(image_id, People.nobody(detector.skeleton), error=str(error))
            frame = replace(frame, read=lambda: image)
        people, passes = detector.detect(frame)
        counts = Counts()
        if passes is not None and (compared is None or frame.key in compared):
            compare_passes(counts, passes, detector.settings, detector.skeleton)
        milliseconds = [
            maps.milliseconds for maps in passes or () if maps is not None and maps.milliseconds is not None
        ]
        return Found(image_id, people, (counts.compared, counts.same, counts.exchanged), milliseconds)

    return in_order(find, frames, workers)


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
    data.check_annotations()
    started, found = time.perf_counter(), []
    compared = {frame.key for frame in spread(frames, COMPARED_IMAGES)}
    for _, one in find_people(detector, frames, compared=compared):
        found.append(one)
        advance(1)
    seconds = time.perf_counter() - started
    return assess(data, found, seconds, detector.skeleton)


def assess(data: DataSet, found: Sequence[Found], seconds: float, skeleton: Skeleton = COCO_17) -> Evaluation:
    """Compute the ten metrics of what was found, and what speaks against them.

    Args:
        data: the ground truth.
        found: in each image that counts, in the data set's order.
        seconds: of detection.
        skeleton: of the people.
    Raises:
        DekrError: the data set has no annotations.
    """
    evaluation = Evaluation(evaluated=[one.image_id for one in found], seconds=seconds)
    sampled = {one.image_id for one in spread(found, MATCHED_IMAGES)}
    decoded: list[dict[str, Any]] = []  # the sampled images' results with the scores before rescoring
    for one in found:
        entries = entries_of(data, one)
        if one.people.decoded_scores is not None and one.image_id in sampled:
            pairs = zip(entries, one.people.decoded_scores.tolist(), strict=True)
            decoded += [entry | {"score": score} for entry, score in pairs]
        evaluation.results += entries
        evaluation.empty += not len(one.people)
    if data.people is None:
        return evaluation
    counts = evaluation.counts
    for one in spread(found, COMPARED_IMAGES):
        counts.compared += one.compared[0]
        counts.same += one.compared[1]
        counts.exchanged += one.compared[2]
    evaluation.metrics = coco_metrics(data, evaluation.results, evaluation.evaluated)
    count_matches(counts, data, evaluation.evaluated, evaluation.results, skeleton)
    if decoded:
        ids = {entry["image_id"] for entry in decoded}
        both = (decoded, [entry for entry in evaluation.results if entry["image_id"] in ids])
        counts.decoded_ap, counts.rescored_ap = (coco_metrics(data, entries, sorted(ids))["AP"] for entries in both)
    evaluation.warnings = warnings_of(counts, evaluation.metrics, len(evaluation.evaluated), len(data.images), skeleton)
    if data.warnings.keys() & ANNOTATION_DOUBTS:  # look at the annotation before blaming the network
        evaluation.warnings.pop("nobody_found", None)
    return evaluation


def entries_of(data: DataSet, found: Found) -> list[dict[str, Any]]:
    """Return the entries of COCO's result file for one image."""
    return found.people.to_coco(found.image_id, data.category.id if data.category else 1)
