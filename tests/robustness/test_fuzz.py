"""Random and damaged input for every reader: nothing but the project's own error ever comes out.

Hundreds of cases in the short form, thousands in the long one; both are the same cases at every run.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto

from dekr_infer.ascend import ais_bench as bench
from dekr_infer.ascend import soc_version as chip
from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.config.load import load_config
from dekr_infer.config.schema import DEFAULTS
from dekr_infer.data.coco import load_data_set
from dekr_infer.data.images import decode_image
from dekr_infer.data.sources import ImageFiles
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.evaluation.coco_metrics import coco_metrics
from dekr_infer.evaluation.provenance import origin_warnings, origins, require_one_run
from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.run_record import read_record
from tests.support import counts
from tests.support.ascend_host import FAKES
from tests.support.coco_files import CATEGORY
from tests.support.images import colourful, encode
from tests.support.tiny_models import linked_model, toy_model
from tests.support.workspace import people_in

SHORT, LONG = 40, 800  # cases by target
NAMES = ("a.jpg", "b.jpg")
LAYOUTS = sorted((FAKES / "npu_smi").glob("*.txt"))


# --- what is damaged, and how


def damaged(whole: Callable[[], bytes]) -> st.SearchStrategy[bytes]:
    """A file's bytes with a few of them changed, cut out or put in, or its end cut off."""
    position = st.floats(0, 1, exclude_max=True)
    edits = st.lists(st.tuples(position, st.integers(0, 6), st.binary(max_size=6)), max_size=4)

    def apply(edits: list[tuple[float, int, bytes]], end: float) -> bytes:
        data = whole()
        for place, length, new in edits:
            start = int(place * len(data))
            data = data[:start] + new + data[start + length :]
        return data[: int(len(data) * end) + 1]

    return st.builds(apply, edits, st.one_of(st.just(1.0), position))


@cache
def whole_jpeg() -> bytes:
    return encode(colourful(Size(24, 32)), ".jpg")


@cache
def whole_zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as members:
        members.writestr("val2017/a.jpg", whole_jpeg())
        members.writestr("val2017/b.jpg", whole_jpeg(), zipfile.ZIP_DEFLATED)
    return data.getvalue()


@cache
def whole_npy() -> bytes:
    data = io.BytesIO()
    np.save(data, np.ones((1, 3, 4, 8), np.float32))
    return data.getvalue()


@cache
def whole_graph() -> bytes:
    return bytes(toy_model(PUBLISHED_SIZES).SerializeToString())


@cache
def whole_annotation() -> dict[str, Any]:
    images = [{"id": 1000 - n, "file_name": name, "height": 24, "width": 32} for n, name in enumerate(NAMES)]
    people = people_in(dict.fromkeys(NAMES, Size(24, 32)))
    return {"images": images, "annotations": people, "categories": [CATEGORY]}


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([10**400, -1, 0, 1000, "a.jpg", "../x.jpg", "\ud800", "a\0b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def changed(whole: Callable[[], Any]) -> st.SearchStrategy[Any]:
    """A JSON value with one to three of its inner values replaced by anything."""

    def replace(value: Any, steps: list[int], new: Any) -> Any:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if not steps or not keys:
            return new
        key = keys[steps[0] % len(keys)]
        inner = replace(value[key], steps[1:], new)
        if isinstance(value, dict):
            return {**value, key: inner}
        return [*value[:key], inner, *value[key + 1 :]]

    def apply(edits: list[tuple[list[int], Any]]) -> Any:
        value = whole()
        for steps, new in edits:
            value = replace(value, steps, new)
        return value

    return st.builds(
        apply, st.lists(st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=4), ANY), min_size=1, max_size=3)
    )


def drop(model: ModelProto, node: NodeProto, one: int, other: int) -> None:
    """A node goes, or one of its inputs and all behind it, an output, an attribute, or all attributes."""
    parts = (node.input, node.output, node.attribute)
    if one % 5 == 4:
        model.graph.node.remove(node)
    elif one % 5 == 3:
        del node.attribute[:]
    elif part := parts[one % 5]:
        del part[other % len(part) :]


def rewire(model: ModelProto, node: NodeProto, one: int, other: int) -> None:
    """A node reads another tensor than it did, its own output and later ones too, or makes one that others make."""
    names = [name for each in model.graph.node for name in each.output]
    names += ["", "nowhere", "image", *(tensor.name for tensor in model.graph.initializer)]
    ends = node.output if one % 6 == 5 else node.input
    if ends:
        ends[one % len(ends)] = names[other % len(names)]


def move(model: ModelProto, node: NodeProto, one: int, other: int) -> None:
    """Put a node in the place of another."""
    copy = NodeProto.FromString(node.SerializeToString())
    target = model.graph.node[other % len(model.graph.node)]
    node.CopyFrom(target)
    target.CopyFrom(copy)


def retype(model: ModelProto, node: NodeProto, one: int, other: int) -> None:
    """A node is of another kind, or an attribute of another type or value."""
    if one % 3 == 0 or not node.attribute:
        node.op_type = KINDS[other % len(KINDS)]
        return
    attribute = node.attribute[other % len(node.attribute)]
    if one % 3 == 1:
        attribute.type = one % 14  # type: ignore[assignment]
    else:
        attribute.i = (0, -1, 2**62, 17)[one % 4]
        attribute.ints[:] = [(0, -1, 2**62, 2)[other % 4]] * (one % 5)


def spoil_constant(model: ModelProto, node: NodeProto, one: int, other: int) -> None:
    """A constant of another type or shape, or with too few values."""
    tensor = model.graph.initializer[other % len(model.graph.initializer)]
    if one % 3 == 0:
        tensor.data_type = one % 24
    elif one % 3 == 1:
        tensor.dims[:] = [(0, -1, 3, 2**40)[one % 4]] * (one % 5)
    else:
        tensor.raw_data = tensor.raw_data[: one % 24]


EDITS = (drop, rewire, move, retype, spoil_constant)
KINDS = ("Add", "Concat", "Conv", "DeformConv", "DeformableConv2D", "If", "Relu", "Resize", "Split")
NODE_EDITS = st.tuples(st.sampled_from(EDITS), st.integers(0, 15), st.integers(0, 99), st.integers(0, 99))


def edited(edits: list[tuple[Callable[[ModelProto, NodeProto, int, int], None], int, int, int]]) -> bytes:
    """A graph that is well-formed as a message, its nodes dropped, exchanged or retyped."""
    model = linked_model()
    for edit, index, one, other in edits:
        edit(model, model.graph.node[index % len(model.graph.node)], one, other)
    return bytes(model.SerializeToString())


# --- the readers


def read_zip(data: bytes, folder: Path) -> None:
    (folder / "val2017.zip").write_bytes(data)
    with suppress(DekrError):
        files = ImageFiles(folder / "val2017.zip")
        with suppress(DekrError):
            files.check_present(NAMES)
        for name in NAMES:
            with suppress(DekrError):
                decode_image(files.read(name), name)


def read_jpeg(data: bytes, folder: Path) -> None:
    with suppress(DekrError):
        image = decode_image(data, "a.jpg")
        assert image.ndim == 3 and image.dtype == np.uint8


def read_npy(data: bytes, folder: Path) -> None:
    path = folder / "a.npy"
    path.write_bytes(data)
    for read in (tensors.read_header, tensors.read, lambda file: np.array(tensors.read_unchecked(file))):
        with suppress(DekrError):
            read(path)


def read_graph(data: bytes, folder: Path) -> None:
    path = folder / "net.onnx"
    path.write_bytes(data)
    with suppress(DekrError):
        OnnxRuntime(path, 1)


def read_pairs(pairs: list[str], folder: Path) -> None:
    with suppress(ConfigError):
        load_config(None, pairs)


def read_yaml(text: str, folder: Path) -> None:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with suppress(ConfigError):
        load_config(path)


def read_annotation(content: Any, folder: Path) -> None:
    path = folder / "annotations" / "person_keypoints_val2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    with suppress(DekrError):
        data = load_data_set(folder, "val2017")
        metrics = coco_metrics(data, [], [image.id for image in data.images])
        assert all(value in (0, -1) for value in metrics.values())


def read_npu_smi(data: bytes, folder: Path) -> None:
    for number in (None, 0):
        with suppress(DekrError):
            chosen = chip.choose(chip.devices(data.decode(errors="replace")), number)
            assert chosen.name


def read_summary(content: Any, folder: Path) -> None:
    """By ais_bench's wrapper, and beside a dump by postprocessing."""
    with suppress(DekrError):
        summary = bench._summary_in(content, folder / "out_summary.json")
        assert all(isinstance(line, str) for line in bench._speeds(summary, [PUBLISHED_SIZES[0]]))
    (folder / "out_summary.json").write_text(json.dumps(content))
    with suppress(DekrError):
        origin_warnings(origins([folder / "out", folder / "out"]), "")


def read_run_record(data: bytes, folder: Path) -> None:
    (folder / "out_record.jsonl").write_bytes(data)
    with suppress(DekrError):
        contents = read_record(folder / "out_record.jsonl")
        assert contents is not None
        assert all(time > 0 for entry in contents.entries.values() for time in entry.milliseconds)
    with suppress(DekrError):
        require_one_run([folder / "out"], {"a": "a.jpg"})
        origin_warnings(origins([folder / "out", folder / "out"]), "")


def whole_record() -> bytes:
    head = {"kind": "outputs", "settings": {"model_sha256": "aa"}, "about": {"tensors": {"prep": {"opencv": ["4"]}}}}
    marks = {f"a_{index}.npy": {"size": 9, "xxh3": "aa", "stamps": [1, 2, 3]} for index in (0, 1)}
    entry = {"key": "a.npy", "inputs": {"tensor": "bb"}, "outputs": marks, "milliseconds": [1.5]}
    return "".join(json.dumps(line) + "\n" for line in (head, entry)).encode()


def whole_summary() -> dict[str, Any]:
    files = {"0": {"infiles": ["prep/a.npy"], "outfiles": ["out/a_0.npy", "out/a_1.npy"]}}
    return {"filesinfo": files, "npu_compute_time_list": [2.5], "throughput": 400.0, "model_sha256": "aa"}


def keys_of(tree: Any, prefix: str = "") -> list[str]:
    return [
        name
        for key, value in tree.items()
        for name in (keys_of(value, f"{prefix}{key}.") if hasattr(value, "items") else [prefix + key])
    ]


KEYS = st.sampled_from(keys_of(DEFAULTS)) | st.text(max_size=8)
VALUES = (
    st.text(max_size=12)
    | st.from_type(float).map(str)
    | st.integers().map(str)
    | ANY.map(repr)
    | st.sampled_from(["[[1]]", "((((", "1e999", "[1", "{}", "9" * 5000, "True", "0x", "-", "(" * 500])
)
YAML_WORDS = (
    *("TEST:", "  NMS_THRE: ", "0.1", "!!timestamp ", "!!bool x", "!!int ''", "2001-99-99", "!!python/name:os.system"),
    *("&a ", "*a", "- ", "? ", ": ", "<<: ", "[", "]", "{", "}", "|", "%", '"', "\n", "\t"),
)

TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any, Path], None]]] = {
    "zip": (damaged(whole_zip), read_zip),
    "JPEG": (damaged(whole_jpeg), read_jpeg),
    "npy": (damaged(whole_npy), read_npy),
    "graph": (damaged(whole_graph), read_graph),
    "nodes": (st.lists(NODE_EDITS, min_size=1, max_size=3).map(edited), read_graph),
    "pairs": (st.lists(KEYS | VALUES, max_size=1) | st.tuples(KEYS, VALUES).map(list), read_pairs),
    "YAML": (st.lists(st.sampled_from(YAML_WORDS) | st.text(max_size=4), max_size=12).map("".join), read_yaml),
    "annotation": (changed(whole_annotation), read_annotation),
    "npu-smi": (st.sampled_from(LAYOUTS).flatmap(lambda path: damaged(path.read_bytes)), read_npu_smi),
    "summary": (changed(whole_summary) | ANY, read_summary),
    "record": (damaged(whole_record), read_run_record),
}


def put_through(name: str, cases: int, folder: Path) -> None:
    strategy, read = TARGETS[name]

    def case(value: Any) -> None:
        counts.DONE["fuzz cases"] += 1
        read(value, folder)

    fuzz = settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    fuzz(given(strategy)(case))()


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_escapes_as_another_error(name, tmp_path):
    put_through(name, SHORT, tmp_path)


def test_half_a_surrogate_pair_in_a_summary_is_refused(tmp_path):
    for value in (whole_summary() | {"filesinfo": "\ud800"}, whole_summary() | {"throughput": "\udfff"}):
        with pytest.raises(DekrError, match="summary"):
            bench._summary_in(value, tmp_path / "out_summary.json")


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_thousands_escapes_as_another_error(name, tmp_path):
    put_through(name, LONG, tmp_path)
