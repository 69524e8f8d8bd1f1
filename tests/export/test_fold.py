"""The algebra of the export: folded blocks against the blocks themselves, and the order of the offsets' channels."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dekr_infer.errors import DekrError
from dekr_infer.export.fold import (
    FoldedAdaptBlock,
    fold_adaptive_block,
    fold_adaptive_blocks,
    fold_batch_norm,
    fold_batch_norms,
)
from dekr_infer.export.symbolics import deformable_conv2d
from dekr_infer.export.trace import build_graph
from dekr_infer.model.blocks import AdaptBlock

pytestmark = pytest.mark.usefixtures("one_thread")

TAPS_DY = [-1, -1, -1, 0, 0, 0, 1, 1, 1]
TAPS_DX = [-1, 0, 1, -1, 0, 1, -1, 0, 1]


def block(channels: int = 3, dilation: int = 1) -> Any:
    torch.manual_seed(channels + dilation)
    made: Any = AdaptBlock(channels, dilation).eval()
    for values in (made.bn.weight, made.bn.bias, made.bn.running_mean):
        nn.init.normal_(values)
    nn.init.uniform_(made.bn.running_var, 1e-4, 2.0)  # so small that the norm's epsilon counts
    return made


def coded_block() -> Any:
    """A block whose A, everywhere, is [[2, 30], [500, 7000]], and whose t is (0.25 down, 0.5 right)."""
    made = block()
    for conv, bias in ((made.transform_matrix_conv, [2.0, 30, 500, 7000]), (made.translation_conv, [0.25, 0.5])):
        nn.init.zeros_(conv.weight)
        conv.bias = nn.Parameter(torch.tensor(bias))
    return made


def folded_block(made: Any) -> FoldedAdaptBlock:
    """Fold a copy of a block, batch norm and all."""
    network = copy.deepcopy(made)
    fold_batch_norms(network, torch.zeros(1, network.bn.num_features, 4, 5))
    return fold_adaptive_block(network)


def test_offsets_are_nine_dx_then_nine_dy_then_nine_ones():
    offsets: Any = folded_block(coded_block()).offsets
    assert offsets.out_channels == 27
    assert not offsets.weight.any()
    dx = [500 * dy + 7000 * dx - dx + 0.5 for dy, dx in zip(TAPS_DY, TAPS_DX, strict=True)]
    dy = [2 * dy + 30 * dx - dy + 0.25 for dy, dx in zip(TAPS_DY, TAPS_DX, strict=True)]
    assert offsets.bias.tolist() == dx + dy + [1.0] * 9


def test_offset_weights_are_the_same_map_of_the_predicting_weights():
    made = coded_block()
    with torch.no_grad():
        for row, value in enumerate((1, 10, 100, 1000)):  # A's entries listen to one value each: channel 1, upper left
            made.transform_matrix_conv.weight[row, 1, 0, 0] = value
        made.translation_conv.weight[0, 2, 1, 2] = 3  # t down to another
        made.translation_conv.weight[1, 2, 1, 2] = 4
    weight = folded_block(made).offsets.weight
    assert weight[:9, 1, 0, 0].tolist() == [100 * dy + 1000 * dx for dy, dx in zip(TAPS_DY, TAPS_DX, strict=True)]
    assert weight[9:18, 1, 0, 0].tolist() == [dy + 10 * dx for dy, dx in zip(TAPS_DY, TAPS_DX, strict=True)]
    assert weight[:9, 2, 1, 2].tolist() == [4] * 9
    assert weight[9:18, 2, 1, 2].tolist() == [3] * 9
    assert not weight[18:].any(), "the masks listen to nothing"


def test_the_folded_offsets_are_the_blocks_own():
    made = block()
    x = torch.randn(2, 3, 4, 5)
    planar = folded_block(made).offsets(x)
    expected = made.kernel_offset(x)
    torch.testing.assert_close(planar[:, :9], expected[:, 1::2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(planar[:, 9:18], expected[:, 0::2], rtol=1e-5, atol=1e-5)
    assert (planar[:, 18:] == 1).all()


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("channels", [3, 15])
def test_a_folded_block_computes_what_the_block_computes(channels, dilation):
    made = block(channels, dilation)
    folded = folded_block(made)
    assert folded.dilation == dilation
    x = torch.randn(2, channels, 6, 7, dtype=torch.float64)
    expected, found = made.double()(x), folded.double()(x)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * scale)  # what storing weights in float32 leaves


def test_folding_is_done_in_float64():
    """Each folded value is the correctly rounded one, where float32 arithmetic would be a few units off."""
    made = block(15)
    folded = folded_block(made)
    exact = copy.deepcopy(made).double()
    spread = torch.sqrt(exact.bn.running_var + exact.bn.eps)
    weight = exact.adapt_conv.weight * (exact.bn.weight / spread)[:, None, None, None]
    bias = exact.bn.bias - exact.bn.running_mean * exact.bn.weight / spread
    matrix, move = exact.transform_matrix_conv.weight, exact.translation_conv.weight
    for tap in range(9):
        for axis, start in ((1, 0), (0, 9)):
            row = matrix[2 * axis] * TAPS_DY[tap] + matrix[2 * axis + 1] * TAPS_DX[tap] + move[axis]
            torch.testing.assert_close(folded.offsets.weight[start + tap], row.float(), rtol=1.2e-7, atol=1e-12)
    torch.testing.assert_close(folded.weight, weight.float(), rtol=1.2e-7, atol=0)
    torch.testing.assert_close(folded.bias, bias.float(), rtol=1.2e-7, atol=1e-8)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_batch_norm_folds_into_the_convolution_before_it(with_bias, epsilon):
    torch.manual_seed(0)
    conv: Any = nn.Conv2d(3, 4, 3, padding=1, bias=with_bias)
    norm: Any = nn.BatchNorm2d(4, eps=epsilon).eval()
    for values in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(values)
    nn.init.uniform_(norm.running_var, 1e-4, 2)
    conv, norm = conv.double(), norm.double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    bias = conv.bias.detach().numpy() if conv.bias is not None else np.zeros(4)
    parts: Any = [v.detach().numpy() for v in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    weight, shift = fold_batch_norm(conv.weight.detach().numpy(), bias, parts, epsilon)
    found = nn.functional.conv2d(x, torch.from_numpy(weight), torch.from_numpy(shift), padding=1)
    torch.testing.assert_close(found, norm(conv(x)), rtol=0, atol=1e-12)


def test_the_operator_takes_x_first_and_adds_the_bias():
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 3, 1] = 7  # two down and one to the left of the middle
    weight, offsets = torch.zeros(2, 1, 3, 3), torch.zeros(1, 27, 5, 5)
    weight[:, 0, 1, 1] = torch.tensor([1.0, 2.0])
    offsets[:, 4], offsets[:, 9 + 4], offsets[:, 18:] = -1, 1, 1
    found = deformable_conv2d(x, weight, offsets, torch.tensor([0.5, 100.0]), 1)
    assert found[0, :, 2, 2].tolist() == [7.5, 114]


def test_all_blocks_of_a_network_are_found(tiny):
    network = copy.deepcopy(tiny.network)
    fold_batch_norms(network, torch.zeros(1, 3, 64, 96))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert fold_adaptive_blocks(network) == 34
    assert fold_adaptive_blocks(network) == 0
    assert not any(isinstance(module, AdaptBlock) for module in network.modules())


def test_the_network_itself_stays_as_it_is(tiny):
    network = copy.deepcopy(tiny.network).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    build_graph(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(module.training for module in network.modules())
    assert sum(isinstance(module, AdaptBlock) for module in network.modules()) == 34


@pytest.mark.parametrize("fault", [{"stride": 2}, {"groups": 3}])
def test_a_block_that_does_not_fold_is_refused(fault):
    made = block()
    for key, value in fault.items():
        setattr(made.adapt_conv, key, value)
    with pytest.raises(DekrError, match="stride, groups or a down-sampling"):
        folded_block(made)


def test_a_block_whose_batch_norm_stays_is_refused():
    with pytest.raises(DekrError, match="does not read its deformable convolution alone"):
        fold_adaptive_block(block())
