"""The warnings: none on correct runs, the right one on corrupted runs; real commands on oracle outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dekr_infer.cli import postprocess as postprocess_command
from dekr_infer.cli import preprocess as preprocess_command
from dekr_infer.data.coco import annotation_path, load_data_set
from dekr_infer.detector import Detector
from dekr_infer.evaluation import diagnostics
from dekr_infer.evaluation.diagnostics import Counts, spread, warnings_of
from dekr_infer.geometry import Placement, Size
from dekr_infer.pose import preprocess
from dekr_infer.pose.encode import Encoding, noisy, write_dumps
from dekr_infer.skeleton import COCO_17
from dekr_infer.storage.run_record import read_record
from dekr_infer.structures import Passes, People
from tests.support.coco_files import COCO_MINI, DRAWN_AND_REAL, person, write_annotation
from tests.support.commands import Ran, run_command
from tests.support.workspace import write_rescore_net

FIGURES = {"AP": 0.7, "AR": 0.75, "AR .5": 0.9}
FINE = {"annotated": 100, "found": 90, "pairs": 400, "crossed": 20, "predicted": 100, "outside": 50, "compared": 60}
ENCODING = {"drawn": Encoding(distort=noisy), "real": Encoding()}


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> dict[str, tuple[Path, Path]]:
    """Oracle outputs by data set; noisy ones of drawn people, so that there are scores to rank."""
    roots = {"drawn": drawn} | ({"real": COCO_MINI} if COCO_MINI.is_dir() else {})
    return {
        which: write_dumps(load_data_set(root, "val2017"), tmp_path_factory.mktemp(which), ENCODING[which])
        for which, root in roots.items()
    }


def evaluate(root: Path, folders: Sequence[Path], output: Path, *words: object) -> tuple[Ran, dict[str, Any]]:
    """The command's run and the metrics it wrote."""
    flags = ("--dump_dir", folders[0], "--dump_dir_flip", folders[1], "--output", output)
    ran = run_command(postprocess_command.main, *flags, *words, "DATASET.ROOT", root, "RESCORE.VALID", "False")
    assert ran.code == 0, ran
    return ran, json.loads((output / "metrics.json").read_text())


def bend_results(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]) -> None:
    """Change every image's poses and scores before they are evaluated."""
    plain = Detector.decode

    def bent(detector: Detector, passes: Passes, placement: Placement) -> People:
        people = plain(detector, passes, placement)
        return People(*change(people.poses, people.scores))

    monkeypatch.setattr(Detector, "decode", bent)


# --- whole runs


@DRAWN_AND_REAL
def test_a_correct_run_gives_no_warning(which, root, dumps, tmp_path):
    ran, metrics = evaluate(root, dumps[which], tmp_path / "results")
    assert ran.err == "" and metrics["warnings"] == {}
    counted = metrics["diagnostics"]
    assert counted["found"] >= 0.9 * counted["annotated"] >= 0.9 * diagnostics.FEWEST
    assert counted["pairs"] >= diagnostics.FEWEST and counted["compared"] >= diagnostics.FEWEST, (
        "there is something to judge"
    )


@pytest.mark.parametrize(
    ("guard", "change"),
    [
        ("ranking", lambda poses, scores: (poses, -scores)),
        ("ranking", lambda poses, scores: (poses, np.ones_like(scores))),
        ("left_right", lambda poses, scores: (poses[:, list(COCO_17.partners)], scores)),
        ("outside", lambda poses, scores: (poses * np.float32((2, 2, 1)), scores)),
    ],
    ids=["scores turned round", "scores all alike", "labels exchanged", "twice the scale"],
)
@DRAWN_AND_REAL
def test_each_corrupted_result_gives_its_warning(which, root, dumps, tmp_path, monkeypatch, guard, change):
    if guard == "ranking" and which == "real":
        pytest.skip("without noise nobody is found who is not there")
    bend_results(monkeypatch, change)
    ran, metrics = evaluate(root, dumps[which], tmp_path / "results")
    assert set(metrics["warnings"]) == {guard}
    assert ran.err == f"warning: {metrics['warnings'][guard]}\n"


@DRAWN_AND_REAL
def test_exchanged_folders_and_a_folder_that_is_not_flipped_are_noticed(which, root, dumps, tmp_path):
    plain, flipped = dumps[which]
    _, metrics = evaluate(root, (flipped, plain), tmp_path / "a")
    assert set(metrics["warnings"]) == {"mirrored"}
    (tmp_path / "copy").mkdir()
    for path in plain.iterdir():
        (tmp_path / "copy" / path.name).hardlink_to(path)
    _, metrics = evaluate(root, (plain, tmp_path / "copy"), tmp_path / "b")
    assert set(metrics["warnings"]) == {"same_passes"}


@DRAWN_AND_REAL
def test_a_flipped_pass_whose_left_is_called_left_is_noticed(which, root, tmp_path):
    bent = replace(ENCODING[which], swap_joints=False)
    _, metrics = evaluate(root, write_dumps(load_data_set(root, "val2017"), tmp_path, bent), tmp_path / "results")
    speaking = {"drawn": "left_right", "real": "left_right_flipped"}[which]  # noise blurs one, few pairs the other
    assert speaking in metrics["warnings"]
    assert set(metrics["warnings"]) <= {"left_right_flipped", "left_right"}


@DRAWN_AND_REAL
def test_offsets_of_the_other_pass_are_noticed(which, root, dumps, tmp_path):
    folders = [tmp_path / "out", tmp_path / "out_flip"]
    for folder, heats, offsets in zip(folders, dumps[which], dumps[which][::-1], strict=True):
        folder.mkdir()
        for path in [*heats.glob("*_0.npy"), *offsets.glob("*_1.npy")]:
            (folder / path.name).hardlink_to(path)
    ran, metrics = evaluate(root, folders, tmp_path / "results")
    assert metrics["figures"]["AP"] < 0.05
    assert set(metrics["warnings"]) == {"nobody_found"} and "are found: check" in ran.err, metrics["diagnostics"]


def test_missing_images_are_a_warning(drawn, dumps, tmp_path):
    plain = tmp_path / "out"
    plain.mkdir()
    for path in sorted(dumps["drawn"][0].iterdir())[2:]:
        (plain / path.name).hardlink_to(path)
    ran, metrics = evaluate(drawn, (plain, dumps["drawn"][1]), tmp_path / "results", "--allow_missing")
    assert set(metrics["warnings"]) == {"coverage"} and "only 9 of 10 images" in ran.err


def truth_of_one() -> np.ndarray:
    """Keypoints (17, 3) of a person about 180 pixels high and wide."""
    return np.concatenate((np.random.default_rng(1).uniform(10, 190, (17, 2)), np.full((17, 1), 2.0)), axis=1)


def counts_of_one(folder: Path, annotation: dict[str, Any], found: np.ndarray) -> Counts:
    """What is counted of one annotated person in an image of 200 x 200 pixels, and one detection."""
    write_annotation(folder, {"a.jpg": Size(200, 200)}, [annotation])
    result = {"image_id": 1000, "category_id": 1, "keypoints": found.ravel().tolist(), "score": 1.0}
    counts = Counts()
    diagnostics.count_matches(counts, load_data_set(folder, "val2017"), [1000], [result])
    return counts


def test_counting_starts_at_none():
    assert set(vars(Counts()).values()) == {0, None}


def test_a_person_is_counted_once_and_a_joint_behind_the_last_pixel_is_outside(tmp_path):
    truth = truth_of_one()
    truth[5:7, :2] = (20, 20), (180, 180)  # shoulders
    found = truth.copy()
    found[:2, :2] = (199.5, 50), (50, 198.5)
    counts = counts_of_one(tmp_path, person(1, 1000, truth), found)
    assert (counts.annotated, counts.found, counts.predicted, counts.outside, counts.crossed) == (1, 1, 1, 1, 0)


@pytest.mark.parametrize(("factor", "told"), [(1.5, False), (2.5, True)])
def test_pairs_count_where_left_and_right_can_be_told_apart(tmp_path, factor, told):
    truth, (left, right), area = truth_of_one(), COCO_17.sides[2], 0.6 * 60 * 60
    truth[:, 2] = 0
    truth[[0, left, right], 2] = 2
    tolerance = 2 * (2 * COCO_17.sigmas[left]) ** 2 * area
    truth[0, :2], truth[left, :2] = (100, 100), (60, 60)
    truth[right, :2] = 60 + np.sqrt(factor * tolerance), 60
    counts = counts_of_one(tmp_path, person(1, 1000, truth) | {"area": area}, truth)
    assert (counts.found, counts.pairs, counts.crossed) == (1, int(told), 0)


def test_with_nobody_found_there_is_nothing_to_say():
    assert warnings_of(Counts(annotated=500), dict.fromkeys(FIGURES, 0.0), 5, 5) == {}


# --- thresholds


@pytest.mark.parametrize(
    ("guard", "counted", "figures"),
    [
        ("ranking", {}, {"AP": 0.44}),
        ("ranking", {}, {"AR .5": 0.5}),
        ("left_right", {"crossed": 121}, {}),
        ("left_right_flipped", {"exchanged": 31}, {}),
        ("outside", {"outside": 681}, {}),
        ("mirrored", {"found": 30, "found_mirrored": 61}, {}),
        ("same_passes", {"same": 31}, {}),
        ("rescoring", {"decoded_ap": 0.71, "rescored_ap": 0.68}, {}),
    ],
)
def test_each_threshold_has_two_sides(guard, counted, figures):
    assert warnings_of(Counts(**FINE), FIGURES, 5, 5) == {}
    warnings = warnings_of(Counts(**FINE | counted), FIGURES | figures, 5, 5)
    assert guard in warnings and set(warnings) <= {guard, "ranking"}
    less = {
        name: value - (1 if isinstance(value, int) else 0.02) for name, value in counted.items() if name not in KEPT
    }
    more = {name: value + 0.05 for name, value in figures.items()}
    assert guard not in warnings_of(Counts(**FINE | counted | less), FIGURES | more, 5, 5)


KEPT = {"found", "rescored_ap"}  # the other side of a comparison
NOBODY = {"annotated": 10, "found": 0, "predicted": 10, "outside": 0}


def test_as_many_people_as_annotated_and_none_of_them_right_is_noticed():
    nothing = dict.fromkeys(FIGURES, 0.0)
    assert set(warnings_of(Counts(**NOBODY), nothing, 5, 5)) == {"nobody_found"}
    assert set(warnings_of(Counts(**NOBODY), nothing, 4, 5)) == {"nobody_found", "coverage"}
    assert set(warnings_of(Counts(**NOBODY | {"outside": 100}), nothing, 5, 5)) == {"outside"}, "that tells more"
    assert "nobody_found" in warnings_of(
        Counts(**NOBODY | {"annotated": 41, "found": 2, "predicted": 41}), nothing, 5, 5
    )
    for counted in ({"found": 1}, {"annotated": 9, "predicted": 9}, {"predicted": 9}):
        assert warnings_of(Counts(**NOBODY | counted), nothing, 5, 5) == {}


def test_one_missing_image_gives_the_coverage_warning():
    assert set(warnings_of(Counts(**FINE), FIGURES, 4, 5)) == {"coverage"}


def test_at_most_so_many_images_are_looked_at_and_they_are_spread():
    numbers = list(range(5000))
    chosen = spread(numbers, 500)
    assert len(chosen) == 500 and chosen[0] == 0 and chosen[-1] == 4990
    assert spread(numbers[:7], 500) == numbers[:7]


def test_preprocessing_warns_of_an_opencv_that_moves_pixels(drawn, tmp_path, monkeypatch):
    assert not preprocess.moves_pixels()
    real = preprocess.cv2.warpAffine
    monkeypatch.setattr(preprocess.cv2, "warpAffine", lambda *words, **more: real(*words, **more) ^ 1)
    assert preprocess.moves_pixels()
    flags = ("--output", tmp_path / "p", "--output_flip", tmp_path / "f", "--limit", 1, "--workers", 1)
    ran = run_command(preprocess_command.main, *flags, "DATASET.ROOT", drawn)
    assert ran.code == 0 and ran.err.startswith("warning: OpenCV ") and "4.10 to 4.12" in ran.err
    contents = read_record(tmp_path / "f_record.jsonl")
    assert contents is not None and contents.head.settings["moved_pixels"] is True


def test_a_rescoring_net_that_costs_ap_is_noticed(drawn, dumps, tmp_path):
    harmful = tmp_path / "rescore.pth"
    write_rescore_net(harmful, scale=0.0)
    state = torch.load(harmful, weights_only=True)
    state["l3.bias"].fill_(-1.0)  # turns the order of the people round
    torch.save(state, harmful)
    flags = ("--dump_dir", dumps["drawn"][0], "--dump_dir_flip", dumps["drawn"][1], "--output", tmp_path / "results")
    ran = run_command(postprocess_command.main, *flags, "DATASET.ROOT", drawn, "RESCORE.MODEL_FILE", harmful)
    assert ran.code == 0 and "rescoring lowers AP from" in ran.err and "RESCORE.VALID False" in ran.err


def test_a_bad_annotation_is_named_as_the_cause_before_the_network(drawn, dumps, tmp_path):
    root = tmp_path / "coco"
    shutil.copytree(drawn, root)
    path = annotation_path(root, "val2017")
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        entry["keypoints"] = [
            value / 1000 if index % 3 < 2 else value for index, value in enumerate(entry["keypoints"])
        ]
    path.write_text(json.dumps(content))
    _, metrics = evaluate(root, dumps["drawn"], tmp_path / "results")
    assert "joints_normalised" in metrics["warnings"] and "nobody_found" not in metrics["warnings"]
