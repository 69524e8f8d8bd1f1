"""metrics.json and --compare: what is kept, what differs, which exit code."""

from __future__ import annotations

import copy
import hashlib
import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from dekr_infer.errors import DekrError
from dekr_infer.evaluation import metrics_file as metrics
from dekr_infer.evaluation.coco_metrics import CROWD_METRICS, METRICS
from dekr_infer.model.random_weights import random_rescore
from dekr_infer.model.weights import RANDOM, TRAINED, mark_random
from dekr_infer.storage.atomic import sha256
from tests.support import corruption as spoil
from tests.support.commands import assert_refused
from tests.support.workspace import INFER, POSTPROCESS, PREPROCESS, Place, undisturbed_run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed_run(tmp_path_factory.mktemp("undisturbed"), (PREPROCESS, INFER, POSTPROCESS))


@pytest.fixture
def place(tmp_path: Path, source: Path) -> Place:
    made = Place(tmp_path, POSTPROCESS, source / "in")
    for name in ("out", "out_flip"):
        (made.inputs / f"{name}_summary.json").hardlink_to(source / "w" / f"{name}_summary.json")
    return made


def metrics_of(place: Place) -> dict:
    return json.loads((place.outputs / "results" / "metrics.json").read_text())


def test_hashes_versions_and_settings_of_everything_that_counts_are_kept(place, source):
    assert place.run().code == 0
    found = metrics_of(place)
    graph = sha256(source / "in" / "net.onnx")
    assert found["sha256"]["graphs"] == [graph, graph]
    assert found["sha256"]["rescore"] == sha256(source / "in" / "rescore.pth")
    assert found["sha256"]["annotations"] == sha256(source / "in/coco/annotations/person_keypoints_val2017.json")
    results = (place.outputs / "results" / "keypoints_val2017_results.json").read_bytes()
    assert found["sha256"]["results"] == hashlib.sha256(results).hexdigest()
    assert {"dekr_infer", "python", *metrics.LIBRARIES, "onnxruntime", "opencv"} == set(found["versions"])
    assert all(found["versions"]["onnxruntime"])
    assert all(found["versions"][name] for name in ("numpy", "pycocotools", "torch"))
    matching = {"MATCH_HMP", "ADJUST_THRESHOLD", "MAX_ABSORB_DISTANCE", "GUASSIAN_KERNEL", "SIGMA"}
    assert {"POOL_THRESHOLD1", "NMS_THRE", "MAX_NUM_PEOPLE", "HIDDEN_LAYER"} | matching <= set(found["settings"])


def test_random_weights_of_the_rescoring_net_alone_make_the_metrics_random(place):
    net = place.inputs / "rescore.pth"
    net.unlink()  # a link to the one of all tests
    state = random_rescore(256)
    mark_random(state)
    torch.save(state, net)
    assert place.run().code == 0 and metrics_of(place)["weights"] == RANDOM
    assert place.run(pairs=("RESCORE.VALID", "False")).code == 0 and metrics_of(place)["weights"] == TRAINED


def test_finding_nobody_in_any_image_is_a_valid_result(place):
    for path in [*place.inputs.glob("out/*_0.npy"), *place.inputs.glob("out_flip/*_0.npy")]:
        spoil.resave(path, spoil.set_value(0))
    ran = place.run(pairs=("RESCORE.VALID", "False"), real=True)
    assert ran.code == 0 and ran.err == "", ran
    assert "3 images, 0 people, nobody in 3 images" in ran.out
    figures = metrics_of(place)["figures"]
    assert figures["AP"] == 0 and set(figures.values()) == {0.0, -1.0}, "nobody annotated is large"
    assert (place.outputs / "results" / "keypoints_val2017_results.json").read_bytes() == b"[]\n"


def test_the_same_run_again_differs_in_nothing(place, tmp_path):
    assert place.run().code == 0
    (place.outputs / "results" / "metrics.json").rename(tmp_path / "old.json")
    ran = place.run("--compare", str(tmp_path / "old.json"))
    assert ran.code == 0 and ran.out.endswith("old.json:\n  nothing differs\n")


def test_the_metrics_compared_with_may_be_those_that_are_replaced(place):
    assert place.run().code == 0
    ran = place.run("--compare", str(place.outputs / "results" / "metrics.json"))
    assert ran.code == 0 and "nothing differs" in ran.out


def test_another_setting_is_named_and_the_metrics_decide_the_exit_code(place, tmp_path):
    assert place.run().code == 0
    old = metrics_of(place)
    (tmp_path / "old.json").write_text(json.dumps(old))
    ran = place.run("--compare", str(tmp_path / "old.json"), pairs=("TEST.NMS_NUM_THRE", "7"))
    assert ran.code == 0 and "  settings: NMS_NUM_THRE: 8 -> 7\n" in ran.out
    old["figures"]["AP (M)"] += 0.001
    (tmp_path / "old.json").write_text(json.dumps(old))
    ran = place.run("--compare", str(tmp_path / "old.json"))
    assert_refused(ran, 1, "old.json: AP (M) was", "the lines above show")
    assert "  metrics: AP (M): " in ran.out and metrics_of(place)["figures"]


def test_help_explains_the_exit_code(place):
    ran = place.run("--help")
    assert "0 when the ten metrics are equal" in ran.out


BASE = {"figures": dict.fromkeys(METRICS, 0.5), "sha256": {"graphs": ["a" * 64]}, "versions": {"numpy": "2.2.6"}}


@pytest.mark.parametrize(
    ("part", "key", "value", "line"),
    [
        ("sha256", "graphs", ["b" * 64], "  inputs: graphs: aaaaaaaaaaaa... -> bbbbbbbbbbbb..."),
        ("versions", "numpy", "2.3.0", "  versions: numpy: 2.2.6 -> 2.3.0"),
        ("settings", "flip", False, "  settings: flip: nothing -> False"),
        ("counts", "people", 7, "  counts: people: nothing -> 7"),
        ("warnings", "ranking", "speaks", "  warnings: ranking: nothing -> speaks"),
        ("figures", "AR", 0.502, "  metrics: AR: 0.500000 -> 0.502000 (+0.002000)"),
    ],
)
def test_each_part_has_its_line(part, key, value, line):
    new = copy.deepcopy(BASE)
    new.setdefault(part, {})[key] = value
    lines = metrics.difference_lines(BASE, new, Path("old.json"))
    assert lines == ["compared with old.json:", line]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1" + "0" * 400, "1.5", "-2", '"0.5"', "null", "true"])
def test_what_is_no_metric_is_not_compared_with(tmp_path, value):
    text = json.dumps(BASE).replace('"AR": 0.5', f'"AR": {value}')
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(DekrError, match=r"old\.json: lacks the ten metrics, numbers from -1 to 1; --compare expects"):
        metrics.read_metrics(tmp_path / "old.json")


def test_texts_of_the_old_file_neither_forge_lines_nor_reach_the_terminal():
    old = copy.deepcopy(BASE) | {"settings": {"a\n  figures: AP": "x\n  nothing differs\x1b[2J\u202e"}}
    lines = metrics.difference_lines(old, BASE, Path("old.json"))
    assert lines[1:] == ["  settings: a figures: AP: x nothing differs\\x1b[2J\\u202e -> nothing"]


def test_lists_nested_without_end_are_compared(tmp_path):
    for depth in range(900, 1000):
        text = json.dumps(BASE)[:-1] + ', "settings": ' + "[" * depth + "]" * depth + "}"
        (tmp_path / "old.json").write_text(text)
        with suppress(DekrError):  # too deep to be read
            old = metrics.read_metrics(tmp_path / "old.json")
            assert len(metrics.difference_lines(old, BASE, Path("old.json"))) == 2


def test_a_library_that_is_not_installed_has_no_version():
    assert metrics._version("no-such-library") is None


def test_metrics_of_another_protocol_are_refused_by_the_first_that_is_missing():
    crowd = {"figures": dict.fromkeys(CROWD_METRICS, 0.5)}
    with pytest.raises(DekrError, match=r"old\.json: has no AP \(M\): its metrics are of another data set's protocol"):
        metrics.difference_lines(crowd, BASE, Path("old.json"))


def test_a_metric_counts_from_a_millionth_on():
    for step, fails in ((5e-7, False), (2e-6, True)):
        new = {"figures": BASE["figures"] | {"AR .5": 0.5 + step}}
        assert (len(metrics.difference_lines(BASE, BASE | new, Path("x"))) == 2) and fails == (
            "metrics: " in "".join(metrics.difference_lines(BASE, BASE | new, Path("x")))
        )
        if fails:
            with pytest.raises(DekrError, match=r"AR \.5 was"):
                metrics.require_same_metrics(BASE, new, Path("x"))
        else:
            metrics.require_same_metrics(BASE, new, Path("x"))


def test_metrics_and_results_of_two_runs_are_never_mixed(tmp_path, monkeypatch):
    (tmp_path / "metrics.json").write_text("old")

    def stopped(path, value, indent=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics, "write_json", stopped)
    with pytest.raises(KeyboardInterrupt):
        metrics.write_both(tmp_path / "results.json", [], tmp_path / "metrics.json", {"sha256": {}})
    assert not (tmp_path / "metrics.json").exists()
