"""Loading and running graphs: what is refused and why, input sizes in the metadata, outputs as promised."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, helper

from dekr_infer.backends.onnxruntime import OnnxRuntime, load_graph
from dekr_infer.errors import NO_THREADS, DekrError
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size
from dekr_infer.onnx_graph.cpu_optimize import add_before_enlarging, convolve_before_enlarging, mix_offsets
from dekr_infer.onnx_graph.dialects import ONNX, to_dialect
from tests.support.commands import error_of
from tests.support.graphs import initializers, set_initializer
from tests.support.tiny_models import SMALL_INPUT_SIZES, linked_model, toy_model, toy_outputs


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "net.onnx"


def whole_picture(input_size: Size, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9, 10, (1, 3, *input_size)).astype(np.float32)


def refused(path: Path) -> str:
    message = error_of(OnnxRuntime, path, 1)
    assert message.startswith(f"{path}: ")
    return message


def saved(model: ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("input_size", SMALL_INPUT_SIZES)
def test_heatmap_then_offset_then_milliseconds(file, input_size):
    network = OnnxRuntime(saved(toy_model(), file), 1)
    image = whole_picture(input_size)
    heatmap, offset, milliseconds = network.run(image)
    wanted = toy_outputs(image)
    np.testing.assert_array_equal(heatmap, wanted[0])
    np.testing.assert_array_equal(offset, wanted[1])
    assert heatmap.dtype == offset.dtype == np.float32
    assert 0 < milliseconds < 10_000


def test_input_size_and_hash_are_those_of_the_file(file):
    network = OnnxRuntime(saved(toy_model(), file), 1)
    assert network.input_sizes == SMALL_INPUT_SIZES
    assert network.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert network.path == file


def test_either_dialect_is_taken(tiny, file):
    standard = OnnxRuntime(saved(to_dialect(tiny.model(), ONNX), file), 1)
    lowered = OnnxRuntime(tiny.graph, 1)
    image = whole_picture(Size(64, 96))
    for a, b in zip(standard.run(image)[:2], lowered.run(image)[:2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_missing_file_is_named(file):
    assert "DEKR_pth2onnx.py" in refused(file)


def test_a_folder_is_no_graph(tmp_path):
    assert "cannot be read" in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_file_cut_short_is_named(file, keep):
    data = toy_model().SerializeToString()
    file.write_bytes(data[:keep])
    assert "not an ONNX file, or cut short" in refused(file)


def test_a_file_that_is_not_onnx_is_named(file):
    file.write_text("<html>404 not found</html>")
    assert "not an ONNX file" in refused(file)


def test_outputs_in_another_order_are_refused(file):
    model = toy_model()
    outputs = [model.graph.output[1], model.graph.output[0]]
    swapped = ModelProto.FromString(model.SerializeToString())
    del swapped.graph.output[:]
    swapped.graph.output.extend(outputs)
    assert "from image to offset, heatmap, not from image to heatmap, offset" in refused(saved(swapped, file))


def test_an_input_of_another_name_is_refused(file):
    model = toy_model()
    model.graph.input[0].name = "input.1"
    assert "from input.1 to heatmap, offset" in refused(saved(model, file))


@pytest.mark.parametrize("input_sizes", [None, "", "512x768", "1,2;3", "512,768;"])
def test_metadata_without_input_size_is_refused(file, input_sizes):
    model = toy_model()
    del model.metadata_props[:]
    if input_sizes is not None:
        helper.set_model_props(model, {"input_sizes": input_sizes})
    assert "names no input sizes" in refused(saved(model, file))


def test_a_graph_that_onnx_runtime_does_not_know_is_refused(file):
    model = toy_model()
    model.graph.node[0].op_type = "Cnov"
    assert "node Cnov: Cnov is no operator of opsets 11 and 19" in refused(saved(model, file))
    standard = to_dialect(toy_model(), ONNX)
    name_operator(standard, "Cnov")
    assert "ONNX Runtime" in refused(saved(standard, file))


def name_operator(model: ModelProto, op_type: str) -> None:
    model.graph.node[0].op_type = op_type


def with_loop(model: ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["x"], "forever\x1b[2J", body=body))


def with_branches(model: ModelProto) -> None:
    empty = helper.make_graph([], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["image"], ["x"], then_branch=empty, else_branch=empty))


def with_function(model: ModelProto) -> None:
    opsets = [helper.make_opsetid("", 19)]
    model.functions.append(helper.make_function("own", "Hidden", [], [], [], opsets))


def with_values_elsewhere(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"


def with_text_outputs(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.STRING


def with_sequence_outputs(model: ModelProto) -> None:
    plain = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    model.graph.output[1].type.CopyFrom(helper.make_sequence_type_proto(plain))


def with_optional_outputs(model: ModelProto) -> None:
    plain = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    model.graph.output[1].type.CopyFrom(helper.make_optional_type_proto(plain))


@pytest.mark.parametrize("dialect", [None, ONNX])
@pytest.mark.parametrize(
    ("change", "part"),
    [
        (with_loop, "is control flow (Loop)"),
        (with_branches, "is control flow (If)"),
        (with_function, "defines functions, the first is Hidden"),
        (with_values_elsewhere, "lie in another file"),
        (with_text_outputs, "heatmap is no tensor of plain numbers"),
        (with_sequence_outputs, "offset is no tensor of plain numbers"),
        (with_optional_outputs, "offset is no tensor of plain numbers"),
    ],
)
def test_what_our_export_never_writes_is_refused_before_it_runs(file, change, part, dialect):
    (file.parent / "weights.bin").write_bytes(bytes(1 << 20))
    model = toy_model() if dialect is None else to_dialect(toy_model(), dialect)
    change(model)
    file.write_bytes(model.SerializeToString())
    assert part in refused(file) and "export it again with DEKR_pth2onnx.py" in refused(file)


@pytest.mark.parametrize("said", ["Failed to allocate memory for requested buffer of size 1", "std::bad_alloc"])
def test_little_memory_is_no_fault_of_the_graph(file, said, monkeypatch):
    network = OnnxRuntime(saved(toy_model(), file), 1)

    class Full:
        def run(self, *_: object) -> None:
            raise RuntimeError(said)

    monkeypatch.setattr(network, "session", Full())
    with pytest.raises(MemoryError):
        network.run(whole_picture(next(iter(SMALL_INPUT_SIZES))))


def test_a_pass_is_timed_in_milliseconds(file):
    network, image = OnnxRuntime(saved(toy_model(), file), 1), whole_picture(next(iter(SMALL_INPUT_SIZES)))
    shares = []
    for _ in range(10):
        began = time.perf_counter()
        milliseconds = network.run(image)[2]
        shares.append(milliseconds / (1000 * (time.perf_counter() - began)))
    assert 0.1 < max(shares) <= 1


def test_few_threads_are_no_fault_of_the_graph_either(file, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("env.cc:327 PosixThread::PosixThread pthread_create failed, error code: 11")

    saved(toy_model(), file)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    assert refused(file).endswith(NO_THREADS)


@pytest.mark.parametrize(("weight", "says"), [("heat", "heatmap has shape"), ("off", "offset has shape")])
def test_outputs_of_another_shape_are_refused(file, weight, says):
    model = toy_model()
    values = initializers(model)[weight]
    set_initializer(model, weight, np.concatenate((values, values[:1])))
    for entry in model.graph.output:
        entry.type.tensor_type.shape.dim[1].dim_param = "channels"
    network = OnnxRuntime(saved(model, file), 1)
    with pytest.raises(DekrError, match=says) as caught:
        network.run(whole_picture(SMALL_INPUT_SIZES[0]))
    assert str(file) in str(caught.value)


def test_an_image_of_another_rank_is_one_clear_error(file):
    network = OnnxRuntime(saved(toy_model(), file), 1)
    with pytest.raises(DekrError, match="cannot be run"):
        network.run(whole_picture(SMALL_INPUT_SIZES[0])[0])


def test_a_failure_inside_onnx_runtime_is_one_clear_error(tiny, file):
    """An image whose sides are no multiples of 32 makes branches that do not fit together."""
    network = OnnxRuntime(tiny.graph, 1)
    with pytest.raises(DekrError, match="cannot be run"):
        network.run(whole_picture(Size(40, 72)))


def test_a_foreign_deformable_graph_is_refused_with_its_name(tiny, file):
    model = tiny.model()
    next(node for node in model.graph.node if node.op_type == "DeformableConv2D").input[2] = "image"
    assert "do not come from a convolution" in refused(saved(model, file))


def test_the_graph_with_everything_that_is_rewritten_runs_and_is_rewritten(file):
    saved(linked_model(), file)
    image = whole_picture(SMALL_INPUT_SIZES[0])
    spared, written = (OnnxRuntime(file, 1, as_written=wanted).run(image)[:2] for wanted in (False, True))
    for a, b in zip(spared, written, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    before = to_dialect(linked_model(), ONNX)
    for rule in (convolve_before_enlarging, add_before_enlarging, mix_offsets):
        model = ir.from_proto(before)
        rule(model.graph)
        assert ir.to_proto(model).graph.node != before.graph.node, rule


def make_a_ring(nodes: Sequence[NodeProto]) -> None:
    nodes[5].input[0] = "near"


def rename(nodes: Sequence[NodeProto]) -> None:
    nodes[2].output[0] = "a"


def shorten(nodes: Sequence[NodeProto]) -> None:
    del nodes[13].input[2:]


def strip(nodes: Sequence[NodeProto]) -> None:
    del nodes[13].attribute[:]


def retype(nodes: Sequence[NodeProto]) -> None:
    nodes[13].attribute[0].type = AttributeProto.UNDEFINED


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (make_a_ring, "node Add reads near, which no node before it computes"),
        (rename, "node Conv computes a tensor that exists already"),
        (shorten, "its nodes are not those of our export"),
        (strip, "its nodes are not those of our export"),
        (retype, "its nodes are not those of our export"),
    ],
)
def test_odd_nodes_are_refused_at_once(file, change, says):
    model = linked_model()
    change(model.graph.node)
    assert says in refused(saved(model, file))


def test_input_size_are_written_as_the_compiler_reads_them_and_read_back():
    text = str(PUBLISHED_SIZES)
    assert text == "512,768;512,512;768,512;512,1024;1024,512"
    assert InputSizes.parse(text) == PUBLISHED_SIZES
    assert all(isinstance(input_size, Size) for input_size in InputSizes.parse(text))


def test_load_graph_changes_nothing(tiny):
    model, digest = load_graph(tiny.graph)
    assert model.SerializeToString(deterministic=True) == tiny.model().SerializeToString(deterministic=True)
    assert digest == hashlib.sha256(tiny.graph.read_bytes()).hexdigest()
