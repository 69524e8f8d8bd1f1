"""The drawn people: labels are at the drawn joints, left is left, and the data set is valid."""

import io
import json
import subprocess
import sys
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest

from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.skeleton import COCO_17
from scripts.demo import people
from scripts.demo.drawing.appearance import sample_appearance
from scripts.demo.drawing.body import Body, Pose, assemble, sample_build, sample_pose, view
from scripts.demo.drawing.drawn_person import HIDDEN, PARTS_PER_PERSON, SEEN, DrawnPerson, joint_points
from scripts.demo.drawing.face import cap_outline
from scripts.demo.drawing.painter import Painter
from scripts.demo.drawing.scene import _label, draw_scene

J = {name: index for index, name in enumerate(COCO_17.joints)}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """The folder of a data set of twelve images."""
    folder = tmp_path_factory.mktemp("demo")
    people.write_data_set(folder, "val2017", images=12, seed=5)
    return folder


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng([77, k]), Size(360 + k, 500 - 3 * k)) for k in range(20)]


def upright(facing_degrees: float, seed: int = 0) -> Body:
    """A person standing upright, arms slightly spread."""
    legs, arms = np.zeros((2, 4)), np.tile([0.0, 0.25, 0.1, 0.0], (2, 1))
    pose = Pose(legs, arms, bend=0.0, side_bend=0.0, turn=0.0, gaze=np.zeros(3), seated=False)
    return assemble(sample_build(np.random.default_rng(seed)), pose, view(np.deg2rad(facing_degrees), 0.0, 0.0))


def painted(body: Body, seed: int = 0) -> tuple[DrawnPerson, Painter, np.ndarray]:
    """The body alone in an image: person, painter, visibility."""
    person = DrawnPerson(body, sample_appearance(np.random.default_rng(seed)), np.array([300.0, 330.0]), 300.0)
    painter = Painter(np.full((700, 600, 3), 128, np.uint8))
    return person, painter, person.paint(painter, 1)


def test_every_joint_is_on_the_silhouette():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        facing = view(rng.uniform(-np.pi, np.pi), rng.uniform(0, 0.3), rng.normal(0, 0.5))
        person, painter, _ = painted(assemble(sample_build(rng), sample_pose(rng), facing), seed)
        x, y = np.rint(person.joints()).astype(int).T
        off = [COCO_17.joints[j] for j in np.flatnonzero(painter.owners[y, x] // PARTS_PER_PERSON != 1)]
        assert not off, f"seed {seed}: {off} outside the silhouette"
        changed = (painter.image != 128).any(2)
        assert changed[y, x].all()


@pytest.mark.parametrize(("facing", "sign"), [(0, 1), (40, 1), (180, -1), (140, -1)])
def test_left_is_at_the_larger_x_only_for_a_person_facing_the_viewer(facing, sign):
    points = joint_points(upright(facing))
    for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"):
        assert sign * (points[J[f"left_{part}"], 0] - points[J[f"right_{part}"], 0]) > 0, part


def test_mirrored_people_have_flipped_joints():
    ahead, behind = joint_points(upright(30)), joint_points(upright(-30))
    np.testing.assert_allclose(ahead[list(COCO_17.partners)] * (-1, 1, 1), behind, atol=1e-9)


def test_a_person_facing_the_images_right_shows_the_right_side():
    person, _, seen = painted(upright(90), seed=3)
    x = person.joints()[:, 0]
    assert x[J["nose"]] > x[J["left_ear"]] + 10 and x[J["nose"]] > x[J["right_ear"]] + 10
    for part in ("eye", "shoulder", "elbow", "knee"):
        assert (seen[J[f"left_{part}"]], seen[J[f"right_{part}"]]) == (HIDDEN, SEEN), part


def test_faces_are_visible_from_the_front_only():
    assert (painted(upright(0))[2][:3] == SEEN).all()
    assert (painted(upright(180))[2][:3] == HIDDEN).all()


def test_limbs_keep_their_lengths_and_frames_are_rotations():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        body = assemble(sample_build(rng), sample_pose(rng), view(rng.uniform(-3, 3), 0.2, 0.1))
        build = body.build
        for a, b, length in (
            (body.shoulder, body.elbow, build.upper_arm),
            (body.elbow, body.wrist, build.forearm),
            (body.hip, body.knee, build.thigh),
            (body.knee, body.ankle, build.shin),
        ):
            np.testing.assert_allclose(np.linalg.norm(a - b, axis=1), length)
        for frame in (body.pelvis, body.chest, body.head):
            np.testing.assert_allclose(frame.T @ frame, np.eye(3), atol=1e-12)
            assert np.linalg.det(frame) == pytest.approx(1)


@pytest.mark.parametrize("turn", [0, 60, 100, 130, 150, 175])
def test_a_cap_outline_encloses_its_visible_points(turn):
    rng = np.random.default_rng(turn)
    axes = view(0.3, 0.1, 0.2) @ np.diag([30.0, 50.0, 40.0])
    direction, angle = np.array([np.sin(np.deg2rad(turn)), 0.2, np.cos(np.deg2rad(turn))]), np.deg2rad(70)
    points = rng.standard_normal((40_000, 3))
    points /= np.linalg.norm(points, axis=1)[:, None]
    faces_viewer = (points @ np.linalg.inv(axes))[:, 2] > 0
    inside = points[(points @ direction > np.cos(angle) * np.linalg.norm(direction)) & faces_viewer] @ axes[:2].T
    slow, fast = np.zeros((160, 160), np.uint8), np.zeros((160, 160), np.uint8)
    for x, y in np.rint(inside + 80).astype(int):
        slow[y, x] = 1
    outline = cap_outline(axes, direction, angle)
    if len(outline) > 2:
        cv2.fillPoly(fast, [np.rint(outline + 80).astype(np.int32)], 1)
    slow = cv2.morphologyEx(slow, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    assert abs(int(slow.sum()) - int(fast.sum())) < 0.04 * np.pi * 30 * 50
    assert (slow & fast).sum() >= 0.8 * min(slow.sum(), fast.sum())


def test_covered_joints_are_hidden_and_joints_outside_are_zero():
    numbers = np.zeros((50, 60), np.uint8)
    numbers[10:40, 10:40], numbers[10:40, 25:45] = 1, 2
    joints = np.full((17, 2), 15.0)
    joints[J["left_wrist"]], joints[J["nose"]], joints[J["left_ear"]] = (30.4, 20.0), (-0.4, 20.0), (59.2, 20.0)
    shown = np.full(17, SEEN)
    shown[J["left_hip"]] = HIDDEN
    person = _label(numbers, 1, joints, shown)
    assert person.keypoints[J["right_knee"]].tolist() == [15, 15, SEEN]
    assert person.keypoints[J["left_wrist"]].tolist() == [30.4, 20, HIDDEN]
    assert person.keypoints[J["left_hip"]].tolist() == [15, 15, HIDDEN]
    assert person.keypoints[[J["nose"], J["left_ear"]]].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert (person.bbox, person.area) == ([10, 10, 15, 30], 15 * 30)
    assert _label(numbers, 3, joints, shown) is None


def test_labels_agree_with_masks(scenes):
    counts = np.zeros(3, int)
    for scene in scenes:
        for person in scene.people:
            x, y, w, h = (int(value) for value in person.bbox)
            assert person.mask.shape == (h, w) and person.area == person.mask.sum()
            for edge in (person.mask[0], person.mask[-1], person.mask[:, 0], person.mask[:, -1]):
                assert edge.any()
            whole = np.zeros(scene.image.shape[:2], bool)
            whole[y : y + h, x : x + w] = person.mask
            seen = np.rint(person.keypoints[person.keypoints[:, 2] == SEEN, :2]).astype(int)
            assert whole[seen[:, 1], seen[:, 0]].all()
            outside = person.keypoints[:, 2] == 0
            assert not person.keypoints[outside].any()
            counts += np.bincount(person.keypoints[:, 2].astype(int), minlength=3)
    assert (counts > (20, 100, 300)).all()  # each kind of visibility occurs


def test_people_have_distinct_centres(scenes):
    for scene in scenes:
        middles = [person.keypoints[person.keypoints[:, 2] > 0, :2].mean(0) for person in scene.people]
        for index, middle in enumerate(middles):
            for other in middles[:index]:
                assert np.hypot(*(middle - other)) * 512 / min(scene.image.shape[:2]) > 32  # 8 cells


def test_scenes_repeat_with_their_seed():
    first, again, other = (draw_scene(np.random.default_rng(seed), Size(201, 303)) for seed in (4, 4, 5))
    assert first.image.shape == (201, 303, 3) and first.image.dtype == np.uint8
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.image != other.image).any()


def test_a_scene_has_zero_to_six_people():
    assert draw_scene(np.random.default_rng(0), Size(100, 150), people=0).people == []
    with pytest.raises(ValueError, match="0 to 6 people"):
        draw_scene(np.random.default_rng(0), Size(100, 150), people=7)


def test_ten_images_cover_all_input_sizes_with_distinct_sizes():
    for seed in range(5):
        sizes = people.image_sizes(np.random.default_rng(seed), 10)
        assert {PUBLISHED_SIZES.place(size).input for size in sizes} == set(PUBLISHED_SIZES)
        assert len(set(sizes)) == 10 and any(side % 2 for size in sizes for side in size)


def test_the_zip_holds_the_annotated_images(data_set):
    labels = json.loads((data_set / "annotations/person_keypoints_val2017.json").read_text())
    with zipfile.ZipFile(data_set / "images/val2017.zip") as archive:
        assert archive.namelist() == [f"val2017/{image['file_name']}" for image in labels["images"]]
        for image in labels["images"]:
            assert image["file_name"] == f"{image['id']:012d}.jpg"
            member = archive.getinfo(f"val2017/{image['file_name']}")
            assert member.compress_type == zipfile.ZIP_STORED
            decoded = cv2.imdecode(np.frombuffer(archive.read(member), np.uint8), cv2.IMREAD_COLOR)
            assert decoded.shape == (image["height"], image["width"], 3)
    busy = [person["image_id"] for person in labels["annotations"]]
    assert 0 < len({image["id"] for image in labels["images"]} - set(busy)) <= 2  # images that show nobody
    assert len(busy) > len(set(busy))
    for person in labels["annotations"]:
        assert person["num_keypoints"] == sum(v > 0 for v in person["keypoints"][2::3]) > 0
    category = labels["categories"][0]
    assert category["keypoints"] == list(COCO_17.joints)
    assert [(a - 1, b - 1) for a, b in category["skeleton"]] == list(COCO_17.limbs)


def test_ground_truth_has_ap_one_and_swapped_sides_do_not(data_set):
    coco_module = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    with redirect_stdout(io.StringIO()):
        truth = coco_module.COCO(str(data_set / "annotations/person_keypoints_val2017.json"))

        def precision(order: list[int]) -> float:
            found = [
                {
                    "image_id": person["image_id"],
                    "category_id": 1,
                    "keypoints": np.reshape(person["keypoints"], (17, 3))[order].reshape(-1).tolist(),
                    "score": 1.0,
                }
                for person in truth.dataset["annotations"]
            ]
            evaluation = COCOeval(truth, truth.loadRes(found), "keypoints")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            return float(evaluation.stats[0])

        assert precision(list(range(17))) == pytest.approx(1.0)
        assert precision(list(COCO_17.partners)) < 0.5
        for person in truth.dataset["annotations"]:
            mask = truth.annToMask(person)
            assert mask.sum() == pytest.approx(person["area"], rel=0.35, abs=60)


def test_the_same_seed_gives_the_same_bytes(data_set, tmp_path):
    people.write_data_set(tmp_path, "val2017", images=12, seed=5)
    for name in ("annotations/person_keypoints_val2017.json", "images/val2017.zip"):
        assert (tmp_path / name).read_bytes() == (data_set / name).read_bytes()


def test_a_finished_set_is_kept_and_another_request_refused(tmp_path, capsys):
    run = ["--output", str(tmp_path), "--pictures", "2", "--split", "tiny"]
    archive = tmp_path / "images/tiny.zip"
    assert people.main(run) == 0
    first = archive.read_bytes()
    assert people.main(run) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert people.main([*run, "--seed", "2"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert archive.read_bytes() == first
    assert people.main([*run, "--seed", "2", "--overwrite"]) == 0
    assert archive.read_bytes() != first
    archive.write_bytes(b"torn")
    assert people.main([*run, "--seed", "2"]) == 0  # the recorded hash does not match the zip: drawn again
    second = archive.read_bytes()
    assert second not in (first, b"torn")
    archive.unlink()  # as after a kill between the two files
    assert people.main([*run, "--seed", "2"]) == 0
    assert archive.read_bytes() == second
    (tmp_path / "annotations/person_keypoints_tiny.json").unlink()
    assert people.main([*run, "--seed", "2"]) == 1  # a zip of unknown origin
    assert archive.read_bytes() == second


def test_an_interrupted_run_leaves_no_files(tmp_path, monkeypatch, capsys):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(people, "_add", interrupted)
    assert people.main(["--output", str(tmp_path)]) == 130
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert "interrupted" in capsys.readouterr().err


def test_an_unwritable_output_is_one_error_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert people.main(["--output", str(tmp_path / "file"), "--pictures", "1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("wrong", [["--pictures", "0"], ["--seed", "-1"], ["--split", "a/b"], ["--pictures", "x"]])
def test_bad_arguments_exit_2(wrong, tmp_path):
    with pytest.raises(SystemExit) as stop:
        people.main(["--output", str(tmp_path), *wrong])
    assert stop.value.code == 2


def test_the_command_runs_from_any_folder(tmp_path):
    script = Path(people.__file__).resolve()
    command = [sys.executable, str(script), "--output", "here", "--pictures", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 images (0 with nobody)") and (tmp_path / "here/images/val2017.zip").is_file()
