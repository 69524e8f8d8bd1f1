#!/usr/bin/env python3
"""Measure every stage beside the reference's way of working and beside the machine's limits; print a table.

Ours and the reference's way, written plainly in scripts/bench/plain.py, do the same work in turn in one process. By
default on drawn pictures and random weights, which anyone can make; --root takes a data set in COCO's layout. Nothing
stays behind but the table and, if wanted, the JSON file.

  python3 scripts/bench/run.py
  python3 scripts/bench/run.py --root data/coco --pictures 80 --upstream DEKR --json bench.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dekr_infer.cli import export as export_command
from dekr_infer.cli import random_checkpoint
from dekr_infer.cli.app import Arguments, Parser, add_config, cores, positive_int, run
from dekr_infer.config.load import load_config
from dekr_infer.data.coco import DataSet, load_data_set, picture_source
from dekr_infer.pose.encode import Encoding, noisy, write_dumps
from dekr_infer.pose.preprocess import Job
from dekr_infer.storage.atomic import write_json
from scripts.bench import forward, postprocessing, preprocessing
from scripts.bench.machine import machine, sentence
from scripts.bench.measure import Row, table
from scripts.bench.quietly import quietly
from scripts.bench.upstream import Upstream
from scripts.demo.people import write_data_set

STAGES = PREPROCESSING, FORWARD, POSTPROCESSING = "preprocessing", "forward", "postprocessing"
PICTURES, ROUNDS, SEED = 40, 5, 2017
SPLIT = "val2017"


def main(argv: Arguments = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--root", type=Path, help="data set in COCO's layout (default: drawn people)")
    parser.add_argument("--pictures", type=positive_int, default=PICTURES, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--only", type=_stages, default=STAGES, metavar="STAGES", help=f"of {','.join(STAGES)}")
    parser.add_argument("--upstream", type=Path, metavar="DEKR", help="measure this patched checkout as well")
    parser.add_argument("--rounds", type=positive_int, default=ROUNDS, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here as well")
    parser.add_argument("--work", type=Path, default=Path(), help="a folder on the disk to be measured (default: here)")
    add_config(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        args.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=args.work) as folder:
            rows, limits = measure(args, Path(folder))
        if args.json:
            report = {
                "machine": machine(),
                "limits": limits,
                "rounds": args.rounds,
                "stages": [r.as_json() for r in rows],
            }
            write_json(args.json, report, indent=2)
        print(sentence())
        print("limits: " + "; ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in limits.items()))
        print(f"\n{table(rows)}")

    return run(work)


def _stages(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in STAGES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(STAGES)}")
    return names


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[Row], dict[str, float]]:
    """The rows of the wanted stages, and the machine's limits by name."""
    checkpoint, rescore = folder / "network.pth", folder / "rescore.pth"
    settings = list(args.pairs)
    random = ("--output", checkpoint, "--output_rescore", rescore)
    quietly(random_checkpoint.main, *random, *_config(args))
    config = load_config(args.cfg, [*settings, "RESCORE.MODEL_FILE", str(rescore)])
    upstream = Upstream(args.upstream, config, rescore) if args.upstream else None
    rows: list[Row] = []
    limits: dict[str, float] = {}
    data = _data(args, folder)
    if PREPROCESSING in args.only:
        job = Job(picture_source(data.annotation.parents[1], SPLIT), SPLIT, (folder / "prep", folder / "prep_flip"))
        found, more = preprocessing.measure(data.pictures, job, args.rounds, upstream)
        rows, limits = rows + found, limits | more
    if FORWARD in args.only:
        graph = folder / "network.onnx"
        weights = ("TEST.MODEL_FILE", checkpoint)
        quietly(export_command.main, "--skip_check", "--output", graph, *_config(args), *weights)
        found, more = forward.measure(config, checkpoint, graph, cores(), args.rounds, upstream)
        rows, limits = rows + found, limits | more
    if POSTPROCESSING in args.only:
        dumps = write_dumps(data, folder / "dumps", Encoding(distort=noisy))
        rows += postprocessing.measure(data, dumps, config, args.rounds, upstream)
    return rows, limits


def _data(args: argparse.Namespace, folder: Path) -> DataSet:
    """The pictures to work on: the first ones of a data set, or drawn ones."""
    root = args.root or folder / "drawn"
    if args.root is None:
        write_data_set(root, SPLIT, args.pictures, SEED)
    data = load_data_set(root, SPLIT)
    return DataSet(data.annotation, data.pictures[: args.pictures], data.content)


def _config(args: argparse.Namespace) -> list[Any]:
    return [*(("--cfg", args.cfg) if args.cfg else ()), *args.pairs]


if __name__ == "__main__":
    sys.exit(main())
