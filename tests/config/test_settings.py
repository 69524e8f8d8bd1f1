"""From the configuration tree to plain values: every setting arrives, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from yacs.config import CfgNode

from dekr_infer.config.load import load_config
from dekr_infer.config.settings import (
    baked_config,
    configured_sizes,
    decode_settings,
    influences,
    refine_settings,
    require_fit,
    require_one_scale,
    rescore_net,
)
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes
from dekr_infer.onnx_graph.baked import Baked
from dekr_infer.pose.decode import DecodeSettings
from dekr_infer.pose.refine import RefineSettings
from dekr_infer.skeleton import COCO_17, CROWDPOSE_14
from dekr_infer.storage.atomic import sha256
from tests.support.workspace import write_rescore_net

WIDE = ("DATASET.INPUT_SIZE", 640, "DATASET.OUTPUT_SIZE", 160)


def config(*pairs: object) -> CfgNode:
    return load_config(None, [str(word) for word in pairs])


def test_every_setting_of_decoding_arrives():
    pairs = ("DATASET.MAX_NUM_PEOPLE", 7, "TEST.KEYPOINT_THRESHOLD", 0.2, "TEST.NMS_THRE", 0.3, "TEST.NMS_NUM_THRE", 4)
    pools = ("TEST.POOL_THRESHOLD1", 90, "TEST.POOL_THRESHOLD2", 80, "TEST.DECREASE", 0.7)
    assert decode_settings(config(*pairs, *pools)) == DecodeSettings(7, 0.2, 0.3, 4, (90, 80), 1.0)
    two = config(*pairs, *pools, "TEST.SCALE_FACTOR", "[0.5, 1]")
    assert decode_settings(two) == DecodeSettings(7, 0.2, 0.3, 4, (90, 80), 0.7), "only among several scales"


def test_every_setting_of_the_refinement_arrives():
    pairs = ("DATASET.MAX_NUM_PEOPLE", 7, "TEST.MAX_ABSORB_DISTANCE", 60, "TEST.ADJUST_THRESHOLD", 0.2)
    pairs += ("TEST.GUASSIAN_KERNEL", 4, "DATASET.SIGMA", 1.5)
    assert refine_settings(config(*pairs)) is None
    assert refine_settings(config(*pairs, "TEST.MATCH_HMP", True)) == RefineSettings(7, 60, 0.2, 4, 1.5)


def test_the_rescoring_net_is_loaded_where_it_is_on(tmp_path):
    path = tmp_path / "rescore.pth"
    write_rescore_net(path, hidden=12)
    pairs = ("RESCORE.MODEL_FILE", path, "RESCORE.HIDDEN_LAYER", 12)
    net = rescore_net(config(*pairs))
    assert net is not None and net.weights[0].shape == (12, 74) and net.skeleton == COCO_17
    assert rescore_net(config(*pairs, "RESCORE.VALID", False)) is None
    with pytest.raises(DekrError, match=r"none\.pth"):
        rescore_net(config("RESCORE.MODEL_FILE", tmp_path / "none.pth"))


def test_commands_of_one_scale_refuse_several():
    require_one_scale(config())
    for scales in ("[0.5, 1]", "[1, 2]"):
        with pytest.raises(ConfigError, match="the three steps run one scale"):
            require_one_scale(config("TEST.SCALE_FACTOR", scales))


def test_input_sizes_are_named_exact_or_follow_from_the_short_side():
    assert configured_sizes(config()) == PUBLISHED_SIZES
    assert configured_sizes(config(*WIDE)) == InputSizes.of_short_side(640)
    assert configured_sizes(config("TEST.INPUT_SIZES", "512,576;576,512")) == InputSizes.parse("512,576;576,512")
    exact = configured_sizes(config("TEST.INPUT_SIZES", "exact", *WIDE))
    assert exact == InputSizes.of_short_side(640, exact=True)


def test_a_graph_of_other_joints_or_sizes_is_refused():
    graph, wide = Path("net.onnx"), InputSizes.of_short_side(640)
    for found in (PUBLISHED_SIZES, wide):
        require_fit(config(), graph, found, COCO_17.joints)
    require_fit(config(*WIDE), graph, wide, COCO_17.joints)
    with pytest.raises(ConfigError, match=r"net\.onnx: finds 14 joints \(CrowdPose\), the configuration has 17"):
        require_fit(config(), graph, PUBLISHED_SIZES, CROWDPOSE_14.joints)
    with pytest.raises(ConfigError, match="finds 2 joints \\(a, b\\)"):
        require_fit(config(), graph, PUBLISHED_SIZES, ("a", "b"))
    with pytest.raises(ConfigError, match="takes the input sizes"):
        require_fit(config(*WIDE), graph, PUBLISHED_SIZES, COCO_17.joints)


INSIDE = {
    "TEST.FLIP_TEST": False,
    "TEST.MATCH_HMP": False,
    "TEST.KEYPOINT_THRESHOLD": 0.02,
    "TEST.NMS_THRE": 0.06,
    "TEST.NMS_NUM_THRE": 9,
    "TEST.POOL_THRESHOLD1": 310,
    "TEST.POOL_THRESHOLD2": 210,
    "DATASET.MAX_NUM_PEOPLE": 20,
    "RESCORE.VALID": True,
}
SETTINGS = DecodeSettings(20, 0.02, 0.06, 9, (310, 210))


def values(tree: CfgNode) -> dict[str, object]:
    return {key: tree[key.split(".")[0]][key.split(".")[1]] for key in INSIDE}


def test_what_is_inside_a_graph_takes_the_place_of_the_defaults(tmp_path):
    baked = Baked(SETTINGS, False, "0" * 64)
    adapted = baked_config(config(), baked, "net.onnx")
    assert values(adapted) == INSIDE and adapted.is_frozen()
    plain = config("TEST.NMS_THRE", 0.2)
    assert baked_config(plain, None, "net.onnx") is plain
    assert baked_config(config("TEST.NMS_THRE", 0.06), baked, "net.onnx").TEST.NMS_THRE == 0.06, "the graph's own"
    without = baked_config(config(), Baked(SETTINGS, True, None), "net.onnx")
    assert without.RESCORE.VALID is False and without.TEST.FLIP_TEST is True


@pytest.mark.parametrize(
    ("key", "value"),
    [("TEST.NMS_THRE", 0.2), ("TEST.NMS_NUM_THRE", 5), ("TEST.POOL_THRESHOLD1", 99), ("TEST.POOL_THRESHOLD2", 99)]
    + [("TEST.MATCH_HMP", True), ("DATASET.MAX_NUM_PEOPLE", 5), ("TEST.KEYPOINT_THRESHOLD", 0.3)],
)
def test_a_setting_other_than_the_graphs_is_refused(key, value):
    with pytest.raises(ConfigError, match=rf"{key} {value}: net\.onnx decodes people itself"):
        baked_config(config(key, value), Baked(SETTINGS, True, None), "net.onnx")


def test_another_rescoring_net_than_the_graphs_is_refused(tmp_path):
    path = tmp_path / "rescore.pth"
    write_rescore_net(path)
    named = config("RESCORE.MODEL_FILE", path)
    baked_config(named, Baked(SETTINGS, True, sha256(path)), "net.onnx")
    with pytest.raises(ConfigError, match="not the rescoring net inside"):
        baked_config(named, Baked(SETTINGS, True, "0" * 64), "net.onnx")
    baked_config(config("RESCORE.MODEL_FILE", tmp_path / "none.pth"), Baked(SETTINGS, True, "0" * 64), "net.onnx")


def test_whatever_changes_people_is_recorded():
    plain = influences(config())
    assert plain == {
        **{"split": "val2017", "flip": True, "rescored": True, "KEYPOINT_THRESHOLD": 0.01, "NMS_THRE": 0.05},
        **{"NMS_NUM_THRE": 8, "POOL_THRESHOLD1": 300, "POOL_THRESHOLD2": 200, "MATCH_HMP": False},
        **{"MAX_ABSORB_DISTANCE": 75, "ADJUST_THRESHOLD": 0.05, "GUASSIAN_KERNEL": 6, "MAX_NUM_PEOPLE": 30},
        **{"SIGMA": 2.0, "HIDDEN_LAYER": 256},
    }
    sized = influences(config("TEST.INPUT_SIZES", "512,576;576,512"))
    assert sized == plain | {"input_sizes": "512,576;576,512"}
    scaled = influences(config("TEST.SCALE_FACTOR", "[0.5, 1]"))
    assert scaled == plain | {"scales": [0.5, 1], "DECREASE": 0.9}
    crowd = influences(load_config("dekr_w32_crowdpose", []))
    assert crowd["joints"] == list(CROWDPOSE_14.joints)
