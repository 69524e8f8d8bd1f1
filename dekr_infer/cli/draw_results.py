"""Draw the people of a COCO result file over their images: one PNG each, and a sheet beside the annotated people.

--choose takes the first images with people, the worst ones by the error analysis of scripts/report.py, or random ones;
--image names one by id or by file name, and may be repeated.

  python3 scripts/draw_results.py --results results/keypoints_val2017_results.json DATASET.ROOT data/coco
  python3 scripts/draw_results.py --choose worst --pictures 20 DATASET.ROOT data/coco
  python3 scripts/draw_results.py --image 139 --image 000000000785.jpg --min_joint_score 0.2 DATASET.ROOT data/coco
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from yacs.config import CfgNode

from dekr_infer.cli.app import (
    Arguments,
    Parser,
    add_category,
    add_config,
    config_of,
    non_negative_int,
    positive_int,
    run,
)
from dekr_infer.cli.data_set import data_set_of, image_files_of
from dekr_infer.data.coco import DataSet, ImageEntry
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.coco_metrics import read_results
from dekr_infer.evaluation.error_analysis import find_errors
from dekr_infer.evaluation.report import people_of
from dekr_infer.geometry import Size
from dekr_infer.visualization.overlay import contact_sheet, draw_poses, write_png

TILE = Size(300, 400)  # pixels of one image on the sheet
COLUMNS = 4


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--results", type=Path, default=Path("results/keypoints_val2017_results.json"), help="the result file"
    )
    parser.add_argument("--output", type=Path, default=Path("overlays"), help="folder for the PNG files")
    parser.add_argument("--pictures", type=positive_int, default=12, metavar="N", help="how many")
    parser.add_argument("--min_score", type=float, default=0.1, help="draw only people above")
    parser.add_argument("--min_joint_score", type=float, default=0.0, metavar="S", help="draw only joints above")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--choose", choices=("first", "worst", "random"), default="first", help="which images")
    chosen.add_argument(
        "--image", action="append", default=[], metavar="NAME", help="id or file name of an image; may be repeated"
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, metavar="N", help="of --choose random")
    add_category(parser)
    add_config(parser)
    args = parser.parse_args(argv)
    return run(lambda: draw_results(config_of(args), args))


def draw_results(config: CfgNode, args: Namespace) -> None:
    """Draw the chosen images.

    Args:
        config: names the data set.
        args: of the command.

    Raises:
        DekrError: the results, the annotation or an image cannot be read, there is no image of a name, or a drawing
            cannot be written.
    """
    data, output = data_set_of(config, args.category), args.output
    skeleton, files = data.skeleton, image_files_of(config)
    results = read_results(args.results, data, skeleton)
    found = _by_image(results)
    truth = _by_image([msgspec.to_builtins(person) for person in data.people or ()])
    chosen = _named(data, args.image) if args.image else _chosen(data, results, args)
    output.mkdir(parents=True, exist_ok=True)
    tiles, labels = [], []
    for image in chosen:
        pixels = files.decode(image)[:, :, ::-1]
        seen, scores = people_of(found.get(image.id, []), args.min_score, skeleton)
        drawn = draw_poses(pixels, seen, scores, joint_threshold=args.min_joint_score, skeleton=skeleton)
        write_png(output / f"{image.stem}.png", drawn)
        annotated, _ = people_of(truth.get(image.id, []), -np.inf, skeleton)
        tiles += [draw_poses(pixels, annotated, skeleton=skeleton), drawn]
        labels += [f"{image.stem} annotated", f"{image.stem} found"]
    name = "sheet"
    while name in {image.stem for image in chosen}:
        name = f"_{name}"
    sheet = output / f"{name}.png"
    write_png(sheet, contact_sheet(tiles, labels, COLUMNS, TILE))
    print(f"{len(chosen)} images -> {output}; all of them beside the annotated people: {sheet}")


def _named(data: DataSet, names: Sequence[str]) -> list[ImageEntry]:
    """Return the images of some ids or file names; each one once."""
    images = {image.file_name: image for image in data.images} | {str(image.id): image for image in data.images}
    for name in names:
        if name not in images:
            raise DekrError(f"{data.annotation}: lists no image {name}; --image expects an id or file name from there")
    return list(dict.fromkeys(images[name] for name in names))


def _chosen(data: DataSet, results: Sequence[dict[str, Any]], args: Namespace) -> list[ImageEntry]:
    """Return the images of `--choose`; images with people first, as long as there are any."""
    if args.choose == "worst":
        ids = [image.id for image in data.images]
        lost = find_errors(data, results, ids, data.skeleton).losses(data, results)
        return sorted(data.images, key=lambda image: -lost.get(image.id, 0))[: args.pictures]
    shown = {entry["image_id"] for entry in results}
    images = [image for image in data.images if image.id in shown] or list(data.images)
    if args.choose == "random":
        images = [images[place] for place in np.random.default_rng(args.seed).permutation(len(images))]
    return images[: args.pictures]


def _by_image(entries: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    grouped: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        grouped.setdefault(entry["image_id"], []).append(entry)
    return grouped
