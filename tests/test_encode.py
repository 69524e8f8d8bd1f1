"""Ground truth as network outputs, through real files and DEKR_postprocess.py, gives the ground truth back."""

import json
from pathlib import Path

import numpy as np
import pytest

from dekr_infer.cli import postprocess as postprocess_command
from dekr_infer.data.coco import load_data_set
from dekr_infer.evaluation.coco_metrics import METRICS
from dekr_infer.pose.encode import Encoding, noisy, write_dumps
from tests.support.coco_files import DRAWN_AND_REAL
from tests.support.commands import run_command

PLAIN = Encoding()


def evaluate(root: Path, folder: Path, encoding: Encoding, flip: bool = True) -> tuple[dict[str, float], list[dict]]:
    """Write the outputs, run the command without rescoring; return the ten metrics and the results."""
    dump, dump_flip = write_dumps(load_data_set(root, "val2017"), folder, encoding)
    ran = run_command(
        postprocess_command.main,
        *("--dump_dir", dump, "--dump_dir_flip", dump_flip, "--output", folder / "results"),
        *("DATASET.ROOT", root, "RESCORE.VALID", "False", "TEST.FLIP_TEST", flip),
    )
    assert ran.code == 0, ran.err
    figures = json.loads((folder / "results" / "metrics.json").read_text())["figures"]
    assert tuple(figures) == METRICS
    return figures, json.loads((folder / "results" / "keypoints_val2017_results.json").read_text())


@pytest.mark.parametrize("flip", [True, False], ids=["flip", "no flip"])
@DRAWN_AND_REAL
def test_the_truth_comes_back_with_ap_1(root, flip, tmp_path):
    """With a centre cell of their own, the people of real images reach 1.000 too, not only the expected 0.96."""
    figures, _ = evaluate(root, tmp_path, PLAIN, flip)
    assert figures == pytest.approx(dict.fromkeys(METRICS, 1.0), abs=1e-3)


@pytest.mark.parametrize("flip", [True, False], ids=["flip", "no flip"])
@DRAWN_AND_REAL
def test_every_labelled_joint_comes_back_within_a_hundredth_of_a_pixel(root, flip, tmp_path):
    _, results = evaluate(root, tmp_path, PLAIN, flip)
    found = {image: [] for image in {entry["image_id"] for entry in results}}
    for entry in results:
        found[entry["image_id"]].append(np.reshape(entry["keypoints"], (17, 3)))
    truth = [entry for entry in load_data_set(root, "val2017").ground_truth() if entry.num_keypoints]
    for entry in truth:
        joints = np.reshape(entry.keypoints, (17, 3))
        there = joints[:, 2] > 0
        worst = min(np.abs(pose[there, :2] - joints[there, :2]).max() for pose in found[entry.image_id])
        assert worst < 0.01, entry.id
    assert len(results) == len(truth)


WITH_NOISE = {  # with flip and without; they hold for what scripts/demo/people.py draws at DRAWING 1
    True: (0.8916868033, 1.0, 1.0, 0.8723893928, 0.9900990099, 0.9181818182, 1.0, 1.0, 0.8941176471, 1.0),
    False: (0.7683011985, 1.0, 0.8881993463, 0.7399860371, 0.925663995,
            0.8136363636, 1.0, 0.9090909091, 0.7647058824, 0.98),
}  # fmt: skip


@pytest.mark.parametrize("flip", [True, False], ids=["flip", "no flip"])
def test_with_seeded_noise_the_ten_metrics_are_these(drawn, flip, tmp_path):
    figures, _ = evaluate(drawn, tmp_path, Encoding(distort=noisy), flip)
    assert tuple(figures.values()) == pytest.approx(WITH_NOISE[flip], abs=1e-9)


@pytest.mark.parametrize(
    ("mistake", "at_most"),
    [
        (Encoding(flip_shift=0), 0.975),  # 3 pixels in one pass are 1.5 in the mean
        (Encoding(swap_joints=False), 0.2),
        (Encoding(offset_sign=-1), 0.05),
    ],
    ids=["shift left out", "joints not swapped", "offsets negated"],
)
def test_a_mistake_in_the_outputs_costs_ap(drawn, mistake, at_most, tmp_path):
    figures, _ = evaluate(drawn, tmp_path, mistake)
    assert figures["AP"] < at_most


def test_the_flipped_pass_costs_nothing_when_it_is_not_used(drawn, tmp_path):
    """The mistakes above are in the flipped pass alone: without flip, two of them cannot be seen."""
    for number, mistake in enumerate((Encoding(flip_shift=0), Encoding(swap_joints=False))):
        figures, _ = evaluate(drawn, tmp_path / str(number), mistake, flip=False)
        assert figures["AP"] == pytest.approx(1, abs=1e-3)
