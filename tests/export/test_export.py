"""The export command and the graph it writes, on a tiny network of the full structure; W32 once."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import nn

import dekr_infer
from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.cli import export as export_command
from dekr_infer.config.load import load_config
from dekr_infer.errors import DekrError
from dekr_infer.export.fold import FoldedAdaptBlock, fold_adaptive_blocks
from dekr_infer.export.parity import Difference, compare_with_torch, sample_image
from dekr_infer.export.trace import build_graph
from dekr_infer.export.variants import VARIANTS
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size
from dekr_infer.model.head import build_network
from dekr_infer.model.random_weights import random_network
from dekr_infer.onnx_graph.dialects import ONNX, to_dialect
from dekr_infer.pose.preprocess import normalise
from dekr_infer.skeleton import COCO_17
from tests.support.graphs import attributes, initializers, metadata, nodes_of
from tests.support.slow_reference import slow_bilinear
from tests.support.tiny_models import ONE_THREAD, PAIRS, SMALL_INPUT_SIZES

pytestmark = pytest.mark.usefixtures("one_thread")

FORBIDDEN = {
    *("Shape", "Gather", "Transpose", "MatMul", "Tile", "Expand", "ConstantOfShape", "BatchNormalization"),
    *("Identity", "Constant", "Reshape", "DeformConv", "Einsum", "NonZero", "GridSample", "Cast"),
}


@pytest.fixture(scope="module")
def model(tiny) -> ModelProto:
    return tiny.model()


def dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


# --- what atc will read


def test_the_graph_is_opset_11_in_the_default_domain_only(model):
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 11)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions


def test_only_plain_operators_are_left(model):
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & FORBIDDEN
    assert kinds == {"Conv", "Relu", "Add", "Resize", "Concat", "Split", "DeformableConv2D"}


def test_34_deformable_convolutions_with_exactly_the_parsers_attributes(model):
    nodes = nodes_of(model, "DeformableConv2D")
    assert len(nodes) == 34
    for node in nodes:
        assert attributes(node) == {
            "strides": [1, 1],
            "pads": [1, 1],
            "dilations": [1, 1],
            "groups": 1,
            "deformable_groups": 1,
        }


def test_offsets_come_from_one_convolution_of_27_channels_whose_masks_are_one(model):
    values = initializers(model)
    producers = {node.output[0]: node for node in model.graph.node}
    for node in nodes_of(model, "DeformableConv2D"):
        x, weight, offsets, bias = node.input
        assert values[weight].shape == (3, 3, 3, 3)
        assert values[bias].shape == (3,)
        conv = producers[offsets]
        assert conv.op_type == "Conv" and conv.input[0] == x
        assert values[conv.input[1]].shape == (27, 3, 3, 3)
        assert not values[conv.input[1]][18:].any()
        assert values[conv.input[2]][18:].tolist() == [1] * 9


def test_dilation_reaches_the_operator_as_dilations_and_pads(tiny):
    network = build_network(load_config(None, [*tiny.pairs(), "MODEL.SPEC.HEAD_OFFSET.DILATION_RATE", "2"]))
    for node in nodes_of(build_graph(network), "DeformableConv2D"):
        assert attributes(node)["dilations"] == attributes(node)["pads"] == [2, 2]


def test_every_resize_has_constant_scales(model):
    values = initializers(model)
    kinds = []
    for node in nodes_of(model, "Resize"):
        assert len(node.input) == 3, "no sizes"
        one, same, down, across = values[node.input[2]].tolist()
        assert one == same == 1 and down == across and down in (2, 4, 8)
        entry = attributes(node)
        kinds.append((entry["mode"], entry["coordinate_transformation_mode"]))
        assert entry["mode"] != b"nearest" or entry["nearest_mode"] == b"floor"
    assert kinds == [(b"nearest", b"asymmetric")] * (1 + 3 + 6) + [(b"linear", b"half_pixel")] * 3


def test_names_order_and_open_sizes_of_inputs_and_outputs(model):
    assert [entry.name for entry in model.graph.input] == ["image"]
    assert [entry.name for entry in model.graph.output] == ["heatmap", "offset"]
    one, channels, height, width = dimensions(model.graph.input[0])
    assert (one, channels) == (1, 3)
    assert isinstance(height, str) and isinstance(width, str) and height != width
    for entry, count in zip(model.graph.output, (18, 34), strict=True):
        one, channels, rows, columns = dimensions(entry)
        assert (one, channels) == (1, count)
        assert isinstance(rows, str) and isinstance(columns, str) and rows != columns
    types = {entry.type.tensor_type.elem_type for entry in (*model.graph.input, *model.graph.output)}
    assert types == {onnx.TensorProto.FLOAT}


def test_every_initializer_is_used_and_weights_are_float32(model):
    used = {name for node in model.graph.node for name in node.input}
    values = initializers(model)
    assert set(values) <= used
    assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}


def test_provenance_is_in_the_metadata(tiny, model):
    found = metadata(model)
    versions = found.pop("versions")
    assert found == {
        "input_sizes": "512,768;512,512;768,512;512,1024;1024,512",
        "skeleton": ",".join(COCO_17.joints),
        "mean": "0.485,0.456,0.406",
        "std": "0.229,0.224,0.225",
        "checkpoint_sha256": hashlib.sha256(tiny.checkpoint.read_bytes()).hexdigest(),
        "weights": "random",
        "dialect": "ascend",
    }
    assert f"torch {torch.__version__}" in versions and f"onnx {onnx.__version__}" in versions


# --- what it computes


class DeformableConv2D(OpRun):
    """The accelerator's operator by its documentation: offsets planar x, y, mask; zeros beyond the border."""

    op_domain = ""

    def _run(self, x, weight, offsets, bias, **attributes):
        (pad, _), (dilation, _) = attributes["pads"], attributes["dilations"]
        _, channels, h, w = x.shape
        out = np.zeros((1, len(weight), h, w)) + bias[:, None, None]
        for row, column, tap in np.ndindex(h, w, 9):
            dx, dy, mask = offsets[0, [tap, 9 + tap, 18 + tap], row, column]
            point = row - pad + dilation * (tap // 3) + dy, column - pad + dilation * (tap % 3) + dx
            for c in range(channels):
                out[0, :, row, column] += weight[:, c, tap // 3, tap % 3] * mask * slow_bilinear(x[0, c], *point)
        return (out.astype(np.float32),)


def test_the_file_read_by_the_operators_documentation_equals_torch(tiny, model):
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 64)).astype(np.float32)
    found: Any = ReferenceEvaluator(model, new_ops=[DeformableConv2D]).run(None, {"image": image})
    with torch.inference_mode():
        expected = tiny.network(torch.from_numpy(image))
    np.testing.assert_allclose(found[0], expected[0].numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1].numpy(), rtol=0, atol=5e-3)


def test_all_five_input_sizes_agree_with_torch(tiny):
    differences = list(compare_with_torch(tiny.network, tiny.graph, PUBLISHED_SIZES, 1))
    assert [difference.input_size for difference in differences] == list(PUBLISHED_SIZES)
    for difference in differences:
        assert difference.heat <= 2e-5 and difference.offset <= 5e-3, difference
        assert difference.largest_heat > 0.1 and difference.largest_offset > 1


def test_both_dialects_give_the_same_bits(tiny, tmp_path):
    standard = tmp_path / "standard.onnx"
    onnx.save(to_dialect(tiny.model(), ONNX), standard)
    lowered, plain = OnnxRuntime(tiny.graph, 1), OnnxRuntime(standard, 1)
    for input_size in PUBLISHED_SIZES[1:3]:
        image = normalise(sample_image(np.random.default_rng(1), input_size))
        for a, b in zip(lowered.run(image)[:2], plain.run(image)[:2], strict=True):
            np.testing.assert_array_equal(a, b)


def test_w32_exports_and_agrees_with_torch(tmp_path):
    network = random_network(load_config(), 0)
    model, input_size = build_graph(network), Size(128, 192)
    assert len(nodes_of(model, "DeformableConv2D")) == 34
    assert not {node.op_type for node in model.graph.node} & FORBIDDEN
    helper.set_model_props(model, {"input_sizes": str(InputSizes((input_size,)))})
    onnx.save(model, tmp_path / "w32.onnx")
    (difference,) = compare_with_torch(network, tmp_path / "w32.onnx", [input_size], 1)
    assert difference.holds, difference


# --- the command


def export(output: Path, tiny, *flags: str, input_sizes: InputSizes = SMALL_INPUT_SIZES) -> int:
    return export_command.main(["--output", str(output), *ONE_THREAD, *flags, *tiny.pairs()], input_sizes)


def test_the_command_proves_every_input_size_and_prints_it(tiny, tmp_path, capsys):
    assert export(tmp_path / "new" / "net.onnx", tiny) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if line.endswith("ok")]
    assert [line[0] for line in lines] == ["64x96", "96x64", "64x160"]
    assert "dialect ascend" in out and "34 deformable" in out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.onnx"]


def test_the_proof_runs_the_file_as_it_is_written(tiny, monkeypatch):
    """Not the form that the CPU runner makes of it; that would prove another graph than the one that is handed on."""
    rewrite = "dekr_infer.backends.onnxruntime.optimize_for_cpu"
    monkeypatch.setattr(rewrite, lambda _: pytest.fail("the graph was rewritten"))
    assert all(found.holds for found in compare_with_torch(tiny.network, tiny.graph, SMALL_INPUT_SIZES, 1))


def test_the_function_reports_what_it_wrote(tiny, tmp_path):
    network, output, seen = build_network(tiny.config), tmp_path / "net.onnx", []
    report = dekr_infer.export_onnx(
        network, tiny.checkpoint, output, input_sizes=SMALL_INPUT_SIZES, on_difference=seen.append
    )
    assert (report.output, report.dialect, report.deform) == (output, "ascend", "separate")
    assert (report.nodes, report.deformable) == (len(onnx.load(output).graph.node), 34)
    assert report.size == output.stat().st_size and report.seconds > 0
    assert [difference.input_size for difference in report.differences] == list(SMALL_INPUT_SIZES)
    assert list(report.differences) == seen and all(difference.holds for difference in seen)
    assert metadata(onnx.load(output))["input_sizes"] == str(SMALL_INPUT_SIZES)


def test_dialect_onnx_is_written_on_request(tiny, tmp_path):
    assert export(tmp_path / "net.onnx", tiny, "--dialect", "onnx") == 0
    written = onnx.load(tmp_path / "net.onnx")
    assert len(nodes_of(written, "DeformConv")) == 34 and not nodes_of(written, "DeformableConv2D")
    assert written.opset_import[0].version >= 19
    assert metadata(written)["dialect"] == "onnx"
    onnx.checker.check_model(written, full_check=True)


LONG_FORMS = [pytest.param(name, marks=pytest.mark.long) for name in ("padded", "grouped")]


@pytest.mark.parametrize("deform", ["separate", *LONG_FORMS])
def test_dialect_onnx_takes_any_number_of_images(tiny, tmp_path, deform):
    words = ("--dialect", "onnx", "--deform", deform, "--skip_check")
    assert export(tmp_path / "net.onnx", tiny, *words) == 0
    written = onnx.load(tmp_path / "net.onnx")
    assert {dimensions(entry)[0] for entry in (*written.graph.input, *written.graph.output)} == {"batch"}
    network = OnnxRuntime(tmp_path / "net.onnx", 1)
    rng = np.random.default_rng(1)
    images = [normalise(sample_image(rng, Size(64, 96))) for _ in range(5)]
    alone = [network.run(image)[:2] for image in images]
    for count in (1, 2, 5):
        for index, together in enumerate(network.run(np.concatenate(images[:count]))[:2]):
            expected = np.concatenate([outputs[index] for outputs in alone[:count]])
            np.testing.assert_allclose(together, expected, rtol=0, atol=(1e-5, 1e-3)[index])


def test_gather_takes_one_image(tiny, tmp_path):
    assert export(tmp_path / "net.onnx", tiny, "--dialect", "onnx", "--deform", "gather", "--skip_check") == 0
    assert dimensions(onnx.load(tmp_path / "net.onnx").graph.input[0])[0] == 1


def test_skip_check_runs_nothing(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dekr_infer.export.export.compare_with_torch", lambda *_: pytest.fail("the check ran"))
    assert export(tmp_path / "net.onnx", tiny, "--skip_check") == 0
    assert "differences" not in capsys.readouterr().out
    assert (tmp_path / "net.onnx").is_file()


def swapped_fold(network: nn.Module) -> int:
    """Fold with dx and dy exchanged."""
    count = fold_adaptive_blocks(network)
    for module in network.modules():
        if isinstance(module, FoldedAdaptBlock):
            order = [*range(9, 18), *range(9), *range(18, 27)]
            module.offsets.weight.data = module.offsets.weight.data[order]
            assert module.offsets.bias is not None
            module.offsets.bias.data = module.offsets.bias.data[order]
    return count


def test_a_wrong_fold_fails_and_keeps_the_file_of_an_earlier_export(tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "earlier.onnx").write_bytes(b"earlier")
    monkeypatch.setattr("dekr_infer.export.trace.fold_adaptive_blocks", swapped_fold)
    for name in ("net.onnx", "earlier.onnx"):
        assert export(tmp_path / name, tiny) == 1
        out, err = capsys.readouterr()
        assert "TOO LARGE" in out
        assert err.startswith("error: the exported graph differs from torch") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["earlier.onnx"]
    assert (tmp_path / "earlier.onnx").read_bytes() == b"earlier"


def test_outputs_that_are_not_numbers_fail_the_check(tiny, tmp_path, monkeypatch):
    wrong = [Difference(SMALL_INPUT_SIZES[0], float("nan"), 0.0, 1.0, 1.0)]
    monkeypatch.setattr("dekr_infer.export.export.compare_with_torch", lambda *_: wrong)
    assert export(tmp_path / "net.onnx", tiny) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("heat", "offset", "holds"),
    [(1e-4, 5e-3, True), (1.01e-4, 0, False), (0, 5.1e-3, False), (float("nan"), 0, False), (0, float("nan"), False)],
)
def test_the_allowed_differences(heat, offset, holds):
    assert Difference(PUBLISHED_SIZES[0], heat, offset, 1.0, 1.0).holds is holds


def test_a_checkpoint_of_another_network_is_refused(tiny, tmp_path, capsys):
    pairs = [*tiny.pairs(), "MODEL.SPEC.HEAD_HEATMAP.NUM_CHANNELS", "6"]
    assert export_command.main(["--output", str(tmp_path / "net.onnx"), *ONE_THREAD, *pairs]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tiny.checkpoint}: not a checkpoint of this network") and err.count("\n") == 1
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize("link", [None, Path.symlink_to, Path.hardlink_to])
def test_the_checkpoint_is_never_overwritten(tiny, tmp_path, capsys, link):
    checkpoint, output = tmp_path / "net.pth", tmp_path / "link.onnx"
    shutil.copyfile(tiny.checkpoint, checkpoint)
    if link:
        link(output, checkpoint)
    pairs = (*PAIRS, "TEST.MODEL_FILE", str(checkpoint))
    assert export_command.main(["--output", str(output if link else checkpoint), *ONE_THREAD, *pairs]) == 2
    assert "is the checkpoint itself; name another file" in capsys.readouterr().err
    assert checkpoint.read_bytes() == tiny.checkpoint.read_bytes()


def test_a_missing_checkpoint_is_named(tiny, tmp_path, capsys):
    pairs = [*tiny.pairs(), "TEST.MODEL_FILE", str(tmp_path / "none.pth")]
    assert export_command.main(["--output", str(tmp_path / "net.onnx"), *pairs]) == 1
    assert f"{tmp_path / 'none.pth'}: no such checkpoint" in capsys.readouterr().err


class Unfoldable(nn.Module):
    """Ends in a matrix product, and has a batch norm that follows no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heatmap = self.conv(self.norm(image))
        return heatmap, heatmap.matmul(heatmap.transpose(2, 3))


def test_a_network_that_does_not_fold_is_refused():
    with pytest.raises(DekrError, match="does not fold: BatchNormalization, MatMul, Transpose nodes are left"):
        build_graph(Unfoldable())


class ReadTwice(nn.Module):
    """The output of the convolution is read by its batch norm and by the second output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.conv(image)
        return self.norm(x), x.relu()


def test_a_batch_norm_whose_convolution_is_read_elsewhere_is_refused():
    with pytest.raises(DekrError, match="does not fold: BatchNormalization nodes are left"):
        build_graph(ReadTwice())


# --- names


def entries(name: str, joints: int) -> list[str]:
    """Return the checkpoint keys that the name of an initialiser means, by the rules in `trace`'s first lines."""
    keys: list[list[str]] = [[]]
    for part in name.split("."):
        alternatives = part.split("_and_")
        if re.fullmatch(r"\d+-\d+", part):
            first, last = map(int, part.split("-"))
            assert (first, last) == (0, joints - 1)
            alternatives = [str(joint) for joint in range(joints)]
        keys = [[*key, alternative] for key in keys for alternative in alternatives]
    return [".".join(key) for key in keys]


@pytest.mark.parametrize("variant", VARIANTS)
def test_initializers_and_convolutions_lead_back_to_checkpoint_keys(tiny, variant):
    state = tiny.network.state_dict()
    model = build_graph(tiny.network, variant)
    values = initializers(model)
    used = set()
    for name in values:
        if not re.fullmatch(r"constant\.\d+", name):
            keys = entries(name, 17)
            assert set(keys) <= set(state), name
            assert used.isdisjoint(keys), name
            used.update(keys)
    expected = {key for key in state if key.endswith(("weight", "bias"))}
    norms = {key.removesuffix("running_mean") + "weight" for key in state if key.endswith("running_mean")}
    assert used == expected - norms, "each weight, and each bias; the batch norms' weights are in the convolutions'"
    for node in nodes_of(model, "Conv", "DeformableConv2D"):
        if not node.input[1].startswith("constant."):
            assert node.name == node.input[1].removesuffix(".weight")


def test_values_under_a_key_are_those_of_the_checkpoint(tiny, model):
    values, state = initializers(model), tiny.network.state_dict()
    for key in ("offset_final_layer.3.weight", "offset_final_layer.3.bias", "head_heatmap.1.weight"):
        np.testing.assert_array_equal(values[key], state[key].numpy())
    scale = state["bn1.weight"] / torch.sqrt(state["bn1.running_var"] + 1e-5)
    np.testing.assert_allclose(values["conv1.weight"], state["conv1.weight"] * scale.view(-1, 1, 1, 1), rtol=1e-6)
    np.testing.assert_allclose(
        values["bn1.bias"], state["bn1.bias"] - state["bn1.running_mean"] * scale, rtol=1e-5, atol=1e-6
    )
