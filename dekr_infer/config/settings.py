"""From the configuration tree to the plain values that numeric code takes; the tree itself goes no further."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dekr_infer.config.load import load_config, skeleton_of
from dekr_infer.errors import ConfigError
from dekr_infer.geometry import EXACT, PUBLISHED_SIZES, InputSizes
from dekr_infer.onnx_graph.baked import Baked
from dekr_infer.pose.decode import DecodeSettings
from dekr_infer.pose.refine import RefineSettings
from dekr_infer.pose.rescore import RescoreNet, load_rescore_net
from dekr_infer.skeleton import COCO_17, shipped_skeleton
from dekr_infer.storage.atomic import sha256


def decode_settings(config: CfgNode) -> DecodeSettings:
    """Return the settings of decoding."""
    test = config.TEST
    return DecodeSettings(
        max_people=config.DATASET.MAX_NUM_PEOPLE,
        threshold=test.KEYPOINT_THRESHOLD,
        nms_distance=test.NMS_THRE,
        nms_joints=test.NMS_NUM_THRE,
        pool_sides=(test.POOL_THRESHOLD1, test.POOL_THRESHOLD2),
        decrease=test.DECREASE if len(test.SCALE_FACTOR) > 1 else 1.0,
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
    return load_rescore_net(config.RESCORE.MODEL_FILE, config.RESCORE.HIDDEN_LAYER, skeleton_of(config))


def require_one_scale(config: CfgNode) -> None:
    """Check that a command that runs one scale is not asked for several.

    Raises:
        ConfigError: TEST.SCALE_FACTOR names several.
    """
    if list(config.TEST.SCALE_FACTOR) != [1]:
        raise ConfigError(
            f"TEST.SCALE_FACTOR {config.TEST.SCALE_FACTOR}: the three steps run one scale; run scripts/evaluate.py, or "
            "add TEST.SCALE_FACTOR [1]"
        )


def configured_sizes(config: CfgNode) -> InputSizes:
    """Return the sizes that the network is fed: TEST.INPUT_SIZES, or those that follow from DATASET.INPUT_SIZE."""
    text = config.TEST.get("INPUT_SIZES", "")  # upstream's own tree lacks it
    named = InputSizes.parse(text)
    return named or InputSizes.of_short_side(config.DATASET.INPUT_SIZE, exact=text == EXACT)


def require_fit(config: CfgNode, graph: Path, found: InputSizes, joints: Sequence[str]) -> None:
    """Check that a graph is that of the configuration; the default configuration takes any graph's input sizes.

    Args:
        config: of the run.
        graph: its file.
        found: its input sizes.
        joints: their names.
    Raises:
        ConfigError: the graph has other joints or input sizes.
    """
    wanted, skeleton = configured_sizes(config), skeleton_of(config)
    if skeleton.joints != tuple(joints):
        raise ConfigError(
            f"{graph}: finds {_named(joints)}, the configuration has {_named(skeleton.joints)}; add --cfg and the "
            "settings with which the graph was exported"
        )
    if wanted not in (found, PUBLISHED_SIZES):
        raise ConfigError(
            f"{graph}: takes the input sizes {found}, the configuration has {wanted}; export the graph again with "
            "DEKR_pth2onnx.py and the same --cfg and settings"
        )


def _named(joints: Sequence[str]) -> str:
    skeleton = shipped_skeleton(joints)
    return f"{len(joints)} joints ({skeleton.name if skeleton else ', '.join(joints)})"


def baked_config(config: CfgNode, baked: Baked | None, model: object) -> CfgNode:
    """Return the configuration with the settings that are inside a graph that decodes people itself.

    Args:
        config: of the run.
        baked: the decoding inside the graph; with `None` the configuration is returned as it is.
        model: the graph's name.
    Raises:
        ConfigError: a setting is neither the default nor the graph's.
    """
    if baked is None:
        return config
    settings, default, adapted = baked.settings, load_config(), config.clone()
    inside = {
        "TEST.FLIP_TEST": baked.flip,
        "TEST.MATCH_HMP": False,
        "TEST.KEYPOINT_THRESHOLD": settings.threshold,
        "TEST.NMS_THRE": settings.nms_distance,
        "TEST.NMS_NUM_THRE": settings.nms_joints,
        "TEST.POOL_THRESHOLD1": settings.pool_sides[0],
        "TEST.POOL_THRESHOLD2": settings.pool_sides[1],
        "DATASET.MAX_NUM_PEOPLE": settings.max_people,
        "RESCORE.VALID": baked.rescore_sha256 is not None,
    }
    adapted.defrost()
    for key, value in inside.items():
        section, name = key.split(".")
        if config[section][name] not in (value, default[section][name]):
            raise ConfigError(
                f"{key} {config[section][name]}: {model} decodes people itself, with {value}; leave the setting out, "
                "or export the file again with it"
            )
        adapted[section][name] = value
    given = config.RESCORE.MODEL_FILE
    named = given != default.RESCORE.MODEL_FILE and Path(given).is_file()
    if named and sha256(Path(given)) != baked.rescore_sha256:
        raise ConfigError(
            f"RESCORE.MODEL_FILE {given}: not the rescoring net inside {model}; leave the setting out, or export the "
            "file again with it"
        )
    adapted.freeze()
    return adapted


def influences(config: CfgNode) -> dict[str, Any]:
    """Return every setting that changes the people found in given outputs, by its key's last word."""
    test_scales = config.TEST.SCALE_FACTOR
    test = (
        *("KEYPOINT_THRESHOLD", "NMS_THRE", "NMS_NUM_THRE", "POOL_THRESHOLD1", "POOL_THRESHOLD2"),
        *("MATCH_HMP", "MAX_ABSORB_DISTANCE", "ADJUST_THRESHOLD", "GUASSIAN_KERNEL"),
    )
    return (
        {"split": config.DATASET.TEST, "flip": config.TEST.FLIP_TEST, "rescored": config.RESCORE.VALID}
        | {key: config.TEST[key] for key in test}
        | {key: config.DATASET[key] for key in ("MAX_NUM_PEOPLE", "SIGMA")}
        | {"HIDDEN_LAYER": config.RESCORE.HIDDEN_LAYER}
        | ({"input_sizes": str(sizes)} if (sizes := configured_sizes(config)) != PUBLISHED_SIZES else {})
        | ({"joints": list(skeleton.joints)} if (skeleton := skeleton_of(config)) != COCO_17 else {})
        | ({"scales": list(test_scales), "DECREASE": config.TEST.DECREASE} if len(test_scales) > 1 else {})
    )
