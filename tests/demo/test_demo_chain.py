"""The demo network through the whole chain: its recorded AP, and the cost of leaving a part out or doing it wrong.

The commands themselves run, on the shipped weights and on the quickstart's images.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from dekr_infer.cli import postprocess as postprocess_command
from dekr_infer.storage import npy as tensors
from scripts.demo import ablation as parts
from scripts.demo.ablation import ablation
from tests.support.helpers import run_command

WEIGHTS = Path(__file__).resolve().parents[2] / "scripts/demo/weights"
RECORDED = {  # on the quickstart's images
    parts.PUBLISHED: {"AP": 0.678, "AR": 0.713},
    parts.MATCHED: {"AP": 0.707, "AR": 0.745},
}
TOLERANCE = 0.005


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ablation")


@pytest.fixture(scope="module")
def metrics(work) -> dict[str, dict[str, float]]:
    return ablation(work, parts.IMAGES, parts.SEED, threads=2)


def test_the_shipped_weights_match_their_checksums():
    for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest
        assert (WEIGHTS / name).stat().st_size < 8e6


@pytest.mark.parametrize("name", ["AP", "AR"])
@pytest.mark.parametrize("variant", RECORDED)
def test_the_chain_gives_the_recorded_metrics(metrics, variant, name):
    assert metrics[variant][name] == pytest.approx(RECORDED[variant][name], abs=TOLERANCE)


def test_both_dialects_give_equal_metrics(metrics, work):
    assert metrics[parts.DIALECT] == metrics[parts.PUBLISHED]
    for folder in ("out", "out_flip"):
        ascend, onnx = work / "ascend" / folder, work / "onnx" / folder
        for name in sorted(tensors.names_in(ascend))[:6]:
            np.testing.assert_array_equal(tensors.read(ascend / name), tensors.read(onnx / name))


@pytest.mark.parametrize(
    ("flipped", "warnings"),
    [("out_flip", set()), ("out_unswapped", {"left_right", "left_right_flipped"})],
)
def test_warnings_appear_only_for_a_wrong_pass(metrics, work, flipped, warnings):
    """The drawn people are seen from all sides, also from behind."""
    folders = ("--dump_dir", work / "ascend" / "out", "--dump_dir_flip", work / "ascend" / flipped)
    ran = run_command(postprocess_command.main, *folders, "--output", work / "judged", *parts._config(work / "data"))
    assert ran.code == 0 and len(ran.err.splitlines()) == len(warnings)
    assert set(json.loads((work / "judged" / "metrics.json").read_text())["warnings"]) == warnings


@pytest.mark.parametrize(
    ("variant", "lost"),
    [
        (parts.NO_FLIP, 0.015),
        (parts.NO_RESCORE, 0.008),
        (parts.NEITHER, 0.025),
        (parts.UNSHIFTED, 0.035),
        (parts.UNSWAPPED, 0.4),
        (parts.NEGATED, 0.5),
    ],
)
def test_leaving_a_part_out_or_doing_it_wrong_costs_ap(metrics, variant, lost):
    assert metrics[parts.PUBLISHED]["AP"] - metrics[variant]["AP"] > lost
