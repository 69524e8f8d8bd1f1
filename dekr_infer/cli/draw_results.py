"""Draw the people of a COCO result file over their images: one PNG each, and a sheet beside the annotated people.

python3 scripts/draw_results.py --results results/keypoints_val2017_results.json DATASET.ROOT data/coco
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from yacs.config import CfgNode

from dekr_infer.cli.app import Arguments, Parser, add_category, add_config, config_of, positive_int, run
from dekr_infer.config.load import skeleton_of
from dekr_infer.data.coco import load_data_set
from dekr_infer.data.sources import ImageFiles, image_source
from dekr_infer.evaluation.coco_metrics import read_results
from dekr_infer.geometry import Size
from dekr_infer.skeleton import Skeleton
from dekr_infer.visualization.overlay import contact_sheet, draw_poses, write_png

TILE = Size(300, 400)  # pixels of one image on the sheet
COLUMNS = 4


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--results", type=Path, default=Path("results/keypoints_val2017_results.json"))
    parser.add_argument("--output", type=Path, default=Path("overlays"), help="folder for the PNG files")
    parser.add_argument("--pictures", type=positive_int, default=12, metavar="N", help="how many (default: 12)")
    parser.add_argument("--min_score", type=float, default=0.1, help="draw only people above (default: 0.1)")
    add_category(parser)
    add_config(parser)
    args = parser.parse_args(argv)
    return run(lambda: draw_results(config_of(args), args))


def draw_results(config: CfgNode, args: Namespace) -> None:
    """Draw the first images with people, or simply the first ones where nobody was found.

    Args:
        config: names the data set.
        args: of the command.

    Raises:
        DekrError: the results, the annotation or an image cannot be read, or a drawing cannot be written.
    """
    skeleton = skeleton_of(config)
    data, output = load_data_set(config.DATASET.ROOT, config.DATASET.TEST, args.category, skeleton), args.output
    files = ImageFiles(
        image_source(config.DATASET.ROOT, config.DATASET.TEST, config.DATASET.DATA_FORMAT), config.DATASET.TEST
    )
    found = _by_image(read_results(args.results, data, skeleton))
    truth = _by_image([msgspec.to_builtins(person) for person in data.people or ()])
    chosen = ([image for image in data.images if image.id in found] or list(data.images))[: args.pictures]
    output.mkdir(parents=True, exist_ok=True)
    tiles, labels = [], []
    for image in chosen:
        pixels = files.decode(image)[:, :, ::-1]
        drawn = draw_poses(pixels, *_people(found.get(image.id, []), args.min_score, skeleton), skeleton=skeleton)
        write_png(output / f"{image.stem}.png", drawn)
        annotated, _ = _people(truth.get(image.id, []), -np.inf, skeleton)
        tiles += [draw_poses(pixels, annotated, skeleton=skeleton), drawn]
        labels += [f"{image.stem} annotated", f"{image.stem} found"]
    name = "sheet"
    while name in {image.stem for image in chosen}:
        name = f"_{name}"
    sheet = output / f"{name}.png"
    write_png(sheet, contact_sheet(tiles, labels, COLUMNS, TILE))
    print(f"{len(chosen)} images -> {output}; all of them beside the annotated people: {sheet}")


def _by_image(entries: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    grouped: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        grouped.setdefault(entry["image_id"], []).append(entry)
    return grouped


def _people(entries: Sequence[dict[str, Any]], least: float, skeleton: Skeleton) -> tuple[np.ndarray, np.ndarray]:
    """Return poses (people, J, 3) and scores (people,) of the entries that score at least so much."""
    kept = [entry for entry in entries if entry.get("score", 1.0) >= least]
    poses = np.array([entry["keypoints"] for entry in kept], np.float32).reshape(-1, len(skeleton), 3)
    return poses, np.array([entry.get("score", 1.0) for entry in kept], np.float32)
