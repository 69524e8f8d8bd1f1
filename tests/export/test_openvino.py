"""OpenVINO runs what `--dialect onnx --deform gather` writes; it has no deformable convolution."""

from pathlib import Path

import numpy as np
import pytest

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.export.parity import HEAT_TOLERANCE, OFFSET_TOLERANCE, sample_image
from dekr_infer.export.people_proof import PIXELS_TOLERANCE, SCORE_TOLERANCE
from tests.support.tiny_models import ONE_THREAD, SMALL_INPUT_SIZES, export_command

openvino = pytest.importorskip("openvino", reason="no OpenVINO: pip install 'dekr-infer[openvino]'")
pytestmark = pytest.mark.usefixtures("one_thread")
RESCORE = Path(__file__).resolve().parents[2] / "scripts/demo/weights/rescore_demo.pth"
MAPS = (HEAT_TOLERANCE, OFFSET_TOLERANCE)
PEOPLE = (PIXELS_TOLERANCE, SCORE_TOLERANCE, 0)
YIELDS_PEOPLE = ("--decode", "people", "--flip", "off")


@pytest.mark.parametrize(("flags", "tolerances"), [((), MAPS), (("--input", "uint8"), MAPS), (YIELDS_PEOPLE, PEOPLE)])
def test_outputs_are_those_of_onnx_runtime_at_every_input_size(tiny, tmp_path, flags, tolerances):
    path = tmp_path / "net.onnx"
    words = ["--output", str(path), "--dialect", "onnx", "--deform", "gather", "--skip_check", *ONE_THREAD, *flags]
    assert export_command.main([*words, *tiny.pairs(), "RESCORE.MODEL_FILE", str(RESCORE)], SMALL_INPUT_SIZES) == 0
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    network, rng = OnnxRuntime(path, 1), np.random.default_rng(0)
    for input_size in SMALL_INPUT_SIZES:
        tensor = network.tensor_of(sample_image(rng, input_size))
        found = compiled({"image": tensor})
        for index, tolerance in enumerate(tolerances):
            np.testing.assert_allclose(found[index], network.run(tensor)[index], rtol=0, atol=tolerance)
