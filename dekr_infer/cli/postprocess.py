r"""Turn the network's outputs into people and evaluate them: flip merge, poses, rescoring, COCO keypoint AP.

Reads <image>_0.npy (heatmap) and <image>_1.npy (offset) from both output folders and writes
keypoints_<split>_results.json and metrics.json. The images themselves are not needed, only their annotation file.
What looks wrong with the metrics is reported on stderr in lines that start with `warning:`, and kept in metrics.json.

--compare FILE lists what differs from an earlier run: inputs, settings, versions, counts, metrics. The exit code is
then 0 when the ten metrics are equal, whatever else differs, and 1 otherwise; both files are written in either case.

  python3 DEKR_postprocess.py --dump_dir ./out --dump_dir_flip ./out_flip \
      RESCORE.MODEL_FILE models/final_rescore_coco_kpt.pth
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dekr_infer.backends.output_folder import OutputFolder
from dekr_infer.cli.app import (
    Arguments,
    Parser,
    add_category,
    add_config,
    add_report,
    config_of,
    print_note,
    print_warnings,
    run,
)
from dekr_infer.cli.data_set import data_set_of, image_files_if_there
from dekr_infer.cli.progress import progress
from dekr_infer.config.settings import (
    configured_sizes,
    decode_settings,
    influences,
    refine_settings,
    require_one_scale,
    rescore_net,
)
from dekr_infer.data.coco import DataSet
from dekr_infer.data.sources import frames_of
from dekr_infer.detector import Detector
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.evaluation.coco_metrics import metrics_table
from dekr_infer.evaluation.evaluate import Evaluation, evaluate
from dekr_infer.evaluation.metrics_file import (
    SAME,
    difference_lines,
    metrics_content,
    read_metrics,
    require_same_metrics,
    write_both,
)
from dekr_infer.evaluation.provenance import origins, require_one_run
from dekr_infer.evaluation.timing import pass_times
from dekr_infer.storage.atomic import folder_lock


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--dump_dir", type=Path, default=Path("out"), help="outputs for the original tensors")
    parser.add_argument("--dump_dir_flip", type=Path, default=Path("out_flip"), help="outputs for the flipped tensors")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for the two JSON files")
    parser.add_argument("--allow_missing", action="store_true", help="evaluate the images that have outputs")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="list what differs from an earlier metrics.json; see above"
    )
    add_report(parser)
    add_category(parser)
    add_config(parser)
    args = parser.parse_args(argv)
    return run(
        lambda: postprocess(
            config_of(args),
            args.dump_dir,
            args.dump_dir_flip,
            args.output,
            allow_missing=args.allow_missing,
            compare=args.compare,
            category=args.category,
            report=args.report,
        )
    )


def postprocess(
    config: CfgNode,
    dump_dir: Path,
    dump_dir_flip: Path,
    output: Path,
    *,
    allow_missing: bool = False,
    compare: Path | None = None,
    category: str | None = None,
    report: Path | None = None,
) -> None:
    """Evaluate two output folders, print the metrics, and write both JSON files below `output`, and the report.

    Raises:
        DekrError: see `OutputFolder.complete` and `evaluate`; or a metric differs from those in `compare`.
    """
    require_one_scale(config)
    started = time.monotonic()
    flip = config.TEST.FLIP_TEST
    folders = [dump_dir, dump_dir_flip] if flip else [dump_dir]
    if len(set(map(os.path.realpath, folders))) < len(folders):
        raise ConfigError("--dump_dir and --dump_dir_flip name the same folder")
    data = data_set_of(config, category)
    backend = OutputFolder(
        dump_dir, dump_dir_flip if flip else None, data.skeleton, input_sizes=configured_sizes(config)
    )
    frames = backend.complete(frames_of(data, backend.input_sizes), data.annotation.name, allow_missing)
    require_one_run(folders, {frame.key: frame.name for frame in frames}, image_files_if_there(config))
    earlier = read_metrics(compare) if compare else None
    detector = Detector(
        backend,
        decode_settings(config),
        flip=flip,
        refine=refine_settings(config),
        rescore=rescore_net(config),
        skeleton=data.skeleton,
    )
    with folder_lock(output, create=False):
        with progress("postprocess", len(frames)) as advance:
            evaluation = evaluate(detector, data, frames, advance)
        metrics = write_evaluation(config, data, evaluation, origins(folders), output, started)
    if report is not None:
        from dekr_infer.cli.report import write_run_report

        write_run_report(
            report,
            config,
            data,
            evaluation.results,
            evaluation.evaluated,
            run=metrics,
            expected=None if earlier is None else earlier["figures"]["AP"],
            tolerance=SAME,
            times=_times(folders, data),
            input_sizes=backend.input_sizes,
        )
    if earlier is not None and compare is not None:
        print("\n".join(difference_lines(earlier, metrics, compare)))
        require_same_metrics(earlier, metrics, compare)


def write_evaluation(
    config: CfgNode,
    data: DataSet,
    evaluation: Evaluation,
    known: Sequence[Mapping[str, Any]],
    output: Path,
    started: float,
    baked_rescore: str | None = None,
) -> dict[str, Any]:
    """Write both JSON files below `output`, print the metrics and warnings, and return the content of metrics.json.

    Args:
        config: of the run.
        data: the ground truth.
        evaluation: the results.
        known: the provenance of each pass; see `origins`.
        output: the folder; it is locked by the caller.
        started: the monotonic time at which the command began.
        baked_rescore: SHA-256 of the rescoring net's checkpoint, where the graph has rescored.
    Raises:
        DekrError: a file cannot be written.
    """
    rescore = Path(config.RESCORE.MODEL_FILE) if config.RESCORE.VALID and baked_rescore is None else None
    metrics = metrics_content(evaluation, data, influences(config), rescore, known)
    if baked_rescore is not None:
        metrics["sha256"]["rescore"] = baked_rescore
    metrics["seconds"] = {"decoding": evaluation.seconds, "all": time.monotonic() - started}
    results = output / f"keypoints_{config.DATASET.TEST}_results.json"
    write_both(results, evaluation.results, output / "metrics.json", metrics)
    left_out = len(data.images) - len(evaluation.evaluated)
    print(
        f"{data.annotation} has no annotations: there are no metrics; the results are written for submission"
        if data.people is None
        else metrics_table(evaluation.metrics)
    )
    print(
        f"{len(evaluation.evaluated)} images, {len(evaluation.results)} people, nobody in {evaluation.empty} images"
        + (f"; NOT THE WHOLE DATA SET: {left_out} images were missing and left out" if left_out else "")
    )
    print(
        f"flip {'on' if config.TEST.FLIP_TEST else 'off'}, rescoring {'on' if config.RESCORE.VALID else 'off'}; "
        f"{results} and metrics.json in {metrics['seconds']['all']:.1f} s"
    )
    print_note(metrics["weights"])
    print_warnings(metrics["warnings"])
    return metrics


def _times(folders: Sequence[Path], data: DataSet) -> dict[int, list[float]]:
    """Return the times of the passes, none where the summaries do not have them."""
    try:
        return pass_times(folders, data)
    except DekrError:
        return {}
