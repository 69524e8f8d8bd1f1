"""How far the people of two runs agree: by AP, by images that changed, by pixels."""

from __future__ import annotations

import numpy as np
import pytest

from dekr_infer.evaluation.agreement import SHOWN, agreement, images_of, joint_distances
from dekr_infer.geometry import Size
from dekr_infer.structures import People

DATA = images_of([Size(100, 200), Size(100, 200)])


def people(*moves: float, scores: tuple[float, ...] = ()) -> People:
    """People beside each other, each moved to the right by so much."""
    rng = np.random.default_rng(0)
    shape = rng.uniform(0, 60, (17, 2))
    poses = np.zeros((len(moves), 17, 3), np.float32)
    for index, move in enumerate(moves):
        poses[index, :, :2] = shape + (100 * index + move, 0)
    return People(poses, np.array(scores or [0.9 - 0.1 * index for index in range(len(moves))], np.float32))


def test_the_same_people_agree():
    runs = [people(0, 0), people(0)]
    found = agreement(DATA, runs, runs)
    assert found.ap == pytest.approx(1) and (found.changed, found.people, found.pixels) == (0, (3, 3), 0.0)


def test_moved_people_cost_ap_and_change_their_image():
    found = agreement(DATA, [people(0, 0), people(0)], [people(0.5, 20), people(0.5)])
    assert found.changed == 1, "half a pixel is not counted"
    assert found.pixels == pytest.approx((0.5 + 20 + 0.5) / 3, rel=1e-5)
    assert 0.5 < found.ap < 1


def test_somebody_more_or_less_changes_an_image_either_way():
    less = [people(0), people(0)], [people(0), People.nobody(people().skeleton)]
    assert agreement(DATA, *less).changed == 1 and agreement(DATA, *reversed(less)).changed == 1
    assert agreement(DATA, *less).people == (2, 1)
    assert agreement(DATA, *less).pixels == 0, "only of those whom both found"
    assert agreement(DATA, *reversed(less)).ap == pytest.approx(1, abs=0.01), "the additional one ranks last"


def test_people_who_score_little_count_for_nothing_and_scores_may_cross_the_limit():
    low = np.nextafter(np.float32(SHOWN), np.float32(0))
    found = agreement(DATA, [people(0, 0, scores=(0.9, low))] * 2, [people(0, 30, scores=(0.9, low))] * 2)
    assert (found.changed, found.people, found.ap) == (0, (2, 2), pytest.approx(1))
    crossed = agreement(DATA, [people(0, 0, scores=(0.9, low))] * 2, [people(0, 0, scores=(0.9, SHOWN))] * 2)
    assert (crossed.changed, crossed.people) == (0, (2, 4))


def test_everybody_goes_to_the_nearest_whatever_the_order():
    first, second = people(0, 0), people(0, 3)
    swapped = People(second.poses[::-1], second.scores)
    assert joint_distances(first, swapped).mean(1) == pytest.approx([0, 3], abs=1e-4)
    assert np.isinf(joint_distances(first, People.nobody(first.skeleton))).all()


def test_nobody_at_all():
    nobody = People.nobody(people().skeleton)
    assert agreement(DATA, [nobody] * 2, [nobody] * 2) == (-1.0, 0, (0, 0), 0.0)
