"""Print the name of this host's Ascend chip as atc's --soc_version takes it, e.g. Ascend310P3.

Asks `npu-smi info`, unless --chip or the variable CHIP_NAME names the chip.

  bash scripts/chip_name.sh
  bash scripts/chip_name.sh --chip 310P3
"""

from __future__ import annotations

from dekr_infer.ascend.soc_version import chip_name
from dekr_infer.cli.app import Arguments, Parser, non_negative_int, run


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--chip", metavar="NAME", help="the chip's name (default: CHIP_NAME, or npu-smi's answer)")
    parser.add_argument(
        "--device", type=non_negative_int, metavar="N", help="the chip that ais_bench opens by N, if chips differ"
    )
    args = parser.parse_args(argv)
    return run(lambda: print(chip_name(args.chip, args.device)))
