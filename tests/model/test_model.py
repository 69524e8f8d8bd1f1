"""The network: upstream's state-dict layout, and every block against its definition, with whole-numbered weights."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dekr_infer.config.load import load_config
from dekr_infer.errors import ConfigError
from dekr_infer.model.blocks import AdaptBlock, BasicBlock, Bottleneck
from dekr_infer.model.head import DekrNet, build_network
from dekr_infer.model.hrnet import HighResolutionModule, HighResolutionNet
from tests.support.slow_reference import (
    make_integer,
    relu,
    slow_conv,
    slow_conv_norm,
    slow_deform,
    slow_norm,
    whole_maps,
)
from tests.support.tiny_models import PAIRS

pytestmark = pytest.mark.usefixtures("one_thread")

TOP_LEVEL = (
    *("conv1", "bn1", "conv2", "bn2", "layer1", "transition1", "stage2", "transition2", "stage3", "transition3"),
    *("stage4", "transition_heatmap", "transition_offset", "head_heatmap", "offset_feature_layers"),
    "offset_final_layer",
)


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def w32() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes_of(build_network(load_config()))


def plain(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


# --- the layout of the checkpoint


def test_w32_has_the_2264_keys_of_the_official_checkpoint(w32):
    assert len(w32) == 2264
    assert tuple(dict.fromkeys(key.split(".")[0] for key in w32)) == TOP_LEVEL


def test_w32_keys_by_part(w32):
    """Counts by hand: a norm has 5 entries, a convolution 1 or 2; a basic block 12, an adaptive block 11."""
    parts = Counter(key.split(".")[0] for key in w32)
    assert parts["offset_feature_layers"] == 17 * 2 * 11
    assert parts["offset_final_layer"] == 17 * 2
    assert parts["head_heatmap"] == 12 + 2
    assert parts["transition_heatmap"] == parts["transition_offset"] == 6
    assert parts["layer1"] == 4 * 18 + 6
    # two branches of four blocks; fuse: one 1x1 up, one 3x3 down
    assert parts["stage2"] == 2 * 4 * 12 + 2 * 6
    # three branches; fuse: three 1x1 up, three paths down of 1, 1 and 2 steps
    assert parts["stage3"] == 4 * (3 * 4 * 12 + 3 * 6 + 4 * 6)
    # four branches; six up, six down of 1, 1, 1, 2, 2 and 3 steps
    assert parts["stage4"] == 3 * (4 * 4 * 12 + 6 * 6 + 10 * 6)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("conv1.weight", (64, 3, 3, 3)),
        ("layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        ("transition1.0.0.weight", (32, 256, 3, 3)),
        ("transition1.1.0.0.weight", (64, 256, 3, 3)),
        ("transition2.2.0.0.weight", (128, 64, 3, 3)),
        ("transition3.3.0.1.running_var", (256,)),
        ("stage3.3.branches.2.3.conv2.weight", (128, 128, 3, 3)),
        ("stage4.2.fuse_layers.0.3.0.weight", (32, 256, 1, 1)),  # target 0 from source 3
        ("stage4.0.fuse_layers.3.0.0.0.weight", (32, 32, 3, 3)),  # target 3 from source 0: the widths stay ...
        ("stage4.0.fuse_layers.3.0.2.0.weight", (256, 32, 3, 3)),  # ... until the last step
        ("transition_heatmap.0.weight", (32, 480, 1, 1)),
        ("transition_offset.0.weight", (255, 480, 1, 1)),
        ("head_heatmap.0.0.conv1.weight", (32, 32, 3, 3)),
        ("head_heatmap.1.weight", (18, 32, 1, 1)),
        ("offset_feature_layers.16.1.transform_matrix_conv.weight", (4, 15, 3, 3)),
        ("offset_feature_layers.0.0.translation_conv.bias", (2,)),
        ("offset_feature_layers.3.1.adapt_conv.weight", (15, 15, 3, 3)),
        ("offset_feature_layers.3.0.regular_matrix", (2, 9)),
        ("offset_final_layer.16.weight", (2, 15, 1, 1)),
    ],
)
def test_w32_key_has_its_shape(w32, key, shape):
    assert w32[key] == shape


def test_the_published_number_of_parameters():
    with torch.device("meta"):
        network = build_network(load_config())
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == 29.56


def test_w48_differs_in_widths_only(w32):
    with torch.device("meta"):
        w48 = shapes_of(build_network(load_config("dekr_w48_coco")))
    assert list(w48) == list(w32)
    assert w48["stage4.2.branches.3.3.conv1.weight"] == (384, 384, 3, 3)
    assert w48["head_heatmap.1.weight"] == (18, 48, 1, 1)
    assert w48["offset_feature_layers.0.0.adapt_conv.weight"] == (15, 15, 3, 3)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("MODEL.SPEC.HEAD_OFFSET.BLOCK", "BASIC", "ADAPTIVE offset head"),
        ("MODEL.SPEC.STAGES.BLOCK", "['BASIC','BOTTLENECK','BASIC']", "only BASIC blocks"),
        ("MODEL.SPEC.STEM_CHANNELS", "1000000000", "has 1000000000, at most 4096"),
        ("MODEL.SPEC.STAGES.NUM_CHANNELS", "[[4,6],[4,6,8],[4,6,8,1000000000]]", "has 1000000000, at most 4096"),
        ("MODEL.SPEC.STAGES.NUM_MODULES", "[4000,1,1]", "blocks, at most 5000"),
        ("MODEL.SPEC.HEAD_OFFSET.NUM_BLOCKS", "4000", "blocks, at most 5000"),
        ("MODEL.SPEC.HEAD_OFFSET.NUM_CHANNELS_PERKPT", "4000", "parameters, at most 500,000,000"),
        ("MODEL.SPEC.STAGES.NUM_MODULES", "[1,4]", "needs NUM_STAGES = 3 entries"),
        ("MODEL.SPEC.STAGES.NUM_CHANNELS", "[[4,6],[4,6],[4,6,8,10]]", "3 branches needs 3 widths"),
    ],
)
def test_a_network_that_cannot_be_built_is_a_configuration_error(key, value, says):
    with pytest.raises(ConfigError, match=says):
        build_network(load_config(None, [*PAIRS, key, value]))


# --- the blocks


def test_basic_block_is_two_convolutions_and_its_input():
    block = BasicBlock(3)
    make_integer(block, 1)
    x = whole_maps(2, 1, 3, 4, 5)
    inner = relu(slow_conv_norm(plain(x[0]), block.conv1, block.bn1))
    wanted = relu(slow_conv_norm(inner, block.conv2, block.bn2) + plain(x[0]))
    np.testing.assert_array_equal(plain(block(x)[0]), wanted)


@pytest.mark.parametrize("inputs", [8, 5])
def test_bottleneck_is_three_convolutions_and_its_input_brought_to_width(inputs):
    block = Bottleneck(inputs, 2)
    make_integer(block, 3)
    x = whole_maps(4, 1, inputs, 4, 5)
    skip = plain(x[0])
    inner = relu(slow_conv_norm(skip, block.conv1, block.bn1))
    inner = slow_conv_norm(relu(slow_conv_norm(inner, block.conv2, block.bn2)), block.conv3, block.bn3)
    assert (block.downsample is None) == (inputs == 8)
    if block.downsample is not None:
        skip = slow_conv_norm(skip, block.downsample[0], block.downsample[1])
    np.testing.assert_array_equal(plain(block(x)[0]), relu(inner + skip))


def adapt_block(dilation: int = 1) -> Any:
    torch.manual_seed(5)
    block: Any = AdaptBlock(3, dilation).eval()
    nn.init.normal_(block.bn.running_mean, 0, 0.3)
    nn.init.uniform_(block.bn.running_var, 0.5, 2)
    nn.init.normal_(block.bn.weight)
    nn.init.normal_(block.bn.bias)
    return block.double()


def slow_kernel_offset(block: Any, x: np.ndarray) -> np.ndarray:
    """docs/reference.md [13] for (C, H, W), cell by cell: taps move by A R - R + t; channel 2k is tap k's dy."""
    taps = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1)]
    a, t = (
        slow_conv(x, plain(conv.weight)) + plain(conv.bias)[:, None, None]
        for conv in (block.transform_matrix_conv, block.translation_conv)
    )
    out = np.zeros((18, *x.shape[1:]))
    for row, column in np.ndindex(*x.shape[1:]):
        (a00, a01, a10, a11), (t_y, t_x) = a[:, row, column], t[:, row, column]
        for k, (dy, dx) in enumerate(taps):
            out[2 * k, row, column] = a00 * dy + a01 * dx - dy + t_y
            out[2 * k + 1, row, column] = a10 * dy + a11 * dx - dx + t_x
    return out


def test_kernel_offset_equals_its_slow_reference():
    block, x = adapt_block(), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    wanted = np.stack([slow_kernel_offset(block, image) for image in plain(x)])
    found = block.kernel_offset(x)
    assert found.shape == (2, 18, 4, 5)
    np.testing.assert_allclose(plain(found), wanted, rtol=0, atol=1e-12)


def test_an_identity_matrix_without_translation_moves_no_tap():
    block = adapt_block()
    for conv, bias in ((block.transform_matrix_conv, [1.0, 0, 0, 1]), (block.translation_conv, [0.0, 0])):
        nn.init.zeros_(conv.weight)
        conv.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))
    assert not block.kernel_offset(torch.randn(1, 3, 2, 2, dtype=torch.float64)).any()


@pytest.mark.parametrize("dilation", [1, 2])
def test_adaptive_block_is_deformable_convolution_norm_and_its_input(dilation):
    block, x = adapt_block(dilation), torch.randn(1, 3, 4, 5, dtype=torch.float64)
    moved = slow_deform(
        plain(x), slow_kernel_offset(block, plain(x[0]))[None], plain(block.adapt_conv.weight), dilation
    )
    np.testing.assert_allclose(plain(block(x)[0]), relu(slow_norm(moved[0], block.bn) + plain(x[0])), atol=1e-12)


# --- the trunk


def slow_bring(x: np.ndarray, source: int, target: int, layer: Any) -> np.ndarray:
    """Branch `source` as branch `target` receives it."""
    if source == target:
        return x
    if source > target:
        small, times = slow_conv_norm(x, layer[0], layer[1]), 2 ** (source - target)
        large = np.zeros((len(small), small.shape[1] * times, small.shape[2] * times))
        for c, y, column in np.ndindex(*large.shape):
            large[c, y, column] = small[c, y // times, column // times]
        return large
    for step in range(target - source):
        x = slow_conv_norm(x, layer[step][0], layer[step][1])
        x = x if step == target - source - 1 else relu(x)
    return x


def test_every_branch_receives_the_sum_of_all_in_its_own_size():
    module: Any = HighResolutionModule([0, 0, 0], [2, 3, 4])  # no blocks: the fusing alone
    make_integer(module, 6)
    maps = [whole_maps(7 + i, 1, width, 8 >> i, 12 >> i) for i, width in enumerate((2, 3, 4))]
    found = module([x.clone() for x in maps])
    for target in range(3):
        parts = [slow_bring(plain(maps[s][0]), s, target, module.fuse_layers[target][s]) for s in range(3)]
        np.testing.assert_array_equal(plain(found[target][0]), relu(np.sum(parts, 0)), err_msg=f"target {target}")


def test_blocks_come_before_the_fusing_each_on_its_branch():
    module = HighResolutionModule([1, 2], [2, 3])
    make_integer(module, 8)
    maps = [whole_maps(9, 1, 2, 4, 4), whole_maps(10, 1, 3, 2, 2)]
    blocked = [branch(x) for branch, x in zip(module.branches, maps, strict=True)]
    only_fuse = HighResolutionModule([0, 0], [2, 3]).eval()
    only_fuse.fuse_layers = module.fuse_layers
    for found, wanted in zip(module(maps), only_fuse(blocked), strict=True):
        np.testing.assert_array_equal(plain(found), plain(wanted))


class Fixed(nn.Module):
    """Yields the same maps whatever comes in."""

    def __init__(self, *maps: torch.Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, _: object) -> list[torch.Tensor]:
        return list(self.maps)


def tiny_trunk() -> Any:
    widths = [[2, 3], [2, 3, 4], [2, 3, 4, 5]]
    return HighResolutionNet(2, widths, [1, 1, 1], [[1] * len(stage) for stage in widths]).eval()


def test_branches_are_concatenated_from_fine_to_coarse():
    trunk = tiny_trunk()
    trunk.stage4 = Fixed(*(torch.full((1, 2 + i, 16 >> i, 24 >> i), i + 1.0) for i in range(4)))
    features = trunk.features(torch.zeros(1, 3, 64, 96))
    assert features.shape == (1, 14, 16, 24)
    assert features[0, :, 5, 7].tolist() == [1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("branch", [1, 2, 3])
def test_branches_are_enlarged_bilinearly_between_cell_centres(branch):
    """A ramp stays a ramp: cell x of the large map sits at (x + 1/2) / factor - 1/2 of the small one."""
    trunk, factor = tiny_trunk(), 2**branch
    maps = [torch.zeros(1, 1, 16 >> i, 32 >> i) for i in range(4)]
    maps[branch] += torch.arange(32 >> branch) + 100 * torch.arange(16 >> branch)[:, None]
    trunk.stage4 = Fixed(*maps)
    found = trunk.features(torch.zeros(1, 3, 64, 128))[0, branch]
    at_x = np.clip((np.arange(32) + 0.5) / factor - 0.5, 0, (32 >> branch) - 1)
    at_y = np.clip((np.arange(16) + 0.5) / factor - 0.5, 0, (16 >> branch) - 1)
    np.testing.assert_allclose(found.numpy(), at_x + 100 * at_y[:, None], rtol=1e-6)


def test_a_new_branch_comes_from_the_coarsest_before_it():
    trunk, seen = tiny_trunk(), []
    trunk.stage3.register_forward_hook(lambda _module, _inputs, maps: seen.extend(maps))
    new = trunk.transition3[3]
    new.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0]))
    trunk.features(torch.randn(1, 3, 64, 96))
    assert seen[-1] is seen[2]


def test_the_stem_quarters_the_image():
    trunk, image = tiny_trunk(), torch.randn(1, 3, 64, 96)
    make_integer(trunk, 11)
    seen: list[torch.Tensor] = []
    trunk.layer1.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0]))
    trunk.features(image)
    first = torch.relu(trunk.bn1(nn.functional.conv2d(image, trunk.conv1.weight, stride=2, padding=1)))
    second = torch.relu(trunk.bn2(nn.functional.conv2d(first, trunk.conv2.weight, stride=2, padding=1)))
    assert second.shape == (1, 2, 16, 24)
    torch.testing.assert_close(seen[0], second)


# --- the heads


@pytest.fixture
def net() -> DekrNet:
    return build_network(load_config(None, PAIRS))


def test_output_shapes_when_all_sizes_differ(net):
    heatmap, offset = net(torch.randn(2, 3, 64, 96))
    assert heatmap.shape == (2, 18, 16, 24)
    assert offset.shape == (2, 34, 16, 24)


def test_each_joint_reads_its_own_channels_and_writes_its_own_two(net):
    coded = torch.arange(51.0).view(1, 51, 1, 1).expand(1, 51, 4, 4)
    net.features = lambda _image: coded
    net.transition_heatmap = nn.Conv2d(51, 5, 1)
    net.transition_offset = nn.Identity()
    for joint in range(17):
        net.offset_feature_layers[joint] = nn.Identity()
        layer = net.offset_final_layer[joint]
        nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight[:] = torch.tensor([[1.0, 0, 0], [0, 0, 1]]).view(2, 3, 1, 1)  # x: first, y: last channel
    offset = net(torch.zeros(1, 3, 16, 16))[1]
    assert offset[0, :, 1, 2].tolist() == [value for joint in range(17) for value in (3 * joint, 3 * joint + 2)]


def test_the_heatmap_head_is_one_basic_block_and_a_convolution(net):
    features = torch.randn(1, 28, 6, 7)
    net.features = lambda _image: features
    x = net.transition_heatmap(features)
    block, final = net.head_heatmap[0][0], net.head_heatmap[1]
    assert isinstance(block, BasicBlock)
    wanted = nn.functional.conv2d(block(x), final.weight, final.bias)
    torch.testing.assert_close(net(torch.zeros(1, 3, 8, 8))[0], wanted)


def test_the_network_is_built_in_evaluation_mode(net):
    assert not any(module.training for module in net.modules())
