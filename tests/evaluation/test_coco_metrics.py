"""Results and metrics: docs/reference.md [25] and [26]."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dekr_infer.data.coco import load_data_set
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.coco_metrics import CROWD_METRICS, METRICS, average_precision, coco_metrics, metrics_table
from dekr_infer.geometry import Size
from dekr_infer.skeleton import CROWDPOSE_14
from dekr_infer.structures import People
from tests.support.coco_files import keypoints, person, write_annotation

IDS = (1000, 999, 998)  # of the images a, b, c


def poses(*figures: np.ndarray) -> np.ndarray:
    found = np.array(figures, np.float32)
    found[:, :, 2] = 0.5
    return found


@pytest.fixture
def data(tmp_path):
    """Pictures a (two people), b (a middle-sized one) and c (nobody)."""
    people = [person(1, 1000, keypoints(1)), person(2, 1000, keypoints(2)), person(3, 999, keypoints(3, 60))]
    write_annotation(tmp_path, {f"{name}.jpg": Size(400, 500) for name in "abc"}, people)
    return load_data_set(tmp_path, "val2017")


def perfect() -> list[dict]:
    first = People(poses(keypoints(1), keypoints(2)), np.array([0.9, 0.8])).to_coco(1000, 1)
    return first + People(poses(keypoints(3, 60)), np.array([0.7])).to_coco(999, 1)


def test_a_result_holds_joints_score_and_the_joints_box():
    pose = np.zeros((2, 17, 3), np.float32)
    pose[0, :, 0] = np.arange(17) * 2.5 - 7
    pose[0, :, 1] = 100 - np.arange(17)
    pose[0, :, 2] = np.linspace(-0.5, 1.5, 17)
    first, second = People(pose, np.array([0.25, -0.5], np.float32)).to_coco(77, 3)
    assert set(first) == {"image_id", "category_id", "keypoints", "score", "bbox"}
    assert (first["image_id"], first["category_id"], first["score"], second["score"]) == (77, 3, 0.25, -0.5)
    assert len(first["keypoints"]) == 51
    np.testing.assert_array_equal(np.reshape(first["keypoints"], (17, 3)), pose[0])
    assert first["bbox"] == [-7, 84, 40, 16]  # left, top, width, height
    assert second["bbox"] == [0, 0, 0, 0]
    assert json.loads(json.dumps(first)) == first
    assert People(pose[:0], np.zeros(0)).to_coco(77, 3) == []


def test_the_truth_itself_scores_1(data):
    figures = coco_metrics(data, perfect(), IDS)
    assert tuple(figures) == METRICS
    assert figures == pytest.approx(dict.fromkeys(METRICS, 1.0))


def test_metrics_are_pycocotools_own_from_the_files(data, tmp_path, capsys):
    found = perfect()
    found[0]["keypoints"] = (poses(keypoints(1))[0] + np.float32([6, 4, 0])).ravel().tolist()
    found[2]["keypoints"] = (poses(keypoints(3, 60))[0] + np.float32([30, 30, 0])).ravel().tolist()
    figures = coco_metrics(data, found, IDS)
    assert 0 < figures["AP (L)"] < 1 and figures["AP (M)"] == 0
    (tmp_path / "results.json").write_text(json.dumps(found))
    truth = COCO(str(data.annotation))
    judge = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "keypoints")
    for step in (judge.evaluate, judge.accumulate, judge.summarize):
        step()
    assert list(figures.values()) == judge.stats.tolist()


def test_ap_alone_is_that_of_the_ten(data):
    found = perfect()
    found[0]["keypoints"] = (poses(keypoints(1))[0] + np.float32([6, 4, 0])).ravel().tolist()
    assert average_precision(data, found, IDS) == coco_metrics(data, found, IDS)["AP"] < 1
    assert average_precision(data, [], IDS) == 0 and average_precision(data, [], [998]) == -1


def test_finding_nobody_is_a_valid_result_with_ap_0(data):
    figures = coco_metrics(data, [], IDS)
    assert figures["AP"] == figures["AR"] == figures["AP (L)"] == 0


def test_only_the_named_images_count(data):
    only_second = coco_metrics(data, perfect()[2:], [999])
    assert only_second["AP"] == pytest.approx(1) and only_second["AP (L)"] == -1  # no large person is annotated there
    assert coco_metrics(data, perfect()[2:], IDS)["AP"] < 0.5


def test_twenty_detections_an_image_count(data):
    wrong = People(poses(*[keypoints(50 + n) + 1000 for n in range(20)]), np.full(20, 0.95)).to_coco(1000, 1)
    assert coco_metrics(data, perfect() + wrong, IDS)["AR (L)"] == 0
    assert coco_metrics(data, perfect() + wrong[:18], IDS)["AR (L)"] == 1


def test_evaluating_leaves_the_data_and_the_results_as_they_were(data):
    found = perfect()
    before = json.dumps(found), data.ground_truth()
    assert coco_metrics(data, found, IDS) == coco_metrics(data, found, IDS)
    assert (json.dumps(found), data.ground_truth()) == before


def test_nothing_is_printed(data, capsys):
    coco_metrics(data, perfect(), IDS)
    assert capsys.readouterr() == ("", "")


def test_a_data_set_without_annotations_cannot_be_evaluated(tmp_path):
    path = write_annotation(tmp_path, {"a.jpg": Size(400, 500)})
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    with pytest.raises(DekrError, match="has no annotations; the ten metrics need them"):
        coco_metrics(load_data_set(tmp_path, "val2017"), [], [1000])


def test_the_table_shows_ten_names_over_ten_values():
    names, values = metrics_table({name: n / 8 for n, name in enumerate(METRICS)}).split("\n")
    assert len(names) == len(values)
    assert [names[8 * n : 8 * n + 6].strip() for n in range(10)] == list(METRICS)
    assert values.split() == [f"{n / 8:.3f}" for n in range(10)]


# -- CrowdPose's protocol ----------------------------------------------------------------------------------------------


def crowd(root, indices: dict[str, float], shifts: dict[str, float | None]):
    """Write one person an image, in CrowdPose's layout; return the data set, and people found `shift` pixels beside."""
    rng = np.random.default_rng(0)
    images, people, found = [], [], []
    for number, (name, index) in enumerate(indices.items(), 1):
        images.append({"id": number, "file_name": f"{name}.jpg", "height": 400, "width": 500, "crowdIndex": index})
        joints = np.concatenate((rng.uniform(50, 150, (14, 2)), np.full((14, 1), 2.0)), axis=1)
        entry = {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "num_keypoints": 14}
        people.append(entry | {"keypoints": joints.ravel().tolist(), "bbox": [50, 50, 100, 100]})
        if (shift := shifts[name]) is not None:
            moved = joints + (shift, 0, 0)
            found += People(moved[None].astype(np.float32), np.array([0.9], np.float32)).to_coco(number, 1)
    path = root / "json" / "crowdpose_test.json"
    path.parent.mkdir()
    names = {"id": 1, "name": "person", "keypoints": list(CROWDPOSE_14.joints)}
    path.write_text(json.dumps({"images": images, "annotations": people, "categories": [names]}))
    return load_data_set(root, "test", skeleton=CROWDPOSE_14), found


def test_crowdposes_metrics_are_by_crowd_index_and_its_edges_belong_to_the_level_above(tmp_path):
    indices = {"a": 0.0, "b": 0.1999, "c": 0.2, "d": 0.7999, "e": 0.8, "f": 1.7}
    data, found = crowd(tmp_path, indices, {"a": 0, "b": 0, "c": None, "d": None, "e": 0, "f": None})
    figures = coco_metrics(data, found, range(1, 7))
    assert tuple(figures) == CROWD_METRICS
    assert [figures[f"AP {level}"] for level in ("easy", "medium", "hard")] == pytest.approx([1, 0, 51 / 101])
    assert figures["AP"] == pytest.approx(51 / 101)  # recall 1/2: precision 1 at 0, 0.01 .. 0.50
    assert figures["AR"] == figures["AR .5"] == figures["AR .75"] == pytest.approx(1 / 2)
    assert coco_metrics(data, found, [1, 2])["AP hard"] == -1
    assert "AP medium" in metrics_table(figures)


@pytest.mark.parametrize("shift", [2.0, 8.0, 12.0])
def test_a_persons_size_is_that_of_53_percent_of_the_box(tmp_path, shift):
    data, found = crowd(tmp_path, {"a": 0.5}, {"a": shift})
    spread = 2 * np.array(CROWDPOSE_14.sigmas)
    oks = np.exp(-(shift**2) / spread**2 / (0.53 * 100 * 100) / 2).mean()
    reached = sum(oks >= threshold for threshold in np.linspace(0.5, 0.95, 10))
    assert 0 < reached <= 10
    figures = coco_metrics(data, found, [1])
    assert [figures["AP"], figures["AR"]] == pytest.approx([reached / 10] * 2)
    assert figures["AP .75"] == pytest.approx(float(oks >= 0.75))
