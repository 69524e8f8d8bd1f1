"""From the configuration tree to the plain values that numeric code takes; the tree itself goes no further."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dekr_infer.pose.decode import DecodeSettings
from dekr_infer.pose.refine import RefineSettings
from dekr_infer.pose.rescore import RescoreNet, load_rescore_net


def decode_settings(config: CfgNode) -> DecodeSettings:
    """Return the settings of decoding."""
    test = config.TEST
    return DecodeSettings(
        max_people=config.DATASET.MAX_NUM_PEOPLE,
        threshold=test.KEYPOINT_THRESHOLD,
        nms_distance=test.NMS_THRE,
        nms_joints=test.NMS_NUM_THRE,
        pool_sides=(test.POOL_THRESHOLD1, test.POOL_THRESHOLD2),
    )


def refine_settings(config: CfgNode) -> RefineSettings | None:
    """Return the settings of the heatmap refinement; `None` where TEST.MATCH_HMP is off."""
    test = config.TEST
    if not test.MATCH_HMP:
        return None
    return RefineSettings(
        max_people=config.DATASET.MAX_NUM_PEOPLE,
        absorb_distance=test.MAX_ABSORB_DISTANCE,
        threshold=test.ADJUST_THRESHOLD,
        reach=test.GUASSIAN_KERNEL,
        sigma=config.DATASET.SIGMA,
    )


def rescore_net(config: CfgNode) -> RescoreNet | None:
    """Load the rescoring net; `None` where RESCORE.VALID is off.

    Raises:
        DekrError: the checkpoint is missing or does not fit.
    """
    if not config.RESCORE.VALID:
        return None
    return load_rescore_net(config.RESCORE.MODEL_FILE, config.RESCORE.HIDDEN_LAYER)


def influences(config: CfgNode) -> dict[str, Any]:
    """Return every setting that changes the people found in given outputs, by its key's last word."""
    test = (
        *("KEYPOINT_THRESHOLD", "NMS_THRE", "NMS_NUM_THRE", "POOL_THRESHOLD1", "POOL_THRESHOLD2"),
        *("MATCH_HMP", "MAX_ABSORB_DISTANCE", "ADJUST_THRESHOLD", "GUASSIAN_KERNEL"),
    )
    return (
        {"split": config.DATASET.TEST, "flip": config.TEST.FLIP_TEST, "rescored": config.RESCORE.VALID}
        | {key: config.TEST[key] for key in test}
        | {key: config.DATASET[key] for key in ("MAX_NUM_PEOPLE", "SIGMA")}
        | {"HIDDEN_LAYER": config.RESCORE.HIDDEN_LAYER}
    )
