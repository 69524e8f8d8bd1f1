#!/usr/bin/env python3
"""Turn the network's outputs into people and evaluate them: flip merge, poses, rescoring, COCO keypoint AP.

Reads <picture>_0.npy (heatmap) and <picture>_1.npy (offset) from both dump folders and writes
keypoints_<split>_results.json and metrics.json. The pictures themselves are not needed, only their annotation file.

  python3 DEKR_postprocess.py --dump_dir ./out --dump_dir_flip ./out_flip \\
      RESCORE.MODEL_FILE models/final_rescore_coco_kpt.pth
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

import dekr_infer
from dekr_infer.coco import DataSet, load_data_set
from dekr_infer.command import Arguments, Parser, add_config, config_of, run
from dekr_infer.decode import DecodeSettings
from dekr_infer.errors import ConfigError
from dekr_infer.evaluate import coco_figures, figures_table
from dekr_infer.files import read_json, sha256, write_json
from dekr_infer.match import MatchSettings
from dekr_infer.postprocess import Outcome, Settings, available, process
from dekr_infer.progress import progress
from dekr_infer.rescore import load_rescore_net

LIBRARIES = ("numpy", "pycocotools")


def main(argv: Arguments = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--dump_dir", type=Path, default=Path("out"), help="outputs for the original tensors")
    parser.add_argument("--dump_dir_flip", type=Path, default=Path("out_flip"), help="outputs for the flipped tensors")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for the two JSON files")
    parser.add_argument("--allow_missing", action="store_true", help="evaluate the pictures whose outputs are there")
    add_config(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        config = config_of(args)
        started = time.monotonic()
        folders = [args.dump_dir] + [args.dump_dir_flip] * config.TEST.FLIP_TEST
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise ConfigError("--dump_dir and --dump_dir_flip name the same folder")
        data = load_data_set(config.DATASET.ROOT, config.DATASET.TEST)
        pictures = available(data, folders, args.allow_missing)
        settings = settings_of(config)
        with progress("postprocess", len(pictures)) as advance:
            outcome = process(data, pictures, folders, settings, advance)
        results = args.output / f"keypoints_{config.DATASET.TEST}_results.json"
        write_json(results, outcome.results)
        figures = coco_figures(data, outcome.results, [picture.id for picture in pictures])
        seconds = {"decoding": outcome.seconds, "all": time.monotonic() - started}
        metrics = _metrics(config, data, folders, figures, outcome) | {"seconds": seconds}
        write_json(args.output / "metrics.json", metrics, indent=2)
        left_out = len(data.pictures) - outcome.pictures
        print(figures_table(figures))
        print(
            f"{outcome.pictures} pictures, {outcome.people} people, nobody in {outcome.empty} pictures"
            + (f"; NOT THE WHOLE DATA SET: {left_out} pictures were missing and left out" if left_out else "")
        )
        print(
            f"flip {'on' if config.TEST.FLIP_TEST else 'off'}, rescoring {'on' if config.RESCORE.VALID else 'off'}; "
            f"{results} and metrics.json in {seconds['all']:.1f} s"
        )

    return run(work)


def settings_of(config: CfgNode) -> Settings:
    """What the configuration says about decoding; reads the rescoring checkpoint when it is wanted.

    Raises:
        DekrError: that checkpoint is missing or does not fit.
    """
    test = config.TEST
    decoding = DecodeSettings(
        max_people=config.DATASET.MAX_NUM_PEOPLE,
        threshold=test.KEYPOINT_THRESHOLD,
        nms_distance=test.NMS_THRE,
        nms_joints=test.NMS_NUM_THRE,
        pool_sides=(test.POOL_THRESHOLD1, test.POOL_THRESHOLD2),
    )
    matching = MatchSettings(
        max_people=config.DATASET.MAX_NUM_PEOPLE,
        absorb_distance=test.MAX_ABSORB_DISTANCE,
        threshold=test.ADJUST_THRESHOLD,
        reach=test.GUASSIAN_KERNEL,
        sigma=config.DATASET.SIGMA,
    )
    rescore = load_rescore_net(config.RESCORE.MODEL_FILE, config.RESCORE.HIDDEN_LAYER) if config.RESCORE.VALID else None
    return Settings(decoding, matching if test.MATCH_HMP else None, rescore)


def _metrics(
    config: CfgNode, data: DataSet, folders: list[Path], figures: dict[str, float], outcome: Outcome
) -> dict[str, Any]:
    """Everything that the figures depend on, beside the figures."""
    summaries = [folder.with_name(f"{folder.name}_summary.json") for folder in folders]
    graphs = [read_json(path).get("model_sha256") for path in summaries if path.is_file()]
    return {
        "figures": figures,
        "counts": {
            "pictures": len(data.pictures),
            "evaluated": outcome.pictures,
            "missing": len(data.pictures) - outcome.pictures,
            "people": outcome.people,
            "empty_pictures": outcome.empty,
        },
        "settings": {"split": config.DATASET.TEST, "flip": config.TEST.FLIP_TEST, "rescored": config.RESCORE.VALID}
        | {key: config.TEST[key] for key in ("KEYPOINT_THRESHOLD", "NMS_THRE", "NMS_NUM_THRE", "MATCH_HMP")}
        | {"MAX_NUM_PEOPLE": config.DATASET.MAX_NUM_PEOPLE},
        "sha256": {
            "annotations": sha256(data.annotation),
            "rescore": sha256(Path(config.RESCORE.MODEL_FILE)) if config.RESCORE.VALID else None,
            "graphs": graphs,
        },
        "versions": {"dekr_infer": dekr_infer.__version__} | {name: version(name) for name in LIBRARIES},
    }


if __name__ == "__main__":
    sys.exit(main())
