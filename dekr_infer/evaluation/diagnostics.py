"""Guards against figures that are wrong without looking it: each measures something and may speak up, none stops a run.

They hold predictions against the annotated people, and one pass against the other. Where there is too little to judge
by (few people, a network that finds nobody), they are silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools.cocoeval import Params

from dekr_infer.data.coco import DataSet, Picture
from dekr_infer.pose.decode import DecodeSettings, Passes, find_centres, joints_at, merged_centre
from dekr_infer.skeleton import COCO_17

LOOKED_AT = 500  # pictures whose people are held against the annotation, spread evenly over all
PASSES_LOOKED_AT = 40  # pictures whose two passes are compared; each costs a decoding
FEWEST = 10  # people, below which nothing is said
SURE = 0.5  # of a picture's best centre: candidates that are probably people, and so worth comparing
FOUND = 0.5  # OKS from which an annotated person counts as found
# Thresholds, with what the demo network, drawn people and 80 COCO pictures give when all is right, and when it is not.
RANKING = 0.6  # AP / AR, and AR .5 / share found; right: 0.9 to 1; all scores alike: 0.1; turned round: 0
RANKED_FROM = 0.5  # share of people found from which their order can be judged
CROSSED = 0.3  # of left/right pairs; right: 0 to 0.08; labels exchanged: 0.9; only in the flipped pass: 0.6
NOBODY = 0.05  # of people found; right: 0.5 to 1; offsets of the other pass: 0 to 0.02; random weights: 0
OUTSIDE = 0.4  # of joints; right: 0.01, more where the border cuts people off; twice the scale: 0.7

PAIRS = tuple((joint, partner) for joint, partner in enumerate(COCO_17.partners) if joint < partner)
_LEFT, _RIGHT = (list(side) for side in zip(*PAIRS, strict=True))
_SPREAD = (2 * Params("keypoints").kpt_oks_sigmas) ** 2  # per joint; times the area, a tolerance in square pixels


@dataclass
class Measures:
    """What was counted; shares are `None` where there was too little to count."""

    annotated: int = 0  # people held against the predictions
    found: int = 0
    found_mirrored: int = 0  # found once the predictions are mirrored at the picture's middle
    pairs: int = 0  # left/right pairs, far enough apart to be told from each other, of people found either way round
    crossed: int = 0
    joints: int = 0  # of the best-scored people, as many as are annotated
    outside: int = 0
    compared: int = 0  # people found in both passes
    same: int = 0  # those whom the flipped pass shows in the same place as the other one
    exchanged: int = 0  # those whom it shows mirrored, but with their left joints still called left

    def as_json(self) -> dict[str, Any]:
        """The counts, for metrics.json."""
        return dict(vars(self))


@dataclass
class Sanity:
    """Counts, and one line by guard that spoke."""

    measures: Measures
    warnings: dict[str, str] = field(default_factory=dict)


def measure(data: DataSet, pictures: Sequence[Picture], results: Iterable[Mapping[str, Any]]) -> Measures:
    """Hold predictions against the annotated people.

    Args:
        pictures: those that were evaluated.
        results: entries of COCO's result file.
    """
    measures = Measures()
    chosen = {picture.id: picture for picture in _spread(pictures, LOOKED_AT)}
    predicted: dict[int, list[Mapping[str, Any]]] = {number: [] for number in chosen}
    for result in results:
        if result["image_id"] in chosen:
            predicted[result["image_id"]].append(result)
    annotated: dict[int, list[Mapping[str, Any]]] = {number: [] for number in chosen}
    for entry in data.content["annotations"]:
        if entry["image_id"] in chosen and not entry["iscrowd"] and entry["num_keypoints"]:
            annotated[entry["image_id"]].append(entry)
    for number, picture in chosen.items():
        if annotated[number]:
            _measure_one(measures, picture, annotated[number], predicted[number])
    return measures


def _spread(pictures: Sequence[Picture], count: int) -> list[Picture]:
    """At most so many of them, evenly."""
    step = max(len(pictures) / count, 1)
    return [pictures[int(index * step)] for index in range(min(count, len(pictures)))]


def _measure_one(
    measures: Measures, picture: Picture, people: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> None:
    measures.annotated += len(people)
    if not results:
        return
    poses = np.array([result["keypoints"] for result in results]).reshape(-1, 17, 3)[:, :, :2]
    best = np.argsort([-result["score"] for result in results], kind="stable")[: len(people)]
    beyond = (poses[best] < 0) | (poses[best] > (picture.size.w - 1, picture.size.h - 1))
    measures.joints += beyond[:, :, 0].size
    measures.outside += int(beyond.any(2).sum())
    exchanged = poses[:, COCO_17.partners]
    mirrored = exchanged * (-1, 1) + (picture.size.w - 1, 0)
    for entry in people:
        truth = np.array(entry["keypoints"], float).reshape(17, 3)
        labelled = truth[:, 2] > 0
        tolerance = 2 * _SPREAD * (entry["area"] + np.spacing(1))
        apart, apart_exchanged, apart_mirrored = (
            ((candidates - truth[:, :2]) ** 2).sum(2) for candidates in (poses, exchanged, mirrored)
        )
        measures.found += bool(np.exp(-apart / tolerance)[:, labelled].mean(1).max() >= FOUND)
        measures.found_mirrored += bool(np.exp(-apart_mirrored / tolerance)[:, labelled].mean(1).max() >= FOUND)
        _count_pairs(measures, truth, labelled, tolerance, apart, apart_exchanged)


def _count_pairs(
    measures: Measures,
    truth: np.ndarray,
    labelled: np.ndarray,
    tolerance: np.ndarray,
    apart: np.ndarray,
    exchanged: np.ndarray,
) -> None:
    """Whether the left and right joints of the nearest prediction, whichever way round, stand nearer the other's place.

    Seen from behind, a person's left is on the other side in the annotation too, so facing does not matter.
    Args:
        truth (17, 3), labelled (17,), tolerance (17,): of an annotated person.
        apart, exchanged: (people, 17): squared distances of predictions as they are, and with labels exchanged.
    """
    similar = np.exp(-apart / tolerance)
    for left, right in PAIRS:
        two = [left, right]
        turned = np.exp(-exchanged[:, two] / tolerance[two])
        similar[:, two] = np.where((turned.sum(1) > similar[:, two].sum(1))[:, None], turned, similar[:, two])
    nearest = int(similar[:, labelled].mean(1).argmax())
    if similar[nearest, labelled].mean() < FOUND:
        return
    gap = ((truth[_LEFT, :2] - truth[_RIGHT, :2]) ** 2).sum(1)
    clear = labelled[_LEFT] & labelled[_RIGHT] & (gap > 2 * tolerance[_LEFT])
    straight, crossed = (
        np.sqrt(squares[nearest, _LEFT]) + np.sqrt(squares[nearest, _RIGHT]) for squares in (apart, exchanged)
    )
    measures.pairs += int(clear.sum())
    measures.crossed += int((clear & (crossed < straight)).sum())


def compare_passes(measures: Measures, passes: Passes, settings: DecodeSettings) -> None:
    """Count people whom the flipped pass does not show as a mirror would."""
    if passes.heat_flip is None or passes.offset_flip is None:
        return
    cells, scores = find_centres(merged_centre(Passes(passes.heat, passes.offset)), settings)
    cells = cells[scores >= SURE * scores.max(initial=0)]
    original = joints_at(Passes(passes.heat, passes.offset), cells)
    both = joints_at(passes, cells)
    as_it_is = joints_at(Passes(passes.heat_flip, passes.offset_flip), cells)
    measures.compared += len(cells)
    flipped = 2 * both - original
    apart, apart_exchanged = (np.abs(original - seen).mean((1, 2)) for seen in (flipped, flipped[:, COCO_17.partners]))
    measures.exchanged += int((apart_exchanged < apart / 2).sum())
    unmoved, unlike = (original == as_it_is).all((1, 2)), (original != both).any((1, 2))
    measures.same += int((unmoved & unlike).sum())


def passes_to_compare(pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures whose passes are worth comparing: a few, spread evenly."""
    return _spread(pictures, PASSES_LOOKED_AT)


def judge(measures: Measures, figures: Mapping[str, float], evaluated: int, pictures: int) -> Sanity:
    """Which guards speak; `nobody_found` only where no other tells more.

    Args:
        figures: the ten figures by name.
        evaluated, pictures: how many pictures were evaluated, and how many the data set has.
    """
    share = measures.found / max(measures.annotated, 1)
    misranked = figures["AP"] < RANKING * figures["AR"] or figures["AR .5"] < RANKING * share
    guards = {
        "coverage": (
            evaluated < pictures,
            f"only {evaluated} of {pictures} pictures were evaluated; the figures are not those of the data set",
        ),
        "ranking": (
            measures.found >= FEWEST and share > RANKED_FROM and misranked,
            f"{share:.0%} of the annotated people are found, but AP is {figures['AP']:.3f} and AR {figures['AR']:.3f}: "
            "the scores do not rank them; check the rescoring weights, or compare with RESCORE.VALID False",
        ),
        "left_right": (
            measures.pairs >= FEWEST and measures.crossed > CROSSED * measures.pairs,
            f"left and right look exchanged in {measures.crossed} of {measures.pairs} pairs of joints; check the joint "
            "order of the network",
        ),
        "left_right_flipped": (
            measures.compared >= FEWEST and measures.exchanged > measures.compared / 2,
            "the flipped pass shows people mirrored, but with their left joints still called left; run the network "
            "on the flipped tensors again",
        ),
        "outside": (
            measures.joints >= 17 * FEWEST and measures.outside > OUTSIDE * measures.joints,
            f"{measures.outside} of {measures.joints} joints lie outside their pictures; check that dumps and "
            "annotation belong together",
        ),
        "mirrored": (
            measures.found_mirrored >= FEWEST and measures.found_mirrored > 2 * measures.found,
            f"{measures.found_mirrored} people are found in the mirrored pictures and {measures.found} in the "
            "pictures themselves: --dump_dir and --dump_dir_flip look exchanged",
        ),
        "same_passes": (
            measures.compared >= FEWEST and measures.same > measures.compared / 2,
            "both dumps show the same pictures, none of them flipped; run the flipped tensors for --dump_dir_flip",
        ),
    }
    warnings = {name: message for name, (speaks, message) in guards.items() if speaks}
    predicted = measures.joints // 17
    if not warnings.keys() - {"coverage"} and predicted >= measures.annotated >= FEWEST and share < NOBODY:
        warnings["nobody_found"] = (
            f"as many people are predicted as annotated, but {measures.found} of the {measures.annotated} are found: "
            "check that all files in --dump_dir and --dump_dir_flip are of that pass and of this data set, and that "
            "the weights are trained ones"
        )
    return Sanity(measures, warnings)
