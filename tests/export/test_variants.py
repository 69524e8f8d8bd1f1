"""The variants of the deformable convolutions: all compute the same, each has the operators it promises."""

import copy
import runpy
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor, nn

from dekr_infer.ascend.lint.check import default_input_shape, preflight
from dekr_infer.ascend.lint.rules import WARNING
from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.cli import export as export_command
from dekr_infer.errors import DekrError
from dekr_infer.export.fold import fold_adaptive_block, fold_batch_norms
from dekr_infer.export.parity import SEED, difference_of, sample_image
from dekr_infer.export.symbolics import convolve_backwards, reshape
from dekr_infer.export.trace import build_graph
from dekr_infer.export.variants import GATHER, GROUPED, PADDED, SEPARATE, VARIANTS
from dekr_infer.export.variants.gather import CellCounter
from dekr_infer.export.variants.grouped import join_blocks
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size
from dekr_infer.model.blocks import AdaptBlock, conv_bn
from dekr_infer.onnx_graph.dialects import ASCEND, ONNX, check_standard, dialect_of, to_dialect
from dekr_infer.onnx_graph.simplify import drop_rejoined_parts
from dekr_infer.pose.preprocess import normalise
from tests.support.ascend_host import FAKES
from tests.support.graphs import attributes, copy_of, initializers, metadata, nodes_of, producer, set_initializer
from tests.support.slow_reference import slow_bilinear
from tests.support.tiny_models import ONE_THREAD, PAIRS, SMALL_INPUT_SIZES

pytestmark = pytest.mark.usefixtures("one_thread")

JOINTS, WIDTH, LEVELS = 5, 3, 2
OTHERS = [variant for variant in VARIANTS if variant != SEPARATE]
ACCEPTED = {  # docs/reference.md [37]: no restriction matters here
    *("Conv", "Relu", "Add", "Mul", "Sub", "Floor", "Concat", "Split", "Transpose", "Reshape", "Cast"),
    *("Gather", "MatMul", "ReduceMax", "Resize"),
}


class Head(nn.Module):
    """The offset head alone, behind one strided convolution; five joints of three channels, two blocks each."""

    def __init__(self, dilation: int = 1, width: int = WIDTH) -> None:
        super().__init__()
        self.per_joint = width
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.transition_offset = conv_bn(4, JOINTS * width, 1, relu=True)
        self.offset_feature_layers = nn.ModuleList(
            nn.Sequential(*(AdaptBlock(width, dilation) for _ in range(LEVELS))) for _ in range(JOINTS)
        )
        self.offset_final_layer = nn.ModuleList(nn.Conv2d(width, 2, 1) for _ in range(JOINTS))

    def parts(self, x: Tensor) -> list[Tensor]:
        return list(x.split(self.per_joint, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        stem = self.stem(image)
        parts = zip(self.offset_feature_layers, self.parts(self.transition_offset(stem)), strict=True)
        features = [blocks(x) for blocks, x in parts]
        return stem, torch.cat([last(x) for last, x in zip(self.offset_final_layer, features, strict=False)], 1)


class UpstreamHead(Head):
    """The offset head as upstream writes it: slices, and another name for the width."""

    def __init__(self) -> None:
        super().__init__()
        self.offset_prekpt = self.per_joint
        del self.per_joint

    def parts(self, x: Tensor) -> list[Tensor]:
        width = self.offset_prekpt
        return [x[:, joint * width : (joint + 1) * width] for joint in range(JOINTS)]


def seeded(network: Any) -> Any:
    """Set seeded weights; taps move by several cells, so that many samples leave the map, some by far."""
    generator = torch.Generator().manual_seed(0)
    for name, values in network.state_dict().items():
        if name.endswith(("matrix_conv.bias", "translation_conv.bias")):
            values.normal_(0, 3, generator=generator)
        elif name.endswith("running_var"):
            values.uniform_(0.5, 2, generator=generator)
        elif not name.endswith(("regular_matrix", "num_batches_tracked")):
            values.normal_(0, 0.4, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> Any:
    return seeded(Head())


class Graphs(dict[str, ModelProto]):
    """The graph of each variant, built when it is first asked for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def __missing__(self, variant: str) -> ModelProto:
        self[variant] = build_graph(self.network, variant)
        return self[variant]


@pytest.fixture(scope="module")
def graphs(network) -> Graphs:
    return Graphs(network)


def run(model: ModelProto, image: np.ndarray) -> list[np.ndarray]:
    standard = to_dialect(model, ONNX).SerializeToString()
    found: list[np.ndarray] = onnxruntime.InferenceSession(standard).run(None, {"image": image})
    return found


def images() -> list[np.ndarray]:
    """Return images of 7 x 11 and 9 x 6 cells."""
    rng = np.random.default_rng(3)
    return [rng.normal(0, 2, (1, 3, *size)).astype(np.float32) for size in ((28, 44), (36, 24))]


def assert_same(model: ModelProto, network: Any) -> None:
    for image in images():
        with torch.inference_mode():
            expected = network.double()(torch.from_numpy(image).double())
        network.float()
        for a, b in zip(run(model, image), expected, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=2e-5 * b.abs().max().item())
        assert expected[1].std() > 0.1


# --- what they compute


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_computes_what_the_network_computes(network, graphs, variant):
    assert_same(graphs[variant], network)


@pytest.mark.parametrize("variant", OTHERS)
def test_every_variant_computes_upstreams_network_and_leaves_no_slices(variant):
    upstream = seeded(UpstreamHead())
    model = build_graph(upstream, variant)
    assert_same(model, upstream)
    assert len(nodes_of(model, "Slice")) == (JOINTS if variant == PADDED else 0)


@pytest.mark.parametrize("variant", OTHERS)
def test_every_variant_computes_a_dilated_network(variant):
    dilated = seeded(Head(dilation=2))
    assert_same(build_graph(dilated, variant), dilated)


@pytest.mark.parametrize("variant", VARIANTS)
def test_joints_come_out_in_order_x_before_y(variant):
    coded = seeded(Head())
    for joint, last in enumerate(coded.offset_final_layer):
        nn.init.zeros_(last.weight)
        last.bias = nn.Parameter(torch.tensor([joint, 100.0 + joint]))
    _, offset = run(build_graph(coded, variant), images()[0])
    assert offset[0, :, 0, 0].tolist() == [start + joint for joint in range(JOINTS) for start in (0, 100)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_joint_reads_its_own_channels(variant):
    """Blocks that pass their input on, joints whose channel c holds 10 * joint + c: each output shows what it read."""
    coded: Any = seeded(Head())
    coded.transition_offset = conv_bn(4, JOINTS * WIDTH, 1, relu=True).eval()
    nn.init.zeros_(coded.transition_offset[0].weight)
    codes = torch.tensor([10.0 * joint + c for joint in range(JOINTS) for c in range(WIDTH)])
    coded.transition_offset[1].bias = nn.Parameter(codes)
    for stack in coded.offset_feature_layers:
        for block in stack:
            nn.init.zeros_(block.bn.weight)
            nn.init.zeros_(block.bn.bias)
            nn.init.zeros_(block.bn.running_mean)
    for last in coded.offset_final_layer:
        last.weight = nn.Parameter(torch.tensor([[0.0, 0, 1], [0, 1000, 0]]).view(2, 3, 1, 1))
        nn.init.zeros_(last.bias)
    _, offset = run(build_graph(coded, variant), images()[0])
    expected = [value for joint in range(JOINTS) for value in (10 * joint + 2, 1000 * (10 * joint + 1))]
    np.testing.assert_allclose(offset[0, :, 3, 3], expected, rtol=1e-6)


class DeformableConv2D(OpRun):
    """The accelerator's operator by its documentation, with groups: offsets (plane, group, tap), planes x, y, mask."""

    op_domain = ""

    def _run(self, x, weight, offsets, bias, **attributes):
        groups, (pad, _), (dilation, _) = attributes["groups"], attributes["pads"], attributes["dilations"]
        assert attributes["deformable_groups"] == groups
        _, channels, h, w = x.shape
        moves = offsets.reshape(3, groups, 9, h, w)
        out = np.zeros((1, len(weight), h, w)) + bias[:, None, None]
        outputs, inputs = len(weight) // groups, channels // groups
        for group, row, column, tap in np.ndindex(groups, h, w, 9):
            dx, dy, mask = moves[:, group, tap, row, column]
            point = row - pad + dilation * (tap // 3) + dy, column - pad + dilation * (tap % 3) + dx
            sample = [slow_bilinear(x[0, group * inputs + c], *point) for c in range(inputs)]
            own = slice(group * outputs, (group + 1) * outputs)
            out[0, own, row, column] += weight[own, :, tap // 3, tap % 3] @ sample * mask
        return (out.astype(np.float32),)


@pytest.mark.parametrize("variant", [PADDED, GROUPED])
def test_the_file_read_by_the_operators_documentation(network, graphs, variant):
    image = images()[1][:, :, :16, :20]
    found: Any = ReferenceEvaluator(graphs[variant], new_ops=[DeformableConv2D]).run(None, {"image": image})
    with torch.inference_mode():
        expected = network(torch.from_numpy(image))[1].numpy()
    np.testing.assert_allclose(found[1], expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_joined_blocks_compute_in_torch_what_the_blocks_compute(network):
    folded = copy.deepcopy(network)
    fold_batch_norms(folded, torch.zeros(1, 3, 16, 16))
    blocks = [fold_adaptive_block(stack[0]) for stack in folded.offset_feature_layers]
    x = torch.randn(2, JOINTS * WIDTH, 4, 7, generator=torch.Generator().manual_seed(1))
    stacks = zip(network.offset_feature_layers, x.split(WIDTH, 1), strict=True)
    expected = torch.cat([stack[0](part) for stack, part in stacks], 1)
    torch.testing.assert_close(join_blocks(blocks)(x), expected, rtol=1e-4, atol=1e-3)


# --- what is in the graph


def test_padded_has_16_channels_and_the_added_ones_are_zero(graphs):
    model, values = graphs[PADDED], initializers(graphs[PADDED])
    nodes = nodes_of(model, "DeformableConv2D")
    assert len(nodes) == LEVELS * JOINTS
    for node in nodes:
        weight, bias = values[node.input[1]], values[node.input[3]]
        assert weight.shape == (16, 16, 3, 3) and bias.shape == (16,)
        assert not weight[WIDTH:].any() and not weight[:, WIDTH:].any() and not bias[WIDTH:].any()
        offsets = values[producer(model, node.input[2]).input[1]]
        assert offsets.shape == (27, 16, 3, 3) and not offsets[:, WIDTH:].any()
    assert [attributes(node)["split"] for node in nodes_of(model, "Split")] == [[16] * JOINTS]


def test_padding_whole_blocks_changes_nothing():
    whole = seeded(Head(width=16))
    padded, separate = build_graph(whole, PADDED), build_graph(whole, SEPARATE)
    assert padded.SerializeToString(deterministic=True) == separate.SerializeToString(deterministic=True)


def test_grouped_has_one_operator_per_level_with_a_group_for_each_joint(graphs):
    model, values = graphs[GROUPED], initializers(graphs[GROUPED])
    nodes = nodes_of(model, "DeformableConv2D")
    assert len(nodes) == LEVELS
    for node in nodes:
        assert attributes(node) == {
            "strides": [1, 1],
            "pads": [1, 1],
            "dilations": [1, 1],
            "groups": JOINTS,
            "deformable_groups": JOINTS,
        }
        x, weight, offsets, bias = node.input
        assert values[weight].shape == (JOINTS * WIDTH, WIDTH, 3, 3) and values[bias].shape == (JOINTS * WIDTH,)
        conv = producer(model, offsets)
        assert conv.input[0] == x and attributes(conv)["group"] == 1
        assert values[conv.input[1]].shape == (27 * JOINTS, JOINTS * WIDTH, 3, 3)
    last = producer(model, "offset")
    assert last.op_type == "Conv" and attributes(last)["group"] == JOINTS
    assert values[last.input[1]].shape == (2 * JOINTS, WIDTH, 1, 1)
    assert {node.op_type for node in model.graph.node} == {"Conv", "DeformableConv2D", "Add", "Relu"}
    assert len(nodes_of(model, "Add")) == LEVELS


def test_grouped_offsets_are_planar_and_each_joint_reads_its_own_channels():
    coded: Any = seeded(Head())
    for joint, stack in enumerate(coded.offset_feature_layers):
        for conv, bias in ((stack[0].transform_matrix_conv, [1.0, 0, 0, 1]), (stack[0].translation_conv, [0.0, 0])):
            nn.init.zeros_(conv.weight)
            conv.bias = nn.Parameter(torch.tensor(bias))
        stack[0].translation_conv.bias.data += torch.tensor([200.0 + joint, 100.0 + joint])  # down, right
        stack[0].translation_conv.weight.data[1, 2, 0, 1] = joint + 1
    model = build_graph(coded, GROUPED)
    conv = producer(model, nodes_of(model, "DeformableConv2D")[0].input[2])
    weight, bias = (initializers(model)[name] for name in conv.input[1:])
    joints = range(JOINTS)
    assert bias.tolist() == [start + joint for start in (100, 200) for joint in joints for _ in range(9)] + [1] * 45
    rows, columns = weight[:, :, 0, 1].nonzero()
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [
        (9 * joint + tap, WIDTH * joint + 2) for joint in joints for tap in range(9)
    ]
    assert weight[:45, 2::WIDTH, 0, 1].max(1).tolist() == [joint + 1 for joint in joints for _ in range(9)]


def test_gather_has_no_deformable_operator_and_only_accepted_ones(graphs):
    model = graphs[GATHER]
    assert {node.op_type for node in model.graph.node} <= ACCEPTED
    assert len(nodes_of(model, "Gather")) == len(nodes_of(model, "MatMul")) == LEVELS * JOINTS
    values = initializers(model)
    for node in nodes_of(model, "Reshape"):
        assert node.input[1] in values, "sizes are constants"
    assert {attributes(node)["to"] for node in nodes_of(model, "Cast")} == {TensorProto.INT32}
    kernels = [values[node.input[1]].shape[2:] for node in nodes_of(model, "Conv")]
    pads = [attributes(node)["pads"] for node in nodes_of(model, "Conv")]
    assert max(max(kernel) for kernel in kernels) <= 16 and max(max(sides) for sides in pads) <= 255


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_linter_and_the_atc_double_accept_every_variant(graphs, variant):
    model = copy_of(graphs[variant])
    helper.set_model_props(model, {"input_sizes": str(PUBLISHED_SIZES)})
    findings = preflight(model)
    assert {finding.level for finding in findings} <= {WARNING} and (not findings or variant != PADDED)
    assert variant != GATHER or all(finding.rule.startswith("group above 1") for finding in findings)
    double = runpy.run_path(str(FAKES / "atc"))
    double["check_graph"](model)
    double["check_inputs"](
        model.graph, {"input_shape": default_input_shape(model), "dynamic_dims": str(PUBLISHED_SIZES)}
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_dialects_convert_there_and_back(graphs, variant):
    model = graphs[variant]
    standard = to_dialect(model, ONNX)
    assert (dialect_of(model), dialect_of(standard)) == (ASCEND, ONNX)
    check_standard(standard)
    back = to_dialect(standard, ASCEND)
    expected, found = initializers(model), initializers(back)
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    for a, b in zip(back.graph.node, model.graph.node, strict=True):
        assert (a.op_type, a.input, a.output, attributes(a)) == (b.op_type, b.input, b.output, attributes(b))


def test_the_standard_dialect_has_grouped_offsets(graphs):
    standard = to_dialect(graphs[GROUPED], ONNX)
    values = initializers(standard)
    for node in nodes_of(standard, "DeformConv"):
        assert attributes(node)["group"] == attributes(node)["offset_group"] == JOINTS
        conv = producer(standard, node.input[2])
        assert attributes(conv)["group"] == JOINTS
        assert values[conv.input[1]].shape == (18 * JOINTS, WIDTH, 3, 3)


@pytest.mark.parametrize(("place", "message"), [((1, 4, 1, 1), "groups mix"), ((100, 0, 1, 1), "masks that vary")])
def test_offsets_of_another_form_are_not_converted(graphs, place, message):
    model = copy_of(graphs[GROUPED])
    name = producer(model, nodes_of(model, "DeformableConv2D")[0].input[2]).input[1]
    values = initializers(model)[name].copy()
    values[place] = 1
    set_initializer(model, name, values)
    with pytest.raises(DekrError, match=message):
        to_dialect(model, ONNX)


# --- what cannot be arranged


@pytest.mark.parametrize("variant", OTHERS)
def test_a_network_without_branches_is_refused(variant):
    with pytest.raises(DekrError, match="no joint branches"):
        build_graph(nn.Conv2d(3, 3, 1), variant)


@pytest.mark.parametrize("variant", OTHERS)
def test_a_branch_with_something_else_in_it_is_refused(variant):
    odd = seeded(Head())
    odd.offset_feature_layers[2].append(nn.ReLU())
    with pytest.raises(DekrError, match="adaptive blocks alone"):
        build_graph(odd, variant)


def shorter(head: Any) -> None:
    head.offset_feature_layers[3] = head.offset_feature_layers[3][:1]


def wider_final(head: Any) -> None:
    head.offset_final_layer[1] = nn.Conv2d(WIDTH, 2, 3, 1, 1)


def dilated(head: Any) -> None:
    head.offset_feature_layers[4][1] = AdaptBlock(WIDTH, 2)


def fewer_finals(head: Any) -> None:
    head.offset_final_layer = head.offset_final_layer[:-1]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (shorter, "differ in form"),
        (wider_final, "differ in form"),
        (fewer_finals, "never runs the block"),
        (dilated, "differ in form"),
    ],
)
def test_branches_that_differ_are_refused(change, part):
    odd = seeded(Head())
    change(odd)
    with pytest.raises(DekrError, match=part):
        build_graph(odd, GROUPED)


# --- the pieces


def test_cells_are_counted_up_to_the_longest_side():
    count = CellCounter(2).eval()
    for h, w in ((256, 3), (5, 256)):
        places = count(torch.full((1, 2, h, w), 7.0))
        assert places.columns.shape == places.rows.shape == (1, h, w, 1)
        assert places.columns[0, 1, :, 0].tolist() == [column + 2 for column in range(w)]
        assert places.rows[0, :, 1, 0].tolist() == [row + 2 for row in range(h)]
        assert (places.last_column, places.last_row) == (w + 2, h + 2)
    assert max(max(input_size) for input_size in PUBLISHED_SIZES) // 4 <= 256


def test_convolve_backwards_reads_only_the_cells_before():
    x = torch.arange(1.0, 7).view(1, 1, 1, 6)
    weight, bias = torch.tensor([100.0, 10, 1]).view(1, 1, 1, 3), torch.tensor([0.5])
    assert convolve_backwards(x, weight, bias, 2).flatten().tolist() == [1.5, 2.5, 13.5, 24.5, 135.5, 246.5]


def test_reshape_keeps_the_size_of_an_axis_given_as_0():
    assert reshape(torch.zeros(2, 6, 5, 7), 0, -1, 5, 7).shape == (2, 6, 5, 7)
    assert reshape(torch.zeros(1, 6, 5, 7), 2, 3, 0, 0).shape == (2, 3, 5, 7)


def parted(order: list[int], sizes: list[int]) -> ir.Model:
    """Return a convolution of six channels, taken apart by Split and joined again in some order."""
    names = [f"part{index}" for index in range(len(sizes))]
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["all"]),
        helper.make_node("Split", ["all"], names, axis=1, split=sizes),
        helper.make_node("Concat", [names[index] for index in order], ["out"], axis=1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("image", "out")]
    weight = numpy_helper.from_array(np.zeros((6, 3, 1, 1), np.float32), "weight")
    return ir.from_proto(helper.make_model(helper.make_graph(nodes, "parted", ends[:1], ends[1:], [weight])))


def test_parts_rejoined_in_order_are_dropped():
    model = parted([0, 1, 2], [1, 2, 3])
    drop_rejoined_parts(model.graph)
    assert [(node.op_type, list(node.output)) for node in ir.to_proto(model).graph.node] == [("Conv", ["out"])]


@pytest.mark.parametrize(
    ("order", "sizes"), [([0, 2, 1], [2, 2, 2]), ([0, 2, 1, 3], [1, 2, 1, 2]), ([0, 1], [2, 2, 2]), ([1, 2], [2, 2, 2])]
)
def test_parts_rejoined_otherwise_stay(order, sizes):
    model = parted(order, sizes)
    drop_rejoined_parts(model.graph)
    assert [node.op_type for node in model.graph] == ["Conv", "Split", "Concat"]


# --- the whole network


@pytest.fixture(scope="module")
def expected(tiny) -> dict[Size, tuple[np.ndarray, list[np.ndarray]]]:
    """An image of every input size, and torch's outputs for it."""
    rng, found = np.random.default_rng(SEED), {}
    for input_size in PUBLISHED_SIZES:
        image = normalise(sample_image(rng, input_size))
        with torch.inference_mode():
            found[input_size] = image, [output.numpy() for output in tiny.network(torch.from_numpy(image))]
    return found


@pytest.mark.long
@pytest.mark.parametrize(("variant", "count"), [(SEPARATE, 34), (PADDED, 34), (GROUPED, 2), (GATHER, 0)])
def test_all_five_input_sizes_agree_with_torch(tiny, expected, tmp_path, variant, count):
    model = build_graph(tiny.network, variant)
    assert len(nodes_of(model, "DeformableConv2D")) == count
    helper.set_model_props(model, {"input_sizes": str(PUBLISHED_SIZES)})
    onnx.save(model, tmp_path / "net.onnx")
    graph = OnnxRuntime(tmp_path / "net.onnx", 1)
    for input_size, (image, outputs) in expected.items():
        difference = difference_of(input_size, outputs, graph.run(image)[:2])
        assert difference.heat <= 2e-5 and difference.offset <= 5e-3, difference


@pytest.mark.parametrize("dialect", [ASCEND, ONNX])
def test_the_command_writes_a_variant_and_names_it_in_the_metadata(tiny, tmp_path, capsys, dialect):
    flags = ["--output", str(tmp_path / "net.onnx"), *ONE_THREAD, "--deform", GROUPED, "--dialect", dialect]
    assert export_command.main([*flags, *tiny.pairs()], InputSizes(SMALL_INPUT_SIZES.sizes[:1])) == 0
    out = capsys.readouterr().out
    assert out.count("ok\n") == 1 and "2 deformable" in out
    found = metadata(onnx.load(tmp_path / "net.onnx"))
    assert (found["deform"], found["dialect"]) == (GROUPED, dialect)


def test_an_unknown_variant_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        export_command.main(["--deform", "joined", *PAIRS])
    assert "joined" in capsys.readouterr().err
