"""Postprocessing: the recorded outputs of both passes to scored people, by our detector and by the reference's way."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from dekr_infer.backends.output_folder import OutputFolder
from dekr_infer.config.settings import decode_settings, rescore_net
from dekr_infer.data.coco import DataSet
from dekr_infer.data.sources import frames_of
from dekr_infer.detector import Detector
from scripts.bench import reference_impl, roofline
from scripts.bench.timing import LIMIT, OURS, REFERENCE, UPSTREAM, Row, Ways, alternate
from scripts.bench.upstream import Upstream

Folders = tuple[Path, Path]


def ways_of(data: DataSet, folders: Folders, config: CfgNode) -> Ways:
    """Return our and the reference's way of finding the people of a data set in the outputs of both passes."""
    settings, rescore = decode_settings(config), Path(config.RESCORE.MODEL_FILE)
    detector = Detector(OutputFolder(*folders), settings, rescore=rescore_net(config))
    frames = frames_of(data, detector.backend.input_sizes)
    return {
        OURS: lambda: list(detector.stream(frames)),
        REFERENCE: lambda: reference_impl.find_people(data.images, folders, settings, rescore),
    }


def measure(
    data: DataSet, folders: Folders, config: CfgNode, rounds: int, upstream: Upstream | None = None
) -> list[Row]:
    """Return the row of this stage; `folders` hold the outputs of all images of the data set."""
    ways = ways_of(data, folders, config) | {LIMIT: lambda: roofline.read_files(folders)}
    if upstream is not None:
        ways[UPSTREAM] = lambda: upstream.find_people(data.images, folders)
    facts = {"output_bytes_per_image": roofline.read_files(folders) / len(data.images)}
    seconds = alternate(ways, rounds, per=len(data.images))
    return [Row("postprocessing, per image", seconds, "reading its outputs", facts)]
