"""Find out which export variant (--deform) of a checkpoint is the fastest on this NPU. Experimental.

This command and the variants grouped and gather have never run on an NPU. Each variant is exported, checked, converted,
and timed at every input size with a sample image; its outputs are compared with ONNX Runtime's on the CPU. Variants are
ranked by the time on the device of one pass, the input sizes weighted by their frequency in COCO. Reading, copying and
decoding are not included, and an image takes two passes. A variant that fails, or whose outputs differ by more than
float16 explains, is reported and not ranked.

Finished steps are noted in --work, and repeated only if their inputs have changed. The exit code is 0 if at least one
variant is ranked. The words after -- are passed on to atc.

  bash scripts/tune_npu.sh TEST.MODEL_FILE models/pose_dekr_hrnetw32_coco.pth
  bash scripts/tune_npu.sh --variants separate,gather --root data/coco TEST.MODEL_FILE models/w32.pth
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dekr_infer.ascend.tune import HEAT_SHARE, LOOP, OFFSET_SHARE, tune
from dekr_infer.cli.app import (
    Arguments,
    Parser,
    add_config,
    config_of,
    cores,
    non_negative_int,
    positive_int,
    run,
    split_words,
)
from dekr_infer.cli.atc import add_conversion
from dekr_infer.config.settings import configured_sizes
from dekr_infer.export.variants import VARIANTS
from dekr_infer.geometry import InputSizes


def main(argv: Arguments = None, input_sizes: InputSizes | None = None) -> int:
    """Run the command; return its exit code."""
    words, extra = split_words(argv)
    parser = Parser(__doc__)
    names = ",".join(VARIANTS)
    parser.add_argument("--variants", type=_variants, default=VARIANTS, metavar="A,B", help=f"of {names}")
    parser.add_argument("--work", type=Path, default=Path("models/tune"), help="folder of graphs and models")
    parser.add_argument("--root", type=Path, help="weight input sizes as in this data set (default: a sample of COCO)")
    parser.add_argument(
        "--device", type=non_negative_int, metavar="N", help="NPU to convert for and run on (default: 0)"
    )
    parser.add_argument("--loop", type=positive_int, default=LOOP, metavar="N", help="timed passes per input size")
    for name, share in (("heat", HEAT_SHARE), ("offset", OFFSET_SHARE)):
        text = "difference from the CPU, as a share of the largest value"
        parser.add_argument(f"--{name}_tolerance", type=_share, default=share, metavar="X", help=text)
    add_conversion(parser, cache="enable")  # the variants have most kernels in common
    add_config(parser)
    args = parser.parse_args(words)
    configured = [*(["--cfg", args.cfg] if args.cfg else []), *args.pairs]

    def work() -> None:
        options = {key: value for key, value in vars(args).items() if key not in ("cfg", "pairs")}
        config = config_of(args)
        sizes = input_sizes or configured_sizes(config)
        tune(config, words=configured, extra=extra, threads=cores(), input_sizes=sizes, **options)

    return run(work)


def _variants(text: str) -> list[str]:
    """Return the variants in a text, separated by commas, each once; an argument type."""
    names = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(VARIANTS)}")
    return names


def _share(text: str) -> float:
    """Return the number in a text, which must be above 0; an argument type."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value
