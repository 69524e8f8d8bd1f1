"""Turn COCO pictures into network tensors, original and flipped, in five fixed sizes.

Reads DATASET.ROOT/images/val2017.zip (or the folder images/val2017/) in the order of the annotation file and writes
one <picture>.npy of float32 (1, 3, H, W) into each of the two folders. What is there already is kept. --dtype uint8
writes a quarter of the bytes, for graphs exported with --input uint8.
With TEST.INPUT_SIZES exact every image has the size that upstream gives it, for a graph exported with the same.

  python3 DEKR_preprocess.py --output ./prep_data --output_flip ./prep_data_flip DATASET.ROOT data/coco
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from yacs.config import CfgNode

from dekr_infer.backends.tensor_folder import input_size_table, write_tensors
from dekr_infer.cli.app import (
    Arguments,
    Parser,
    add_category,
    add_config,
    config_of,
    cores,
    positive_int,
    run,
    worker_count,
)
from dekr_infer.cli.data_set import data_set_of
from dekr_infer.cli.progress import progress
from dekr_infer.config.settings import configured_sizes, require_one_scale
from dekr_infer.data.sources import image_source
from dekr_infer.errors import ConfigError
from dekr_infer.evaluation.provenance import moved_warning
from dekr_infer.onnx_graph.baked import FLOAT32, INPUTS
from dekr_infer.pose.preprocess import moves_pixels


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("prep_data"), help="folder for the tensors")
    parser.add_argument("--output_flip", type=Path, default=Path("prep_data_flip"), help="folder for the flipped ones")
    parser.add_argument(
        "--workers", type=worker_count, default=cores(), metavar="N", help="threads (default: all cores)"
    )
    parser.add_argument(
        "--dtype", choices=INPUTS, default=FLOAT32, help="uint8 for a graph exported with --input uint8"
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N images")
    parser.add_argument("--overwrite", action="store_true", help="write tensors again that are there already")
    parser.add_argument("--allow_missing", action="store_true", help="write the tensors of the images that are there")
    add_category(parser)
    add_config(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        preprocess(
            config_of(args),
            (args.output, args.output_flip),
            limit=args.limit,
            workers=args.workers,
            dtype=args.dtype,
            overwrite=args.overwrite,
            category=args.category,
            allow_missing=args.allow_missing,
        )

    return run(work)


def preprocess(
    config: CfgNode,
    folders: tuple[Path, Path],
    *,
    limit: int | None = None,
    workers: int = 1,
    dtype: str = FLOAT32,
    overwrite: bool = False,
    replace_changed: bool = False,
    category: str | None = None,
    allow_missing: bool | None = None,
) -> None:
    """Write the tensors of a data set and print what was done; see `write_tensors`.

    Args:
        config: names the data set.
        limit: only the first so many images.
        workers: threads.
        dtype: of the tensors, one of `INPUTS`.
        overwrite: write all tensors again.
        replace_changed: write the tensors of changed images again, instead of refusing them.
        category: see `load_data_set`.
        allow_missing: see `ImageFiles.check_present`.
        folders: for the original and the flipped tensors.
    Raises:
        ConfigError: the folders are the same.
        DekrError: see `write_tensors`.
    """
    if os.path.realpath(folders[0]) == os.path.realpath(folders[1]):
        raise ConfigError("--output and --output_flip name the same folder")
    require_one_scale(config)
    started, sizes = time.monotonic(), configured_sizes(config)
    root, split = config.DATASET.ROOT, config.DATASET.TEST
    data = data_set_of(config, category)
    source = image_source(root, split, config.DATASET.DATA_FORMAT)
    if moves_pixels():
        print(f"warning: {moved_warning([cv2.__version__])}", file=sys.stderr)
    expected = data.images[:limit]
    with progress("preprocess", len(expected)) as advance:
        summary = write_tensors(
            data,
            source,
            folders,
            limit=limit,
            input_sizes=sizes,
            workers=workers,
            dtype=np.dtype(dtype),
            overwrite=overwrite,
            replace_changed=replace_changed,
            allow_missing=allow_missing,
            advance=advance,
        )
    counts = input_size_table(summary.input_sizes, sizes)
    print(
        f"{summary.images} images ({summary.done_before} were there already) -> {folders[0]} {folders[1]}; "
        f"{counts}; {summary.written:,} bytes in {time.monotonic() - started:.1f} s"
    )
    if summary.images < len(expected):
        print(f"warning: {len(expected) - summary.images} of {len(expected)} images are missing", file=sys.stderr)
