"""8-bit input: what the graph normalises is what preprocessing normalises."""

import numpy as np
import onnx
import onnxruntime
import pytest

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.export.parity import sample_image
from dekr_infer.export.uint8_input import BIAS, WEIGHT, take_uint8
from dekr_infer.geometry import Size
from dekr_infer.onnx_graph.dialects import DIALECTS, to_dialect
from dekr_infer.pose.preprocess import as_uint8, normalise
from tests.support.graphs import initializers, metadata, nodes_of
from tests.support.tiny_models import ONE_THREAD, SMALL_INPUT_SIZES, export_command, toy_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_value_of_every_channel_is_normalised_as_in_preprocessing():
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (4, 256, 3))
    model = take_uint8(toy_model())
    model.graph.output[0].name = "normalise.output"
    del model.graph.output[1:]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"image": as_uint8(ramp)})
    np.testing.assert_allclose(found, normalise(ramp), rtol=0, atol=1e-6)


def test_the_channels_are_red_green_blue():
    blue = np.zeros((2, 3, 3), np.uint8)
    blue[:, :, 0] = 200
    assert as_uint8(blue).tolist() == [[[[0] * 3] * 2, [[0] * 3] * 2, [[200] * 3] * 2]]
    assert as_uint8(blue).flags.c_contiguous


@pytest.mark.parametrize("dialect", DIALECTS)
def test_either_dialect_takes_8_bit_images_and_yields_the_same_maps(tiny, tmp_path, dialect):
    """The first 3x3 convolution stays as it was: its padding is 0 in normalised values."""
    words = ["--output", str(tmp_path / "net.onnx"), "--input", "uint8", "--dialect", dialect, *ONE_THREAD]
    assert export_command.main([*words, *tiny.pairs()], SMALL_INPUT_SIZES) == 0
    written = onnx.load(tmp_path / "net.onnx")
    assert written.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert metadata(written)["input_dtype"] == "uint8" and metadata(written)["dialect"] == dialect
    plain = initializers(to_dialect(tiny.model(), dialect))
    found = initializers(written)
    assert found.keys() - plain.keys() == {WEIGHT, BIAS}
    np.testing.assert_array_equal(found["conv1.weight"], plain["conv1.weight"])
    assert [node.op_type for node in written.graph.node[:3]] == ["Cast", "Conv", "Conv"]
    assert len(nodes_of(written, "Cast")) == 1
    warped = sample_image(np.random.default_rng(3), Size(64, 96))
    network, reference = OnnxRuntime(tmp_path / "net.onnx", 1), OnnxRuntime(tiny.graph, 1)
    found_maps, expected = network.run(network.tensor_of(warped)), reference.run(reference.tensor_of(warped))
    for one, other, tolerance in zip(found_maps, expected, (1e-5, 1e-3), strict=False):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
