"""Where two runs of a network part: the error of every node, worst first, with its checkpoint key.

MODEL is compared with OTHER, on one image: an ONNX file, or a folder of what a device has dumped, as .npy files.
Without OTHER it is compared with itself in float16 (see evaluate.py --precision); each value's largest magnitude and,
marked, those above float16's largest number are shown, too. Nodes are matched by the names of what they compute.

  python3 scripts/compare_nodes.py models/dekr_bs1.onnx --image photo.jpg --precision fp16
  python3 scripts/compare_nodes.py models/dekr_bs1.onnx dump/npy --image photo.jpg
"""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path

from dekr_infer.backends.onnxruntime import OnnxRuntime, load_graph, standard_graph
from dekr_infer.cli.app import Arguments, Parser, cores, positive_int, run, worker_count
from dekr_infer.cli.precision import add_precision, rounding_of
from dekr_infer.data.images import read_image
from dekr_infer.errors import ConfigError, one_line
from dekr_infer.evaluation.node_comparison import NodeDifference, compare_dump, compare_graphs
from dekr_infer.geometry import Size
from dekr_infer.onnx_graph.float16 import LARGEST
from dekr_infer.pose.preprocess import warp
from dekr_infer.storage.atomic import write_json
from dekr_infer.structures import INPUT_NAME


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="ONNX file")
    parser.add_argument("other", type=Path, nargs="?", metavar="OTHER", help="ONNX file, or a folder of dumped .npy")
    parser.add_argument("--image", type=Path, required=True, help="the image to run both on")
    parser.add_argument("--top", type=positive_int, default=20, metavar="N", help="nodes to print")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write all nodes to this file")
    parser.add_argument("--threads", type=worker_count, default=cores(), metavar="N", help="(default: all cores)")
    add_precision(parser)
    args = parser.parse_args(argv)
    return run(lambda: compare_nodes(args))


def compare_nodes(args: Namespace) -> None:
    """Compare node by node, print the worst, and write all of them.

    Raises:
        DekrError: a file cannot be read, or the two have nothing in common.
    """
    rounding = rounding_of(args)
    other: Path = args.other or args.model
    if other.is_dir() and rounding is not None:
        raise ConfigError(f"--precision fp16: {other} is what a device has computed already; leave it out")
    if args.other is None and rounding is None:
        raise ConfigError("there is nothing to compare with: name a second graph or a folder, or add --precision fp16")
    network = OnnxRuntime(args.model, args.threads)
    pixels = read_image(args.image)
    placement = network.input_sizes.place(Size(*pixels.shape[:2]))
    feed = {INPUT_NAME: network.tensor_of(warp(pixels, placement.input))}
    model = standard_graph(load_graph(args.model)[0], args.model)
    if other.is_dir():
        rows = list(compare_dump(model, other, feed, args.threads))
    else:
        second = OnnxRuntime(other, args.threads)
        if network.baked is not None or second.baked is not None:
            raise ConfigError(f"{args.model}, {other}: one yields people; compare graphs that yield maps")
        if second.input_dtype != network.input_dtype:
            raise ConfigError(f"{other}: takes {second.input_dtype}, {args.model} takes {network.input_dtype}")
        compared = standard_graph(load_graph(other)[0], other, rounding=rounding)
        rows = list(compare_graphs(model, compared, feed, args.threads))
    worst = sorted(rows, key=lambda row: -row.rms)
    print(f"{len(rows)} values at {placement.input}; relative rms error, cosine, largest error, largest magnitude")
    for row in worst[: args.top]:
        print(_line(row))
    large = [row for row in rows if row.largest > LARGEST]
    print(
        f"largest magnitude: {_line(max(rows, key=lambda row: row.largest)).strip()}; "
        + (f"{len(large)} values exceed float16's {LARGEST:.0f}" if large else f"none exceeds float16's {LARGEST:.0f}")
    )
    for row in large:
        print(f"  too large for float16: {row.largest:.4g}  {one_line(row.source)}")
    if args.output is not None:
        write_json(args.output, [_values(row) for row in worst], indent=1)
        print(f"all: {args.output}")


def _line(row: NodeDifference) -> str:
    shape = "x".join(map(str, row.shape))
    return (
        f"  {row.rms:9.2e}  {row.cosine:.6f}  {row.largest_difference:9.2e}  {row.largest:9.3g}  {shape:<16} "
        f"{one_line(row.source)}"
    )


def _values(row: NodeDifference) -> dict[str, object]:
    """Return a row as values of JSON, which has no infinity."""
    values = {**row._asdict(), "shape": list(row.shape)}
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
