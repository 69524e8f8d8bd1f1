"""Two runs: AP of resampled images, its interval, and what moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dekr_infer.data.coco import DataSet, load_data_set
from dekr_infer.evaluation.coco_metrics import METRICS, coco_metrics
from dekr_infer.evaluation.comparison import Resampling, bootstrap, cause_rows, comparison_content
from dekr_infer.geometry import Size
from tests.support.coco_files import keypoints, person, write_annotation
from tests.support.planted import moved, perfect, result, write_people

IMAGES = 12


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> tuple[DataSet, list[dict[str, Any]]]:
    """Twelve images with two people each and a crowd in some; detections of all qualities, equal scores among them."""
    root, rng = tmp_path_factory.mktemp("noisy"), np.random.default_rng(5)
    people, results = [], []
    for number in range(IMAGES):
        for seed in (number, 100 + number):
            truth = keypoints(seed)
            crowd = {"iscrowd": 1} if number % 4 == 0 and seed >= 100 else {}
            people.append(person(len(people) + 1, 1000 - number, truth) | crowd)
            for _ in range(rng.integers(0, 3)):
                pose = truth + np.column_stack((rng.normal(0, rng.choice([2, 9, 25]), (17, 2)), np.zeros(17)))
                results.append(result(pose, 1000 - number, float(rng.integers(1, 9) / 10)))
    write_annotation(root, {f"{number}.jpg": Size(400, 500) for number in range(IMAGES)}, people)
    return load_data_set(root, "val2017"), results


def ids_of(data: DataSet) -> list[int]:
    return [image.id for image in data.images]


def test_the_resampled_ap_of_every_image_once_is_pycocotools(noisy):
    data, results = noisy
    wanted = coco_metrics(data, results, ids_of(data))["AP"]
    assert 0.1 < wanted < 0.9
    assert Resampling(data, results, ids_of(data)).ap(np.ones(IMAGES)) == pytest.approx(wanted, abs=1e-12)


def test_the_ap_of_some_images_is_that_of_an_evaluation_of_them_alone(noisy):
    data, results = noisy
    ids, rng = ids_of(data), np.random.default_rng(0)
    whole = Resampling(data, results, ids)
    for _ in range(5):
        weights = rng.integers(0, 2, IMAGES).astype(float)
        some = [number for number, weight in zip(ids, weights, strict=True) if weight]
        own = [entry for entry in results if entry["image_id"] in some]
        assert whole.ap(weights) == pytest.approx(coco_metrics(data, own, some)["AP"], abs=1e-12)


def test_an_image_counts_as_often_as_its_weight(tmp_path):
    data, results = write_people(tmp_path), perfect()[:2]  # nobody is found in the second image
    resampling = Resampling(data, results, ids_of(data))
    assert resampling.ap(np.array([1.0, 0])) == pytest.approx(1)
    assert resampling.ap(np.array([0, 1.0])) == 0
    # 2 of 3 people, then 2 of 4: the recalls 0 to 0.66 and 0 to 0.5 have precision 1
    assert [resampling.ap(np.array(weights)) for weights in ((1.0, 1.0), (1.0, 2.0))] == pytest.approx(
        [67 / 101, 51 / 101]
    )
    assert resampling.ap(np.zeros(2)) == -1
    assert Resampling(data, [], ids_of(data)).ap(np.ones(2)) == 0


def test_the_interval_of_a_run_and_itself_is_zero_and_that_of_a_better_one_is_above(noisy):
    data, results = noisy
    same = bootstrap(data, (results, results), ids_of(data), 50)
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    perfect_results = [
        result(np.reshape(entry.keypoints, (17, 3)), entry.image_id, 0.9) for entry in data.ground_truth()
    ]
    better = bootstrap(data, (results, perfect_results), ids_of(data), 50)
    assert 0 < better["low"] < better["difference"] < better["high"] <= 1
    assert better == bootstrap(data, (results, perfect_results), ids_of(data), 50)
    worse = bootstrap(data, (perfect_results, results), ids_of(data), 50)
    assert worse["high"] == pytest.approx(-better["low"])


def test_a_change_that_helps_one_image_and_hurts_another_is_not_certain(tmp_path):
    data, first, second = write_people(tmp_path), perfect(), perfect()
    moved(first[2], *range(5, 17), by=400)
    moved(second[0], *range(5, 17), by=400)
    found = bootstrap(data, (first, second), ids_of(data), 200)
    assert found["low"] < 0 < found["high"]


def test_only_what_moved_is_listed(tmp_path):
    data, second = write_people(tmp_path), perfect()
    moved(second[0], 9, by=-300)
    content = comparison_content(data, (perfect(), second), ids_of(data), resamples=20)
    assert [row["metric"] for row in content["metrics"]] == list(METRICS)
    assert content["metrics"][0]["difference"] == content["bootstrap"]["difference"] < 0
    assert [(entry["id"], entry["first"]) for entry in content["moved"]] == [(1000, 0)]
    assert content["moved"][0]["second"] == pytest.approx(1 / 17) and content["images_moved"] == 1
    assert content["joints"][0] == {"joint": "left_wrist", "first": 1, "second": 2 / 3, "difference": 2 / 3 - 1}
    assert all(row["difference"] == 0 for row in content["joints"][1:])
    assert {row["kind"]: (row["first"], row["second"]) for row in content["kinds"]}["miss"] == (0, 1)


def test_causes_are_what_differs_between_two_metrics_files():
    first = {"settings": {"flip": True, "NMS_THRE": 0.05}, "sha256": {"results": "a", "graphs": ["b"]}, "seconds": 1}
    second = {"settings": {"flip": False, "NMS_THRE": 0.05}, "sha256": {"results": "c"}, "seconds": 2}
    assert cause_rows(first, second) == [
        {"name": "settings: flip", "first": "True", "second": "False"},
        {"name": "sha256: graphs", "first": "b", "second": "nothing"},
    ]
