"""ascend -> onnx -> ascend: the same graph again; what is not of our form is refused."""

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto

from dekr_infer.errors import DekrError
from dekr_infer.onnx_graph.dialects import ASCEND, ONNX, check_standard, dialect_of, to_dialect
from tests.support.graphs import attributes, copy_of, initializers, metadata, nodes_of, producer, set_initializer
from tests.support.tiny_models import toy_model


@pytest.fixture
def model(tiny) -> ModelProto:
    return tiny.model()


def deformable(model: ModelProto) -> list[NodeProto]:
    return nodes_of(model, "DeformableConv2D", "DeformConv")


def offset_convolution(model: ModelProto, node: NodeProto) -> NodeProto:
    return producer(model, node.input[2])


def in_order(model: ModelProto) -> bytes:
    """Return the graph with all that has no order sorted, and with one spelling of the default domain."""
    model = copy_of(model)
    for opset in model.opset_import:
        opset.domain = ""
    for node in model.graph.node:
        entries = sorted(node.attribute, key=lambda entry: entry.name)
        del node.attribute[:]
        node.attribute.extend(entries)
    weights = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)
    return model.SerializeToString(deterministic=True)


def test_there_and_back_is_the_same_graph(model):
    back = to_dialect(to_dialect(model, ONNX), ASCEND)
    assert in_order(back) == in_order(model)


def test_conversion_leaves_its_argument_alone(model):
    before = model.SerializeToString(deterministic=True)
    assert to_dialect(model, ONNX) is not model
    assert model.SerializeToString(deterministic=True) == before
    assert to_dialect(model, ASCEND) is model


def test_versions_and_names_of_the_dialects(model):
    standard = to_dialect(model, ONNX)
    assert (dialect_of(model), dialect_of(standard)) == (ASCEND, ONNX)
    assert [(e.domain, e.version) for e in standard.opset_import] == [("", 19)]
    assert [(e.domain, e.version) for e in model.opset_import] == [("", 11)]
    assert (model.ir_version, standard.ir_version) == (6, 9)  # what each opset came with, or older
    assert metadata(standard)["dialect"] == ONNX


def test_the_onnx_checker_passes_with_types_and_shapes(model):
    standard = to_dialect(model, ONNX)
    check_standard(standard)
    inferred = onnx.shape_inference.infer_shapes(standard, strict_mode=True, data_prop=True)
    assert [entry.name for entry in inferred.graph.output] == ["heatmap", "offset"]


def test_an_invalid_graph_is_refused(model):
    standard = to_dialect(model, ONNX)
    standard.graph.node[0].op_type = "Cnov"
    with pytest.raises(DekrError, match="not valid ONNX"):
        check_standard(standard)


def test_the_standard_operator_has_its_own_attributes(model):
    nodes = deformable(to_dialect(model, ONNX))
    assert len(nodes) == 34
    for node in nodes:
        assert attributes(node) == {
            "kernel_shape": [3, 3],
            "strides": [1, 1],
            "pads": [1, 1, 1, 1],
            "dilations": [1, 1],
            "group": 1,
            "offset_group": 1,
        }


def test_offsets_become_dy_dx_of_each_tap_in_turn(model):
    name = offset_convolution(model, deformable(model)[0]).input[2]
    planar = np.concatenate((100 + np.arange(9), 200 + np.arange(9), np.ones(9))).astype(np.float32)
    set_initializer(model, name, planar)  # dx of tap k is 100 + k, its dy 200 + k
    standard = to_dialect(model, ONNX)
    assert initializers(standard)[name].tolist() == [start + tap for tap in range(9) for start in (200, 100)]
    assert initializers(to_dialect(standard, ASCEND))[name].tolist() == planar.tolist()


def test_weights_shared_by_two_convolutions_are_converted_once(model):
    first, second = (offset_convolution(model, node) for node in deformable(model)[:2])
    second.input[1:] = first.input[1:]
    standard = to_dialect(model, ONNX)
    assert initializers(standard)[first.input[1]].shape == (18, 3, 3, 3)
    check_standard(standard)
    back = to_dialect(standard, ASCEND)
    np.testing.assert_array_equal(initializers(back)[first.input[1]], initializers(model)[first.input[1]])


@pytest.mark.parametrize(("which", "value"), [(1, 0.5), (2, 0.0)])
def test_masks_that_vary_are_refused(model, which, value):
    name = offset_convolution(model, deformable(model)[5]).input[which]
    values = initializers(model)[name].copy()
    values[20] = value
    set_initializer(model, name, values)
    with pytest.raises(DekrError, match="masks that vary"):
        to_dialect(model, ONNX)


def test_offsets_that_do_not_fit_the_offset_groups_are_refused(model):
    standard = to_dialect(model, ONNX)
    name = offset_convolution(standard, deformable(standard)[0]).input[1]
    set_initializer(standard, name, np.zeros((36, 3, 3, 3), np.float32))
    with pytest.raises(DekrError, match="offset groups"):
        to_dialect(standard, ASCEND)


def test_offsets_that_no_convolution_computes_are_refused(model):
    node = deformable(model)[3]
    node.input[2] = "image"
    with pytest.raises(DekrError, match="do not come from a convolution"):
        to_dialect(model, ONNX)


def test_offsets_whose_bias_is_computed_are_refused(model):
    conv = offset_convolution(model, deformable(model)[3])
    model.graph.node.insert(0, onnx.helper.make_node("Identity", [conv.input[2]], ["computed"]))
    conv.input[2] = "computed"
    with pytest.raises(DekrError, match="do not come from a convolution"):
        to_dialect(model, ONNX)


def test_a_node_behind_the_deformable_ones_is_looked_at_too(model):
    model.graph.node.append(onnx.helper.make_node("Softmax", [model.graph.output[0].name], ["last"], name="odd"))
    with pytest.raises(DekrError, match="node odd: Softmax of opset 11 may mean"):
        to_dialect(model, ONNX)


def test_the_offsets_of_several_groups_are_a_grouped_convolution_in_the_standard():
    groups, channels, rng = 2, 3, np.random.default_rng(0)
    weight = np.zeros((3, groups, 9, groups, channels, 3, 3), np.float32)
    for group in range(groups):
        weight[:2, group, :, group] = rng.normal(size=(2, 9, channels, 3, 3))
    bias = np.concatenate((rng.normal(size=groups * 18), np.ones(groups * 9))).astype(np.float32)
    constants = {
        "offset.weight": weight.reshape(groups * 27, groups * channels, 3, 3),
        "offset.bias": bias,
        "weight": rng.normal(size=(groups * channels, channels, 3, 3)).astype(np.float32),
    }
    make, both = onnx.helper.make_node, {"pads": [1] * 4, "strides": [1, 1], "dilations": [1, 1]}
    nodes = [
        make("Conv", ["x", "offset.weight", "offset.bias"], ["offsets"], kernel_shape=[3, 3], group=1, **both),
        make("DeformableConv2D", ["x", "weight", "offsets"], ["y"], groups=groups, deformable_groups=groups),
    ]
    nodes[1].attribute.extend(onnx.helper.make_attribute(name, [1, 1]) for name in ("strides", "pads", "dilations"))
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, groups * channels, 8, 8]) for n in "xy")
    tensors = [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=6)
    standard = to_dialect(model, ONNX)
    conv, operator = standard.graph.node
    assert attributes(conv)["group"] == groups and attributes(operator)["offset_group"] == groups
    assert initializers(standard)["offset.weight"].shape == (groups * 18, channels, 3, 3)
    check_standard(standard)
    back = to_dialect(standard, ASCEND)
    assert attributes(back.graph.node[0])["group"] == 1
    np.testing.assert_array_equal(initializers(back)["offset.weight"], constants["offset.weight"])
    np.testing.assert_array_equal(initializers(back)["offset.bias"], bias)


def test_without_deformable_convolutions_the_opset_decides():
    model = toy_model()
    assert dialect_of(model) == ASCEND
    standard = to_dialect(model, ONNX)
    assert dialect_of(standard) == ONNX
    check_standard(standard)


def graph_of(op_type: str, opset: int, **values: object) -> ModelProto:
    node = onnx.helper.make_node(op_type, ["x"], ["y"], name="odd", **values)
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2, 3, 4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])


@pytest.mark.parametrize(
    ("op_type", "opset", "values"),
    [
        ("Softmax", 11, {}),  # over all axes from one on, then over one axis
        ("Hardmax", 11, {"axis": 2}),
        ("Unsqueeze", 11, {"axes": [0]}),
        ("ReduceSum", 11, {"axes": [1]}),
        ("Dropout", 11, {"ratio": 0.3}),
        ("Relu", 5, {}),  # older than both of ours
        ("Resize", 10, {}),
        ("Upsample", 9, {}),
        ("Fancy", 11, {}),
    ],
)
def test_an_operator_that_another_opset_reads_otherwise_is_refused_by_its_node(op_type, opset, values):
    with pytest.raises(DekrError, match=rf"node odd: {op_type} (of opset {opset} may mean|is no operator)"):
        to_dialect(graph_of(op_type, opset, **values), ONNX)


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("op_type", ["Relu", "Sigmoid", "Identity", "Transpose", "Flatten"])
def test_an_operator_that_opsets_agree_on_is_converted(op_type, opset):
    converted = to_dialect(graph_of(op_type, opset), ONNX)
    assert converted.opset_import[0].version == 19 and converted.graph.node[0].op_type == op_type


def test_an_attribute_that_the_older_opset_lacks_is_refused():
    with pytest.raises(DekrError, match="node odd: Shape of opset 19 may mean something else in opset 11"):
        to_dialect(graph_of("Shape", 19, start=1), ASCEND)
