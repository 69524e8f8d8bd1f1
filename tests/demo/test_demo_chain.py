"""The demo network through the whole chain: its recorded AP, and the cost of leaving a part out or doing it wrong.

The commands themselves run, on the shipped weights and on the quickstart's images.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.cli import postprocess as postprocess_command
from dekr_infer.config.load import load_config
from dekr_infer.evaluation.evaluate import Evaluation
from dekr_infer.export.export import export_onnx
from dekr_infer.model.head import build_network
from dekr_infer.onnx_graph.dialects import ONNX
from dekr_infer.storage import npy
from scripts.demo import ablation as parts
from tests.support.commands import run_command

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
def evaluations(work) -> dict[str, Evaluation]:
    return parts.ablation(work, parts.IMAGES, parts.SEED, threads=1)


def test_the_shipped_weights_match_their_checksums():
    for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest
        assert (WEIGHTS / name).stat().st_size < 8e6


@pytest.mark.parametrize("name", ["AP", "AR"])
@pytest.mark.parametrize("variant", RECORDED)
def test_the_chain_gives_the_recorded_metrics(evaluations, variant, name):
    assert evaluations[variant].metrics[name] == pytest.approx(RECORDED[variant][name], abs=TOLERANCE)


@pytest.mark.parametrize(
    ("variant", "pairs"),
    [
        (parts.PUBLISHED, ("TEST.MATCH_HMP", "False")),
        (parts.MATCHED, ()),
        (parts.NEITHER, ("TEST.MATCH_HMP", "False", "TEST.FLIP_TEST", "False", "RESCORE.VALID", "False")),
    ],
)
def test_the_postprocessing_command_gives_the_same_metrics(evaluations, work, variant, pairs):
    folders = ("--dump_dir", work / "out", "--dump_dir_flip", work / "out_flip")
    config = ("--cfg", "demo", *parts.demo_pairs(work / "data"), *pairs)
    ran = run_command(postprocess_command.main, *folders, "--output", work / "results", *config)
    assert ran.code == 0 and "warning" not in ran.err  # a slow machine prints its progress
    assert json.loads((work / "results" / "metrics.json").read_text())["figures"] == evaluations[variant].metrics


def test_the_other_dialect_gives_equal_outputs(evaluations, work):
    config, graph = load_config("demo", parts.demo_pairs(work / "data")), work / "onnx.onnx"
    export_onnx(build_network(config), Path(config.TEST.MODEL_FILE), graph, dialect=ONNX, check=False, threads=1)
    runner = OnnxRuntime(graph, 1)
    for tensors, outputs in (("prep_data", "out"), ("prep_data_flip", "out_flip")):
        for name in sorted(npy.names_in(work / tensors))[:6]:
            heatmap, offset, _ = runner.run(npy.read(work / tensors / name))
            np.testing.assert_array_equal(heatmap, npy.read(work / outputs / name.replace(".npy", "_0.npy")))
            np.testing.assert_array_equal(offset, npy.read(work / outputs / name.replace(".npy", "_1.npy")))


def test_warnings_appear_only_for_wrong_outputs(evaluations):
    """The drawn people are seen from all sides, also from behind."""
    found = {variant: set(evaluation.warnings) for variant, evaluation in evaluations.items() if evaluation.warnings}
    assert found == {parts.UNSWAPPED: {"left_right", "left_right_flipped"}, parts.NEGATED: {"nobody_found"}}


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
def test_leaving_a_part_out_or_doing_it_wrong_costs_ap(evaluations, variant, lost):
    assert evaluations[parts.PUBLISHED].metrics["AP"] - evaluations[variant].metrics["AP"] > lost
