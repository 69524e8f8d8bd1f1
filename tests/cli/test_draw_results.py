"""The overlays command: one image each and a sheet, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dekr_infer.cli import draw_results
from dekr_infer.data.coco import annotation_path
from dekr_infer.geometry import Size
from dekr_infer.visualization.overlay import draw_poses
from tests.support.coco_files import person, write_annotation, write_images
from tests.support.commands import Ran, assert_refused, run_command
from tests.support.folders import names_in
from tests.support.images import colourful, encode

SIZES = {"sheet.png": Size(60, 80), "b.png": Size(50, 70), "c.png": Size(40, 40)}
KEYPOINTS = [float(value) for joint in range(17) for value in (3 * joint, 2 * joint + 5, 0.9)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A data set with a person in each of the first two images, and results that hold the same."""
    joints = np.reshape(KEYPOINTS, (17, 3)).round()
    write_annotation(tmp_path / "coco", SIZES, [person(1, 1000, joints), person(2, 999, joints)])
    write_images(tmp_path / "coco", {name: encode(colourful(size)) for name, size in SIZES.items()})
    write_results(tmp_path, [result(), result(image_id=999)])
    return tmp_path


def result(**changes: object) -> dict[str, object]:
    entry = {"image_id": 1000, "category_id": 1, "keypoints": KEYPOINTS, "score": 0.8, "bbox": [0, 0, 1, 1]}
    return entry | changes


def write_results(place: Path, entries: object) -> None:
    (place / "r.json").write_text(json.dumps(entries))


def draw(place: Path, *flags: object) -> Ran:
    words = ("--results", place / "r.json", "--output", place / "drawn", *flags, "DATASET.ROOT", place / "coco")
    return run_command(draw_results.main, *words)


def test_an_image_called_sheet_does_not_replace_the_contact_sheet(place):
    ran = draw(place)
    assert ran.code == 0 and ran.err == ""
    assert {path.name for path in (place / "drawn").iterdir()} == {"sheet.png", "b.png", "_sheet.png"}
    assert f"beside the annotated people: {place}/drawn/_sheet.png" in ran.out
    assert cv2.imread(str(place / "drawn" / "sheet.png")).shape == (60, 80, 3)
    assert (cv2.imread(str(place / "drawn" / "b.png")) != colourful(SIZES["b.png"])).any(), "somebody is drawn"


def test_the_people_of_the_results_are_drawn_and_only_those_above_the_least_score(place):
    moved = np.reshape(KEYPOINTS, (17, 3)) + (3, 4, 0)
    faint = result(keypoints=KEYPOINTS, score=0.3, image_id=999)
    write_results(place, [result(keypoints=moved.ravel().tolist(), image_id=999), faint])
    assert draw(place, "--min_score", 0.5).code == 0
    pixels = np.ascontiguousarray(colourful(SIZES["b.png"])[:, :, ::-1])
    wanted = draw_poses(pixels, moved[None].astype(np.float32), np.array([0.8], np.float32))
    drawn = cv2.imread(str(place / "drawn" / "b.png"))[:, :, ::-1]
    np.testing.assert_array_equal(drawn, wanted)
    assert (wanted != pixels).any()


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (("--image", 999, "--image", "c.png"), {"b", "c"}),
        (("--image", "b.png", "--image", 999), {"b"}),
        (("--choose", "worst", "--pictures", 1), {"b"}),
        (("--choose", "random", "--seed", 3, "--pictures", 1), {"b"}),
        (("--choose", "random", "--seed", 0, "--pictures", 1), {"sheet"}),
        (("--pictures", 1), {"sheet"}),
    ],
)
def test_images_are_chosen_by_name_as_the_worst_or_at_random(place, flags, wanted):
    right = np.reshape(KEYPOINTS, (17, 3)).round().ravel().tolist()
    write_results(place, [result(keypoints=right), result(image_id=999, keypoints=[30.0, 30.0, 0.9] * 17)])
    assert draw(place, *flags).code == 0
    contact_sheet = "_sheet" if "sheet" in wanted else "sheet"
    assert {path.stem for path in (place / "drawn").iterdir()} == {*wanted, contact_sheet}


def test_a_name_that_is_no_image_is_refused(place):
    ran = draw(place, "--image", "b.png", "--image", "d.png")
    assert_refused(ran, 1, "lists no image d.png; --image expects an id or file name")
    assert not (place / "drawn").exists()


def test_only_joints_above_the_least_score_are_drawn(place):
    pixels = colourful(SIZES["b.png"])
    for least, is_drawn in ((0.85, True), (0.95, False)):
        assert draw(place, "--image", 999, "--min_joint_score", least).code == 0
        assert (cv2.imread(str(place / "drawn" / "b.png")) != pixels).any() == is_drawn


def test_category_chooses_the_people(place):
    path = annotation_path(place / "coco", "val2017")
    content = json.loads(path.read_text())
    other = dict(content["categories"][0], id=2, name="dancer")
    content["categories"].append(other)
    content["annotations"].append(dict(content["annotations"][0], id=99, category_id=2))
    path.write_text(json.dumps(content))
    assert_refused(draw(place), 1, "dancer", "--category")
    assert draw(place, "--category", "dancer").code == 0


def test_an_image_of_another_size_than_annotated_is_refused(place):
    write_images(place / "coco", {name: encode(colourful(Size(61, 80))) for name in SIZES})
    assert_refused(draw(place), 1, "sheet.png", "is 61x80 pixels, the annotation says 60x80")


def test_otherwise_the_sheet_has_its_usual_name(place):
    write_results(place, [result(image_id=999)])
    assert draw(place).code == 0
    assert {path.name for path in (place / "drawn").iterdir()} == {"b.png", "sheet.png"}


def test_results_with_nobody_show_the_first_images_annotated_or_not(place):
    write_results(place, [])
    path = annotation_path(place / "coco", "val2017")
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key == "images"}))
    assert draw(place, "--pictures", 1).code == 0
    assert names_in(place / "drawn") == ["_sheet.png", "sheet.png"]
    drawn = cv2.imread(str(place / "drawn" / "sheet.png"))
    np.testing.assert_array_equal(drawn, colourful(SIZES["sheet.png"]))


def test_results_of_another_data_set_are_refused(place):
    write_results(place, [result(image_id=7)])
    assert_refused(
        draw(place), 1, "r.json: result 1 is of image 7, which", "set DATASET.ROOT to the data set of these results"
    )
    assert not (place / "drawn").exists()


@pytest.mark.parametrize(
    "entry",
    [
        [1000],
        "text",
        {key: value for key, value in result().items() if key != "image_id"},
        result(image_id="1000"),
        result(image_id=[1000]),
        result(keypoints=KEYPOINTS[:-1]),
        result(keypoints=["1"] * 51),
        result(keypoints=[float("nan")] * 51),
        result(keypoints=[10**400] * 51),
        result(score=None),
        result(score="0.8"),
        result(score=float("nan")),
        result(score=10**400),
    ],
)
def test_an_entry_that_is_no_result_is_one_line(place, entry):
    write_results(place, [result(), entry])
    assert_refused(draw(place), 1, "r.json: ", "write it with DEKR_postprocess.py")


def test_entries_nested_without_end_are_one_line(place):
    for depth in (900, 100_000):  # the first can be read
        (place / "r.json").write_text("[" * depth + "]" * depth)
        assert_refused(draw(place), 1, "r.json: not a", "write it")


def test_a_file_that_is_no_list_is_one_line(place):
    write_results(place, {"keypoints": []})
    assert_refused(draw(place), 1, "r.json: not a COCO keypoint result file", "write it with")


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda content: content.update(annotations=None), "annotations: Expected array, got null"),
        (lambda content: content["annotations"].append(7), "annotation 3: Expected object, got int"),
        (lambda content: content["annotations"][1].pop("image_id"), "missing required field image_id"),
        (
            lambda content: content["annotations"][1].update(keypoints=["1"] * 51),
            "keypoints[0]: Expected float, got str",
        ),
        (lambda content: content.pop("categories"), "lists no category"),
    ],
)
def test_spoilt_annotations_are_one_line(place, spoil: Callable[[dict[str, Any]], object], part):
    path = annotation_path(place / "coco", "val2017")
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    assert_refused(draw(place), 1, path.name, part, "; ")
