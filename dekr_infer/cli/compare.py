"""Compare two runs: which metrics moved, whether by luck, and which images and joints moved most.

A and B are each a file of results, a metrics.json, or a folder that holds both, such as results/ or the --work folder
of the pipeline. The differences are printed. The HTML file, and a JSON with the same numbers, show them with the images
side by side. The exit code is 0 whether or not something moved.

  python3 scripts/compare.py old/results new/results DATASET.ROOT data/coco
  python3 scripts/compare.py old/metrics.json new/metrics.json
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from yacs.config import CfgNode

from dekr_infer.cli.app import Arguments, Parser, add_category, add_config, config_of, html_file, positive_int, run
from dekr_infer.cli.data_set import data_set_of, image_files_if_there
from dekr_infer.cli.progress import progress
from dekr_infer.cli.report import run_of
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.coco_metrics import read_results
from dekr_infer.evaluation.comparison import RESAMPLES, cause_rows, comparison_content, metric_rows
from dekr_infer.evaluation.metrics_file import SAME, difference_lines, read_metrics
from dekr_infer.evaluation.report import drawer, write_report
from dekr_infer.storage.atomic import read_json, sha256


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("first", type=Path, metavar="A", help="results, metrics.json, or a folder of both")
    parser.add_argument("second", type=Path, metavar="B", help="the same of the other run")
    parser.add_argument(
        "--output", type=html_file, default=Path("comparison.html"), metavar="FILE.html", help="the page"
    )
    parser.add_argument(
        "--resamples", type=positive_int, default=RESAMPLES, metavar="N", help="of the images, for the interval"
    )
    add_category(parser)
    add_config(parser)
    args = parser.parse_args(argv)
    if args.pairs and args.pairs[0].startswith("-"):
        parser.error(f"{args.pairs[0]} comes after A and B: flags come before them")
    return run(lambda: compare(config_of(args), args))


class Run(NamedTuple):
    """The files of a run; `None` for one that is not there."""

    results: Path | None
    metrics: Path | None


def find_run(place: Path, split: str) -> Run:
    """Return the files of a run at a place that a user names.

    Raises:
        DekrError: there is neither a file of results nor a metrics.json.
    """
    name = f"keypoints_{split}_results.json"
    for folder in (place, place / "results") if place.is_dir() else ():
        results, metrics = folder / name, folder / "metrics.json"
        found = Run(results if results.is_file() else None, metrics if metrics.is_file() else None)
        if any(found):
            return found
    if place.is_dir():
        raise DekrError(f"{place}: holds neither {name} nor metrics.json; name the folder of a finished run")
    if isinstance(read_json(place), dict):
        hashes = read_metrics(place).get("sha256")
        beside = place.with_name(name)
        is_its = beside.is_file() and isinstance(hashes, dict) and hashes.get("results") == sha256(beside)
        return Run(beside if is_its else None, place)
    beside = place.with_name("metrics.json")
    return Run(place, beside if beside.is_file() else None)


def compare(config: CfgNode, args: Namespace) -> None:
    """Compare two runs, print what moved, and write the report.

    Args:
        config: names the data set.
        args: of the command.
    Raises:
        DekrError: a file cannot be read or written, or the runs are of other images.
    """
    places = (args.first, args.second)
    runs = [find_run(place, config.DATASET.TEST) for place in places]
    draw = None
    if all(run.results for run in runs):
        data = data_set_of(config, args.category)
        results = [read_results(run.results, data, data.skeleton) for run in runs if run.results]
        known = [run_of(run.results, found, data) for run, found in zip(runs, results, strict=True) if run.results]
        metrics, images = [content for content, _ in known], [ids for _, ids in known]
        if images[0] != images[1]:
            raise DekrError(
                f"{args.first} is of {len(images[0])} images and {args.second} of {len(images[1])}; "
                "compare runs of the same images"
            )
        with progress("resample", args.resamples) as advance:
            content = comparison_content(
                data, results, images[0], resamples=args.resamples, advance=advance, skeleton=data.skeleton
            )
        files = image_files_if_there(config)
        draw = None if files is None else drawer(data, files, *results, skeleton=data.skeleton)
    else:
        metrics = [_metrics(run, place) for run, place in zip(runs, places, strict=True)]
        empty = {"kinds": [], "joints": [], "images": 0, "images_moved": 0, "moved": []}
        content = {"bootstrap": None, "metrics": metric_rows(*(one["figures"] for one in metrics)), **empty}
    content |= {"names": list(map(str, places)), "verdict": _verdict(content)}
    content["causes"] = cause_rows(*metrics) if all(metrics) else None
    if all(metrics):
        print("\n".join(difference_lines(metrics[0], metrics[1], args.first)))
    else:
        for row in content["metrics"]:
            if abs(row["difference"]) > SAME:
                print(f"  {row['metric']}: {row['first']:.6f} -> {row['second']:.6f} ({row['difference']:+.6f})")
    print(content["verdict"])
    write_report(args.output, content, title="Two runs of DEKR", draw=draw, template="compare.html")
    print(f"report: {args.output}")


def _metrics(run: Run, place: Path) -> dict[str, Any]:
    if run.metrics is None:
        raise DekrError(
            f"{place}: the other run has no results, so this one needs a metrics.json; name a run that has both"
        )
    return read_metrics(run.metrics)


def _verdict(content: dict[str, Any]) -> str:
    """Return whether AP moved, and whether by luck, in a sentence."""
    interval, moved = content["bootstrap"], [row for row in content["metrics"] if abs(row["difference"]) > SAME]
    if not moved and not content["images_moved"]:
        return "Nothing moved."
    if interval is None:
        return "Whether the difference is luck is not known: that needs the results of both runs."
    low, high = interval["low"], interval["high"]
    text = f"AP moved by {interval['difference']:+.4f}, 95% interval {low:+.4f} to {high:+.4f}: "
    if low <= 0 <= high:
        return text + "other images of the same kind could turn it round."
    return text + "more than the choice of images explains."
