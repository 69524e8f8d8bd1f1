"""`--precision int8`: what is quantised and what is not, calibration, the figures that are printed, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.cli import evaluate
from dekr_infer.cli import export as command
from dekr_infer.cli.export import CALIBRATED, calibration_images
from dekr_infer.export import int8
from dekr_infer.geometry import Size
from dekr_infer.onnx_graph.float16 import TRUNK, Rounding, part_of
from tests.support.commands import Ran, assert_refused, error_of, run_command
from tests.support.images import colourful
from tests.support.tiny_models import ONE_THREAD, SMALL_INPUT_SIZES, Tiny


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(4):
        cv2.imwrite(str(folder / f"p{number}.png"), colourful(Size(60, 60 + 20 * number), number))
    (folder / "notes.txt").write_text("not an image")
    return folder


def export(tiny: Tiny, output: Path, images: Path, *flags: str) -> Ran:
    words = ["--output", output, "--dialect", "onnx", "--precision", "int8", "--calibrate", images, *flags]

    def main(argv) -> int:
        return command.main(argv, SMALL_INPUT_SIZES)

    return run_command(main, *words, *ONE_THREAD, *tiny.pairs())


@pytest.fixture(scope="module")
def quantised(tiny, images, tmp_path_factory) -> tuple[Path, Ran]:
    output = tmp_path_factory.mktemp("int8") / "int8.onnx"
    ran = export(tiny, output, images)
    assert ran.code == 0, ran
    return output, ran


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The weights of every convolution by the node's name, as they are stored."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "DeformConv"):
            source = made_by.get(node.input[1])
            found[node.name] = stored[source.input[0] if source else node.input[1]]
    return found


def test_the_trunk_is_int8_of_7_bits_and_the_heads_are_float32(quantised):
    model = onnx.load(quantised[0])
    onnx.checker.check_model(model, full_check=True)
    weights, parts = weights_of(model), {node.name: part_of(node) for node in model.graph.node}
    assert {values.dtype for name, values in weights.items() if parts[name] == TRUNK} == {np.dtype(np.int8)}
    assert {values.dtype for name, values in weights.items() if parts[name] != TRUNK} == {np.dtype(np.float32)}
    trunk = [values for name, values in weights.items() if parts[name] == TRUNK]
    assert max(int(np.abs(values.astype(int)).max()) for values in trunk) == 64
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert scales["conv1.weight_scale"].shape == (4,), "one for each output channel"


def test_the_metadata_name_precision_and_images(quantised, tiny, images):
    metadata = {entry.key: entry.value for entry in onnx.load(quantised[0]).metadata_props}
    assert metadata["precision"] == "int8"
    assert json.loads(metadata["calibration"]) == [f"p{number}.png" for number in range(4)]
    plain = {entry.key: entry.value for entry in tiny.model().metadata_props}
    assert metadata["checkpoint_sha256"] == plain["checkpoint_sha256"] and metadata["weights"] == "random"
    assert metadata["dialect"] == "onnx" and metadata["input_sizes"] == str(SMALL_INPUT_SIZES)
    network = OnnxRuntime(quantised[0], 1)
    assert network.precision == "int8" and network.input_sizes == SMALL_INPUT_SIZES


def test_it_computes_nearly_what_the_float32_graph_does(quantised, tiny):
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 96)).astype(np.float32)
    exact = OnnxRuntime(tiny.graph, 1).run(image)[:2]
    found = OnnxRuntime(quantised[0], 1).run(image)[:2]
    for a, b in zip(exact, found, strict=True):
        error = float(np.sqrt(((a - b) ** 2).mean() / (a**2).mean()))
        assert 1e-3 < error < 0.3


def test_people_and_speed_beside_float32_are_printed(quantised, monkeypatch):
    out = quantised[1].out
    assert "in float32: dialect onnx" in out and "TOO LARGE" not in out
    assert "trunk in int8, calibrated on 4 images" in out
    assert "nobody who scores 0.1 in float32" in out and "times as fast as float32" in out
    assert ("has no VNNI" in out) == (not int8.has_vnni())


@pytest.mark.parametrize(("flags", "vnni"), [("fpu avx2", False), ("avx2 avx_vnni", True), ("avx512_vnni", True)])
def test_vnni_is_read_from_the_flags_of_the_cpu(flags, vnni, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: f"flags : {flags} x")
    assert int8.has_vnni() == vnni


def test_an_image_graph_of_8_bits_is_quantised_behind_its_normalisation(tiny, images, tmp_path):
    output = tmp_path / "int8.onnx"
    assert export(tiny, output, images, "--input", "uint8", "--skip_check").code == 0
    weights = weights_of(onnx.load(output))
    assert weights["normalise"].dtype == np.float32 and weights["conv1"].dtype == np.int8
    assert OnnxRuntime(output, 1).input_dtype == "uint8"


def test_at_most_so_many_images_spread_evenly(images, tmp_path):
    for number in range(CALIBRATED + 2):
        shutil.copyfile(images / "p0.png", tmp_path / f"{number:03}.png")
    chosen = [path.name for path in calibration_images(tmp_path)]
    assert chosen == [f"{number:03}.png" for number in range(0, CALIBRATED + 2, 2)]
    assert [path.name for path in calibration_images(images)] == [f"p{number}.png" for number in range(4)]


def test_mistakes_are_one_error_line(tiny, images, tmp_path):
    output = tmp_path / "x.onnx"
    (tmp_path / "empty").mkdir()
    said = error_of(calibration_images, tmp_path / "empty")
    assert "empty" in said
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes((images / "p0.png").read_bytes()[:100])
    assert_refused(export(tiny, output, broken, "--skip_check"), 1, "a.png")
    assert not output.exists()
    assert_refused(export(tiny, output, images, "--decode", "people"), 2, "goes with neither --decode people")
    assert_refused(export(tiny, output, images, "--dialect", "ascend"), 2, "needs --dialect onnx")
    ran = run_command(command.main, "--calibrate", images)
    assert_refused(ran, 2, "need each other")


def test_float16_is_not_rehearsed_with_it(quantised, tmp_path):
    said = error_of(lambda: OnnxRuntime(quantised[0], 1, rounding=Rounding()))
    assert "computes in int8" in said
    ran = run_command(evaluate.main, "--model", quantised[0], "--precision", "fp16", "DATASET.ROOT", tmp_path)
    assert ran.code == 1 and ran.err.startswith("error: ")
