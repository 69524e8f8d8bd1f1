"""Dumps to scored people, and people to the ten figures."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from yacs.config import CfgNode

from dekr_infer.cli.postprocess import settings_of
from dekr_infer.data.coco import DataSet
from dekr_infer.evaluation.coco_metrics import coco_figures
from dekr_infer.evaluation.evaluate import Outcome, process
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.atomic import write_json
from scripts.bench import limits, plain
from scripts.bench.measure import LIMIT, OURS, REFERENCE, UPSTREAM, Row, alternate
from scripts.bench.upstream import Upstream

LEAST_FASTER = 30.0  # than the reference's way


def measure(
    data: DataSet, folders: tuple[Path, Path], config: CfgNode, rounds: int, upstream: Upstream | None
) -> list[Row]:
    """The rows of this stage: decoding with rescoring, and the evaluation of what was found.

    Args:
        folders: both passes' dumps of all pictures of the data set.
    """
    settings, rescore = settings_of(config), Path(config.RESCORE.MODEL_FILE)
    pictures, outcomes = list(data.pictures), list[Outcome]()
    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: outcomes.append(process(data, pictures, folders, settings)),
        REFERENCE: lambda: plain.find_people(pictures, folders, settings.decode, rescore),
        LIMIT: lambda: limits.read_files(folders),
    }
    if upstream is not None:
        ways[UPSTREAM] = lambda: upstream.find_people(pictures, folders)
    alternate(ways, 1)
    seconds = alternate(ways, rounds)
    each = {way: [value / len(pictures) for value in values] for way, values in seconds.items()}
    size = sum((folder / name).stat().st_size for folder in folders for name in tensors.names_in(folder))
    facts = {"people": outcomes[-1].people, "dump_bytes_per_picture": size / len(pictures)}
    limit = "reading all bytes of its dumps"
    rows = [Row("postprocessing", "per picture", each, limit, None, LEAST_FASTER, facts)]
    return [*rows, _evaluation(data, outcomes[-1], folders[0].with_name("results.json"), rounds)]


def _evaluation(data: DataSet, outcome: Outcome, file: Path, rounds: int) -> Row:
    """Ours evaluates what is in memory; the reference's way goes through the result and annotation files."""
    ids = [picture.id for picture in data.pictures]
    seconds = alternate(
        {
            OURS: lambda: coco_figures(data, outcome.results, ids),
            REFERENCE: lambda: _through_files(data.annotation, outcome, file),
        },
        rounds,
    )
    return Row("COCO evaluation", "whole set", seconds, facts={"judge": "pycocotools in both"})


def _through_files(annotation: Path, outcome: Outcome, file: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        write_json(file, outcome.results)
        truth = COCO(str(annotation))
        evaluation = COCOeval(truth, truth.loadRes(str(file)), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
