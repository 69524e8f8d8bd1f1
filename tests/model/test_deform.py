"""The deformable convolution in torch, against nested loops, ONNX Runtime and torch's own convolution."""

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

from dekr_infer.model.deform import deform_conv2d
from tests.support.slow_reference import slow_deform

pytestmark = pytest.mark.usefixtures("one_thread")

N, C, OUT, H, W = 2, 3, 4, 5, 6  # all different, so that no axis can be taken for another


def draw(spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps, tap movements and weights in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((N, C, H, W), (N, 18, H, W), (OUT, C, 3, 3))
    x, offset, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, spread * offset, weight


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("spread", [0.4, 2.0, 9.0])  # cells; the last carries most taps over the border
def test_it_equals_its_slow_reference(dilation, spread):
    x, offset, weight = draw(spread)
    wanted = slow_deform(x.numpy(), offset.numpy(), weight.numpy(), dilation)
    found = deform_conv2d(x, offset, weight, dilation)
    assert found.shape == (N, OUT, H, W)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2])
def test_without_movement_it_is_a_plain_convolution_padded_with_zeros(dilation):
    x, offset, weight = draw(0.0)
    plain = F.conv2d(x, weight, padding=dilation, dilation=dilation)
    torch.testing.assert_close(deform_conv2d(x, offset, weight, dilation), plain)


@pytest.mark.parametrize(
    ("dy", "dx", "value"),
    [
        (0.0, 0.0, 1.0),
        (-0.25, 0.0, 0.75),  # a quarter beyond the upper edge: three quarters of the corner cell
        (-1.0, 0.0, 0.0),  # just outside
        (0.0, -0.5, 0.5),
        (0.0, 1.0, 10.0),  # dx moves along a row
        (1.0, 0.0, 100.0),  # dy moves along a column
        (0.5, 0.5, (1 + 10 + 100 + 1000) / 4),
        (1.5, 0.0, 50.0),  # half beyond the lower edge
        (0.0, 1.75, 2.5),
        (50.0, -70.0, 0.0),
    ],
)
def test_samples_are_bilinear_and_zero_beyond_the_border(dy, dx, value):
    x = torch.tensor([[[[1.0, 10.0], [100.0, 1000.0]]]])
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1
    offset = torch.zeros(1, 18, 2, 2)
    offset[0, 8, 0, 0], offset[0, 9, 0, 0] = dy, dx  # tap 4 is the middle one
    assert deform_conv2d(x, offset, weight)[0, 0, 0, 0].item() == pytest.approx(value)


def test_every_tap_listens_to_its_own_two_channels():
    x = torch.zeros(1, 1, 7, 7)
    x[0, 0, 3, 3] = 1
    weight = torch.arange(1.0, 10).view(1, 1, 3, 3)
    for tap in range(9):
        offset = torch.full((1, 18, 7, 7), 40.0)  # all taps far outside, but this one on the lit cell
        offset[0, 2 * tap], offset[0, 2 * tap + 1] = 1 - tap // 3, 1 - tap % 3
        assert deform_conv2d(x, offset, weight)[0, 0, 3, 3].item() == tap + 1


def test_gradients_are_those_of_finite_differences():
    x, offset, weight = (value[:1, ..., :3, :3].clone().requires_grad_() for value in draw(1.3, seed=3))
    assert torch.autograd.gradcheck(
        lambda *parts: deform_conv2d(parts[0], parts[1], parts[2], 2), (x, offset, weight), atol=1e-6
    )


@pytest.mark.parametrize("dilation", [1, 2])
def test_onnx_runtime_agrees(dilation):
    x, offset, weight = (value.float() for value in draw(2.0, seed=1))
    shapes = {"x": x, "weight": weight, "offset": offset}
    inputs = [helper.make_tensor_value_info(key, TensorProto.FLOAT, value.shape) for key, value in shapes.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [N, OUT, H, W])
    node = helper.make_node(
        "DeformConv", list(shapes), ["y"], kernel_shape=[3, 3], pads=[dilation] * 4, dilations=[dilation] * 2
    )
    graph = helper.make_graph([node], "one", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {key: value.numpy() for key, value in shapes.items()})
    np.testing.assert_allclose(deform_conv2d(x, offset, weight, dilation).numpy(), wanted, rtol=0, atol=2e-5)
