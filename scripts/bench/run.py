"""Measure every stage, next to the reference's way of working and to the machine's limits; print a table.

Ours and the reference's way, written plainly in scripts/bench/reference_impl.py, do the same work in turn in one
process. The default work is drawn images and random weights; --root takes a data set in COCO's layout. Nothing is left
on the disk but the JSON file, if requested.

  python3 scripts/bench/run.py
  python3 scripts/bench/run.py --root data/coco --pictures 80 --upstream DEKR --json bench.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dekr_infer.cli.app import Arguments, Parser, add_config, cores, positive_int, run
from dekr_infer.config.load import load_config
from dekr_infer.data.coco import load_data_set
from dekr_infer.data.sources import ImageFiles, image_source
from dekr_infer.geometry import Size
from dekr_infer.model.checkpoint import save
from dekr_infer.model.random_weights import random_network, random_rescore
from dekr_infer.pose.encode import Encoding, noisy, write_dumps
from dekr_infer.storage.atomic import write_json
from scripts.bench import forward, postprocessing, preprocessing
from scripts.bench.environment import environment
from scripts.bench.timing import Row, table
from scripts.bench.upstream import Upstream
from scripts.demo.people import write_data_set

STAGES = PREPROCESSING, FORWARD, POSTPROCESSING = "preprocessing", "forward", "postprocessing"
IMAGES, ROUNDS, SEED = 40, 5, 2017
SPLIT = "val2017"
FORWARD_SIZES = (Size(512, 512), Size(512, 768))


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--root", type=Path, help="data set in COCO's layout (default: drawn people)")
    parser.add_argument("--pictures", type=positive_int, default=IMAGES, metavar="N", help="images (%(default)s)")
    parser.add_argument("--only", type=_stages, default=STAGES, metavar="STAGES", help=f"of {','.join(STAGES)}")
    parser.add_argument("--upstream", type=Path, metavar="DEKR", help="measure this patched checkout as well")
    parser.add_argument("--rounds", type=positive_int, default=ROUNDS, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times of every round")
    parser.add_argument("--work", type=Path, default=Path(), help="a folder on the disk to be measured (default: here)")
    add_config(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        args.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=args.work) as folder:
            rows = measure(args, Path(folder))
        machine = environment()
        if args.json:
            write_json(args.json, {"environment": machine, "stages": [asdict(row) for row in rows]}, indent=2)
        print("; ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items()))
        print(f"\n{table(rows)}")

    return run(work)


def _stages(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in STAGES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(STAGES)}")
    return names


def measure(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Return the rows of the requested stages; `folder` takes all files of the measurement."""
    root = args.root or folder / "drawn"
    if args.root is None:
        write_data_set(root, SPLIT, args.pictures, SEED)
    data = load_data_set(root, SPLIT).first(args.pictures)
    checkpoint, rescore = folder / "network.pth", folder / "rescore.pth"
    config = load_config(args.cfg, [*args.pairs, "RESCORE.MODEL_FILE", str(rescore)])
    network = random_network(config, SEED)
    save(network.state_dict(), checkpoint)
    save(random_rescore(config.RESCORE.HIDDEN_LAYER), rescore)
    upstream = Upstream(args.upstream, config, rescore) if args.upstream else None
    rows: list[Row] = []
    if PREPROCESSING in args.only:
        files, folders = ImageFiles(image_source(root, SPLIT)), (folder / "prep", folder / "prep_flip")
        rows += preprocessing.measure(data.images, files, folders, args.rounds, upstream)
    if FORWARD in args.only:
        theirs = upstream.network(checkpoint) if upstream else None
        rows += forward.measure(network, theirs, FORWARD_SIZES, cores(), args.rounds)
    if POSTPROCESSING in args.only:
        outputs = write_dumps(data, folder / "outputs", Encoding(distort=noisy))
        rows += postprocessing.measure(data, outputs, config, args.rounds, upstream)
    return rows


if __name__ == "__main__":
    sys.exit(main())
