"""Float16's rehearsal: the rounding of every operator against numpy's, modes, parts, kept nodes, overflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.onnx_graph.dialects import ONNX, to_dialect
from dekr_infer.onnx_graph.float16 import (
    HEATMAP,
    LARGEST,
    MATRIX_ONLY,
    OFFSET,
    TRUNK,
    TWICE,
    Rounding,
    node_of,
    read_keep_list,
    rehearse,
)
from tests.support.commands import error_of
from tests.support.tiny_models import toy_model


def graph_of(nodes: list, weights: dict[str, np.ndarray], channels: int = 4) -> ModelProto:
    """A graph from `image` (1, channels, H, W) to `y`."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, None, None]) for name in ("image", "y")]
    ends[0].type.tensor_type.shape.dim[1].dim_value = channels
    initializers = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def run(model: ModelProto, image: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"image": image})


def half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float32)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 4, 9, 11)).astype(np.float32)


RNG = np.random.default_rng(1)
WEIGHTS = {
    "w": RNG.standard_normal((6, 4, 3, 3)).astype(np.float32) / 3,
    "b": RNG.standard_normal(6).astype(np.float32),
    "c": RNG.standard_normal((1, 4, 1, 1)).astype(np.float32),
    "m": RNG.standard_normal((11, 5)).astype(np.float32),
    "scales": np.array([1, 1, 2, 2], np.float32),
}
ROUNDED = {
    "Conv": (helper.make_node("Conv", ["image", "w", "b"], ["y"], "n", pads=[1] * 4), ("w", "b")),
    "Add": (helper.make_node("Add", ["image", "c"], ["y"], "n"), ("c",)),
    "Mul": (helper.make_node("Mul", ["image", "c"], ["y"], "n"), ("c",)),
    "MatMul": (helper.make_node("MatMul", ["image", "m"], ["y"], "n"), ("m",)),
    "Sigmoid": (helper.make_node("Sigmoid", ["image"], ["y"], "n"), ()),
    "Resize": (helper.make_node("Resize", ["image", "", "scales"], ["y"], "n", mode="linear"), ()),
    "AveragePool": (helper.make_node("AveragePool", ["image"], ["y"], "n", kernel_shape=[3, 3]), ()),
}


@pytest.mark.parametrize("kind", ROUNDED)
def test_every_operator_computes_in_float32_on_float16_values_and_rounds_once(kind, image):
    node, weights = ROUNDED[kind]
    model = graph_of([node], WEIGHTS)
    exact = graph_of([node], WEIGHTS | {name: half(WEIGHTS[name]) for name in weights})
    (expected,) = run(exact, half(image))
    (found,) = run(rehearse(model, Rounding()), image)
    assert np.array_equal(found, half(expected)) and not np.array_equal(found, expected)


@pytest.mark.parametrize("kind", ["Relu", "MaxPool", "Concat", "Transpose"])
def test_operators_that_only_move_values_are_not_rounded_again(kind, image):
    extra = {"kernel_shape": [2, 2]} if kind == "MaxPool" else {"axis": 1} if kind == "Concat" else {}
    inputs = ["x", "x"] if kind == "Concat" else ["x"]
    nodes = [ROUNDED["Add"][0], helper.make_node(kind, inputs, ["y"], **extra)]
    nodes[0] = helper.make_node("Add", ["image", "c"], ["x"])
    rounded = rehearse(graph_of(nodes, WEIGHTS), Rounding())
    casts = [node for node in rounded.graph.node if node.op_type == "Cast"]
    assert len(casts) == 4, "of the input and of the sum"
    assert rounded.graph.node[-1].op_type == kind


def test_two_convolutions_have_the_error_of_true_rounding_not_that_of_rounded_weights():
    """A file of float16 tensors has the latter on a CPU, because ONNX Runtime computes it in float32."""
    rng = np.random.default_rng(2)
    image = rng.standard_normal((1, 32, 64, 64)).astype(np.float32)
    weights = {name: (rng.standard_normal((32, 32, 3, 3)) / 17).astype(np.float32) for name in ("w1", "w2")}

    def model(rounded: bool) -> ModelProto:
        nodes = [
            helper.make_node("Conv", ["image", "w1"], ["x"], "first", pads=[1] * 4),
            helper.make_node("Relu", ["x"], ["r"], "relu"),
            helper.make_node("Conv", ["r", "w2"], ["y"], "second", pads=[1] * 4),
        ]
        return graph_of(nodes, {name: half(w) if rounded else w for name, w in weights.items()}, 32)

    def error(values: np.ndarray) -> float:
        return float(np.sqrt(((values - exact) ** 2).mean() / (exact**2).mean()))

    (exact,) = run(model(False), image)
    first = graph_of([helper.make_node("Conv", ["image", "w1"], ["y"], pads=[1] * 4)], {"w1": half(weights["w1"])}, 32)
    second = graph_of([helper.make_node("Conv", ["image", "w2"], ["y"], pads=[1] * 4)], {"w2": half(weights["w2"])}, 32)
    true = half(run(second, np.maximum(half(run(first, half(image))[0]), 0))[0])
    (found,) = run(rehearse(model(False), Rounding()), image)
    (weights_only,) = run(rehearse(model(False), Rounding(weights_only=True)), image)
    assert np.array_equal(weights_only, run(model(True), image)[0])
    assert error(found) == pytest.approx(error(true), rel=0.02)
    assert 1.3 * error(weights_only) < error(found) < 2 * error(weights_only)
    assert 1e-4 < error(found) < 1e-3


@pytest.fixture(scope="module")
def network(tiny) -> ModelProto:
    return to_dialect(tiny.model(), ONNX)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, 3, 64, 96)).astype(np.float32)


def moved(model: ModelProto, rounding: Rounding, picture: np.ndarray) -> list[float]:
    """By how much the heatmap and the offset move."""
    both = zip(run(model, picture), run(rehearse(model, rounding), picture), strict=True)
    return [float(np.abs(a - b).max()) for a, b in both]


def test_a_part_moves_only_what_depends_on_it(network, picture):
    heatmap, offset = moved(network, Rounding(parts=(HEATMAP,)), picture)
    assert heatmap > 0 and offset == 0
    heatmap, offset = moved(network, Rounding(parts=(OFFSET,)), picture)
    assert heatmap == 0 and offset > 0
    trunk, everything = (moved(network, Rounding(parts=parts), picture) for parts in ((TRUNK,), Rounding().parts))
    assert min(trunk) > 0 and trunk != everything


def test_outputs_are_float16_numbers_under_the_names_that_they_had(network, picture):
    rounded = rehearse(network, Rounding())
    assert [value.name for value in rounded.graph.output] == ["heatmap", "offset"]
    assert all(np.array_equal(values, half(values)) for values in run(rounded, picture))


def test_the_matrix_mode_rounds_around_convolutions_alone(network):
    rounded = rehearse(network, Rounding(mode=MATRIX_ONLY))
    made_by = {name: node for node in rounded.graph.node for name in node.output}
    read = {name: {node.op_type for node in rounded.graph.node if name in node.input} for name in made_by}
    for node in rounded.graph.node:
        if node.op_type in ("Conv", "DeformConv"):
            assert read[node.output[0]] == {"Cast"}
        elif node.op_type in ("Add", "Resize"):
            assert "Conv" not in read[node.output[0]], "a convolution reads a rounded copy"
            casts = [made_by[name] for name in node.input if name in made_by and made_by[name].op_type == "Cast"]
            assert all(made_by[cast.input[0]].op_type == "Cast" for cast in casts)


def test_kept_nodes_are_left_out_by_name_or_type(network, picture, tmp_path):
    keep = tmp_path / "keep.cfg"
    keep.write_text("OpType::DeformableConv2D\n\n conv1 \n")
    rounding = Rounding(keep=read_keep_list(keep))
    rounded = rehearse(network, rounding)
    weights = {node.op_type + node.name: node.input[1] for node in rounded.graph.node if len(node.input) > 1}
    assert weights["Convconv1"] == "conv1.weight" and weights["Convconv2"] == "conv2.weight.float16"
    assert not any(name.endswith(".float16") for kind, name in weights.items() if kind.startswith("DeformConv"))
    assert str(rounding) == "fp16 force_fp16; keep OpType::DeformableConv2D,conv1"
    assert "no node is called conv11" in error_of(rehearse, network, Rounding(keep=("conv11",)))
    keep.write_text(" \n")
    assert "names no node" in error_of(read_keep_list, keep)
    assert "cannot be read" in error_of(read_keep_list, tmp_path / "missing.cfg")
    keep.write_bytes(b"\xff\xfe")
    assert "cannot be read as text" in error_of(read_keep_list, keep)


def test_sampling_and_product_are_one_operator_or_two(network, picture):
    once, twice = (run(rehearse(network, Rounding(deform=deform)), picture) for deform in ("once", TWICE))
    assert np.array_equal(once[0], twice[0]), "the heatmap has no deformable convolution"
    exact = run(network, picture)[1]
    difference = np.abs(once[1] - twice[1])
    assert 0 < difference.max() < 2 * np.abs(once[1] - exact).max()


@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_apart_sampling_and_product_give_the_deformable_convolution(groups, offset_groups, image):
    """Whole numbers stay exact in float16, so that nothing but the rearrangement can be seen."""
    rng = np.random.default_rng(4)
    weights = {
        "w": rng.integers(-2, 3, (6, 4 // groups, 3, 3)).astype(np.float32),
        "b": np.arange(6, dtype=np.float32),
        "off": rng.integers(-1, 2, (18 * offset_groups, 4, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "off"], ["taps"], "taps"),
        helper.make_node(
            "DeformConv",
            ["image", "w", "taps", "b"],
            ["y"],
            "deform",
            **{"group": groups, "offset_group": offset_groups, "kernel_shape": [3, 3], "pads": [1] * 4},
        ),
    ]
    model = graph_of(nodes, weights)
    whole = np.round(image)
    (expected,) = run(model, whole)
    (found,) = run(rehearse(model, Rounding(deform=TWICE)), whole)
    assert np.array_equal(found, expected) and np.abs(expected).max() > 8


def test_an_operator_reads_a_rounded_copy_of_every_input(image):
    nodes = [
        helper.make_node("Sigmoid", ["image"], ["rounded"], "first"),
        helper.make_node("Add", ["rounded", "image"], ["y"], "second"),
    ]
    (found,) = run(rehearse(graph_of(nodes, {}), Rounding()), image)
    (rounded,) = run(graph_of([helper.make_node("Sigmoid", ["image"], ["y"])], {}), half(image))
    assert np.array_equal(found, half(half(rounded) + half(image)))


def test_weights_alone_are_rounded_in_a_deformable_convolution_that_is_taken_apart(image):
    rng = np.random.default_rng(5)
    weights = {
        "w": rng.standard_normal((6, 4, 3, 3)).astype(np.float32),
        "off": rng.integers(-1, 2, (18, 4, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "off"], ["taps"], "taps"),
        helper.make_node("DeformConv", ["image", "w", "taps"], ["y"], "deform", kernel_shape=[3, 3], pads=[1] * 4),
    ]
    whole = np.round(image)
    (expected,) = run(graph_of(nodes, weights | {"w": half(weights["w"])}), whole)
    (found,) = run(rehearse(graph_of(nodes, weights), Rounding(weights_only=True, deform=TWICE)), whole)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(run(graph_of(nodes, weights), whole)[0] - expected).max() > 1e-4


def test_a_value_of_the_rehearsal_leads_back_to_the_node_that_makes_or_reads_it(image):
    nodes = [
        helper.make_node("Sigmoid", ["image"], ["s"], "first"),
        helper.make_node("Add", ["s", "image"], ["y"], "second"),
    ]
    rehearsed = rehearse(graph_of(nodes, {}), Rounding())
    made = {output for node in rehearsed.graph.node for output in node.output}
    assert {"s", "y"} <= made
    assert node_of(rehearsed, "s") != "s" and node_of(rehearsed, node_of(rehearsed, "s")) == node_of(rehearsed, "s")
    makers = {output: node.op_type for node in rehearsed.graph.node for output in node.output}
    assert makers[node_of(rehearsed, "s")] == "Sigmoid" and makers[node_of(rehearsed, "y")] == "Add"


def test_overflow_is_an_error_that_names_node_and_key(tiny, tmp_path, picture):
    model = tiny.model()
    for tensor in model.graph.initializer:
        if tensor.name == "layer1.0.conv2.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e6), tensor.name))
    path = tmp_path / "loud.onnx"
    onnx.save(model, path)
    heatmap, *_ = OnnxRuntime(path, 1).run(picture)
    assert np.isfinite(heatmap).all()
    rounding = Rounding(parts=(TRUNK,))
    said = error_of(OnnxRuntime(path, 1, rounding=rounding).run, picture)
    assert "layer1.0.conv2 (layer1.0.conv2.weight) overflows in float16" in said and f"{LARGEST:.0f}" in said
    kept = OnnxRuntime(path, 1, rounding=Rounding(parts=(TRUNK,), keep=("layer1.0.conv2",)))
    said = error_of(kept.run, picture)
    assert "loud.onnx: /layer1/layer1.0/Relu_1 overflows" in said, "the node that reads it in float16, not a cast"


def test_a_graph_of_other_parts_is_refused(tmp_path):
    path = tmp_path / "toy.onnx"
    onnx.save(toy_model(), path)
    said = error_of(lambda: OnnxRuntime(Path(path), 1, rounding=Rounding(keep=("nobody",))))
    assert str(path) in said and "nobody" in said and "export it again" not in said


def test_damaged_weights_are_one_error(tiny, tmp_path):
    for name, damage in (("cut", {"raw_data": b"1234"}), ("odd", {"data_type": 99})):
        model = to_dialect(tiny.model(), ONNX)
        for key, value in damage.items():
            setattr(model.graph.initializer[3], key, value)
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        said = error_of(lambda path=path: OnnxRuntime(path, 1, rounding=Rounding(deform=TWICE)))
        assert said.startswith(f"{path}: ")


def test_computed_weights_cannot_be_sampled_apart(tiny):
    model = to_dialect(tiny.model(), ONNX)
    deform = next(node for node in model.graph.node if node.op_type == "DeformConv")
    index = list(model.graph.node).index(deform)
    model.graph.node.insert(index, helper.make_node("Identity", [deform.input[1]], ["computed"]))
    model.graph.node[index + 1].input[1] = "computed"
    assert "its weights are computed" in error_of(rehearse, model, Rounding(deform=TWICE))
