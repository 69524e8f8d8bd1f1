"""Results and figures: [25] and [26] of the reference's facts."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dekr_infer.data.coco import load_data_set
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.coco_metrics import FIGURES, coco_figures, figures_table, person_category, results_of
from dekr_infer.geometry import Size
from tests.support.helpers import person, write_annotation

IDS = (1000, 999, 998)  # of the pictures a, b, c


def keypoints(seed: int, size: float = 150.0) -> np.ndarray:
    """(17, 3): a person of about this many pixels, all joints visible."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (17, 2)) * (size, 1.3 * size) + rng.uniform(10, 100, 2)
    return np.concatenate([points, np.full((17, 1), 2.0)], axis=1)


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
    first = results_of(1000, 1, poses(keypoints(1), keypoints(2)), np.array([0.9, 0.8]))
    return first + results_of(999, 1, poses(keypoints(3, 60)), np.array([0.7]))


def test_a_result_holds_joints_score_and_the_joints_box():
    pose = np.zeros((2, 17, 3), np.float32)
    pose[0, :, 0] = np.arange(17) * 2.5 - 7
    pose[0, :, 1] = 100 - np.arange(17)
    pose[0, :, 2] = np.linspace(-0.5, 1.5, 17)
    first, second = results_of(77, 3, pose, np.array([0.25, -0.5], np.float32))
    assert set(first) == {"image_id", "category_id", "keypoints", "score", "bbox"}
    assert (first["image_id"], first["category_id"], first["score"], second["score"]) == (77, 3, 0.25, -0.5)
    assert len(first["keypoints"]) == 51
    np.testing.assert_array_equal(np.reshape(first["keypoints"], (17, 3)), pose[0])
    assert first["bbox"] == [-7, 84, 40, 16]  # left, top, width, height
    assert second["bbox"] == [0, 0, 0, 0]
    assert json.loads(json.dumps(first)) == first
    assert results_of(77, 3, pose[:0], np.zeros(0)) == []


def test_the_truth_itself_scores_1(data):
    figures = coco_figures(data, perfect(), IDS)
    assert tuple(figures) == FIGURES
    assert figures == pytest.approx(dict.fromkeys(FIGURES, 1.0))


def test_figures_are_pycocotools_own_from_the_files(data, tmp_path, capsys):
    found = perfect()
    found[0]["keypoints"] = (poses(keypoints(1))[0] + np.float32([6, 4, 0])).ravel().tolist()
    found[2]["keypoints"] = (poses(keypoints(3, 60))[0] + np.float32([30, 30, 0])).ravel().tolist()
    figures = coco_figures(data, found, IDS)
    assert 0 < figures["AP (L)"] < 1 and figures["AP (M)"] == 0
    (tmp_path / "results.json").write_text(json.dumps(found))
    truth = COCO(str(data.annotation))
    judge = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "keypoints")
    for step in (judge.evaluate, judge.accumulate, judge.summarize):
        step()
    assert list(figures.values()) == judge.stats.tolist()


def test_finding_nobody_is_a_valid_result_with_ap_0(data):
    figures = coco_figures(data, [], IDS)
    assert figures["AP"] == figures["AR"] == figures["AP (L)"] == 0


def test_only_the_named_pictures_count(data):
    only_second = coco_figures(data, perfect()[2:], [999])
    assert only_second["AP"] == pytest.approx(1) and only_second["AP (L)"] == -1  # no large person is annotated there
    assert coco_figures(data, perfect()[2:], IDS)["AP"] < 0.5


def test_twenty_detections_a_picture_count(data):
    wrong = results_of(1000, 1, poses(*[keypoints(50 + n) + 1000 for n in range(20)]), np.full(20, 0.95))
    assert coco_figures(data, perfect() + wrong, IDS)["AR (L)"] == 0
    assert coco_figures(data, perfect() + wrong[:18], IDS)["AR (L)"] == 1


def test_evaluating_leaves_the_data_and_the_results_as_they_were(data):
    found = perfect()
    before = json.dumps([data.content, found])
    assert coco_figures(data, found, IDS) == coco_figures(data, found, IDS)
    assert json.dumps([data.content, found]) == before


def test_nothing_is_printed(data, capsys):
    coco_figures(data, perfect(), IDS)
    assert capsys.readouterr() == ("", "")


def changed(tmp_path, change):
    path = write_annotation(tmp_path, {"a.jpg": Size(400, 500)}, [person(1, 1000, keypoints(1))])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return load_data_set(tmp_path, "val2017")


def test_the_category_is_the_annotations_first(tmp_path):
    assert person_category(changed(tmp_path, lambda content: content["categories"][0].update(id=7))) == 7


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda content: content.update(categories=[]), "lists no category"),
        (lambda content: content.pop("categories"), "lists no category"),
        (lambda content: content["categories"][0].pop("id"), "lists no category"),
        (lambda content: content["categories"][0].update(keypoints=["a"] * 14), "have 14 joints"),
    ],
)
def test_an_annotation_without_a_category_of_17_joints_is_refused(tmp_path, change, part):
    with pytest.raises(DekrError, match=part):
        person_category(changed(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda content: content.pop("annotations"), "holds no annotations"),
        (lambda content: content["annotations"][0].pop("area"), "not a COCO keypoint annotation"),
        (lambda content: content["annotations"][0].update(keypoints=[1, 2, 3]), "not a COCO keypoint annotation"),
        (lambda content: content["annotations"][0].update(image_id=5), "not a COCO keypoint annotation"),
        (lambda content: content["annotations"].append(3), "not a COCO keypoint annotation"),
        (lambda content: content["annotations"][0].update(keypoints=None), "not a COCO keypoint annotation"),
    ],
)
def test_annotations_that_cannot_be_evaluated_are_refused(tmp_path, change, part):
    with pytest.raises(DekrError, match=part):
        coco_figures(changed(tmp_path, change), [], [1000])


def test_the_table_shows_ten_names_over_ten_values():
    names, values = figures_table({name: n / 8 for n, name in enumerate(FIGURES)}).split("\n")
    assert len(names) == len(values)
    assert [names[8 * n : 8 * n + 6].strip() for n in range(10)] == list(FIGURES)
    assert values.split() == [f"{n / 8:.3f}" for n in range(10)]
