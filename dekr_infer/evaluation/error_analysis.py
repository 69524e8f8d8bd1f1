"""The errors behind an AP: what is wrong with each detection and each joint, and the AP if one kind were mended.

The kinds are those of Ronchi and Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation" (2017),
written from the paper. A joint's similarity is exp(-d^2 / (2 s^2 k^2)) with d its distance in pixels, s^2 the person's
area and k twice the joint's sigma, so the mean over a person's labelled joints is COCO's OKS. The paper's own code has
other sigmas.

Detections are matched with annotated people as COCO does it, from OKS `NEAR` on; those on crowds and on people without
labelled joints are left out, as the evaluation leaves them out. A joint of a matched detection is good or one of
`JOINT_ERRORS`; a detection or an annotated person as a whole may be one of `PERSON_ERRORS`. The paper counts duplicates
as background.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dekr_infer.data.coco import DataSet, PersonEntry
from dekr_infer.evaluation.coco_metrics import average_precision, coco_evaluation
from dekr_infer.skeleton import COCO_17, Skeleton

JOINT_ERRORS = {
    "jitter": "near its place, but not on it",
    "inversion": "on the same person's joint of the other side",
    "swap": "on a joint of somebody else",
    "miss": "on no annotated joint",
}
PERSON_ERRORS = {
    "score": "people for whom a better detection than the best-scored one exists; mended: ranked by OKS",
    "duplicate": "further detections of people who are found already",
    "background": "detections where nobody is annotated",
    "missed": "annotated people whom no detection is near",
}
NEAR = 0.1  # OKS from which a detection belongs to a person; the paper's
LEFT_OUT = 0.5  # OKS from which a detection belongs to a crowd, the least of COCO's thresholds
JITTER, GOOD = 0.5, 0.85  # similarity of a joint from which it is near its place, and on it; the paper's
MOST = 20  # detections of an image that COCO evaluates


@dataclass(frozen=True)
class Match:
    """A detection of an annotated person.

    Args:
        image_id: of the annotation file.
        result: index of the detection in the results.
        person: id of the annotation.
        oks: of the two.
        joints: per joint "good" or one of `JOINT_ERRORS`; `None` where the joint is not labelled.
        better: index of a detection that nobody else needs and that fits this person better, in spite of its score.
    """

    image_id: int
    result: int
    person: int
    oks: float
    joints: tuple[str | None, ...]
    better: int | None = None


@dataclass(frozen=True)
class Errors:
    """The errors of some results.

    Args:
        matches: one for each person found.
        duplicates, background: indices of detections.
        missed: annotation ids of people.
        nearest: per index of a detection that counts, its largest OKS with anybody.
    """

    matches: tuple[Match, ...]
    duplicates: tuple[int, ...]
    background: tuple[int, ...]
    missed: tuple[int, ...]
    nearest: dict[int, float]

    def joint_counts(self, skeleton: Skeleton = COCO_17) -> dict[str, dict[str, int]]:
        """Return, by name of the joint, how many are good and how many have each error."""
        counts = {name: dict.fromkeys(("good", *JOINT_ERRORS), 0) for name in skeleton.joints}
        for match in self.matches:
            for name, kind in zip(skeleton.joints, match.joints, strict=True):
                if kind is not None:
                    counts[name][kind] += 1
        return counts

    def counts(self) -> dict[str, int]:
        """Return how often each kind of error occurs."""
        joints = Counter(kind for match in self.matches for kind in match.joints)
        return {kind: joints[kind] for kind in JOINT_ERRORS} | {
            "score": sum(match.better is not None for match in self.matches),
            "duplicate": len(self.duplicates),
            "background": len(self.background),
            "missed": len(self.missed),
        }

    def losses(self, data: DataSet, results: Sequence[Mapping[str, Any]]) -> dict[int, float]:
        """Return how much is wrong in each image in which something is, in people.

        A missed person counts 1, a person found 1 - OKS, and a false detection the share of the people found that
        score less.
        """
        lost: dict[int, float] = defaultdict(float)
        image_of = {person.id: person.image_id for person in data.ground_truth()}
        for person in self.missed:
            lost[image_of[person]] += 1
        for match in self.matches:
            lost[match.image_id] += 1 - match.oks
        scores = np.sort([results[match.result]["score"] for match in self.matches])
        for index in (*self.duplicates, *self.background):
            above = np.searchsorted(scores, results[index]["score"]) / max(len(scores), 1) if len(scores) else 1
            lost[results[index]["image_id"]] += float(above)
        return {image: loss for image, loss in lost.items() if loss > 0}


def find_errors(
    data: DataSet, results: Sequence[Mapping[str, Any]], image_ids: Sequence[int], skeleton: Skeleton = COCO_17
) -> Errors:
    """Find the errors of keypoint results.

    Args:
        data: the ground truth.
        results: entries of COCO's result file.
        image_ids: the images that count.
        skeleton: of the people.
    Raises:
        DekrError: the data set has no annotations.
    """
    evaluation = coco_evaluation(data, results, image_ids, {})
    people: dict[int, list[PersonEntry]] = defaultdict(list)
    for person in data.ground_truth():
        people[person.image_id].append(person)
    found: dict[int, list[int]] = defaultdict(list)
    for index, result in enumerate(results):
        found[result["image_id"]].append(index)
    category = evaluation.params.catIds[0]
    matches: list[Match] = []
    duplicates: list[int] = []
    background: list[int] = []
    missed: list[int] = []
    nearest: dict[int, float] = {}
    for image_id in sorted(image_ids):
        order = np.argsort([-results[index]["score"] for index in found[image_id]], kind="stable")[:MOST]
        own, truth = [found[image_id][place] for place in order], people[image_id]
        similar = np.reshape(evaluation.ious[image_id, category], (len(own), len(truth)))
        counts = np.array([not person.iscrowd and bool(person.num_keypoints) for person in truth], bool)
        left_out = similar[:, ~counts].max(1, initial=0) >= LEFT_OUT
        similar, truth = similar[:, counts], [person for person in truth if not person.iscrowd and person.num_keypoints]
        taken = _match(similar)  # the detection of each person
        missed += [person.id for person, row in zip(truth, taken, strict=True) if row is None]
        spare = [row for row in range(len(own)) if row not in taken and not left_out[row]]
        best, most = similar.argmax(1) if truth else None, similar.max(1, initial=0)
        nearest |= {own[row]: float(most[row]) for row in range(len(own)) if row in taken or row in spare}
        better: dict[int, int] = {}
        for row in spare:
            column = int(best[row]) if best is not None else -1
            rival = taken[column] if truth else None
            if rival is not None and similar[row, column] > similar[better.get(column, rival), column]:
                better[column] = row
        for row in spare:
            if row not in better.values():
                (duplicates if most[row] >= NEAR else background).append(own[row])
        poses = np.array([results[index]["keypoints"] for index in own], float).reshape(-1, len(skeleton), 3)
        for column, matched in enumerate(taken):
            if matched is not None:
                kinds = _joint_kinds(poses[matched, :, :2], column, truth, skeleton)
                extra = own[better[column]] if column in better else None
                oks = float(similar[matched, column])
                matches.append(Match(image_id, own[matched], truth[column].id, oks, kinds, extra))
    return Errors(tuple(matches), tuple(duplicates), tuple(background), tuple(missed), nearest)


def _match(similar: np.ndarray) -> list[int | None]:
    """Return the detection of each person: the best-scored one first takes the person that it fits best.

    Args:
        similar: (detections, people), OKS; the best-scored detection first.
    """
    taken: list[int | None] = [None] * similar.shape[1]
    free = similar.copy()
    for row, values in enumerate(free):
        if values.max(initial=0) >= NEAR:
            column = int(values.argmax())
            taken[column] = row
            free[:, column] = -1
    return taken


def _joint_kinds(
    pose: np.ndarray, own: int, truth: Sequence[PersonEntry], skeleton: Skeleton
) -> tuple[str | None, ...]:
    """Return the kind of each joint of the detection of a person.

    Args:
        pose: (J, 2), x and y in image pixels.
        own: index of the person.
        truth: the annotated people of the image.
        skeleton: of the people.
    """
    joints = np.array([person.keypoints for person in truth], float).reshape(-1, len(skeleton), 3)
    areas = np.array([person.area for person in truth])[:, None] + np.spacing(1)

    def similarity(others: np.ndarray) -> np.ndarray:
        """Return the similarity (people, J) of each joint to one joint of each person; 0 where it is not labelled."""
        squares = ((pose - others[:, :, :2]) ** 2).sum(2)
        tolerance = 2 * areas * (2 * np.array(skeleton.sigmas)) ** 2
        return np.where(others[:, :, 2] > 0, np.exp(-squares / tolerance), 0)

    same, opposite = similarity(joints), similarity(joints[:, list(skeleton.partners)])
    others = np.delete(np.maximum(same, opposite), own, axis=0).max(0, initial=0)
    return tuple(
        None
        if joints[own, joint, 2] <= 0
        else "good"
        if same[own, joint] >= GOOD
        else "jitter"
        if same[own, joint] >= JITTER
        else "inversion"
        if opposite[own, joint] >= max(JITTER, others[joint])
        else "swap"
        if others[joint] >= JITTER
        else "miss"
        for joint in range(len(skeleton))
    )


def ap_if_mended(
    data: DataSet,
    results: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
    errors: Errors,
    skeleton: Skeleton = COCO_17,
) -> dict[str, float]:
    """Return the AP by kind of error, with all errors of that kind mended and no others.

    Joints move to their annotated places, scores become the OKS, false detections are removed, and missed people are
    not counted.

    Args:
        data: the ground truth.
        results: entries of COCO's result file.
        image_ids: the images that count.
        errors: of these results, from `find_errors`.
        skeleton: of the people.
    Returns:
        AP by kind; -1 where nobody is left.
    """

    def ap(mended: Sequence[Mapping[str, Any]], truth: DataSet = data) -> float:
        return average_precision(truth, mended, image_ids)

    people = {person.id: np.reshape(person.keypoints, (-1, 3)) for person in data.ground_truth()}
    counts, unmended = errors.counts(), ap(results)
    after: dict[str, float] = {}
    for kind in JOINT_ERRORS:
        mended = list(results)
        for match in errors.matches:
            wrong = np.array([found == kind for found in match.joints])
            if wrong.any():
                pose = np.array(mended[match.result]["keypoints"], float).reshape(len(skeleton), 3)
                pose[wrong, :2] = people[match.person][wrong, :2]
                mended[match.result] = {**mended[match.result], "keypoints": pose.ravel().tolist()}
        after[kind] = ap(mended) if counts[kind] else unmended
    best = {
        match.result if match.better is None else match.better: match.oks
        if match.better is None
        else errors.nearest[match.better]
        for match in errors.matches
    }
    after["score"] = ap([{**result, "score": best.get(index, -1.0)} for index, result in enumerate(results)])
    for kind, wrong_ones in (("duplicate", errors.duplicates), ("background", errors.background)):
        gone = set(wrong_ones)
        kept = [result for index, result in enumerate(results) if index not in gone]
        after[kind] = ap(kept) if gone else unmended
    missed = set(errors.missed)
    found = tuple(person for person in data.ground_truth() if person.id not in missed)
    after["missed"] = ap(results, replace(data, people=found)) if missed else unmended
    return after
