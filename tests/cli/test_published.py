"""The published AP, on COCO's val2017 with the official weights; run by `pytest -m published`, for hours on a CPU.

The work is in quickstart/coco, as by the quickstart: what is done there is not done again, so the test can be resumed.
"""

import json
from pathlib import Path

import pytest

from dekr_infer.cli import pipeline
from tests.support.commands import run_command

ROOT = Path(__file__).resolve().parents[2]
NEEDED = (
    "data/coco/annotations/person_keypoints_val2017.json",
    "models/pose_dekr_hrnetw32_coco.pth",
    "models/final_rescore_coco_kpt.pth",
)
PUBLISHED_AP, TOLERANCE = 0.677, 0.003


@pytest.mark.published
def test_the_official_weights_reach_the_published_ap(monkeypatch):
    missing = [name for name in NEEDED if not (ROOT / name).is_file()]
    if missing:
        pytest.skip(f"missing: {', '.join(missing)}; see README.md, step by step")
    monkeypatch.chdir(ROOT)
    ran = run_command(pipeline.main, "--work", "quickstart/coco", "--stream", "--cfg", "dekr_w32_coco")
    assert ran.code == 0, ran
    metrics = json.loads((ROOT / "quickstart/coco/results/metrics.json").read_text())
    assert metrics["counts"]["evaluated"] == 5000
    assert abs(metrics["figures"]["AP"] - PUBLISHED_AP) <= TOLERANCE
