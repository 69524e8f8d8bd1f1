"""`--precision fp16` of the commands that run a graph, and `dekr compare_nodes`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from dekr_infer.backends.node_values import node_values, sources_of, value_names
from dekr_infer.backends.onnxruntime import OnnxRuntime, load_graph, standard_graph
from dekr_infer.cli import compare_nodes, evaluate
from dekr_infer.evaluation.node_comparison import difference_of_values
from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.pose.preprocess import warp
from tests.support.commands import Ran, assert_refused, run_command
from tests.support.images import colourful
from tests.support.tiny_models import toy_model
from tests.support.workspace import INFER, POSTPROCESS, PREPROCESS, Place, make_inputs, run_through

RESULTS, METRICS = "keypoints_val2017_results.json", "metrics.json"
FP16 = ("--precision", "fp16")


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory) -> Path:
    """Three images, and what the three steps make of them in float16."""
    folder = tmp_path_factory.mktemp("rehearsed")
    make_inputs(folder)
    run_through(folder, (PREPROCESS,))
    for tensors in ("prep_data", "prep_data_flip"):
        shutil.copyfile(folder / "w" / f"{tensors}_record.jsonl", folder / "in" / f"{tensors}_record.jsonl")
    ran = Place(folder, INFER).run(*FP16)
    assert ran.code == 0, ran
    for name in ("out", "out_flip", "out_record.jsonl", "out_flip_record.jsonl"):
        (folder / "in" / name).symlink_to(folder / "w" / name)
    run_through(folder, (POSTPROCESS,))
    return folder


def run_evaluate(folder: Path, output: str, *flags: str) -> Ran:
    words = ["--model", "net.onnx", "--output", output, "--run", "run", *flags]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "in")
        return run_command(evaluate.main, *words, "DATASET.ROOT", "coco", "RESCORE.MODEL_FILE", "rescore.pth")


def test_evaluate_rehearses_as_the_three_steps_do_and_says_so(rehearsed):
    ran = run_evaluate(rehearsed, "../half", *FP16)
    assert ran.code == 0, ran
    steps, one = rehearsed / "w" / "results", rehearsed / "half"
    assert (one / RESULTS).read_bytes() == (steps / RESULTS).read_bytes()
    settings = [json.loads((folder / METRICS).read_text())["settings"] for folder in (steps, one)]
    assert settings[0]["precision"] == settings[1]["precision"] == "fp16 force_fp16"
    assert run_evaluate(rehearsed, "../full").code == 0
    full = rehearsed / "full"
    assert (full / RESULTS).read_bytes() != (one / RESULTS).read_bytes()
    assert "precision" not in json.loads((full / METRICS).read_text())["settings"]
    summary = json.loads((rehearsed / "w" / "out_summary.json").read_text())
    assert summary["precision"] == "fp16 force_fp16"


def test_results_of_two_precisions_never_mix(rehearsed, tmp_path):
    shutil.copytree(rehearsed / "in", tmp_path / "in", symlinks=False)
    shutil.copytree(rehearsed / "w", tmp_path / "w")
    assert_refused(Place(tmp_path, INFER).run(), 1, "outputs of another model or of other options")
    assert run_evaluate(tmp_path, "../r", *FP16).code == 0
    assert_refused(run_evaluate(tmp_path, "../r"), 1, "was written with precision fp16 force_fp16")
    assert_refused(run_evaluate(tmp_path, "../r", *FP16, "--deform_rounding", "twice"), 1, "was written with precision")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--precision_mode", "allow_fp32_to_fp16"), "need --precision fp16"),
        ((*FP16, "--keep_dtype", "none.cfg"), "none.cfg: cannot be read"),
        ((*FP16, "--model", "net.om"), "runs on an NPU"),
    ],
)
def test_mistakes_are_one_error_line(rehearsed, flags, said):
    ran = run_evaluate(rehearsed, "../r", *flags)
    assert_refused(ran, ran.code, said)


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    cv2.imwrite(str(path), colourful(Size(80, 120), 5))
    return path


def compare(*words: object) -> Ran:
    return run_command(compare_nodes.main, *words, "--threads", 1)


def test_every_node_is_compared_with_itself_in_float16_worst_first(tiny, photo, tmp_path):
    ran = compare(tiny.graph, "--image", photo, *FP16, "--top", 5, "--output", tmp_path / "all.json")
    assert ran.code == 0, ran
    rows = json.loads((tmp_path / "all.json").read_text())
    model = standard_graph(load_graph(tiny.graph)[0], tiny.graph)
    assert {row["name"] for row in rows} == set(value_names(model)), "every value of the graph"
    errors = [row["rms"] for row in rows]
    assert errors == sorted(errors, reverse=True) and 0 < errors[-1] < errors[0] < 0.1
    assert all(1 - row["cosine"] < 2 * row["rms"] ** 2 + 2e-6 for row in rows)
    by_name = {row["source"]: row for row in rows}
    first = by_name["conv1 (conv1.weight)"]
    assert first["shape"] == [1, 4, 256, 384] and first["rms"] < 1e-3
    lines = ran.out.splitlines()
    assert lines[0].startswith(f"{len(rows)} values at 512x768") and rows[0]["source"] in lines[1]
    assert len([line for line in lines if line.startswith("  ")]) == 5 and "none exceeds float16's 65504" in ran.out


def test_a_folder_of_dumps_is_compared_with_the_graph(tiny, photo, tmp_path):
    dump = tmp_path / "dump"
    dump.mkdir()
    network = OnnxRuntime(tiny.graph, 1)
    model = standard_graph(load_graph(tiny.graph)[0], tiny.graph)
    image = network.tensor_of(warp(cv2.imread(str(photo)), PUBLISHED_SIZES.place(Size(80, 120)).input))
    wanted = {"/conv1/Conv_output_0": 0.0, "/Relu_output_0": 0.5, "heatmap": 0.0}
    nodes = {name: node.name for node in model.graph.node for name in node.output}
    forms = {"/conv1/Conv_output_0": "Conv2D.{}.3.4.1682067845380164.output.0.npy"}
    forms |= {"/Relu_output_0": "Relu.{}.5.1682067845380165.output.0.npy", "heatmap": "{}.0.1682067845380166.npy"}
    for name, values in node_values(model, {"image": image}, list(wanted), 1):
        clean = nodes[name].replace("/", "_").replace(".", "_")
        np.save(dump / forms[name].format(clean), values * np.float32(1 + wanted[name]))
    (dump / "README").write_text("")
    np.save(dump / "Conv2D.unknown.3.4.1682067845380164.output.0.npy", image)
    ran = compare(tiny.graph, dump, "--image", photo, "--output", tmp_path / "all.json")
    assert ran.code == 0, ran
    rows = {row["name"]: row for row in json.loads((tmp_path / "all.json").read_text())}
    assert {name: row["rms"] for name, row in rows.items()} == pytest.approx(wanted, abs=1e-6)
    twice = dump / forms["/Relu_output_0"].format("_Relu").replace("Relu.", "Relu2.", 1)
    np.save(twice, image)
    assert_refused(compare(tiny.graph, dump, "--image", photo), 1, "of the same value as", "the dump of one run")
    twice.unlink()
    np.save(dump / forms["heatmap"].format("_".join(nodes["heatmap"].split("."))), image)
    assert_refused(compare(tiny.graph, dump, "--image", photo), 1, "has shape (1, 3, 512, 768)", "(1, 18, 128, 192)")


def test_what_cannot_be_compared_is_refused(tiny, photo, tmp_path):
    other = tmp_path / "other.onnx"
    onnx.save(toy_model(PUBLISHED_SIZES), other)
    assert_refused(compare(tiny.graph, "--image", photo), 2, "nothing to compare with")
    assert_refused(compare(tiny.graph, tmp_path, "--image", photo), 1, "holds no value", "msaccucmp.py convert")
    assert_refused(compare(tiny.graph, tmp_path, "--image", photo, *FP16), 2, "computed already")
    assert_refused(compare(tiny.graph, other, "--image", tmp_path / "none.jpg"), 1, "none.jpg")
    ran = compare(tiny.graph, other, "--image", photo)
    assert ran.code == 0 and ran.out.startswith("2 values"), "both have the two outputs"


def test_the_measures_of_a_difference():
    a = np.array([3.0, 4.0], np.float32)
    row = difference_of_values("x", "node", a, np.array([3.0, 4.5], np.float32))
    assert row.rms == pytest.approx(0.1) and row.largest_difference == 0.5 and row.largest == 4
    assert row.cosine == pytest.approx((9 + 18) / (5 * np.hypot(3, 4.5)))
    broken = difference_of_values("x", "node", a, np.array([3.0, np.inf], np.float32))
    assert broken.rms == np.inf and broken.largest == 4
    nothing = difference_of_values("x", "node", 0 * a, 0 * a)
    assert (nothing.rms, nothing.cosine) == (0.0, 1.0)
    assert difference_of_values("x", "node", 0 * a, a).rms == np.inf


def test_values_lead_back_to_node_and_key(tiny):
    sources = sources_of(standard_graph(load_graph(tiny.graph)[0], tiny.graph))
    assert sources["/conv1/Conv_output_0"] == "conv1 (conv1.weight)" and sources["/Relu_output_0"] == "/Relu"
