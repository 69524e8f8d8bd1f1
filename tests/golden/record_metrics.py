#!/usr/bin/env python3
"""Record the ten COCO metrics of upstream's recorded decodings, computed by pycocotools alone; upstream is not needed.

Run by hand when the cases or decoding.npz change, never by the tests:

python3 tests/golden/record_metrics.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.golden import ground_truth

MARGIN = 1e-4  # no similarity is nearer than this to one of COCO's thresholds, so that rounding changes no metric
SCORE_GAP = 5e-7  # between any two scores, so that rounding changes no order


def main() -> None:
    """Write metrics.json beside this file."""
    recorded = dict(np.load(HERE / "decoding.npz"))
    numbers = list(range(1, len(ground_truth.KEYS) + 1))
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": number} for number in numbers],
        "annotations": ground_truth.people(recorded, numbers),
        "categories": [{"id": 1, "name": "person"}],
    }
    truth.createIndex()
    found = [
        {"image_id": number, "category_id": 1, "keypoints": pose.astype(float).ravel().tolist(), "score": float(score)}
        for number, key in zip(numbers, ground_truth.KEYS, strict=True)
        if f"{key}/final" in recorded
        for pose, score in zip(recorded[f"{key}/final"], recorded[f"{key}/rescored"], strict=True)
    ]
    evaluation = COCOeval(truth, truth.loadRes(found), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    similarities = np.concatenate([np.ravel(values) for values in evaluation.ious.values()])
    assert np.abs(similarities[:, None] - evaluation.params.iouThrs).min() > MARGIN
    assert np.diff(np.sort([entry["score"] for entry in found])).min() > SCORE_GAP
    (HERE / "metrics.json").write_text(json.dumps(evaluation.stats.tolist(), indent=0) + "\n")


if __name__ == "__main__":
    main()
