"""Turn the network's outputs into people and evaluate them: flip merge, poses, rescoring, COCO keypoint AP.

Reads <picture>_0.npy (heatmap) and <picture>_1.npy (offset) from both dump folders and writes
keypoints_<split>_results.json and metrics.json. The pictures themselves are not needed, only their annotation file.
What looks wrong with the figures is said on stderr in lines that start with `warning:`, and kept in metrics.json.

--compare FILE lists what differs from an earlier run: inputs, settings, versions, counts, figures. The exit code is
then 0 when the ten figures are the same, whatever else differs, and 1 when they are not; both files are written anyway.

  python3 DEKR_postprocess.py --dump_dir ./out --dump_dir_flip ./out_flip \\
      RESCORE.MODEL_FILE models/final_rescore_coco_kpt.pth
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from yacs.config import CfgNode

from dekr_infer.cli.app import Arguments, Parser, add_config, config_of, run
from dekr_infer.cli.progress import progress
from dekr_infer.data.coco import DataSet, PictureFiles, load_data_set, picture_source
from dekr_infer.errors import ConfigError, DekrError, one_line
from dekr_infer.evaluation.coco_metrics import coco_figures, figures_table
from dekr_infer.evaluation.evaluate import Settings, available, process
from dekr_infer.evaluation.metrics_file import (
    difference_lines,
    metrics_of,
    read_metrics,
    require_same_figures,
    write_both,
)
from dekr_infer.evaluation.provenance import require_one_run
from dekr_infer.pose.decode import DecodeSettings
from dekr_infer.pose.refine import MatchSettings
from dekr_infer.pose.rescore import load_rescore_net
from dekr_infer.storage.atomic import folder_lock


def main(argv: Arguments = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--dump_dir", type=Path, default=Path("out"), help="outputs for the original tensors")
    parser.add_argument("--dump_dir_flip", type=Path, default=Path("out_flip"), help="outputs for the flipped tensors")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for the two JSON files")
    parser.add_argument("--allow_missing", action="store_true", help="evaluate the pictures whose outputs are there")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="say what differs from an earlier metrics.json; see above"
    )
    add_config(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        config = config_of(args)
        started = time.monotonic()
        folders = [args.dump_dir] + [args.dump_dir_flip] * config.TEST.FLIP_TEST
        if len(set(map(os.path.realpath, folders))) < len(folders):
            raise ConfigError("--dump_dir and --dump_dir_flip name the same folder")
        data = load_data_set(config.DATASET.ROOT, config.DATASET.TEST)
        pictures = available(data, folders, args.allow_missing)
        require_one_run(folders, [picture.stem for picture in pictures], _image_now(config, data))
        earlier = read_metrics(args.compare) if args.compare else None
        settings = settings_of(config)
        with folder_lock(args.output, create=False):
            with progress("postprocess", len(pictures)) as advance:
                outcome = process(data, pictures, folders, settings, advance)
            figures = coco_figures(data, outcome.results, [picture.id for picture in pictures])
            metrics = metrics_of(config, data, folders, figures, outcome)
            metrics["seconds"] = {"decoding": outcome.seconds, "all": time.monotonic() - started}
            results = args.output / f"keypoints_{config.DATASET.TEST}_results.json"
            write_both(results, outcome.results, args.output / "metrics.json", metrics)
        left_out = len(data.pictures) - outcome.pictures
        print(figures_table(figures))
        print(
            f"{outcome.pictures} pictures, {outcome.people} people, nobody in {outcome.empty} pictures"
            + (f"; NOT THE WHOLE DATA SET: {left_out} pictures were missing and left out" if left_out else "")
        )
        print(
            f"flip {'on' if config.TEST.FLIP_TEST else 'off'}, rescoring {'on' if config.RESCORE.VALID else 'off'}; "
            f"{results} and metrics.json in {metrics['seconds']['all']:.1f} s"
        )
        for warning in metrics["warnings"].values():
            print(f"warning: {one_line(warning)}", file=sys.stderr)
        if earlier is not None:
            print("\n".join(difference_lines(earlier, metrics, args.compare)))
            require_same_figures(earlier, metrics, args.compare)

    return run(work)


def _image_now(config: CfgNode, data: DataSet) -> Callable[[str], str | None]:
    """Return a function from a stem to the fingerprint of its image, `None` where there is no such image."""
    names = {picture.stem: picture.file_name for picture in data.pictures}
    root, split = config.DATASET.ROOT, config.DATASET.TEST
    try:
        files = PictureFiles(picture_source(root, split, config.DATASET.DATA_FORMAT), split)
    except DekrError:
        return lambda stem: None

    def image_now(stem: str) -> str | None:
        try:
            return files.mark(names[stem])
        except DekrError:
            return None

    return image_now


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
