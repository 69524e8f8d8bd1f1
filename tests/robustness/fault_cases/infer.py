"""Faults of scripts/onnx_infer.py: the graph, the tensors, the output folders and their record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from dekr_infer.geometry import PUBLISHED_SIZES
from tests.robustness.fault_cases import Deed, Fault, at, disk_faults, freed, left, nothing
from tests.support import corruption as spoil
from tests.support.tiny_models import toy_model
from tests.support.workspace import Place

GRAPH, TENSOR = "net.onnx", "prep_data/b.npy"
EXPORT_AGAIN, AGAIN = "export it", "make it again"


def graph(change: Callable[[ModelProto], object]) -> Deed:
    """The graph is changed."""

    def deed(place: Place) -> None:
        model = onnx.load(place.inputs / GRAPH)
        change(model)
        spoil.replace(place.inputs / GRAPH, model.SerializeToString())

    return deed


def turn_outputs(model: ModelProto) -> None:
    outputs = list(model.graph.output)[::-1]
    copies = [onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in outputs]
    del model.graph.output[:]
    model.graph.output.extend(copies)


def outside_weights(model: ModelProto) -> None:
    """A weight that is to be read from another file, anywhere on the machine."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../../../etc/passwd"), ("offset", "0"), ("length", "3456")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def one_channel_more(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "heat":
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.concatenate((values, values[:1])), "heat"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "channels"


def infinite(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "heat":
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, np.inf), "heat"))


def same_name(place: Place) -> None:
    spoil.replace(place.inputs / "prep_data/b.v2.npy", (place.inputs / TENSOR).read_bytes())


def no_tensors(place: Place) -> None:
    for path in (place.inputs / "prep_data").iterdir():
        path.unlink()


def outputs_of_another_graph(place: Place) -> None:
    """An earlier run, of a graph with other weights."""
    spoil.replace(place.inputs / GRAPH, toy_model(PUBLISHED_SIZES, 0.5).SerializeToString())
    assert place.run().code == 0
    place.restore()


def start_anew(place: Place) -> None:
    for folder in ("out", "out_flip"):
        freed(folder)(place)
        freed(f"{folder}_record.jsonl")(place)


def tensor(change: Callable[[np.ndarray], np.ndarray]) -> Deed:
    return at(TENSOR, spoil.resave, change)


INFER_FAULTS = [
    Fault("graph missing", at(GRAPH, Path.unlink), ("net.onnx: cannot be read", EXPORT_AGAIN), real=True),
    Fault("a pipe in the graph's place", at(GRAPH, spoil.pipe), ("net.onnx", "(not a regular file)", EXPORT_AGAIN)),
    Fault("graph is text", at(GRAPH, spoil.replace, b"<html>"), ("net.onnx: not an ONNX file", "export it again")),
    Fault(
        "graph truncated", at(GRAPH, spoil.cut, 0.7), ("net.onnx: not an ONNX file, or cut short", "export it again")
    ),
    Fault(
        "outputs in another order", graph(turn_outputs), ("net.onnx: goes from image to offset, heatmap", EXPORT_AGAIN)
    ),
    Fault(
        "graph of another network",
        graph(lambda m: setattr(m.graph.input[0], "name", "x")),
        ("net.onnx", "from x to", EXPORT_AGAIN),
    ),
    Fault(
        "graph without input sizes",
        graph(lambda m: m.metadata_props.pop()),
        ("net.onnx: its metadata names no input sizes", EXPORT_AGAIN),
    ),
    Fault(
        "graph of an opset to come",
        graph(lambda m: setattr(m.opset_import[0], "version", 9999)),
        ("net.onnx", EXPORT_AGAIN),
        real=True,
    ),
    Fault("unknown operator", graph(lambda m: setattr(m.graph.node[0], "op_type", "Cnov")), ("net.onnx", EXPORT_AGAIN)),
    Fault("weights from a file outside", graph(outside_weights), ("net.onnx", EXPORT_AGAIN)),
    Fault("a channel too many", graph(one_channel_more), ("net.onnx: heatmap has shape (1, 19", EXPORT_AGAIN)),
    Fault("graph that yields NaN", graph(infinite), ("a.npy: the network's output for it holds NaN", "check net.onnx")),
    Fault(
        "tensor folder missing",
        lambda place: (place.inputs / "prep_data_flip").rename(place.inputs / "x"),
        ("prep_data_flip: no such folder", "make them with"),
        real=True,
    ),
    Fault("tensor folder empty", no_tensors, ("prep_data: holds no .npy files", "make them with")),
    Fault("tensor truncated", at(TENSOR, spoil.cut, 0.5), ("prep_data/b.npy: cut short", AGAIN), real=True),
    Fault("tensor of zero bytes", at(TENSOR, spoil.replace, b""), ("prep_data/b.npy: not a .npy file", AGAIN)),
    Fault("tensor is text", at(TENSOR, spoil.replace, b"<html>"), ("prep_data/b.npy: not a .npy file", AGAIN)),
    Fault("tensor float16", tensor(lambda a: a.astype(np.float16)), ("prep_data/b.npy: holds float16", AGAIN)),
    Fault("tensor float64", tensor(lambda a: a.astype(np.float64)), ("prep_data/b.npy: holds float64", AGAIN)),
    Fault("tensor int32", tensor(lambda a: a.astype(np.int32)), ("prep_data/b.npy: holds int32", AGAIN)),
    Fault("tensor big-endian", tensor(lambda a: a.astype(">f4")), ("prep_data/b.npy: holds >f4", AGAIN)),
    Fault("tensor in Fortran order", tensor(np.asfortranarray), ("prep_data/b.npy: holds float32 in Fortran", AGAIN)),
    Fault(
        "tensor of objects that run code",
        at(TENSOR, spoil.trap_array),
        ("prep_data/b.npy: holds object", AGAIN),
        real=True,
    ),
    Fault("tensor NaN", tensor(spoil.set_value(np.nan)), ("prep_data/b.npy: holds NaN", AGAIN)),
    Fault("tensor infinite", tensor(spoil.set_value(-np.inf)), ("prep_data/b.npy: holds NaN or infinite", AGAIN)),
    Fault(
        "tensor of no input size",
        tensor(lambda a: np.ascontiguousarray(a[..., :64])),
        ("prep_data/b.npy: its shape (1, 3, 512, 64) is no input size", AGAIN),
    ),
    Fault(
        "tensor of a picture only",
        tensor(lambda a: a[0]),
        ("prep_data/b.npy: its shape (3, 512, 512) is no input size", AGAIN),
    ),
    Fault(
        "tensor with sides below zero",
        at(TENSOR, spoil.reshape_header, "(-1, -3, 512, 512)"),
        ("prep_data/b.npy", AGAIN),
    ),
    Fault(
        "tensor with sides beyond 64 bits",
        at(TENSOR, spoil.reshape_header, f"({2**64 + 786432},)"),
        ("prep_data/b.npy", AGAIN),
    ),
    Fault(
        "a pipe in a tensor's place",
        at(TENSOR, spoil.pipe),
        ("prep_data/b.npy: no such folder or file", "DEKR_preprocess.py"),
        real=True,
    ),
    Fault(
        "a folder in a tensor's place",
        at(TENSOR, spoil.folder),
        ("prep_data/b.npy: no such folder or file", "make them"),
    ),
    Fault("two tensors of one name", same_name, ("prep_data/b.v2.npy would write the same outputs", "names count")),
    Fault(
        "outputs of another graph",
        outputs_of_another_graph,
        ("out: holds outputs of another model", "--overwrite"),
        mend=start_anew,
    ),
    Fault(
        "record is no text",
        left("out_record.jsonl", spoil.replace, b"\xff\xfe"),
        ("out_record.jsonl: line 1 is damaged", "delete it"),
        mend=freed("out_record.jsonl"),
    ),
    Fault(
        "a pipe in the record's place",
        left("out_record.jsonl", spoil.pipe),
        ("out_record.jsonl: cannot be read", "delete it"),
        mend=freed("out_record.jsonl"),
    ),
    Fault(
        "a folder in the record's place",
        left("out_record.jsonl", spoil.folder),
        ("out_record.jsonl: cannot be read", "delete it"),
        mend=freed("out_record.jsonl"),
    ),
    Fault(
        "a file in the output's place",
        left("out", spoil.replace, b"x"),
        ("out: cannot be created", "free this name"),
        mend=freed("out"),
    ),
    Fault(
        "foreign output",
        left("out/zebra_0.npy", spoil.replace, b"x"),
        ("out: 1 .npy files do not belong", "delete them"),
        mend=freed("out/zebra_0.npy"),
    ),
    Fault(
        "input sizes switched off",
        nothing,
        ("net.onnx has input sizes", "must be on"),
        flags=("--auto_set_dymdims_mode", "0"),
    ),
    Fault("flag misspelt", nothing, ("--modle", "see --help"), 2, ("--modle",)),
    *disk_faults("4m", "w/out/", "w/out", real=True),
]
