"""The options of the commands that rehearse the float16 of an NPU."""

from __future__ import annotations

import argparse
from pathlib import Path

from dekr_infer.cli.app import Parser
from dekr_infer.errors import ConfigError
from dekr_infer.onnx_graph.float16 import FORCE, MODES, ONCE, TWICE, Rounding, read_keep_list


def add_precision(parser: Parser) -> None:
    """Add the options of float16's rehearsal; see `rounding_of`."""
    parser.add_argument("--precision", choices=("fp16",), help="rehearse an NPU's float16 (default: float32)")
    parser.add_argument("--precision_mode", choices=MODES, default=FORCE, help="for fp16: as atc's option")
    parser.add_argument("--keep_dtype", type=Path, metavar="FILE", help="for fp16: nodes left in float32, as atc's")
    parser.add_argument(
        "--deform_rounding",
        choices=(ONCE, TWICE),
        default=ONCE,
        help="for fp16: round a deformable convolution once, or its samples, too",
    )


def rounding_of(args: argparse.Namespace) -> Rounding | None:
    """Return the rounding that the options of `add_precision` ask for.

    Raises:
        DekrError: the file of nodes to keep cannot be read.
    """
    if args.precision is None:
        if (args.precision_mode, args.keep_dtype, args.deform_rounding) != (FORCE, None, ONCE):
            raise ConfigError("--precision_mode, --keep_dtype and --deform_rounding need --precision fp16")
        return None
    keep = read_keep_list(args.keep_dtype) if args.keep_dtype else ()
    return Rounding(args.precision_mode, keep=keep, deform=args.deform_rounding)
