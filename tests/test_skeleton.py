"""Skeletons: the shipped ones, files of one's own, and other joints through every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from dekr_infer import Detector
from dekr_infer.cli import evaluate, export, onnx_infer, postprocess, predict, preprocess, random_checkpoint
from dekr_infer.cli.draw_results import main as draw_results
from dekr_infer.config.load import load_config, skeleton_of
from dekr_infer.data.coco import load_data_set
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.geometry import Size
from dekr_infer.pose.encode import write_dumps
from dekr_infer.pose.rescore import feature_count
from dekr_infer.skeleton import COCO_17, CROWDPOSE_14, Skeleton
from tests.support.commands import assert_refused, run_command
from tests.support.images import colourful, encode
from tests.support.other_joints import FIVE, write_crowdpose, write_five
from tests.support.tiny_models import ONE_THREAD, PAIRS

FIVE_PAIRS = ("DATASET.NUM_JOINTS", "5", "MODEL.NUM_JOINTS", "5", "RESCORE.VALID", "False")


@pytest.mark.parametrize("skeleton", [COCO_17, CROWDPOSE_14])
def test_partners_are_the_other_side_of_the_same_joint(skeleton):
    for joint, partner in zip(skeleton.joints, (skeleton.joints[index] for index in skeleton.partners), strict=True):
        other = joint.replace("left_", "right_") if joint.startswith("left_") else joint.replace("right_", "left_")
        assert partner == other
    assert all(skeleton.joints[left].startswith("left_") for left, _ in skeleton.sides)
    assert len(skeleton.sigmas) == len(skeleton)
    assert {joint for limb in skeleton.limbs for joint in limb} == set(range(len(skeleton)))


def test_crowdpose_has_upstreams_numbers():
    assert (len(CROWDPOSE_14), CROWDPOSE_14.heatmap_channels, CROWDPOSE_14.offset_channels) == (14, 15, 28)
    assert len(CROWDPOSE_14.rescore_pairs) == 15 and feature_count(CROWDPOSE_14) == 59
    assert CROWDPOSE_14.torso_pairs == (9, 11)


def test_a_file_of_ones_own_is_read():
    five = Skeleton.parse(yaml.safe_load(FIVE), "five.yaml")
    assert five.partners == (0, 2, 1, 4, 3) and five.sides == ((1, 2), (3, 4)) and five.rescore_pairs == ()
    assert five.name == "five" and five.aliases[0] == ("nose",)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"limbs": None, "sigmas": None}, "not a skeleton, it lacks limbs, sigmas"),
        ({"joints": ["a", "a"]}, "joints: expected from 1 to 1000 names, each once"),
        ({"joints": "abc"}, "joints: expected a list of names"),
        ({"limbs": [["snout", "tail"]]}, "limbs: tail is none of its joints"),
        ({"limbs": [["snout"]]}, "limbs: expected pairs of joints"),
        ({"sigmas": [0.1]}, "sigmas: expected 5 numbers above 0"),
        ({"sigmas": [0.1, 0.1, 0.1, 0.1, 0]}, "sigmas: expected 5 numbers above 0"),
        ({"partners": [["left_hand", "right_hand"], ["left_hand", "right_foot"]]}, "in which no joint occurs twice"),
        ({"rescoring": {"pairs": [["snout", "left_hand"]]}}, "rescoring torso: expected pairs of joints out of"),
        ({"aliases": {"tail": ["x"]}}, "aliases: tail is none of its joints"),
        ({"color": "red"}, "unknown key color"),
    ],
)
def test_a_file_that_is_no_skeleton_is_refused_with_what_is_wrong(changes, part):
    tree = {**yaml.safe_load(FIVE), **changes}
    tree = {key: value for key, value in tree.items() if key not in changes or value is not None}
    with pytest.raises(ConfigError, match=r"^five\.yaml: ") as caught:
        Skeleton.parse(tree, "five.yaml")
    assert part in str(caught.value)


def test_the_configuration_names_the_skeleton(tmp_path):
    (tmp_path / "five.yaml").write_text(FIVE)
    own = ("DATASET.SKELETON", str(tmp_path / "five.yaml"), "DATASET.DATASET", "mice")
    assert skeleton_of(load_config(pairs=[*own, *FIVE_PAIRS])).joints[0] == "snout"
    assert skeleton_of(load_config("dekr_w48_crowdpose")) == CROWDPOSE_14
    for pairs, message in (
        ((*own, *FIVE_PAIRS[:-2]), "RESCORE.VALID: five's skeleton names no rescoring pairs"),
        (own, "DATASET.NUM_JOINTS 17: five has 5 joints; add DATASET.NUM_JOINTS 5 MODEL.NUM_JOINTS 5"),
        (("DATASET.DATASET", "mice"), "DATASET.DATASET mice: neither coco nor crowd_pose"),
        (("DATASET.SKELETON", "six.yaml"), "six.yaml: cannot be read"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(pairs=pairs)
        assert str(caught.value).startswith(message)


@pytest.fixture(scope="module", params=["crowdpose", "five"])
def other(request, drawn, tmp_path_factory) -> tuple[Path, list[str]]:
    """A drawn data set with other joints, and the settings that name it and a tiny network."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "crowdpose":
        write_crowdpose(drawn, root / "data")
        joints = ["DATASET.DATASET", "crowd_pose_kpt", "DATASET.NUM_JOINTS", "14", "MODEL.NUM_JOINTS", "14"]
        joints += ["DATASET.TEST", "test", "RESCORE.VALID", "False"]
    else:
        skeleton = write_five(drawn, root / "data")
        joints = ["DATASET.SKELETON", str(skeleton), *FIVE_PAIRS]
    return root, [*PAIRS, *joints, "DATASET.ROOT", str(root / "data"), "TEST.MODEL_FILE", str(root / "net.pth")]


def test_the_truth_of_other_joints_comes_back_with_ap_1(other, capsys):
    root, pairs = other
    config = load_config(pairs=pairs)
    data = load_data_set(config.DATASET.ROOT, config.DATASET.TEST, skeleton=skeleton_of(config))
    assert data.people and not data.warnings
    out, flipped = write_dumps(data, root / "dumps")
    page = root / "oracle" / "report.html"
    words = ["--dump_dir", out, "--dump_dir_flip", flipped, "--output", root / "oracle", "--report", page, *pairs]
    ran = run_command(postprocess.main, *words)
    assert ran.code == 0, ran.err
    figures = json.loads((root / "oracle" / "metrics.json").read_text())["figures"]
    assert figures["AP"] == pytest.approx(1.0) and figures["AR .75"] == pytest.approx(1.0)
    if config.DATASET.TEST == "test":
        assert [figures[name] for name in ("AP easy", "AP medium", "AP hard")] == pytest.approx([1.0] * 3)
    report = json.loads(page.with_suffix(".json").read_text())
    assert tuple(report["joints"]) == data.skeleton.joints and report["metrics"] == figures
    assert page.read_text().count("data:image/jpeg") == len(report["worst"]) + len(report["random"]) > 5
    results = next((root / "oracle").glob("keypoints_*_results.json"))
    assert draw_results(["--results", str(results), "--output", str(root / "drawn"), "--pictures", "2", *pairs]) == 0


@pytest.fixture(scope="module")
def graph(other) -> Path:
    """A graph of a tiny random network, exported by the command."""
    root, pairs = other
    made = ["--output", str(root / "net.pth"), "--output_rescore", str(root / "rescore.pth")]
    assert random_checkpoint.main([*made, *pairs]) == 0
    assert export.main(["--output", str(root / "net.onnx"), "--skip_check", *ONE_THREAD, *pairs]) == 0
    return root / "net.onnx"


def joints_of(pairs: list[str]) -> tuple[str, ...]:
    return skeleton_of(load_config(pairs=pairs)).joints


def test_a_network_of_other_joints_goes_through_every_command(other, graph):
    root, pairs = other
    work = root / "work"
    words = ["--output", work / "prep", "--output_flip", work / "prep_flip", "--limit", 2]
    assert run_command(preprocess.main, *words, *pairs).code == 0
    for name in ("", "_flip"):
        words = ["--model", graph, "--input", work / f"prep{name}", "--output", work, "--output_dirname", f"out{name}"]
        assert run_command(onnx_infer.main, *words, *ONE_THREAD).code == 0
    words = ["--dump_dir", work / "out", "--dump_dir_flip", work / "out_flip", "--output", work / "steps"]
    assert run_command(postprocess.main, *words, "--allow_missing", *pairs).code == 0
    words = ["--model", graph, "--output", work / "evaluated", "--limit", 2, *ONE_THREAD]
    assert run_command(evaluate.main, *words, *pairs).code == 0
    steps, evaluated = (next((work / name).glob("keypoints_*_results.json")) for name in ("steps", "evaluated"))
    found = json.loads(steps.read_text())
    assert found and found == json.loads(evaluated.read_text())
    assert all(len(entry["keypoints"]) == 3 * len(joints_of(pairs)) for entry in found)


def test_people_of_other_joints_are_predicted_and_drawn(other, graph, tmp_path):
    config = load_config(pairs=other[1])
    keys = {"DATASET": ("DATASET", "SKELETON", "NUM_JOINTS"), "MODEL": ("NUM_JOINTS",), "RESCORE": ("VALID",)}
    tree = {part: {key: config[part][key] for key in names} for part, names in keys.items()}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    image = tmp_path / "image.png"
    image.write_bytes(encode(colourful(Size(60, 60)), ".png"))
    words = ["--model", graph, "--output", tmp_path / "drawn", "--min_score", 0, "--min_joint_score", 0, *ONE_THREAD]
    ran = run_command(predict.main, *words, "--cfg", tmp_path / "own.yaml", image)
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "drawn" / "people.json").read_text())
    assert found and all(len(entry["keypoints"]) == 3 * len(joints_of(other[1])) for entry in found)
    assert (tmp_path / "drawn" / "image.png").read_bytes() != image.read_bytes()
    assert_refused(run_command(predict.main, *words, image), 2, "net.onnx: finds", "configuration has 17 joints (COCO)")


def test_the_detector_takes_the_skeleton_of_its_graph(other, graph):
    if len(joints_of(other[1])) == 14:
        people = Detector(graph, threads=1)(np.zeros((64, 64, 3), np.uint8))
        assert people.poses.shape[1:] == (14, 3) and people.skeleton == CROWDPOSE_14
    else:
        with pytest.raises(DekrError, match=r"finds snout, left_hand, .*no shipped skeleton has these joints"):
            Detector(graph, threads=1)


@pytest.mark.long
def test_a_network_of_other_joints_agrees_with_torch(other, graph, tmp_path):
    ran = run_command(export.main, "--output", tmp_path / "net.onnx", *ONE_THREAD, *other[1])
    assert ran.code == 0 and ran.out.count("ok") == 5, ran
