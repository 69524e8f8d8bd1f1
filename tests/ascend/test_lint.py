"""The pre-flight: what is right passes, and each single fault is found, named and given a remedy."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dekr_infer.ascend.lint.check import default_input_shape, default_input_sizes, preflight, report
from dekr_infer.ascend.lint.rules import COORDINATE_MODE, REFUSED, WARNING, WRONG
from dekr_infer.cli import check_atc
from dekr_infer.export.people_graph import add_people
from dekr_infer.export.uint8_input import take_uint8
from dekr_infer.geometry import PUBLISHED_SIZES
from dekr_infer.onnx_graph.baked import Baked
from dekr_infer.onnx_graph.dialects import ONNX, to_dialect
from dekr_infer.skeleton import COCO_17
from tests.support.ascend_host import ROOT
from tests.support.recipe import DECODE


def graph(*nodes, opset=11, size=("h", "w"), channels=4, **weights):
    """x (1, channels, h, w) through these nodes; input sizes 8x12 and 16x8."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, *size])
    result = onnx.ValueInfoProto(name="y")
    constants = [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()]
    made = helper.make_graph(list(nodes), "g", [image], [result], constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
    helper.set_model_props(model, {"input_sizes": "8,12;16,8"})
    return model


def node(op, *inputs, name="it", out="y", domain="", **attributes):
    return helper.make_node(op, ["x", *inputs], [out], name, domain=domain, **attributes)


def deform(channels=16, offsets=27, drop=(), **changed):
    """Offsets by a convolution whose last third is constant 1, then the deformable convolution."""
    given = {"strides": [1, 1], "pads": [1, 1], "dilations": [1, 1], "groups": 1, "deformable_groups": 1} | changed
    given = {key: value for key, value in given.items() if key not in drop}
    weight, bias = np.zeros((offsets, channels, 3, 3), np.float32), np.ones(offsets, np.float32)
    nodes = [node("Conv", "ow", "ob", name="o", out="off", pads=[1, 1, 1, 1])]
    nodes.append(helper.make_node("DeformableConv2D", ["x", "f", "off"], ["y"], "it", **given))
    return graph(*nodes, channels=channels, ow=weight, ob=bias, f=np.zeros((8, channels, 3, 3), np.float32))


def fixed(model, h, w):
    """The same graph for one size, without input sizes."""
    del model.metadata_props[:]
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    sizes[2].dim_value, sizes[3].dim_value = h, w
    return model


def resize(opset=11, scales=(1.0, 1.0, 2.0, 2.0), **attributes):
    given = {"mode": "nearest", COORDINATE_MODE: "asymmetric", "nearest_mode": "floor"} | attributes
    return graph(node("Resize", "", "s", **given), opset=opset, s=np.array(scales, np.float32))


def test_our_export_passes_and_its_narrow_channels_are_warned_of(tiny):
    findings = preflight(tiny.model())
    assert {finding.level for finding in findings} == {WARNING} and len(findings) == 34
    assert all("3 channels are no multiple of 16" in finding.rule for finding in findings)
    (line,) = report(findings)
    assert "and 33 more" in line


def test_the_declared_input_of_the_file(tiny):
    assert default_input_shape(tiny.model()) == "image:1,3,-1,-1"
    assert default_input_sizes(tiny.model()) == "512,768;512,512;768,512;512,1024;1024,512"


def test_standard_dialect_is_refused_at_every_operator(tiny):
    findings = preflight(to_dialect(tiny.model(), ONNX))
    deformable = [finding for finding in findings if "E16002: there is no parser for the standard" in finding.rule]
    assert len(deformable) == 34 and "without --dialect onnx" in deformable[0].remedy
    assert {finding.level for finding in deformable} == {REFUSED}


def test_8_bit_input_passes(tiny):
    assert preflight(take_uint8(tiny.model())) == preflight(tiny.model())


def test_an_open_number_of_images_means_one(tiny):
    model = to_dialect(tiny.model(), ONNX)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    assert default_input_shape(model) == "image:1,3,-1,-1"
    assert not any("E10046" in finding.rule for finding in preflight(model))


def test_a_file_that_yields_people_is_refused_with_the_reason(tiny, tmp_path, capsys):
    """Each node would be refused for its opset; a converter of opset 18 and above would stop at the next reason."""
    model = add_people(to_dialect(tiny.model(), ONNX), Baked(DECODE), PUBLISHED_SIZES, COCO_17)
    onnx.save(model, tmp_path / "net.onnx")
    assert check_atc.main([str(tmp_path / "net.onnx")]) == 1
    assert "Slice with a step on the last axis" in capsys.readouterr().out
    helper.set_model_props(model, Baked(DECODE).metadata())
    onnx.save(model, tmp_path / "net.onnx")
    assert check_atc.main([str(tmp_path / "net.onnx")]) == 1
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "the file yields people" in err and "without --decode people" in err


RIGHT = [deform(), resize(), graph(node("Relu")), deform(drop=("dilations", "deformable_groups"))]
RIGHT += [fixed(deform(), 8, 1365), fixed(deform(), 33333, 8)]  # the largest maps


@pytest.mark.parametrize("model", RIGHT)
def test_what_is_right_has_no_findings(model):
    assert preflight(model) == []


MASKS = deform()
MASKS.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(27, np.float32), "ob"))
TWO_OPSETS = graph(node("Relu"))
TWO_OPSETS.opset_import.append(helper.make_opsetid("ai.onnx", 12))
MADE_SCALES = graph(node("Shape", out="n"), helper.make_node("Resize", ["x", "", "", "n"], ["y"], "it"))
NODE_FAULTS = {
    "no strides": (deform(drop=["strides"]), REFUSED, "strides must"),
    "four strides": (deform(strides=[1, 1, 1, 1]), REFUSED, "strides must"),
    "scalar pads": (deform(pads=1), REFUSED, "pads must"),
    "unequal pads": (deform(pads=[1, 2]), WRONG, "unequal pads"),
    "no groups": (deform(drop=["groups"]), REFUSED, "groups is missing"),
    "scalar dilation 1": (deform(dilations=1), WARNING, "mean 1"),
    "scalar dilation 2": (deform(dilations=2), WRONG, "mean 1"),
    "misspelt": (deform(defomable_groups=1), WARNING, "misspelt"),
    "NHWC": (deform(data_format="NHWC"), WARNING, "data_format"),
    "not modulated": (deform(modulated=0), REFUSED, "modulated=1"),
    "two offset planes": (deform(offsets=18), REFUSED, "18 offset channels instead of 27"),
    "masks of 0": (MASKS, WARNING, "which are the masks"),
    "15 channels": (deform(channels=15), WARNING, "slow: 15 channels"),
    "8 channels": (deform(channels=8), WARNING, "slow: 8 channels"),
    "wide deformable": (fixed(deform(), 8, 1366), REFUSED, "a map of 1366x8"),
    "high deformable": (fixed(deform(), 33334, 8), REFUSED, "a map of 8x33334"),
    "deformable stride": (deform(strides=[64, 64]), REFUSED, "stride above 63"),
    "deformable pads": (deform(pads=[256, 256]), REFUSED, "above 255"),
    "wide conv": (fixed(graph(node("Conv", "f"), f=np.zeros((1, 4, 1, 1), np.float32)), 8, 4097), REFUSED, "4097 wide"),
    "standard": (graph(node("DeformConv", "x", "x")), REFUSED, "no parser for the standard"),
    "grid": (graph(node("GridSample", "x"), opset=16), REFUSED, "GridSample"),
    "unknown": (graph(node("Rellu")), REFUSED, "E16002: no parser for Rellu"),
    "foreign": (graph(node("Relu", domain="npu")), REFUSED, "npu::Relu"),
    "unlisted": (graph(node("Erf")), WARNING, "Erf is not among"),
    "too new": (graph(node("Relu"), opset=19), REFUSED, "at opset 19"),
    "upsample": (graph(node("Upsample"), opset=17), REFUSED, "only 8 to 16"),
    "cubic": (resize(mode="cubic"), REFUSED, "cubic"),
    "rounding": (resize(nearest_mode="ceil"), WRONG, "ceil is ignored"),
    "excluding": (resize(mode="linear", exclude_outside=1), WRONG, "exclude_outside"),
    "coordinates": (resize(coordinate_transformation_mode="half_pixel_symmetric"), REFUSED, "half_pixel_symmetric"),
    "resize 13": (resize(13), WARNING, "opset 13"),
    "made sizes": (MADE_SCALES, WARNING, "neither scales nor sizes"),
    "wide kernel": (graph(node("Conv", "f"), f=np.zeros((1, 4, 1, 256), np.float32)), REFUSED, "kernel above 255"),
    "conv stride": (graph(node("Conv", "f", strides=[1, 64]), f=np.zeros((1, 4, 1, 1), np.float32)), REFUSED, "stride"),
    "conv pads": (graph(node("Conv", "f", pads=[0, 256, 0, 0]), f=np.zeros((1, 4, 1, 1), np.float32)), REFUSED, "pads"),
    "pool dilation": (graph(node("MaxPool", kernel_shape=[2, 2], dilations=[2, 2])), REFUSED, "dilations"),
    "large pool": (graph(node("MaxPool", kernel_shape=[32, 9], pads=[31, 8, 31, 8])), WARNING, "AICPU"),
    "stepping": (graph(node("Slice", *"abcd"), a=[0], b=[8], c=[3], d=[2]), REFUSED, "last axis"),
    "backwards": (graph(node("Gather", "i"), i=[-1]), WRONG, "negative"),
    "expand": (graph(node("Shape", out="n"), node("Expand", "n")), WARNING, "Expand"),
    "data": (graph(node("NonZero")), REFUSED, "NonZero"),
}


def offsets_of(*shape, stride=1):
    """Offsets that are a constant of this shape, for an input of (1, 16, 8, 12)."""
    made = fixed(deform(strides=[stride, stride]), 8, 12)
    del made.graph.node[0]
    made.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), "off"))
    return made


def with_bias(*shape):
    made = deform()
    made.graph.node[1].input.append("b")
    made.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), "b"))
    return made


def indices(**value):
    constant = helper.make_node("Constant", [], ["i"], **value)
    return graph(constant, node("Gather", "i"), opset=12)


def branches(*nodes, opset=11, **weights):
    """Both branches of an If hold these nodes, which read x and end in y."""
    constants = [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()]
    branch = helper.make_graph(list(nodes), "branch", [], [onnx.ValueInfoProto(name="y")], constants)
    choice = helper.make_node("If", ["c"], ["out"], "choice", then_branch=branch, else_branch=branch)
    made = graph(choice, opset=opset, c=np.array(True))
    made.graph.output[0].name = "out"
    return made


HALF = {COORDINATE_MODE: "half_pixel"}
MATRIX = np.zeros((4, 4), np.float32)
NODE_FAULTS |= {
    "few offsets": (offsets_of(1, 27, 8, 11), REFUSED, "offsets of 11x8 for an output of 12x8"),
    "offsets of the input": (offsets_of(1, 27, 8, 12, stride=2), REFUSED, "offsets of 12x8 for an output of 6x4"),
    "offsets of two": (offsets_of(2, 27, 8, 12), REFUSED, "for 2 pictures"),
    "flat offsets": (offsets_of(27, 8, 12), REFUSED, "offsets of rank 3"),
    "bias": (with_bias(9), REFUSED, "a bias of shape (9,) for 8 filters"),
    "axes": (resize(18, scales=(2.0, 2.0), axes=[2, 3]), WRONG, "axes is ignored"),
    "half pixel, ceil": (resize(nearest_mode="ceil", **HALF), WRONG, "ceil is ignored with half_pixel"),
    "half pixel": (resize(nearest_mode="round_prefer_floor", **HALF), WRONG, "is ignored with half_pixel"),
    "half pixel, floor": (resize(nearest_mode="floor", **HALF), WARNING, "floor is ignored with half_pixel"),
    "corners": (
        resize(nearest_mode="ceil", coordinate_transformation_mode="align_corners"),
        *(WRONG, "with align_corners"),
    ),
    "no axes": (graph(node("Slice", *"ab", "", "d"), a=[0] * 4, b=[8] * 4, d=[1, 1, 1, 2]), REFUSED, "last axis"),
    "backwards inside": (indices(value_ints=[0, -1]), WRONG, "negative"),
    "backwards alone": (indices(value_int=-1), WRONG, "negative"),
    "grouped": (graph(node("Conv", "f", group=4), f=np.zeros((4, 1, 1, 1), np.float32)), WARNING, "group above 1"),
    "transposed": (
        graph(
            node("Reshape", "s", out="r"),
            helper.make_node("ConvTranspose", ["r", "f"], ["y"], "it"),
            **{"s": [1, 4, -1], "f": np.zeros((4, 1, 1), np.float32)},
        ),
        *(WARNING, "ConvTranspose of rank 3"),
    ),
    "sizes of 0": (graph(node("Expand", "s"), s=[1, 4, 0, 1]), REFUSED, "Expand to [1, 4, 0, 1]"),
    "nine sizes": (graph(helper.make_node("ConstantOfShape", ["s"], ["y"], "it"), s=[1] * 9), REFUSED, "1 to 8 sizes"),
    "whole range": (graph(helper.make_node("Range", [*"abd"], ["y"], "it"), a=0, b=9, d=1), WARNING, "for float only"),
    "seven sizes": (
        graph(
            node("Reshape", "s", out="r"),
            helper.make_node("MatMul", ["r", "m"], ["y"], "it"),
            **{"s": [1, 1, 1, 1, 1, -1, 4], "m": MATRIX},
        ),
        *(REFUSED, "MatMul of ranks [7, 2]"),
    ),
    "gemm": (
        graph(node("Flatten", out="r", axis=3), helper.make_node("Gemm", ["r", "m"], ["y"], "it", alpha=2.0), m=MATRIX),
        *(WARNING, "Gemm's bias"),
    ),
    "standard in a branch": (branches(node("DeformConv", "x", "x")), REFUSED, "no parser for the standard"),
    "resize in a branch": (
        branches(node("Resize", "", "s", mode="cubic"), s=np.array([1, 1, 2, 2], np.float32)),
        *(REFUSED, "cubic"),
    ),
    "gather in a branch": (branches(node("Gather", "i"), i=[-1]), WRONG, "negative"),
}
PASSES = {
    "all axes": resize(18, axes=[0, 1, 2, 3]),
    "steps before the last axis": graph(node("Slice", *"ab", "", "d"), a=[0] * 4, b=[8] * 4, d=[1, 1, 2, 1]),
    "steps of the first axes": graph(node("Slice", *"ab", "", "d"), a=[0] * 2, b=[8] * 2, d=[1, 2]),
    "an offset per place of the output": offsets_of(1, 27, 4, 6, stride=2),
    "a bias": with_bias(8),
    "a constant of forward indices": indices(value_ints=[0, 1]),
}


@pytest.mark.parametrize("model", PASSES.values(), ids=PASSES)
def test_what_is_nearly_a_fault_has_no_findings(model):
    assert [finding for finding in preflight(model) if "opset" not in finding.rule] == []


def test_shapes_and_constants_around_a_branch_are_seen_inside_it():
    inner = helper.make_node("DeformableConv2D", ["x", "f", "off"], ["y"], "it", strides=[1, 1], pads=[1, 1], groups=1)
    made = branches(inner)
    filters, offsets = np.zeros((8, 4, 3, 3), np.float32), np.ones((1, 27, 8, 12), np.float32)
    made.graph.initializer.extend([numpy_helper.from_array(filters, "f"), numpy_helper.from_array(offsets, "off")])
    found = [finding.rule for finding in preflight(made) if finding.node == "it"]
    assert len(found) == 2 and "4 channels are no multiple of 16" in found[0]
    assert found[1] == "offsets of 12x8 for an output of 8x16"


def test_input_size_of_a_five_dimensional_input_are_refused():
    made = bent(graph(node("Relu")), lambda model: model.graph.input[0].type.tensor_type.shape.dim.add())
    made.graph.input[0].type.tensor_type.shape.dim[4].dim_value = 2
    (finding,) = preflight(made)
    assert (finding.level, finding.node) == (REFUSED, "--input_shape") and "x has 5 sizes" in finding.rule
    assert all(finding.level == WARNING for finding in preflight(made, "x:1,4,8,8,2", ""))


@pytest.mark.parametrize(("model", "level", "rule"), NODE_FAULTS.values(), ids=NODE_FAULTS)
def test_fault_of_a_node(model, level, rule):
    found = [finding for finding in preflight(model) if rule in finding.rule]
    assert found, preflight(model)
    assert found[0].level == level and found[0].node in ("it", "graph") and found[0].remedy


WEIGHT = np.zeros((1, 4, 1, 1), np.float32)
WRONG_KINDS = {
    "groups is of kind STRING instead of INT": deform(groups="a"),
    "dilations is of kind STRING instead of INTS": deform(dilations="s"),
    "strides is of kind FLOAT instead of INTS": deform(strides=1.5),
    "data_format is of kind INT instead of STRING": deform(data_format=1),
    "pads is of kind STRING instead of INTS": graph(node("Conv", "f", pads="SAME"), f=WEIGHT),
    "kernel_shape is of kind STRING instead of INTS": graph(node("Conv", "f", kernel_shape="ab"), f=WEIGHT),
    "strides is of kind INT instead of INTS": graph(node("MaxPool", kernel_shape=[2, 2], strides=2)),
    "mode is of kind INT instead of STRING": resize(mode=1),
    "antialias is of kind STRING instead of INT": resize(18, antialias="yes"),
}


@pytest.mark.parametrize("rule", WRONG_KINDS)
def test_attribute_of_the_wrong_kind(rule):
    (found,) = [finding for finding in preflight(WRONG_KINDS[rule]) if finding.rule.startswith(rule)]
    key, kind = rule.split()[0], rule.split()[-1]
    assert (found.level, found.node) == (REFUSED, "it") and found.remedy.startswith(f"write {key} as {kind}")


def bent(model, change):
    """A copy of a model after some change."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    change(copy)
    return copy


def weights(values):
    """A change of the deformable convolution's filter, or of what is in its place."""
    return lambda model: model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.asarray(values), "f"))


def all_nodes(field):
    """Every node loses its inputs, outputs or name."""
    return lambda model: [node.ClearField(field) for node in model.graph.node]


def named_input_size(text):
    return lambda model: helper.set_model_props(model, {"input_sizes": text})


def version(number):
    return lambda model: setattr(model.opset_import[0], "version", number)


def sizes(*numbers):
    """The input has these sizes."""

    def change(model):
        shape = model.graph.input[0].type.tensor_type.shape
        shape.ClearField("dim")
        for number in numbers:
            shape.dim.add().dim_value = number

    return change


def refers(model):
    model.graph.node[1].attribute[0].ref_attr_name = "other"


def too_little_data(model):
    model.graph.initializer[0].raw_data = b"1234"


UNENDED = graph(node("Slice", "a", "b"), a=[0], b=[8])
STEPPING = graph(node("Slice", *"abcd"), a=[0], b=[8], c=[3], d=[2])
MALFORMED = {
    "no inputs": bent(deform(), all_nodes("input")),
    "no outputs": bent(deform(), all_nodes("output")),
    "a constant without output": graph(helper.make_node("Constant", [], [], "c", value_int=1), node("Conv")),
    "an empty kernel": bent(deform(), weights(np.zeros((8, 16, 0, 3), np.float32))),
    "a filter of one number": bent(deform(), weights(np.float32(1))),
    "a filter of words": bent(deform(), weights(np.array(["a", "b"], object))),
    "data short": bent(deform(), too_little_data),
    "steps without axes": bent(STEPPING, lambda model: model.graph.initializer[2].ClearField("dims")),
    "words for indices": graph(node("Gather", "f"), f=np.array(["a", "b"], object)),
    "an attribute of a function": bent(deform(), refers),
    "a version beyond all": bent(deform(), version(2**40)),
    "a version below all": bent(deform(), version(-1)),
    "input sizes beyond all": bent(deform(), named_input_size("9" * 5000 + ",8;8,8")),
    "sizes beyond all": bent(deform(), sizes(1, 16, 2**62, 2**62)),
    "an input of rank 0": bent(deform(), sizes()),
    "a convolution of rank 0": graph(
        node("ReduceMax", out="r", keepdims=0), helper.make_node("Conv", ["r", "f"], ["y"], "it"), f=WEIGHT
    ),
}


@pytest.mark.parametrize("model", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_refused(model):
    findings = preflight(model)
    assert any(finding.level == REFUSED and finding.node and finding.remedy for finding in findings), findings


def test_no_names_are_no_fault():
    assert preflight(bent(deform(), all_nodes("name"))) == []


def test_size_that_onnx_would_abort_at_is_refused(tmp_path):
    onnx.save(bent(UNENDED, sizes(-5, 4, 8, 8)), tmp_path / "net.onnx")
    done = checked(tmp_path / "net.onnx")
    assert done.returncode == 1 and "(-5, 4, 8, 8) is no shape" in done.stderr


def test_names_that_are_no_text_are_refused(tmp_path, capsys):
    data = deform().SerializeToString().replace(b"DeformableConv2D", b"\xff" * 16)
    (tmp_path / "net.onnx").write_bytes(data)
    assert check_atc.main([str(tmp_path / "net.onnx")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'net.onnx'}: not an ONNX file")


def test_two_versions_of_a_domain():
    assert any(f.rule.startswith("E16005") and f.level == REFUSED for f in preflight(TWO_OPSETS))


OPTION_FAULTS = {
    "E10016": ("input:1,4,-1,-1", None, "its inputs are x"),
    "E10049": ("x:1,4,-1", None, "x:1,4,-1,-1"),
    "E10035": (None, "8,12", "write"),
    "E10036": (None, ";".join(f"{h},8" for h in range(8, 109)), "write"),
    "E10037": (None, "8,12;8", "write"),
    "E10038": (None, "8,12;0,8", "write"),
    "E10039": (None, "8,12;8,12", "write"),
    "E10045": ("x:1,4,8,8", None, "write"),
    "E10046": (None, "8;12", "write"),
    "malformed": ("x", None, "write"),
    "only digits": (None, "8,12; 16,8", "write"),
    "more than 9 digits": (None, "8,1000000000;8,8", "write"),
    "'x:1,4,1000000000,8' is malformed": ("x:1,4,1000000000,8", None, "write"),
    "no input sizes are named": (None, "", "write"),
}


@pytest.mark.parametrize(("shape", "input_sizes", "remedy"), OPTION_FAULTS.values(), ids=OPTION_FAULTS)
def test_fault_of_the_options(shape, input_sizes, remedy, request):
    wanted = request.node.callspec.id
    found = [finding for finding in preflight(graph(node("Relu")), shape, input_sizes) if wanted in finding.rule]
    assert found and found[0].level == REFUSED and remedy in found[0].remedy


def test_a_graph_of_exact_sizes_is_refused_with_its_way_out():
    model = graph(node("Relu"))
    helper.set_model_props(model, {"input_sizes": "exact 512"})
    found = [finding for finding in preflight(model) if finding.node == "input_sizes"]
    assert [finding.rule for finding in found] == ["atc takes fixed input sizes, not exact 512"]
    assert found[0].remedy == "export it without TEST.INPUT_SIZES"


def test_trailing_semicolon_and_a_hundred_input_sizes_are_fine():
    assert preflight(graph(node("Relu")), None, ";".join(f"{h},8" for h in range(8, 108)) + ";") == []


def test_fixed_size_that_input_size_override_is_a_warning():
    (finding,) = preflight(graph(node("Relu"), size=(8, 8)), "x:1,4,-1,-1")
    assert finding.level == WARNING and "open height and width" in finding.remedy


def test_graph_that_fits_one_input_size_only_is_refused():
    model = graph(node("Add", "k"), k=np.zeros((1, 4, 8, 12), np.float32))
    (finding,) = preflight(model)
    assert finding.level == REFUSED and "(1, 4, 16, 8)" in finding.rule


def checked(path):
    """The command's result, run as a process of its own in the file's folder."""
    words = [sys.executable, str(ROOT / "scripts/check_atc.py"), str(path)]
    return subprocess.run(words, cwd=path.parent, capture_output=True, text=True)


@pytest.mark.parametrize("fault", [None, "no groups"])
def test_command(tmp_path, fault):
    path = tmp_path / "a net.onnx"
    onnx.save(NODE_FAULTS[fault][0] if fault else deform(), path)
    done = checked(path)
    if fault:
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"error: {path}: 1 findings") and "write groups=1" in done.stderr
        assert done.stdout.startswith("refused: it: groups is missing")
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert "2 nodes, nothing that atc refuses, 0 warnings" in done.stdout


@pytest.mark.parametrize(("words", "code"), [([], 2), (["a.onnx", "--model", "b.onnx"], 2), (["gone.onnx"], 1)])
def test_mistakes_at_the_command_line(words, code, capsys):
    assert check_atc.main(words) == code
    assert capsys.readouterr().err.startswith("error: ")


# --- weights in a file of their own


@pytest.fixture
def external(tmp_path):
    """The folder of a model whose weights lie in net.data."""
    onnx.save(deform(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    return tmp_path


@pytest.mark.parametrize("inside", [True, False])
def test_external_data_is_read_from_the_models_folder(external, monkeypatch, capsys, inside):
    monkeypatch.chdir(external if inside else external.parent)
    assert check_atc.main(["net.onnx" if inside else str(external / "net.onnx")]) == 0
    assert "nothing that atc refuses, 0 warnings" in capsys.readouterr().out


def removed(folder):
    (folder / "net.data").unlink()


def shortened(folder):
    (folder / "net.data").write_bytes(b"1234567890")


def placed(location):
    """The first weight's data are said to be elsewhere."""

    def deed(folder):
        model = onnx.load(folder / "net.onnx", load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        (folder / "net.onnx").write_bytes(model.SerializeToString())

    return deed


@pytest.mark.parametrize(
    ("deed", "name"),
    [
        (removed, "net.data"),
        (shortened, "net.data"),
        (placed("../outside.data"), "outside.data"),
        (placed("/etc/passwd"), "/etc/passwd"),
        (placed("."), "."),
        (placed(""), ""),
    ],
)
def test_data_file_that_cannot_be_used_is_named(external, capsys, deed, name):
    (external.parent / "outside.data").write_bytes((external / "net.data").read_bytes())
    deed(external)
    assert check_atc.main([str(external / "net.onnx")]) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"error: {external / 'net.onnx'}: its data file ") and err.count("\n") == 1
    assert name in err and "into the same folder" in err


def test_external_data_of_a_constant_inside_a_branch_is_read(tmp_path, capsys):
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["r"], value=numpy_helper.from_array(np.ones(4)))],
        "b",
        [],
        [onnx.ValueInfoProto(name="r")],
    )
    choice = helper.make_node("If", ["c"], ["y"], "it", then_branch=branch, else_branch=branch)
    model = graph(choice, c=np.array(True))
    onnx.save(
        model,
        tmp_path / "net.onnx",
        save_as_external_data=True,
        location="net.data",
        size_threshold=0,
        convert_attribute=True,
    )
    (tmp_path / "net.data").unlink()
    assert check_atc.main([str(tmp_path / "net.onnx")]) == 1
    assert "its data file" in capsys.readouterr().err
