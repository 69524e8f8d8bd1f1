"""Convert an ONNX file for an Ascend chip by atc, with the file's own input sizes; checked before and after.

OUTPUT is the model's name (default: the ONNX file's name, ending in .om). The words after -- are passed on to atc.

  bash scripts/atc.sh models/dekr_bs1.onnx
  bash scripts/atc.sh models/dekr_bs1.onnx models/dekr_fp32 --precision_mode cube_fp16in_fp32out -- --log=info
"""

from __future__ import annotations

from pathlib import Path

from dekr_infer.ascend.atc import CACHE_MODES, OUTPUT_TYPES, PRECISIONS, convert
from dekr_infer.cli.app import Arguments, Parser, non_negative_int, run, split_words


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    words, extra = split_words(argv)
    parser = Parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("output", type=Path, nargs="?", metavar="OUTPUT")
    parser.add_argument(
        "--device", type=non_negative_int, metavar="N", help="take the chip that ais_bench opens by N, if chips differ"
    )
    parser.add_argument("--keep_dtype", type=Path, metavar="FILE", help="nodes to keep in float32, one name per line")
    parser.add_argument(
        "--output_type", choices=OUTPUT_TYPES, help="of the model's outputs; FP16 halves their files (default: FP32)"
    )
    add_conversion(parser, cache=None)
    parser.add_argument("--dry-run", action="store_true", help="print the command and stop")
    args = parser.parse_args(words)

    def work() -> None:
        convert(**vars(args), extra=extra)

    return run(work)


def add_conversion(parser: Parser, cache: str | None) -> None:
    """Add the options of a conversion that suit any file; `cache` is the default of --cache."""
    parser.add_argument("--chip", metavar="NAME", help="e.g. Ascend310P3 (default: CHIP_NAME, or this host's)")
    parser.add_argument("--precision_mode", choices=PRECISIONS, help="(default: atc's own, force_fp16)")
    cached = "enable reuses the kernels of earlier conversions, force compiles all again, e.g. after tuning; default: "
    parser.add_argument("--cache", choices=CACHE_MODES, default=cache, help=cached + (cache or "none is kept"))
