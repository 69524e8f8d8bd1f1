"""Write seeded random checkpoints in the official layout, so that every command can be rehearsed without the weights.

The network finds nothing, but it behaves: activations stay of order one, the deformable taps move by a cell or two,
offsets are of the size of people, and the centre map has peaks. --cfg dekr_w48_coco makes one for W48. The files are
marked as random, and so is a graph exported from them: every command that shows people or metrics says so.

  python3 scripts/random_checkpoint.py --output models/random_w32.pth --output_rescore models/random_rescore.pth
"""

from __future__ import annotations

import os
from pathlib import Path

from dekr_infer.cli.app import Arguments, Parser, add_config, config_of, non_negative_int, run
from dekr_infer.config.load import skeleton_of
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.model.checkpoint import save
from dekr_infer.model.random_weights import random_network, random_rescore
from dekr_infer.model.weights import mark_random


def main(argv: Arguments = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("models/random_w32.pth"), help="the network's checkpoint")
    parser.add_argument(
        "--output_rescore", type=Path, default=Path("models/random_rescore.pth"), help="the rescoring net's"
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the weights")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    add_config(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        config = config_of(args)
        if os.path.realpath(args.output) == os.path.realpath(args.output_rescore):
            raise ConfigError("--output and --output_rescore name the same file")
        for path in (args.output, args.output_rescore):
            if path.exists() and not args.overwrite:
                raise DekrError(f"{path}: exists; name another file or add --overwrite")
        network = random_network(config, args.seed)
        rescore = random_rescore(config.RESCORE.HIDDEN_LAYER, skeleton_of(config))
        states = {args.output: network.state_dict(), args.output_rescore: rescore}
        for path, state in states.items():
            mark_random(state)
            save(state, path)
        print(f"{len(states[args.output])} keys -> {args.output}; rescoring net -> {args.output_rescore}")

    return run(work)
