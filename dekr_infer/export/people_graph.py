"""Put decoding into a graph: from an image to people, in plain ONNX operators (opset 19).

Every function here is the twin of one in `pose.decode` or `pose.rescore` (and `mirror` of `pose.preprocess`), with the
same arithmetic in the same order. Arrays lie the other way round: (J, K), K = `max_people` candidates last. All
candidates are carried to the end, where those that are no people are masked, because shapes must not depend on data.
Indices are int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx import ModelProto

from dekr_infer.errors import ConfigError
from dekr_infer.geometry import FLIP_SHIFT, STRIDE, InputSizes, cells
from dekr_infer.onnx_graph.baked import PIXEL_NAME, Baked
from dekr_infer.onnx_graph.dialects import constant, to_proto
from dekr_infer.pose.decode import DecodeSettings, pool_reach
from dekr_infer.pose.rescore import RescoreNet
from dekr_infer.skeleton import Skeleton
from dekr_infer.structures import PEOPLE_NAMES

PREFIX = "people"
BEFORE_FIRST = -(2**31)  # the end of a Slice that goes backwards to the first entry
LOWEST = float(np.finfo(np.float32).min)  # the score of nobody


class Writer:
    """Writes nodes into a graph, at the end or before a node. Numbers and arrays become constants, equal ones once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.before: ir.Node | None = None
        self._nodes = 0
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def __call__(self, op_type: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Write a node; return its output, or its outputs where there are several."""
        node = ir.node(op_type, [self._value(one) for one in inputs], attributes, num_outputs=outputs)
        node.name = f"{PREFIX}.{self._nodes}.{op_type}"
        self._nodes += 1
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}.{index}"
        if self.before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.before, node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def _value(self, given: Any) -> ir.Value:
        if isinstance(given, ir.Value):
            return given
        array = np.asarray(given, np.float32 if isinstance(given, float) else None)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = constant(self.graph, f"{PREFIX}.constant.{len(self._constants)}", array)
        return self._constants[key]


class Candidates(NamedTuple):
    """The highest centres: `cell` = y * width + x, `x`, `y` (K,) int32; `scores` (K,) float32; `found` (K,) bool."""

    cell: Any
    x: Any
    y: Any
    scores: Any
    found: Any


class MapSize(NamedTuple):
    """Height and width of the maps, in cells: int32 scalars in the graph."""

    h: Any
    w: Any


def add_people(
    model: ModelProto,
    baked: Baked,
    input_sizes: InputSizes,
    skeleton: Skeleton,
    rescore: RescoreNet | None = None,
    with_maps: bool = False,
) -> ModelProto:
    """Return a graph from `image` (1, 3, H, W) to people, made of one in the `onnx` dialect that yields maps.

    Outputs: `keypoints` (1, K, J, 3) float32, x, y in input pixels and the joint's score; `scores` (1, K) float32;
    `num` (1, 1) int64. Rows are sorted by score, those from `num` on are 0.

    Args:
        model: goes from `image` to `heatmap` and `offset`, of any batch size.
        baked: the decoding.
        input_sizes: that the graph is made for.
        skeleton: of the network.
        rescore: the rescoring net.
        with_maps: keep the maps as further outputs, (2, ...) with `flip`: the original's, then the flipped pass's.
    Raises:
        ConfigError: the settings do not suit these input sizes.
    """
    reach = _reach(baked.settings, input_sizes)
    made = ir.from_proto(model)
    graph = made.graph
    heat, offset = graph.outputs
    passes = 1 + baked.flip
    write = Writer(graph)
    if baked.flip:
        image = graph.inputs[0]
        readers = list(image.uses())
        write.before = graph[0]
        both = mirror(write, image)
        write.before = None
        for node, index in readers:
            node.replace_input_with(index, both)
    size = MapSize(*(write("Cast", write("Shape", heat, start=a, end=a + 1), to=ir.DataType.INT32) for a in (2, 3)))
    centre = merged_centre(write, heat, baked.flip, len(skeleton))
    candidates = find_centres(write, centre, size, baked.settings, reach)
    x, y = joints_at(write, offset, candidates, size, baked.flip, skeleton)
    joint_heat = heat_at(write, heat, x, y, size, baked.flip, skeleton)
    spoilt = poison(write, centre, x, y, joint_heat)
    mean_heat = write("ReduceMean", joint_heat, [0], keepdims=0)
    best, kept = remove_duplicates(write, x, y, mean_heat, candidates.found, baked.settings)
    x, y, joint_heat = (write("Gather", value, best, axis=1) for value in (x, y, joint_heat))
    joint_scores = write("Mul", write("Gather", candidates.scores, best), joint_heat)
    scores = write("ReduceMean", joint_scores, [0], keepdims=0)
    if rescore is not None:
        pixel = constant(graph, PIXEL_NAME, np.array(1, np.float32))
        graph.inputs.append(pixel)
        scores = write("Mul", scores, rescored(write, x, y, joint_scores, pixel, rescore))
    poses = write("Concat", *(write("Unsqueeze", part, [0]) for part in (x, y, joint_scores)), axis=0)  # (3, J, K)
    outputs = in_score_order(write, write("Transpose", poses, perm=[2, 1, 0]), scores, kept, spoilt)
    shapes = ((1, baked.settings.max_people, len(skeleton), 3), (1, baked.settings.max_people), (1, 1))
    for value, name, shape in zip(outputs, PEOPLE_NAMES, shapes, strict=True):
        value.name, value.shape = name, ir.Shape(shape)
        value.type = ir.TensorType(ir.DataType.INT64 if name == "num" else ir.DataType.FLOAT)
    for value in (heat, offset):
        assert value.shape is not None
        value.shape = ir.Shape((passes, *value.shape[1:]))
    graph.outputs[:] = [*outputs, *([heat, offset] if with_maps else [])]
    return to_proto(made)


def _reach(settings: DecodeSettings, input_sizes: InputSizes) -> int:
    """Return how far around a cell its centre must be the highest; one value serves all input sizes."""
    reaches = {pool_reach(cells(size), settings) for size in input_sizes}
    if len(reaches) > 1:
        raise ConfigError(
            f"TEST.POOL_THRESHOLD1 and 2: the input sizes {input_sizes} need neighbourhoods of different sizes; "
            "export a file for each, or leave out --decode people"
        )
    if settings.max_people > min(h * w for h, w in map(cells, input_sizes)):
        raise ConfigError(f"DATASET.MAX_NUM_PEOPLE {settings.max_people}: more than the smallest map has cells")
    return reaches.pop()


def mirror(write: Writer, image: Any) -> Any:
    """Return the image and its flipped twin, moved left by the flip shift, its last columns kept: (2, 3, H, W)."""
    parts = (write("Slice", image, [start], [BEFORE_FIRST], [3], [-1]) for start in (-1 - FLIP_SHIFT, FLIP_SHIFT - 1))
    return write("Concat", image, write("Concat", *parts, axis=3), axis=0)


def merged_centre(write: Writer, heat: Any, flip: bool, joints: int) -> Any:
    """Return the mean centre map of both passes: (1, 1, h, w)."""
    centre = write("Slice", heat, [joints], [joints + 1], [1])
    if not flip:
        return centre
    original, flipped = write("Split", centre, outputs=2, axis=0, num_outputs=2)
    return write("Mul", write("Add", original, write("Slice", flipped, [-1], [BEFORE_FIRST], [3], [-1])), 0.5)


def find_centres(write: Writer, centre: Any, size: MapSize, settings: DecodeSettings, reach: int) -> Candidates:
    """Find the highest cells that are the maximum of their neighbourhood; ties in the order of the cells."""
    highest = write("MaxPool", centre, kernel_shape=[2 * reach + 1] * 2, pads=[reach] * 4, strides=[1, 1])
    peak = write("And", write("Equal", centre, highest), write("Greater", centre, settings.threshold))
    values = write("Reshape", write("Where", peak, centre, settings.threshold), [-1])
    scores, index = write("TopK", values, [settings.max_people], outputs=2, axis=0)
    cell = write("Cast", index, to=ir.DataType.INT32)
    y = write("Div", cell, size.w)
    x = write("Sub", cell, write("Mul", y, size.w))
    return Candidates(cell, x, y, scores, write("Greater", scores, settings.threshold))


def joints_at(
    write: Writer, offset: Any, candidates: Candidates, size: MapSize, flip: bool, skeleton: Skeleton
) -> tuple[Any, Any]:
    """Return x and y of the candidates' joints, in input pixels: (J, K) each."""
    rows: np.ndarray = 2 * np.arange(len(skeleton))
    flat = write("Reshape", offset, [(1 + flip) * 2 * len(skeleton), -1])
    joints = _pose_cell(write, flat, rows, candidates.cell, (candidates.x, candidates.y))
    if flip:
        x = _mirrored(write, candidates.x, size)
        cell = write("Add", write("Mul", candidates.y, size.w), x)
        rows = 2 * len(skeleton) + 2 * np.array(skeleton.partners)
        flipped_x, flipped_y = _pose_cell(write, flat, rows, cell, (x, candidates.y))
        width = write("Cast", size.w, to=ir.DataType.FLOAT)
        flipped_x = write("Sub", write("Sub", width, flipped_x), 1.0)
        pairs = zip(joints, (flipped_x, flipped_y), strict=True)
        joints = tuple(write("Mul", write("Add", one, other), 0.5) for one, other in pairs)
    x, y = (write("Mul", value, float(STRIDE)) for value in joints)
    return x, y


def _pose_cell(write: Writer, flat: Any, rows: np.ndarray, cell: Any, place: tuple[Any, Any]) -> tuple[Any, ...]:
    """Return cell - offset, x then y, in cells: (J, K) each; the offsets are (channels, h * w), x in `rows`."""
    values = write("Gather", flat, cell, axis=1)
    return tuple(
        write("Sub", write("Cast", at, to=ir.DataType.FLOAT), write("Gather", values, rows + axis, axis=0))
        for axis, at in enumerate(place)
    )


def _mirrored(write: Writer, x: Any, size: MapSize) -> Any:
    """Return the columns w - 1 - x, int32."""
    return write("Sub", write("Sub", size.w, np.int32(1)), x)


def heat_at(write: Writer, heat: Any, x: Any, y: Any, size: MapSize, flip: bool, skeleton: Skeleton) -> Any:
    """Return the merged heat of each joint at its place, interpolated between four cells: (J, K)."""
    column, next_column, x_share = _cell_and_share(write, x, size.w)
    row, next_row, y_share = _cell_and_share(write, y, size.h)
    flat = write("Reshape", heat, [-1])
    area = write("Mul", size.h, size.w)

    def read(row: Any, column: Any, channels: Sequence[int]) -> Any:
        start = write("Mul", np.array(channels, np.int32)[:, None], area)
        return write("Gather", flat, write("Add", start, write("Add", write("Mul", row, size.w), column)))

    def merged(row: Any, column: Any) -> Any:
        values = read(row, column, range(len(skeleton)))
        if not flip:
            return values
        channels = [skeleton.heatmap_channels + partner for partner in skeleton.partners]
        return write("Mul", write("Add", values, read(row, _mirrored(write, column, size), channels)), 0.5)

    def between(one: Any, other: Any, share: Any) -> Any:
        return write("Add", write("Mul", write("Sub", 1.0, share), one), write("Mul", share, other))

    upper, lower = (between(merged(at, column), merged(at, next_column), x_share) for at in (row, next_row))
    return between(upper, lower, y_share)


def _cell_and_share(write: Writer, pixels: Any, count: Any) -> tuple[Any, Any, Any]:
    """Return the cell at or before each coordinate, the next one, and the share of the way to it."""
    last = write("Sub", count, np.int32(1))
    border = write("Mul", write("Cast", last, to=ir.DataType.FLOAT), float(STRIDE))
    pixels = write("Where", write("IsNaN", pixels), 0.0, pixels)  # `poison` tells; here it would be no index
    pixel = write("Min", write("Max", write("Floor", pixels), 0.0), border)
    place = write("Mul", pixel, 1 / STRIDE)
    cell = write("Floor", place)
    index = write("Cast", cell, to=ir.DataType.INT32)
    return index, write("Min", write("Add", index, np.int32(1)), last), write("Sub", place, cell)


def remove_duplicates(
    write: Writer, x: Any, y: Any, mean_heat: Any, found: Any, settings: DecodeSettings
) -> tuple[Any, Any]:
    """Return the best candidate of each candidate's group (K,) int64, and which of them are kept, (K,) 0 or 1.

    The visits in turn are unrolled: `taken` holds 1 for each candidate in a group that has been visited.
    """
    count = settings.max_people
    extents = [
        write("Sub", write("ReduceMax", v, [0], keepdims=0), write("ReduceMin", v, [0], keepdims=0)) for v in (x, y)
    ]
    reach = write("Mul", _length(write, *extents), float(np.float32(settings.nms_distance)))
    apart = [write("Sub", write("Unsqueeze", v, [2]), write("Unsqueeze", v, [1])) for v in (x, y)]  # (J, K, K)
    near = write("Less", _length(write, *apart), write("Unsqueeze", reach, [1]))
    number = write("ReduceSum", write("Cast", near, to=ir.DataType.FLOAT), [0], keepdims=0)
    own = np.eye(count, dtype=bool)
    duplicates = write("Or", write("Greater", number, float(settings.nms_joints)), own)
    group = write("And", duplicates, found)
    best = write("ArgMax", write("Where", group, mean_heat, LOWEST), axis=1, keepdims=0)
    is_best = write("Equal", write("Unsqueeze", best, [1]), np.arange(count)[None])
    asked = write("Cast", write("Or", is_best, own), to=ir.DataType.FLOAT)  # these must not be taken yet
    rows = [
        write("Split", v, outputs=count, axis=0, num_outputs=count) if count > 1 else (v,)
        for v in (asked, write("Cast", group, to=ir.DataType.FLOAT))
    ]
    taken = write("Sub", 1.0, write("Cast", write("Unsqueeze", found, [0]), to=ir.DataType.FLOAT))  # (1, K)
    kept = []
    for need, members in zip(*rows, strict=True):
        blocked = write("ReduceMax", write("Mul", taken, need), [1])
        kept.append(write("Sub", 1.0, blocked))
        taken = write("Max", taken, write("Mul", members, kept[-1]))
    return best, write("Reshape", write("Concat", *kept, axis=0), [-1])


def _length(write: Writer, x: Any, y: Any) -> Any:
    return write("Sqrt", write("Add", write("Mul", x, x), write("Mul", y, y)))


def rescored(write: Writer, x: Any, y: Any, joint_scores: Any, pixel: Any, net: RescoreNet) -> Any:
    """Return the rescoring net's factors (K,); the features' order is that of the rearranged first weights.

    The features are lengths in torsos of at least an image pixel; `pixel` is that in input pixels. All else in them is
    the same in either frame.
    """
    start, end = (np.array(side) for side in zip(*net.skeleton.rescore_pairs, strict=True))
    apart = [write("Sub", *(write("Gather", v, side, axis=0) for side in (start, end))) for v in (x, y)]
    length = _length(write, *apart)
    torso = write("ReduceSum", write("Gather", length, np.array(net.skeleton.torso_pairs), axis=0), [0])
    torso = write("Max", write("Mul", torso, 0.5), pixel)
    values = write("Concat", *(write("Div", part, torso) for part in (*apart, length)), joint_scores, axis=0)
    pairs = 2 * len(start)
    order = np.concatenate((np.arange(0, pairs, 2), np.arange(1, pairs, 2), np.arange(pairs, net.weights[0].shape[1])))
    weights = (net.weights[0][:, order], *net.weights[1:])
    for layer, (weight, bias) in enumerate(zip(weights, net.biases, strict=True)):
        values = write("Relu", values) if layer else values
        values = write("Add", write("MatMul", weight, values), bias[:, None])
    factors = write("Reshape", values, [-1])
    return write("Where", write("IsNaN", factors), 0.0, factors)


def poison(write: Writer, *values: Any) -> Any:
    """Return 0, or NaN where a value that decoding reads is not finite, which comparisons would hide."""
    total = write("Sum", *(write("ReduceSum", value, keepdims=0) for value in values))
    return write("Mul", total, 0.0)


def in_score_order(write: Writer, poses: Any, scores: Any, kept: Any, spoilt: Any) -> tuple[Any, Any, Any]:
    """Return poses (K, J, 3) and scores (K,) as the outputs: people first, by score, then rows of 0; and their number.

    `spoilt` is added to every score; see `poison`.
    """
    num = write("Cast", write("ReduceSum", kept, [0], keepdims=0), to=ir.DataType.INT64)
    person = write("Greater", kept, 0.5)
    number = write("Shape", scores)
    _, order = write("TopK", write("Where", person, scores, LOWEST), number, outputs=2, axis=0)
    poses, scores, person = (write("Gather", value, order, axis=0) for value in (poses, scores, person))
    everyone = write("Unsqueeze", person, [1, 2])
    poses = write("Unsqueeze", write("Where", everyone, poses, 0.0), [0])
    scores = write("Unsqueeze", write("Add", write("Where", person, scores, 0.0), spoilt), [0])
    return poses, scores, write("Reshape", num, [1, 1])
