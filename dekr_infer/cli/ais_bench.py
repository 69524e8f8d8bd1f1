"""Run a converted model over both folders of tensors by ais_bench, and check what it wrote.

Without --input it runs ./prep_data into ./out and ./prep_data_flip into ./out_flip. Results of an earlier run of the
same images are replaced once the new ones are complete; results of other images are refused. The words after -- are
passed on to ais_bench.

  bash scripts/ais_bench.sh models/dekr_bs1.om
  bash scripts/ais_bench.sh models/dekr_bs1.om --input prep_data --output_dirname out --device 1
"""

from __future__ import annotations

from pathlib import Path

from dekr_infer.ascend.ais_bench import run_passes
from dekr_infer.cli.app import Arguments, Parser, non_negative_int, run, split_words


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    words, extra = split_words(argv)
    parser = Parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.om")
    parser.add_argument("--input", type=Path, help="one folder of tensors (default: both passes)")
    parser.add_argument("--output", type=Path, default=Path(), help="place of the output folders (default: here)")
    parser.add_argument("--output_dirname", help="with --input: the output folder's name (default: out)")
    parser.add_argument("--device", type=non_negative_int, default=0, metavar="N", help="the NPU")
    args = parser.parse_args(words)
    if args.output_dirname and not args.input:
        parser.error("--output_dirname needs --input")
    return run(
        lambda: run_passes(
            args.model,
            source=args.input,
            output=args.output,
            dirname=args.output_dirname,
            device=args.device,
            extra=extra,
        )
    )
