"""Write one HTML file that says how good keypoint results are, where not, and why; it opens in any browser.

First the verdict, then the errors behind AP by kind and by joint, AP by size, precision, ranking, latency, the worst
images and a random sample with truth beside prediction, and all that AP depends on. A JSON with the same numbers is
written beside it. Settings, versions and warnings come from the metrics.json beside the results.
DEKR_postprocess.py and scripts/evaluate.py write the same with --report FILE.html.

  python3 scripts/report.py --results results/keypoints_val2017_results.json --expect 0.680 DATASET.ROOT data/coco
  python3 scripts/report.py --times out --times out_flip DATASET.ROOT data/coco
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dekr_infer.cli.app import Arguments, Parser, add_category, add_config, config_of, html_file, run, share_of_one
from dekr_infer.cli.data_set import data_set_of, image_files_if_there
from dekr_infer.config.settings import configured_sizes
from dekr_infer.data.coco import DataSet
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.coco_metrics import coco_metrics, read_results
from dekr_infer.evaluation.metrics_file import SAME, TOLERANCE, read_metrics
from dekr_infer.evaluation.report import drawer, report_content, write_report
from dekr_infer.evaluation.timing import pass_times
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes
from dekr_infer.storage.atomic import sha256


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--results", type=Path, default=Path("results/keypoints_val2017_results.json"), help="the result file"
    )
    parser.add_argument(
        "--output", type=html_file, metavar="FILE.html", help="(default: report.html beside the results)"
    )
    parser.add_argument("--expect", type=share_of_one, metavar="AP", help="AP of another source, for the verdict")
    parser.add_argument("--tolerance", type=share_of_one, default=TOLERANCE, metavar="T", help="for --expect")
    parser.add_argument(
        "--times",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="of outputs, or of a run of evaluate, for the latency; may be repeated",
    )
    add_category(parser)
    add_config(parser)
    args = parser.parse_args(argv)
    return run(lambda: report(config_of(args), args))


def report(config: CfgNode, args: Namespace) -> None:
    """Write the report on a file of results.

    Args:
        config: names the data set.
        args: of the command.
    Raises:
        DekrError: a file cannot be read or written, or metrics.json and the results do not belong together.
    """
    data = data_set_of(config, args.category)
    results = read_results(args.results, data, data.skeleton)
    data.ground_truth()
    content, evaluated = run_of(args.results, results, data)
    write_run_report(
        args.output or args.results.with_name("report.html"),
        config,
        data,
        results,
        evaluated,
        run=content,
        expected=args.expect,
        tolerance=args.tolerance,
        times=pass_times(args.times, data),
        input_sizes=configured_sizes(config),
    )


def run_of(path: Path, results: Sequence[Mapping[str, Any]], data: DataSet) -> tuple[dict[str, Any], list[int]]:
    """Return the content of the metrics.json beside results, empty if there is none, and the images evaluated.

    Raises:
        DekrError: metrics.json is of other results, or is not what they give.
    """
    beside = path.with_name("metrics.json")
    ids = [image.id for image in data.images]
    if not beside.is_file():
        return {}, ids
    content = read_metrics(beside)
    remedy = "evaluate again, or move the metrics.json away to report on the results alone"
    hashes, counts = content.get("sha256"), content.get("counts")
    if not isinstance(hashes, dict) or hashes.get("results") != sha256(path):
        raise DekrError(f"{beside}: is not of the results in {path.name}; {remedy}")
    evaluated = counts.get("evaluated") if isinstance(counts, dict) else None
    ids = ids[:evaluated] if isinstance(evaluated, int) and evaluated > 0 else ids  # those of --limit
    found = coco_metrics(data, results, ids)
    for name in content["figures"].keys() & found.keys():
        if abs(found[name] - content["figures"][name]) > SAME:
            raise DekrError(
                f"{beside}: has {name} {content['figures'][name]:.6f}, but {path.name} gives {found[name]:.6f} on the "
                f"first {len(ids)} images of this data set; name the data set of these results with DATASET.ROOT, or "
                "have the report written by the command that evaluates, with --report"
            )
    return content, ids


def write_run_report(
    path: Path,
    config: CfgNode,
    data: DataSet,
    results: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
    *,
    run: Mapping[str, Any],
    expected: float | None = None,
    tolerance: float = TOLERANCE,
    times: Mapping[int, Sequence[float]] | None = None,
    input_sizes: InputSizes = PUBLISHED_SIZES,
) -> None:
    """Write the report on a run, with drawings where the images are there, and print where it is.

    A data set without annotations has none.

    Args:
        path: of the HTML file.
        config: names the data set.
        data: the ground truth.
        results: entries of COCO's result file.
        image_ids: the images that were evaluated.
        run: content of metrics.json.
        expected: AP of another source.
        tolerance: for `expected`, both ways.
        times: milliseconds of each image's passes, by image id.
        input_sizes: what the network was fed.
    Raises:
        DekrError: a file cannot be written.
    """
    if data.people is None:
        print(f"no report: {data.annotation} has no annotations")
        return
    files = image_files_if_there(config)
    content = report_content(
        data,
        results,
        image_ids,
        run=run,
        expected=expected,
        tolerance=tolerance,
        times=times,
        input_sizes=input_sizes,
        skeleton=data.skeleton,
    )
    title = f"DEKR on {config.DATASET.TEST} of {config.DATASET.ROOT}"
    write_report(
        path, content, title=title, draw=None if files is None else drawer(data, files, results, skeleton=data.skeleton)
    )
    print(f"report: {path}")
