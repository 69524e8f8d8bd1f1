"""Draw the people of a COCO result file over their pictures: one PNG each, and a sheet beside the annotated people.

python3 scripts/draw_results.py --results results/keypoints_val2017_results.json DATASET.ROOT data/coco
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dekr_infer.backends.tensor_folder import read_picture
from dekr_infer.cli.app import Arguments, Parser, add_config, config_of, count, run
from dekr_infer.data.coco import DataSet, Picture, PictureFiles, load_data_set, picture_source
from dekr_infer.evaluation.coco_metrics import checked_annotations, checked_results, person_category
from dekr_infer.geometry import Size
from dekr_infer.pose.decode import JOINTS
from dekr_infer.visualization.overlay import contact_sheet, draw_poses, write_png

TILE = Size(300, 400)  # pixels of one picture on the sheet
COLUMNS = 4


def main(argv: Arguments = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--results", type=Path, default=Path("results/keypoints_val2017_results.json"))
    parser.add_argument("--output", type=Path, default=Path("overlays"), help="folder for the PNG files")
    parser.add_argument("--pictures", type=count, default=12, metavar="N", help="how many (default: 12)")
    parser.add_argument("--min_score", type=float, default=0.1, help="people below are not drawn (default: 0.1)")
    add_config(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        config = config_of(args)
        data = load_data_set(config.DATASET.ROOT, config.DATASET.TEST)
        source = picture_source(config.DATASET.ROOT, config.DATASET.TEST, config.DATASET.DATA_FORMAT)
        files = PictureFiles(source, config.DATASET.TEST)
        found = _by_picture(checked_results(args.results, data))
        truth = _by_picture(_annotated(data))
        chosen = _chosen(data, found, args.pictures)
        args.output.mkdir(parents=True, exist_ok=True)
        tiles, labels = [], []
        for picture in chosen:
            image = read_picture(files, picture)[:, :, ::-1]
            drawn = draw_poses(image, *_people(found.get(picture.id, []), args.min_score))
            write_png(args.output / f"{picture.stem}.png", drawn)
            annotated, _ = _people(truth.get(picture.id, []), -np.inf)
            tiles += [draw_poses(image, annotated), drawn]
            labels += [f"{picture.stem} annotated", f"{picture.stem} found"]
        sheet = args.output / _sheet_name(chosen)
        write_png(sheet, contact_sheet(tiles, labels, COLUMNS, TILE))
        print(f"{len(chosen)} pictures -> {args.output}; all of them beside the annotated people: {sheet}")

    return run(work)


def _annotated(data: DataSet) -> list[dict[str, Any]]:
    """The annotated people; an annotation file may lack them."""
    if "annotations" not in data.content:
        return []
    person_category(data)
    return checked_annotations(data)


def _sheet_name(pictures: list[Picture]) -> str:
    """What the sheet is called: not as a picture is."""
    name = "sheet"
    while name in {picture.stem for picture in pictures}:
        name = f"_{name}"
    return f"{name}.png"


def _by_picture(entries: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    grouped: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        grouped.setdefault(entry["image_id"], []).append(entry)
    return grouped


def _chosen(data: DataSet, found: dict[int, Any], count: int) -> list[Picture]:
    """The first pictures in which somebody was found; when that is nowhere, simply the first."""
    return ([p for p in data.pictures if p.id in found] or list(data.pictures))[:count]


def _people(entries: list[dict[str, Any]], least: float) -> tuple[np.ndarray, np.ndarray]:
    """Poses (people, 17, 3) and scores (people,) of the entries that score at least so much."""
    kept = [entry for entry in entries if entry.get("score", 1.0) >= least]
    poses = np.array([entry["keypoints"] for entry in kept], np.float32).reshape(-1, JOINTS, 3)
    return poses, np.array([entry.get("score", 1.0) for entry in kept], np.float32)
