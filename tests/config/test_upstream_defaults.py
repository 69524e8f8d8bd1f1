"""Upstream's values of the keys that decide results, recorded from its default.py and YAML files at 7a303139."""

from __future__ import annotations

from typing import Any

import pytest

from dekr_infer.config.load import load_config
from dekr_infer.config.schema import DEFAULTS

DEFAULT_VALUES: dict[str, Any] = {
    "DATASET.DATASET": "coco_kpt",
    "DATASET.NUM_JOINTS": 17,
    "DATASET.MAX_NUM_PEOPLE": 30,
    "DATASET.TEST": "val2017",
    "DATASET.SCALE_TYPE": "short",
    "DATASET.INPUT_SIZE": 512,
    "DATASET.OUTPUT_SIZE": 128,
    "DATASET.SIGMA": 2.0,
    "DATASET.CENTER_SIGMA": 4.0,
    "DATASET.BG_WEIGHT": 0.1,
    "DATASET.OFFSET_RADIUS": 4,
    "MODEL.NAME": "hrnet_dekr",
    "MODEL.NUM_JOINTS": 17,
    "TEST.FLIP_TEST": True,
    "TEST.SCALE_FACTOR": [1],
    "TEST.POOL_THRESHOLD1": 300,
    "TEST.POOL_THRESHOLD2": 200,
    "TEST.NMS_THRE": 0.15,
    "TEST.NMS_NUM_THRE": 10,
    "TEST.KEYPOINT_THRESHOLD": 0.01,
    "TEST.DECREASE": 1.0,
    "TEST.MATCH_HMP": False,
    "TEST.ADJUST_THRESHOLD": 0.05,
    "TEST.MAX_ABSORB_DISTANCE": 75,
    "TEST.GUASSIAN_KERNEL": 6,
    "RESCORE.VALID": True,
    "RESCORE.HIDDEN_LAYER": 256,
}
RECIPE = DEFAULT_VALUES | {  # of W32; of W48 what differs is below
    "TEST.NMS_THRE": 0.05,
    "TEST.NMS_NUM_THRE": 8,
    "TEST.DECREASE": 0.9,
    "MODEL.SPEC.FINAL_CONV_KERNEL": 1,
    "MODEL.SPEC.STAGES.NUM_STAGES": 3,
    "MODEL.SPEC.STAGES.NUM_MODULES": [1, 4, 3],
    "MODEL.SPEC.STAGES.NUM_BRANCHES": [2, 3, 4],
    "MODEL.SPEC.STAGES.BLOCK": ["BASIC", "BASIC", "BASIC"],
    "MODEL.SPEC.STAGES.NUM_BLOCKS": [[4, 4], [4, 4, 4], [4, 4, 4, 4]],
    "MODEL.SPEC.STAGES.NUM_CHANNELS": [[32, 64], [32, 64, 128], [32, 64, 128, 256]],
    "MODEL.SPEC.HEAD_HEATMAP.BLOCK": "BASIC",
    "MODEL.SPEC.HEAD_HEATMAP.NUM_BLOCKS": 1,
    "MODEL.SPEC.HEAD_HEATMAP.NUM_CHANNELS": 32,
    "MODEL.SPEC.HEAD_HEATMAP.DILATION_RATE": 1,
    "MODEL.SPEC.HEAD_OFFSET.BLOCK": "ADAPTIVE",
    "MODEL.SPEC.HEAD_OFFSET.NUM_BLOCKS": 2,
    "MODEL.SPEC.HEAD_OFFSET.NUM_CHANNELS_PERKPT": 15,
    "MODEL.SPEC.HEAD_OFFSET.DILATION_RATE": 1,
    "MODEL.SPEC.STEM_CHANNELS": 64,  # upstream has it in its code
}
W48 = RECIPE | {
    "DATASET.INPUT_SIZE": 640,
    "DATASET.OUTPUT_SIZE": 160,
    "MODEL.SPEC.STAGES.NUM_CHANNELS": [[48, 96], [48, 96, 192], [48, 96, 192, 384]],
    "MODEL.SPEC.HEAD_HEATMAP.NUM_CHANNELS": 48,
}


def values_of(tree: Any, keys: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key in keys:
        value = tree
        for part in key.split("."):
            value = value[part]
        found[key] = value
    return found


def test_the_defaults_are_upstreams():
    assert values_of(DEFAULTS, DEFAULT_VALUES) == DEFAULT_VALUES


@pytest.mark.parametrize(
    ("name", "recipe"), [(None, RECIPE), ("dekr_w32_coco", RECIPE), ("dekr_w48_coco", W48)], ids=["none", "w32", "w48"]
)
def test_the_recipes_are_upstreams(name, recipe):
    assert values_of(load_config(name), recipe) == recipe
