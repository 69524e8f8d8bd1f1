"""CPU rewrites: the same outputs from fewer operations, and graphs that fit no rule stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.onnx_graph.cpu_optimize import (
    add_before_enlarging,
    convolve_before_enlarging,
    mix_offsets,
    optimize_for_cpu,
)
from dekr_infer.onnx_graph.dialects import ONNX, check_standard, to_dialect
from tests.support.graphs import attributes, copy_of, initializers, nodes_of, set_initializer
from tests.support.tiny_models import linked_model

RULES = (convolve_before_enlarging, add_before_enlarging, mix_offsets)
IMAGE = np.random.default_rng(3).standard_normal((1, 3, 64, 96)).astype(np.float32)


def applied(rule: Callable[[ir.Graph], None], model: ModelProto) -> ModelProto:
    """Return a model rewritten by one rule."""
    changed = ir.from_proto(model)
    rule(changed.graph)
    RemoveUnusedNodesPass()(changed)
    return ir.to_proto(changed)


def outputs(model: ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, feeds)
    return found


def resizes(model: ModelProto, mode: bytes) -> list[NodeProto]:
    return [node for node in nodes_of(model, "Resize") if attributes(node)["mode"] == mode]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(np.abs(b).max())))


@pytest.fixture(scope="module")
def standard(tiny) -> ModelProto:
    return to_dialect(tiny.model(), ONNX)


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_changes_the_graph_and_keeps_its_outputs(standard, rule):
    changed = applied(rule, standard)
    assert changed.SerializeToString() != standard.SerializeToString()
    check_standard(changed)
    assert_same(outputs(changed, image=IMAGE), outputs(standard, image=IMAGE))


def test_far_parts_pass_both_heads_before_they_are_enlarged(standard):
    changed = applied(convolve_before_enlarging, standard)
    concat = nodes_of(changed, "Concat")[0]
    assert [len(node.input) for node in (nodes_of(standard, "Concat")[0], concat)] == [4, 2]
    assert len(resizes(standard, b"linear")) == 3
    assert len(resizes(changed, b"linear")) == 1 + 2 * 2  # the near one; two far ones for each of two heads


def test_only_one_map_of_a_sum_is_enlarged_in_full(standard):
    changed = applied(add_before_enlarging, standard)
    scales = {
        model_name: sorted(
            float(numpy_helper.to_array(tensor)[2])
            for node in resizes(model, b"nearest")
            for tensor in model.graph.initializer
            if tensor.name == node.input[2]
        )
        for model_name, model in (("before", standard), ("after", changed))
    }
    assert scales["before"].count(2) < len(scales["before"])
    assert set(scales["after"]) == {2.0} and len(scales["after"]) == len(scales["before"])


def test_offsets_are_mixed_of_six_maps(standard):
    changed = applied(mix_offsets, standard)
    sizes = {tensor.name: tensor.dims for tensor in changed.graph.initializer}
    makers = {node.output[0]: node for node in changed.graph.node}
    deformable = nodes_of(changed, "DeformConv")
    for node in deformable:
        mix = makers[node.input[2]]
        assert list(sizes[mix.input[1]]) == [18, 6, 1, 1]
        assert sizes[makers[mix.input[0]].input[1]][0] == 6
    assert len(deformable) == 34


def test_offsets_that_are_not_an_affine_map_stay(standard):
    model = copy_of(standard)
    makers = {node.output[0]: node for node in model.graph.node}
    bent = {makers[node.input[2]].input[1] for node in nodes_of(model, "DeformConv")}
    for name in bent:
        values = initializers(model)[name].copy()
        values[7, 0, 1, 1] += 1e-3 * np.abs(values).max()
        set_initializer(model, name, values)
    assert len(applied(mix_offsets, model).graph.node) == len(model.graph.node)


def sum_of(factors: dict[str, int], mode: str = "nearest", also_read: str = "") -> ModelProto:
    """Return x at full size plus maps of one channel, each enlarged by its factor; `also_read` is an output, too."""
    form = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    made, total = [], "x"
    for name, factor in factors.items():
        made.append(helper.make_node("Resize", [name, "", f"by{factor}"], [f"{name}_large"], **form))
        made.append(helper.make_node("Add", [total, f"{name}_large"], [f"{name}_sum"]))
        total = f"{name}_sum"
    made[-1].output[0] = "y"
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, None, None]) for name in ("x", *factors)]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", also_read) if name]
    constants = [
        numpy_helper.from_array(np.array([1, 1, factor, factor], np.float32), f"by{factor}")
        for factor in set(factors.values())
    ]
    graph = helper.make_graph(made, "sum", inputs, results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def feeds(factors: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"x": 24} | {name: 24 // factor for name, factor in factors.items()}
    return {name: rng.integers(-9, 10, (1, 1, size, 2 * size)).astype(np.float32) for name, size in sizes.items()}


def test_any_order_of_the_terms_gives_the_same_sum_exactly():
    factors = {"a": 4, "b": 12, "c": 2}
    changed = applied(add_before_enlarging, sum_of(factors))
    assert sorted(numpy_helper.to_array(tensor)[2] for tensor in changed.graph.initializer) == [2, 3]
    np.testing.assert_array_equal(outputs(changed, **feeds(factors))[0], outputs(sum_of(factors), **feeds(factors))[0])


@pytest.mark.parametrize(
    "model",
    [
        sum_of({"a": 2}),
        sum_of({"a": 2, "b": 2}),
        sum_of({"a": 3, "b": 2}),
        sum_of({"a": 4, "b": 2}, mode="linear"),
        sum_of({"a": 4, "b": 2}, also_read="a_large"),
    ],
    ids=["one", "equal", "no multiple", "linear", "read elsewhere"],
)
def test_sums_that_do_not_nest_stay(model):
    assert applied(add_before_enlarging, model).graph.node == model.graph.node


def test_a_map_enlarged_in_another_way_is_a_term_like_others():
    factors = {"a": 8, "b": 2, "c": 3}
    model = sum_of(factors)
    for node in nodes_of(model, "Resize"):
        if node.input[0] == "c":
            next(entry for entry in node.attribute if entry.name == "mode").s = b"linear"
    changed = applied(add_before_enlarging, model)
    assert changed.graph.node != model.graph.node
    np.testing.assert_allclose(outputs(changed, **feeds(factors))[0], outputs(model, **feeds(factors))[0], atol=1e-5)


def bent_pointwise(model: ModelProto, what: str) -> None:
    """Give the first head's 1x1 convolution something that the rule does not cover."""
    concat = nodes_of(model, "Concat")[0].output[0]
    conv = next(node for node in model.graph.node if node.op_type == "Conv" and concat in node.input)
    if what in ("output", "reader"):
        name = concat if what == "output" else "more"
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        model.graph.node.extend([helper.make_node("Relu", [concat], ["more"])] * (what == "reader"))
    else:
        for entry in conv.attribute:
            if entry.name == what:
                entry.ints[:] = [2] * len(entry.ints)


@pytest.mark.parametrize("what", ["output", "reader", "strides", "pads"])
def test_a_concat_with_other_than_pointwise_readers_stays(standard, what):
    model = copy_of(standard)
    bent_pointwise(model, what)
    assert applied(convolve_before_enlarging, model).graph.node == model.graph.node


def test_a_loaded_graph_is_rewritten_except_with_as_written(tiny, standard, monkeypatch):
    calls = []

    def optimize(model: ModelProto) -> ModelProto:
        calls.append(model)
        return model

    monkeypatch.setattr("dekr_infer.backends.onnxruntime.optimize_for_cpu", optimize)
    written = OnnxRuntime(tiny.graph, 1, as_written=True).run(IMAGE)[:2]
    assert calls == []
    for found, expected in zip(written, outputs(standard, image=IMAGE), strict=True):
        np.testing.assert_array_equal(found, expected)
    OnnxRuntime(tiny.graph, 1)
    assert len(calls) == 1


def test_unused_constants_are_dropped(standard):
    changed = optimize_for_cpu(standard)
    read = {name for node in changed.graph.node for name in node.input}
    assert {tensor.name for tensor in changed.graph.initializer} <= read
    assert len(nodes_of(changed, "DeformConv")) == 34


def test_new_nodes_have_names_of_their_own_also_where_the_others_have_none(tiny):
    for model in (to_dialect(tiny.model(), ONNX), to_dialect(linked_model(), ONNX)):
        for nameless in (False, True):
            for node in model.graph.node:
                node.name = "" if nameless else node.name
            names = [node.name for node in optimize_for_cpu(model).graph.node if node.name]
            assert len(set(names)) == len(names)
