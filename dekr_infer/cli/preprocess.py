"""Turn COCO pictures into network tensors, original and flipped, in five fixed sizes.

Reads DATASET.ROOT/images/val2017.zip (or the folder images/val2017/) in the order of the annotation file and writes
one <picture>.npy of float32 (1, 3, H, W) into each of the two folders. What is there already is kept.

  python3 DEKR_preprocess.py --output ./prep_data --output_flip ./prep_data_flip DATASET.ROOT data/coco
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import cv2

from dekr_infer.cli.app import Arguments, Parser, add_config, config_of, cores, positive_int, run, worker_count
from dekr_infer.cli.progress import progress
from dekr_infer.data.coco import load_data_set
from dekr_infer.data.sources import image_source
from dekr_infer.errors import ConfigError
from dekr_infer.evaluation.provenance import Making, moved_warning
from dekr_infer.geometry import PUBLISHED_SIZES
from dekr_infer.pose.preprocess import input_size_table, moves_pixels, write_tensors
from dekr_infer.storage.atomic import sha256


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("prep_data"), help="folder for the tensors")
    parser.add_argument("--output_flip", type=Path, default=Path("prep_data_flip"), help="folder for the flipped ones")
    parser.add_argument(
        "--workers", type=worker_count, default=cores(), metavar="N", help="processes (default: all cores)"
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N pictures")
    parser.add_argument("--overwrite", action="store_true", help="write tensors anew that are there already")
    add_config(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        config = config_of(args)
        short_side = min(PUBLISHED_SIZES.sizes[0])
        if short_side != config.DATASET.INPUT_SIZE:
            raise ConfigError(
                f"DATASET.INPUT_SIZE {config.DATASET.INPUT_SIZE}: the five sizes are made for {short_side}; "
                f"add DATASET.INPUT_SIZE {short_side}"
            )
        if os.path.realpath(args.output) == os.path.realpath(args.output_flip):
            raise ConfigError("--output and --output_flip name the same folder")
        started = time.monotonic()
        root, split = config.DATASET.ROOT, config.DATASET.TEST
        data = load_data_set(root, split)
        source = image_source(root, split, config.DATASET.DATA_FORMAT)
        moved = moves_pixels()
        if moved:
            print(f"warning: {moved_warning([cv2.__version__])}", file=sys.stderr)
        folders = (args.output, args.output_flip)
        with progress("preprocess", len(data.images[: args.limit])) as advance:
            summary = write_tensors(
                data,
                source,
                split,
                folders,
                limit=args.limit,
                workers=args.workers,
                overwrite=args.overwrite,
                making=Making(sha256(data.annotation), cv2.__version__, moved),
                advance=advance,
            )
        print(
            f"{summary.pictures} pictures ({summary.skipped} were there already) -> {args.output} {args.output_flip}; "
            f"{input_size_table(summary.input_sizes)}; {summary.written:,} bytes in {time.monotonic() - started:.1f} s"
        )

    return run(work)
