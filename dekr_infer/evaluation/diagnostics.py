"""Checks for metrics that are wrong but look plausible. Each may add a warning; none stops a run.

They compare predictions with the annotated people, and one pass with the other. Where there is too little to judge by
(few people, a network that finds nobody), they add nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dekr_infer.data.coco import DataSet, ImageEntry, PersonEntry
from dekr_infer.pose.decode import DecodeSettings, find_centres, joints_at, merged_centre
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.structures import Passes

MATCHED_IMAGES = 500  # images whose people are compared with the annotation, spread evenly over all
COMPARED_IMAGES = 40  # images whose two passes are compared; each costs a decoding
FEWEST = 10  # people, below which no warning is given
SURE = 0.5  # of an image's best centre: candidates that are probably people, and so worth comparing
FOUND = 0.5  # OKS from which an annotated person counts as found
# Thresholds, with the values for the demo network, drawn people and 80 COCO images when all is right, and when not.
RANKING = 0.6  # AP / AR, and AR .5 / share found; right: 0.9 to 1; all scores equal: 0.1; reversed: 0
RANKED_FROM = 0.5  # share of people found from which their order can be judged
CROSSED = 0.3  # of left/right pairs; right: 0 to 0.08; labels exchanged: 0.9; only in the flipped pass: 0.6
NOBODY = 0.05  # of people found; right: 0.5 to 1; offsets of the other pass: 0 to 0.02; random weights: 0
RESCORING_LOSS = 0.02  # of AP; right: it gains 0.01 to 0.03; random weights cost 0.16
OUTSIDE = 0.4  # of joints; right: 0.01, more where the border cuts people off; twice the scale: 0.7

T = TypeVar("T")


@dataclass
class Counts:
    """What was counted."""

    annotated: int = 0  # people compared with the predictions
    found: int = 0
    found_mirrored: int = 0  # found once the predictions are mirrored at the image's middle
    pairs: int = 0  # left/right pairs, far enough apart to be told from each other, of people found either way round
    crossed: int = 0
    predicted: int = 0  # the best-scored people, as many as are annotated
    outside: int = 0  # their joints outside the image
    compared: int = 0  # people found in both passes
    same: int = 0  # those that the flipped pass shows in the same place as the other one
    exchanged: int = 0  # those that it shows mirrored, but with their left joints still called left
    decoded_ap: float | None = None  # AP of a sample of images without rescoring; `None` where nothing was rescored
    rescored_ap: float | None = None  # AP of the same images with rescoring


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items, evenly spread."""
    step = max(len(items) / count, 1)
    return [items[int(index * step)] for index in range(min(count, len(items)))]


def count_matches(
    counts: Counts,
    data: DataSet,
    evaluated: Sequence[int],
    results: Iterable[Mapping[str, Any]],
    skeleton: Skeleton = COCO_17,
) -> None:
    """Compare predictions with the annotated people of some images, and add to the counts.

    Args:
        counts: changed in place.
        data: the ground truth.
        skeleton: of the people.
        evaluated: ids of the images that were evaluated, in the data set's order.
        results: entries of COCO's result file.
    """
    images = {image.id: image for image in data.images}
    chosen = {number: images[number] for number in spread(evaluated, MATCHED_IMAGES)}
    predicted: dict[int, list[Mapping[str, Any]]] = {number: [] for number in chosen}
    for result in results:
        if result["image_id"] in chosen:
            predicted[result["image_id"]].append(result)
    annotated: dict[int, list[PersonEntry]] = {number: [] for number in chosen}
    for person in data.ground_truth():
        if person.image_id in chosen and not person.iscrowd and person.num_keypoints:
            annotated[person.image_id].append(person)
    for number, image in chosen.items():
        if annotated[number]:
            _match_image(counts, image, annotated[number], predicted[number], skeleton)


def _match_image(
    counts: Counts,
    image: ImageEntry,
    people: Sequence[PersonEntry],
    results: Sequence[Mapping[str, Any]],
    skeleton: Skeleton,
) -> None:
    counts.annotated += len(people)
    if not results:
        return
    poses = np.array([result["keypoints"] for result in results]).reshape(-1, len(skeleton), 3)[:, :, :2]
    best = np.argsort([-result["score"] for result in results], kind="stable")[: len(people)]
    beyond = (poses[best] < 0) | (poses[best] > (image.size.w - 1, image.size.h - 1))
    counts.predicted += len(best)
    counts.outside += int(beyond.any(2).sum())
    exchanged = poses[:, skeleton.partners]
    mirrored = exchanged * (-1, 1) + (image.size.w - 1, 0)
    spread_squared = (2 * np.array(skeleton.sigmas)) ** 2  # per joint; times the area, a tolerance in square pixels
    for person in people:
        truth = np.array(person.keypoints, float).reshape(-1, 3)
        labelled = truth[:, 2] > 0
        tolerance = 2 * spread_squared * (person.area + np.spacing(1))
        plain, exchanged_distance, mirrored_distance = (
            ((candidates - truth[:, :2]) ** 2).sum(2) for candidates in (poses, exchanged, mirrored)
        )
        counts.found += bool(np.exp(-plain / tolerance)[:, labelled].mean(1).max() >= FOUND)
        counts.found_mirrored += bool(np.exp(-mirrored_distance / tolerance)[:, labelled].mean(1).max() >= FOUND)
        _count_pairs(counts, truth, labelled, tolerance, plain, exchanged_distance, skeleton)


def _count_pairs(
    counts: Counts,
    truth: np.ndarray,
    labelled: np.ndarray,
    tolerance: np.ndarray,
    plain: np.ndarray,
    exchanged: np.ndarray,
    skeleton: Skeleton,
) -> None:
    """Count left and right joints of the nearest prediction, whichever way round, that are nearer the other's place.

    Of a person seen from behind, left is on the other side in the annotation too, so facing does not matter.

    Args:
        counts: changed in place.
        skeleton: of the people.
        truth: (J, 3), of an annotated person.
        labelled: (J,), which joints count.
        tolerance: (J,), in square pixels.
        plain: (people, J), squared distances of the predictions.
        exchanged: (people, J), the same with left and right labels exchanged.
    """
    lefts, rights = ([pair[side] for pair in skeleton.sides] for side in (0, 1))
    similar = np.exp(-plain / tolerance)
    for pair in map(list, skeleton.sides):
        turned = np.exp(-exchanged[:, pair] / tolerance[pair])
        similar[:, pair] = np.where((turned.sum(1) > similar[:, pair].sum(1))[:, None], turned, similar[:, pair])
    nearest = int(similar[:, labelled].mean(1).argmax())
    if similar[nearest, labelled].mean() < FOUND:
        return
    gap = ((truth[lefts, :2] - truth[rights, :2]) ** 2).sum(1)
    clear = labelled[lefts] & labelled[rights] & (gap > 2 * tolerance[lefts])
    straight, crossed = (
        np.sqrt(squares[nearest, lefts]) + np.sqrt(squares[nearest, rights]) for squares in (plain, exchanged)
    )
    counts.pairs += int(clear.sum())
    counts.crossed += int((clear & (crossed < straight)).sum())


def compare_passes(counts: Counts, passes: Passes, settings: DecodeSettings, skeleton: Skeleton = COCO_17) -> None:
    """Count people that the flipped pass does not show as a mirror would."""
    if passes.flipped is None:
        return
    alone = Passes(passes.original)
    cells, scores = find_centres(merged_centre(alone), settings)
    cells = cells[scores >= SURE * scores.max(initial=0)]
    original, both = (joints_at(seen, cells, skeleton) for seen in (alone, passes))
    unflipped = joints_at(Passes(passes.flipped), cells, skeleton)
    counts.compared += len(cells)
    flipped = 2 * both - original
    plain, exchanged = (np.abs(original - seen).mean((1, 2)) for seen in (flipped, flipped[:, skeleton.partners]))
    counts.exchanged += int((exchanged < plain / 2).sum())
    unmoved, unlike = (original == unflipped).all((1, 2)), (original != both).any((1, 2))
    counts.same += int((unmoved & unlike).sum())


def warnings_of(
    counts: Counts, metrics: Mapping[str, float], evaluated: int, images: int, skeleton: Skeleton = COCO_17
) -> dict[str, str]:
    """Return the warnings that apply, by name; `nobody_found` only if no more specific one does.

    Args:
        counts: of `count_matches` and `compare_passes`.
        skeleton: of the people.
        metrics: the ten metrics by name.
        evaluated: how many images were evaluated.
        images: how many images the data set has.
    """
    joints = len(skeleton) * counts.predicted
    share = counts.found / max(counts.annotated, 1)
    misranked = metrics["AP"] < RANKING * metrics["AR"] or metrics["AR .5"] < RANKING * share
    checks = {
        "coverage": (
            evaluated < images,
            f"only {evaluated} of {images} images were evaluated; the metrics are not those of the data set",
        ),
        "ranking": (
            counts.found >= FEWEST and share > RANKED_FROM and misranked,
            f"{share:.0%} of the annotated people are found, but AP is {metrics['AP']:.3f} and AR {metrics['AR']:.3f}: "
            "the scores do not rank them; "
            + ("check the weights and the outputs" if counts.decoded_ap is None else "check the rescoring weights"),
        ),
        "rescoring": (
            counts.decoded_ap is not None
            and counts.rescored_ap is not None
            and counts.found >= FEWEST
            and counts.rescored_ap < counts.decoded_ap - RESCORING_LOSS,
            f"rescoring lowers AP from {counts.decoded_ap or 0:.3f} to {counts.rescored_ap or 0:.3f} on the images "
            "compared; check RESCORE.MODEL_FILE, or add RESCORE.VALID False",
        ),
        "left_right": (
            counts.pairs >= FEWEST and counts.crossed > CROSSED * counts.pairs,
            f"left and right look exchanged in {counts.crossed} of {counts.pairs} pairs of joints; check the joint "
            "order of the network",
        ),
        "left_right_flipped": (
            counts.compared >= FEWEST and counts.exchanged > counts.compared / 2,
            "the flipped pass shows people mirrored, but with their left joints still called left; run the network "
            "on the flipped tensors again",
        ),
        "outside": (
            counts.predicted >= FEWEST and counts.outside > OUTSIDE * joints,
            f"{counts.outside} of {joints} joints are outside their images; check that outputs and "
            "annotation belong together",
        ),
        "mirrored": (
            counts.found_mirrored >= FEWEST and counts.found_mirrored > 2 * counts.found,
            f"{counts.found_mirrored} people are found in the mirrored images and {counts.found} in the "
            "images themselves: the outputs of the original and of the flipped pass look exchanged",
        ),
        "same_passes": (
            counts.compared >= FEWEST and counts.same > counts.compared / 2,
            "both passes show the same images, none flipped; run the network on the flipped tensors again",
        ),
    }
    warnings = {name: message for name, (applies, message) in checks.items() if applies}
    if not warnings.keys() - {"coverage"} and counts.predicted >= counts.annotated >= FEWEST and share < NOBODY:
        warnings["nobody_found"] = (
            f"as many people are predicted as annotated, but {counts.found} of the {counts.annotated} are found: "
            "check that all outputs are of their pass and of this data set, and that the weights are trained ones"
        )
    return warnings
