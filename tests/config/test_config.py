"""Configuration: defaults <- YAML <- KEY VALUE pairs, a frozen copy per call, and complaints that say what to type."""

import re
from pathlib import Path

import pytest
from yacs.config import CfgNode

from dekr_infer.config.load import CONFIG_FOLDER, _leaves, fill, load_config
from dekr_infer.config.schema import DEFAULTS
from dekr_infer.config.settings import configured_sizes, require_fit
from dekr_infer.errors import ConfigError
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes
from dekr_infer.skeleton import COCO_17

# A file in upstream's form: its sections and types, values changed so that they differ.
UPSTREAM = """
AUTO_RESUME: True
DATA_DIR: ''
GPUS: (0,1)
CUDNN:
  BENCHMARK: True
DATASET:
  DATASET: coco_kpt
  DATASET_TEST: coco
  DATA_FORMAT: zip
  MAX_SCALE: 1.5
  SCALE_TYPE: 'short'
  ROOT: 'data/elsewhere'
  SIGMA: 3
LOSS:
  OFFSETS_LOSS_FACTOR: 0.03
MODEL:
  SPEC:
    PRETRAINED_LAYERS: ['*']
    STAGES:
      NUM_STAGES: 3
      NUM_MODULES:
      - 1
      - 4
      - 3
      BLOCK:
      - BASIC
      - BASIC
      - BASIC
      NUM_CHANNELS:
      - [40, 80]
      - [40, 80, 160]
      - [40, 80, 160, 320]
    HEAD_HEATMAP:
      NUM_CHANNELS: 40
  PRETRAINED: 'model/imagenet/hrnet_w32-36af842e.pth'
TEST:
  SCALE_FACTOR: [1]
  NMS_THRE: 0.07
  DECREASE: 0.9
TRAIN:
  LR_STEP: [90, 120]
WORKERS: 4
"""


def complaint(*pairs: str, path=None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, pairs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_default_is_w32_on_coco_with_the_references_decoding():
    config = load_config()
    assert config.MODEL.SPEC.STAGES.NUM_CHANNELS == [[32, 64], [32, 64, 128], [32, 64, 128, 256]]
    assert (config.TEST.NMS_THRE, config.TEST.NMS_NUM_THRE, config.TEST.KEYPOINT_THRESHOLD) == (0.05, 8, 0.01)
    assert (config.DATASET.MAX_NUM_PEOPLE, config.DATASET.TEST, config.DATASET.INPUT_SIZE) == (30, "val2017", 512)
    assert config.TEST.FLIP_TEST is True and config.RESCORE.VALID is True and config.TEST.MATCH_HMP is False


def test_w48_is_known_by_its_name_and_by_its_path():
    for name in ("dekr_w48_coco", CONFIG_FOLDER / "dekr_w48_coco.yaml"):
        stages = load_config(name).MODEL.SPEC.STAGES
        assert stages.NUM_CHANNELS == [[48, 96], [48, 96, 192], [48, 96, 192, 384]]


def test_every_own_configuration_loads():
    names = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))
    assert {"dekr_w32_coco", "dekr_w48_coco", "demo"} <= set(names)
    for name in names:
        assert (14 if "crowdpose" in name else 17) == load_config(name).DATASET.NUM_JOINTS


def test_a_file_in_upstreams_form_loads(tmp_path):
    path = tmp_path / "w40.yaml"
    path.write_text(UPSTREAM)
    config = load_config(path)
    assert config.MODEL.SPEC.STAGES.NUM_CHANNELS[2] == [40, 80, 160, 320]
    assert config.GPUS == (0, 1)
    assert config.DATASET.ROOT == "data/elsewhere"
    assert config.DATASET.SIGMA == 3.0 and isinstance(config.DATASET.SIGMA, float)
    assert config.TEST.NMS_THRE == 0.07
    assert config.TEST.NMS_NUM_THRE == 10  # not in the file: upstream's default, not our W32's


def test_pairs_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("TEST:\n  NMS_THRE: 0.07\n  NMS_NUM_THRE: 5\n")
    config = load_config(path, ["TEST.NMS_THRE", "0.5"])
    assert (config.TEST.NMS_THRE, config.TEST.NMS_NUM_THRE, config.TEST.POOL_THRESHOLD1) == (0.5, 5, 300)


def test_every_call_gives_a_frozen_copy_of_its_own():
    first = load_config(pairs=["TEST.NMS_THRE", "0.9"])
    assert load_config().TEST.NMS_THRE == 0.05
    with pytest.raises(AttributeError, match="immutable"):
        first.TEST.NMS_THRE = 0.1
    first.defrost()
    first.MODEL.SPEC.STAGES.NUM_CHANNELS[0][0] = 7
    first.GPUS = (9,)
    assert load_config().MODEL.SPEC.STAGES.NUM_CHANNELS[0][0] == 32
    assert load_config("demo").GPUS == (0,)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("TEST.NMS_THRE", "1", 1.0),
        ("TEST.FLIP_TEST", "False", False),
        ("TEST.SCALE_FACTOR", "[1]", [1]),
        ("TEST.ADJUST_THRESHOLD", "-0.5", -0.5),
        ("DATASET.TEST", "2017", "2017"),
        ("DATASET.ROOT", "data/coco", "data/coco"),
        ("DATASET.ROOT", "", ""),
        ("DATASET.ROOT", "a folder/with spaces", "a folder/with spaces"),
        ("TEST.MODEL_FILE", "1e3", "1e3"),
        ("GPUS", "[0, 3]", (0, 3)),
        ("MODEL.SPEC.STAGES.NUM_CHANNELS", "[[1, 2], [3]]", [[1, 2], [3]]),
    ],
)
def test_a_typed_value_takes_the_type_of_its_key(key, text, value):
    found = load_config(pairs=[key, text])
    for part in key.split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


def test_an_unknown_key_names_the_one_meant():
    assert complaint("TEST.NMS_THR", "0.1") == "unknown key TEST.NMS_THR; did you mean TEST.NMS_THRE?"
    assert "did you mean TEST.NMS_THRE?" in complaint("test.nms_thre", "0.1")
    assert "did you mean RESCORE.MODEL_FILE?" in complaint("RESCORE.MODELFILE", "x.pth")
    assert "DATASET.ROOT" in complaint("DATASET.ROOT.X", "1")
    assert complaint("zzz", "1").startswith("unknown key zzz")


def test_an_unknown_key_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("TEST:\n  FLIP_TSET: True\n")
    assert complaint(path=path) == f"{path}: unknown key TEST.FLIP_TSET; did you mean TEST.FLIP_TEST?"


def test_an_odd_count_names_the_word_without_partner():
    assert "TEST.FLIP_TEST, has no partner" in complaint("TEST.NMS_THRE", "0.1", "TEST.FLIP_TEST")


@pytest.mark.parametrize("pairs", [("TEST.NMS_THRE", "0.1", "--limit", "3"), ("TEST.NMS_THRE", "--limit"),
                                   ("TEST.NMS_THRE", "0.1", "-h", "3")])  # fmt: skip
def test_a_flag_after_the_first_pair_is_not_taken_for_a_key(pairs):
    assert "flags come before the first KEY VALUE pair" in complaint(*pairs)


@pytest.mark.parametrize(
    ("key", "text", "part"),
    [
        ("TEST.NMS_THRE", "much", "expects a number such as"),
        ("TEST.NMS_NUM_THRE", "8.5", "expects a whole number such as"),
        ("TEST.NMS_NUM_THRE", "True", "expects a whole number such as"),
        ("TEST.FLIP_TEST", "1", "expects True or False"),
        ("TEST.FLIP_TEST", "false", "expects True or False"),
        ("TEST.SCALE_FACTOR", "1", "expects a list such as"),
        ("MODEL.SPEC.STAGES.NUM_CHANNELS", "[32, 64]", "expects a list like"),
        ("TEST.SCALE_FACTOR", "['1', 2]", "expects a list like"),
        ("TEST.SCALE_FACTOR", "[1, True]", "expects a list like"),
        ("TEST", "1", "is a section; name one of its keys"),
    ],
)
def test_a_wrong_type_names_the_key_and_what_it_wants(key, text, part):
    message = complaint(key, text)
    assert message.startswith(key) and part in message


def test_sections_below_an_open_one_are_open_too(tmp_path):
    """As upstream's own tree has them, whose MODEL.SPEC takes what the file names."""
    tree, file = CfgNode({"MODEL": {"NAME": "net"}}), tmp_path / "net.yaml"
    tree.MODEL.SPEC = CfgNode(new_allowed=True)
    file.write_text("MODEL: {SPEC: {STAGES: {DEEPER: {NUM: 3}}}}")
    fill(tree, file, ["MODEL.SPEC.STAGES.KIND", "plain"])
    assert tree.MODEL.SPEC.STAGES.DEEPER.NUM == 3 and tree.MODEL.SPEC.STAGES.KIND == "plain"
    file.write_text("MODEL: {STAGES: {NUM: 3}}")
    with pytest.raises(ConfigError, match=r"unknown key MODEL\.STAGES\.NUM"):
        fill(tree, file, [])


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("TEST.SCALE_FACTOR", "[0.5, 2]"),
        ("TEST.SCALE_FACTOR", "[0.75, 1]"),
        ("TEST.SCALE_FACTOR", "[1, 1]"),
        ("DATASET.DATASET", "crowd_pose_kpt"),
        ("DATASET.NUM_JOINTS", "14"),
        ("MODEL.NUM_JOINTS", "14"),
        ("TEST.KEYPOINT_THRESHOLD", "1.5"),
        ("TEST.KEYPOINT_THRESHOLD", "-0.1"),
        ("TEST.NMS_THRE", "-1"),
        ("DATASET.TEST", ""),
    ],
)
def test_what_the_chain_cannot_do_is_refused_rather_than_ignored(key, text):
    assert complaint(key, text).startswith(key)


@pytest.mark.parametrize(
    ("key", "outside", "inside"),
    [
        ("DATASET.MAX_NUM_PEOPLE", ("0", "10001", str(10**400)), ("1", "10000")),
        ("DATASET.SIGMA", ("0.0", "1e-300", "-1", "1e300"), ("0.1", "1000000")),
        ("TEST.GUASSIAN_KERNEL", ("-1", "513", "1000000000"), ("0", "512")),
        ("TEST.MAX_ABSORB_DISTANCE", ("-1", str(10**400)), ("0", "1000000")),
        ("TEST.ADJUST_THRESHOLD", ("-1e308", "1e308", "-1000001"), ("-1e6", "1e6")),
        ("TEST.NMS_NUM_THRE", ("-1", str(10**400)), ("0", "17")),
    ],
)
def test_numbers_that_make_no_sense_are_refused_and_the_bounds_themselves_taken(key, outside, inside):
    for text in outside:
        message = complaint(key, text)
        assert message.startswith(key) and ": from " in message
    for text in inside:
        load_config(None, (key, text))


@pytest.mark.parametrize(
    ("content", "part"),
    [("- 1\n- 2\n", "has no sections"), ("", "has no sections"), ("a: [", "not a plain YAML file"),
     ("a: !!python/object/apply:os.getcwd []\n", "not a plain YAML file"), ("TEST: 3\n", "is a section"),
     ("TEST:\n  NMS_THRE: [1]\n", "expects a number")],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, part):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    message = complaint(path=path)
    assert message.startswith(f"{path}: ") and part in message


def test_a_missing_file_is_named(tmp_path):
    assert "none.yaml: cannot be read" in complaint(path=tmp_path / "none.yaml")
    assert "cannot be read" in complaint(path=tmp_path)


def test_errors_of_the_configuration_end_with_exit_code_2():
    assert ConfigError("x").exit_code == 2


def test_w48_has_its_own_input_sizes():
    assert str(configured_sizes(load_config("dekr_w48_coco"))) == "640,960;640,640;960,640;640,1280;1280,640"
    assert configured_sizes(load_config()) == PUBLISHED_SIZES


def test_input_sizes_are_named_by_a_word_or_one_by_one():
    def sizes(text: str) -> InputSizes:
        return configured_sizes(load_config(pairs=["TEST.INPUT_SIZES", text]))

    assert sizes("exact") == InputSizes.of_short_side(512, exact=True)
    assert list(sizes("512,544;512,512")) == [(512, 544), (512, 512)]
    assert list(sizes("512,544")) == [(512, 544)]


@pytest.mark.parametrize("text", ["five", "512,768,1", "640,640", "512,520", "512,0", "exact 512"])
def test_input_sizes_that_do_not_suit_are_refused(text):
    assert complaint("TEST.INPUT_SIZES", text).startswith(f"TEST.INPUT_SIZES {text}: exact, or sizes of short side 512")


@pytest.mark.parametrize(
    ("pairs", "part"),
    [
        (("DATASET.INPUT_SIZE", "500"), "a multiple of 64 from 64 to 4096"),
        (("DATASET.INPUT_SIZE", "0", "DATASET.OUTPUT_SIZE", "0"), "a multiple of 64"),
        (("DATASET.INPUT_SIZE", "640"), "add DATASET.OUTPUT_SIZE 160"),
        (("DATASET.OUTPUT_SIZE", "256"), "add DATASET.OUTPUT_SIZE 128"),
    ],
)
def test_the_maps_have_a_quarter_of_the_input_size(pairs, part):
    message = complaint(*pairs)
    assert message.startswith("DATASET.INPUT_SIZE") and part in message


def test_a_graph_of_other_input_sizes_is_refused_with_both_named():
    graph, w48 = Path("w32.onnx"), load_config("dekr_w48_coco")
    require_fit(w48, graph, InputSizes.of_short_side(640), COCO_17.joints)
    require_fit(load_config(), graph, InputSizes.of_short_side(640), COCO_17.joints)  # the default follows the graph
    with pytest.raises(ConfigError, match=r"w32.onnx: takes the input sizes 512,768;.* the configuration has 640,960;"):
        require_fit(w48, graph, PUBLISHED_SIZES, COCO_17.joints)


def test_the_page_of_settings_lists_every_key_with_its_default_once():
    page = (Path(__file__).resolve().parents[2] / "docs/settings.md").read_text()
    rows = re.findall(r"^\| ([A-Z][A-Z0-9_.]+) \| (?:`(.*?)`|empty) \|", page, re.MULTILINE)
    assert sorted(rows) == sorted((key, str(value)) for key, value in _leaves(DEFAULTS))


@pytest.mark.parametrize(
    ("key", "text"),
    [("MODEL.NAME", "hrnet"), ("MODEL.SPEC.STAGES.FUSE_METHOD", "['SUM','CAT','SUM']"), ("RESCORE.GET_DATA", "True")],
)
def test_what_would_change_the_result_and_is_not_supported_is_refused(key, text):
    assert complaint(key, text).startswith(key)
