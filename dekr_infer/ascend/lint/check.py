"""Check an ONNX file for what atc refuses: inputs, input sizes, opsets, operators, shapes.

Names the error that atc would end with where it is known. Needs no toolkit and no NPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, external_data_helper

from dekr_infer.ascend.lint.context import PORTABLE_OPSET, REFUSED, WARNING, Finding
from dekr_infer.ascend.lint.rules import OLD_OPSET, check_node
from dekr_infer.ascend.lint.shapes import Shapes, infer, opset_of, view_of, views
from dekr_infer.errors import DekrError
from dekr_infer.geometry import EXACT
from dekr_infer.onnx_graph.baked import PEOPLE
from dekr_infer.onnx_graph.subgraphs import array_of, is_text, tensors
from dekr_infer.storage.atomic import read_regular
from dekr_infer.structures import INPUT_NAME

YIELDS_PEOPLE = Finding(
    REFUSED,
    "outputs",
    "the file yields people: for that it has opset 19, indices that it computes (int64 from TopK and ArgMax) and a "
    "Slice backwards along the last axis",
    "convert a file of maps, exported without --decode people and --dialect onnx",
)
MOST_INPUT_SIZES = 100
MOST_DYNAMIC = 4  # --dynamic_dims takes inputs of at most as many sizes
MOST_DIGITS = 9  # of a size


def load(path: Path) -> ModelProto:
    """Return the model in any ONNX file, with its external weights.

    Raises:
        DekrError: it is missing or no ONNX file, or its data files are missing or short.
    """
    try:
        model = onnx.load_from_string(read_regular(path))
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); export it with DEKR_pth2onnx.py") from None
    except DecodeError:
        model = ModelProto()
    if not model.graph.node or not is_text(model):
        raise DekrError(f"{path}: not an ONNX file, or cut short; export it again with DEKR_pth2onnx.py")
    _load_data_files(model, path)
    return model


def _load_data_files(model: ModelProto, path: Path) -> None:
    """Read external weights; onnx itself checks that they are in the model's folder and as long as announced.

    Raises:
        DekrError: a data file is missing, short, or elsewhere.
    """
    for tensor in tensors(model.graph):
        if not external_data_helper.uses_external_data(tensor):
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except (onnx.checker.ValidationError, ValueError, OSError) as error:
            raise DekrError(
                f"{path}: its data file {path.parent / location} cannot be used ({error}); put the whole file that was "
                "exported with it into the same folder, or save the model in one file"
            ) from None


def graph_inputs(model: ModelProto) -> Shapes:
    """Return the shapes of the inputs that must be fed, by name; -1 for open sizes."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        entry.name: tuple(d.dim_value if d.HasField("dim_value") else -1 for d in entry.type.tensor_type.shape.dim)
        for entry in model.graph.input
        if entry.name not in constants
    }


def default_input_shape(model: ModelProto) -> str:
    """Return the file's own inputs as atc's --input_shape has them, e.g. `image:1,3,-1,-1`.

    An open number of images, as the `onnx` dialect leaves it, means one.
    """
    shapes = graph_inputs(model)
    if (whole := shapes.get(INPUT_NAME, ()))[:2] == (-1, 3):
        shapes[INPUT_NAME] = (1, *whole[1:])
    return ";".join(f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items())


def default_input_sizes(model: ModelProto) -> str:
    """Return the input sizes in the file's metadata as --dynamic_dims has them; empty if it names none."""
    return _metadata(model).get("input_sizes", "")


def _metadata(model: ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def preflight(model: ModelProto, input_shape: str | None = None, dynamic_dims: str | None = None) -> list[Finding]:
    """Return all findings, each once, in the order of the checks and then of the nodes.

    Args:
        model: the graph.
        input_shape: atc's --input_shape; by default the file's own inputs.
        dynamic_dims: atc's --dynamic_dims; by default the input sizes in the file's metadata.
    """
    if _metadata(model).get("decode") == PEOPLE:
        return [YIELDS_PEOPLE]
    input_sizes_text = default_input_sizes(model) if dynamic_dims is None else dynamic_dims
    shape_text = default_input_shape(model) if input_shape is None else input_shape
    findings = [*_check_opsets(model), *_check_tensors(model)]
    shapes, problems = _parse_shapes(shape_text)
    problems += _check_inputs(model, shapes)
    input_sizes: list[list[int]] = []
    if not any(problem.level == REFUSED for problem in problems):
        input_sizes, more = _parse_input_sizes(
            input_sizes_text, sum(size == -1 for shape in shapes.values() for size in shape)
        )
        problems += more
    if input_sizes:
        problems += _check_ranks(shapes)
    findings += problems
    complete = not any(problem.level == REFUSED for problem in problems)
    sizes: list[Shapes] = [_filled(shapes, input_size) for input_size in input_sizes or [[]]] if complete else []
    for size in sizes or [graph_inputs(model)]:
        inferred, error = infer(model, size)
        if error:
            at = "; ".join(f"{name} {shape}" for name, shape in size.items())
            findings.append(
                Finding(REFUSED, "graph", f"its shapes do not fit at {at}: {error}", "check the input sizes")
            )
        view = view_of(model.graph, inferred, opset_of(model), bool(input_sizes))
        findings += [f for node, inside in views(model.graph, inferred, view) for f in check_node(node, inside)]
    return list(dict.fromkeys(findings))


def report(findings: list[Finding]) -> Iterator[str]:
    """Yield the findings as lines, one for equal findings of many nodes."""
    nodes: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        nodes.setdefault((finding.level, finding.rule, finding.remedy), []).append(finding.node)
    for (level, rule, remedy), names in nodes.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{level}: {names[0]}{others}: {rule}; {remedy}"


def _check_opsets(model: ModelProto) -> Iterator[Finding]:
    versions: dict[str, set[int]] = {}
    for entry in model.opset_import:
        versions.setdefault("" if entry.domain == "ai.onnx" else entry.domain, set()).add(entry.version)
    for domain, found in versions.items():
        if len(found) > 1:
            rule = f"E16005: opsets {sorted(found)} of one domain {domain or 'ai.onnx'}"
            yield Finding(REFUSED, "opset_import", rule, "leave one entry per domain")
    if opset_of(model) > OLD_OPSET:
        rule = f"opset {opset_of(model)}: CANN 6.0 has parsers up to {OLD_OPSET} for most operators"
        yield Finding(WARNING, "opset_import", rule, f"export with opset {PORTABLE_OPSET}")


def _check_tensors(model: ModelProto) -> Iterator[Finding]:
    for tensor in tensors(model.graph):
        if array_of(tensor) is None:
            rule = "its data do not fit its shape and type"
            yield Finding(REFUSED, tensor.name or "a nameless tensor", rule, "export the file again")


def _parse_shapes(text: str) -> tuple[Shapes, list[Finding]]:
    shapes, problems = {}, []
    for part in text.split(";"):
        name, colon, sizes = part.rpartition(":")
        try:
            if not colon or not name or any(len(size) > MOST_DIGITS for size in sizes.split(",")):
                raise ValueError
            shapes[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            problems.append(Finding(REFUSED, "--input_shape", f"{part!r} is malformed", "write name:1,3,-1,-1"))
    return shapes, problems


def _check_inputs(model: ModelProto, shapes: Shapes) -> list[Finding]:
    inputs = graph_inputs(model)
    known = ", ".join(inputs)
    found = []
    for name, shape in shapes.items():
        if name not in inputs:
            rule = f"E10016: {name} is no input of the graph"
            found.append(Finding(REFUSED, "--input_shape", rule, f"its inputs are {known}"))
        elif len(shape) != len(inputs[name]):
            rule = f"E10049: {name} has rank {len(inputs[name])}, not {len(shape)}"
            found.append(Finding(REFUSED, "--input_shape", rule, f"write {default_input_shape(model)}"))
        elif any(given != own and own != -1 for given, own in zip(shape, inputs[name], strict=True)):
            rule = f"{name}: {shape} overrides the file's {inputs[name]}; sizes inside may be fixed"
            found.append(Finding(WARNING, name, rule, "export it with open height and width"))
        if any(size < 1 and size != -1 for size in shape) or not shape:
            found.append(Finding(REFUSED, "--input_shape", f"{name}: {shape} is no shape", "use sizes above 0 or -1"))
    for name, shape in inputs.items():
        if -1 in shape and name not in shapes:
            rule = f"the open sizes of {name} are not given"
            found.append(Finding(REFUSED, "--input_shape", rule, f"write {default_input_shape(model)}"))
    return found


def _parse_input_sizes(text: str, dynamic: int) -> tuple[list[list[int]], list[Finding]]:
    """Return the input sizes and their faults; `dynamic` is the number of open sizes that each must fill."""

    def wrong(rule: str) -> tuple[list[list[int]], list[Finding]]:
        return [], [Finding(REFUSED, "input_sizes", rule, "write e.g. 512,768;512,512 (height,width)")]

    if text.startswith(EXACT):
        return [], [
            Finding(
                REFUSED, "input_sizes", f"atc takes fixed input sizes, not {text}", "export it without TEST.INPUT_SIZES"
            )
        ]
    parts = text.removesuffix(";").split(";") if text else []
    if not parts:
        return wrong("the input's sizes are open and no input sizes are named") if dynamic else ([], [])
    if not dynamic:
        return wrong("E10045: there are input sizes, but no size of --input_shape is -1")
    input_sizes = [part.split(",") for part in parts]
    if not all(size.isascii() and size.isdigit() for input_size in input_sizes for size in input_size):
        return wrong(f"{text!r}: only digits, commas and semicolons are allowed in input sizes")
    if any(len(size) > MOST_DIGITS for input_size in input_sizes for size in input_size):
        return wrong(f"a size of more than {MOST_DIGITS} digits")
    if len(input_sizes) < 2:
        return wrong("E10035: a single input size; at least 2 are needed")
    if len(input_sizes) > MOST_INPUT_SIZES:
        return wrong(f"E10036: {len(input_sizes)} input sizes; at most {MOST_INPUT_SIZES} are allowed")
    if len({len(input_size) for input_size in input_sizes}) > 1:
        return wrong("E10037: input sizes of unequal length")
    numbers = [[int(size) for size in input_size] for input_size in input_sizes]
    if any(size < 1 for input_size in numbers for size in input_size):
        return wrong("E10038: a size that is not positive")
    if len(set(map(tuple, numbers))) < len(numbers):
        return wrong("E10039: an input size is repeated")
    if len(numbers[0]) != dynamic:
        return wrong(f"E10046: input sizes of {len(numbers[0])} sizes for {dynamic} open ones")
    return numbers, []


def _check_ranks(shapes: Shapes) -> Iterator[Finding]:
    for name, shape in shapes.items():
        if len(shape) > MOST_DYNAMIC:
            rule = f"{name} has {len(shape)} sizes; with input sizes at most {MOST_DYNAMIC} are allowed"
            yield Finding(REFUSED, "--input_shape", rule, "reshape inside the graph, or convert for one size")


def _filled(shapes: Shapes, input_size: list[int]) -> Shapes:
    sizes = iter(input_size)
    return {name: tuple(next(sizes) if size == -1 else size for size in shape) for name, shape in shapes.items()}
