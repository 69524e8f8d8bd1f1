"""Planted errors are found as their kind and as no other, and AP returns to 1 once they are mended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dekr_infer.data.coco import DataSet, load_data_set
from dekr_infer.evaluation.coco_metrics import coco_metrics
from dekr_infer.evaluation.error_analysis import JOINT_ERRORS, PERSON_ERRORS, ap_if_mended, find_errors
from dekr_infer.geometry import Size
from dekr_infer.skeleton import COCO_17
from tests.support.coco_files import person, write_annotation
from tests.support.planted import CROWD, FIGURES, IDS, figure, moved, perfect, result, write_people

LEFT, RIGHT = COCO_17.joints.index("left_wrist"), COCO_17.joints.index("right_wrist")
ANKLE = COCO_17.joints.index("left_ankle")
KNEES_AND_ANKLES = [joint for joint, name in enumerate(COCO_17.joints) if "knee" in name or "ankle" in name]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataSet:
    return write_people(tmp_path_factory.mktemp("planted"))


def jitter(results: list[dict[str, Any]]) -> None:
    moved(results[0], *KNEES_AND_ANKLES, by=25)  # about 0.19 of the person's size: similarities of 0.55


def inversion(results: list[dict[str, Any]]) -> None:
    moved(results[0], LEFT, RIGHT, to=FIGURES[0][[RIGHT, LEFT], :2])


def swap(results: list[dict[str, Any]]) -> None:
    moved(results[0], LEFT, to=FIGURES[1][LEFT, :2])


def swap_of_the_other_side(results: list[dict[str, Any]]) -> None:
    moved(results[0], LEFT, to=FIGURES[1][RIGHT, :2])


def miss(results: list[dict[str, Any]]) -> None:
    moved(results[0], LEFT, RIGHT, by=-300)


def wrong_order(results: list[dict[str, Any]]) -> None:
    """A detection whose joints are all good, but not perfect, scores more than the perfect one of the same person."""
    area = 0.6 * 120 * 240
    aside = 2 * np.array(COCO_17.sigmas) * np.sqrt(-2 * np.log(0.88) * area)
    results.append(result(FIGURES[0] + np.column_stack((aside, 0 * aside, 0 * aside)), 1000, 0.75))


def duplicate(results: list[dict[str, Any]]) -> None:
    results.append(result(FIGURES[2] + (5, 5, 0), 999, 0.85))


def background(results: list[dict[str, Any]]) -> None:
    results.append(result(figure(60, 420), 999, 0.95))


def missed(results: list[dict[str, Any]]) -> None:
    del results[0]


PLANTED = {
    "jitter": (jitter, 4),
    "inversion": (inversion, 2),
    "swap": (swap, 1),
    "swap of the other side": (swap_of_the_other_side, 1),
    "miss": (miss, 2),
    "score": (wrong_order, 1),
    "duplicate": (duplicate, 1),
    "background": (background, 1),
    "missed": (missed, 1),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_found_as_that_kind_and_no_other_and_mending_it_restores_ap(data, name):
    plant, times = PLANTED[name]
    kind = name.removesuffix(" of the other side")
    results = perfect()
    plant(results)
    found = find_errors(data, results, IDS)
    before = coco_metrics(data, results, IDS)["AP"]
    assert before < 0.999
    assert {name: count for name, count in found.counts().items() if count} == {kind: times}
    mended = ap_if_mended(data, results, IDS, found)
    assert mended.pop(kind) == pytest.approx(1)
    others = {other: ap for other, ap in mended.items() if not np.isclose(ap, before)}
    assert others.keys() <= ({"score"} if name in ("duplicate", "background") else set()), (
        "only ranking hides them, too"
    )


def test_perfect_results_have_no_error(data):
    found = find_errors(data, perfect(), IDS)
    assert set(found.counts().values()) == {0} and list(found.counts()) == [*JOINT_ERRORS, *PERSON_ERRORS]
    assert found.joint_counts()["nose"] == {"good": 3, **dict.fromkeys(JOINT_ERRORS, 0)}
    assert found.losses(data, perfect()) == {}
    assert list(ap_if_mended(data, perfect(), IDS, found).values()) == pytest.approx([1] * 8)


def test_detections_on_a_crowd_and_on_people_without_joints_are_left_out(data):
    results = [*perfect(), result(CROWD, 1000, 0.99), result(CROWD, 1000, 0.98), result(CROWD, 999, 0.99)]
    found = find_errors(data, results, IDS)
    assert set(found.counts().values()) == {0}
    assert found.nearest.keys() == {0, 1, 2}


def test_unlabelled_joints_are_of_no_kind_and_a_joint_without_partner_is_missed_and_not_inverted(tmp_path):
    truth = FIGURES[0].copy()
    truth[ANKLE, 2] = 0
    write_annotation(tmp_path, {"a.jpg": Size(700, 900)}, [person(1, 1000, truth)])
    one = load_data_set(tmp_path, "val2017")
    wrong = perfect()[:1]
    moved(wrong[0], ANKLE, 0, by=300)
    (match,) = find_errors(one, wrong, [1000]).matches
    assert match.joints[ANKLE] is None and match.joints[0] == "miss"


def test_the_oks_of_a_match_is_the_mean_of_its_joints_similarities(data):
    results = perfect()
    rng = np.random.default_rng(3)
    results[0]["keypoints"] = (
        (np.reshape(results[0]["keypoints"], (17, 3)) + rng.normal(0, 8, (17, 3))).ravel().tolist()
    )
    match = next(one for one in find_errors(data, results, IDS).matches if one.result == 0)
    entry = next(one for one in data.ground_truth() if one.id == 1)
    similarities = []
    for joint, (x, y, _) in enumerate(np.reshape(results[0]["keypoints"], (17, 3))):
        true_x, true_y, _ = entry.keypoints[3 * joint : 3 * joint + 3]
        spread = 2 * COCO_17.sigmas[joint]
        similarities.append(np.exp(-((x - true_x) ** 2 + (y - true_y) ** 2) / (2 * entry.area * spread**2)))
    assert match.oks == pytest.approx(np.mean(similarities))
    for kind, similarity in zip(match.joints, similarities, strict=True):
        assert (kind == "good") == (similarity >= 0.85) and (kind == "jitter") == (0.5 <= similarity < 0.85)
    assert {"good", "jitter"} <= set(match.joints)


def test_only_the_named_images_and_the_twenty_best_detections_count(data):
    far = [result(figure(60, 420) + n, 1000, 0.95) for n in range(19)]
    found = find_errors(data, [*perfect(), *far], [1000])
    assert found.counts() == dict.fromkeys((*JOINT_ERRORS, "score", "duplicate"), 0) | {"background": 19, "missed": 1}


def test_no_detections_at_all_is_three_people_missed(data):
    found = find_errors(data, [], IDS)
    assert found.missed == (3, 1, 2) and found.losses(data, []) == {999: 1, 1000: 2}
    assert ap_if_mended(data, [], IDS, found)["missed"] == -1


@pytest.mark.parametrize(("plant", "least", "most"), [(missed, 1, 1), (background, 1, 1), (jitter, 0.05, 0.15)])
def test_the_loss_of_an_image_is_in_people(data, plant: Callable[[list[dict[str, Any]]], None], least, most):
    results = perfect()
    plant(results)
    (loss,) = find_errors(data, results, IDS).losses(data, results).values()
    assert least <= loss <= most
