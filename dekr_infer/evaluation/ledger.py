"""Where AP goes: one data set evaluated with each choice of the chain turned the other way, one at a time.

A `Group` is a way to run the network; its rows are ways to decode what it returns, so that the network runs once for
all of them. People are kept in shards, as those of an evaluation, and are not looked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.data.coco import DataSet
from dekr_infer.data.sources import ImageFiles, frames_of
from dekr_infer.detector import Detector, in_order
from dekr_infer.evaluation.agreement import agreement
from dekr_infer.evaluation.coco_metrics import average_precision
from dekr_infer.evaluation.comparison import RESAMPLES, bootstrap
from dekr_infer.evaluation.evaluate import Found, entries_of
from dekr_infer.evaluation.shards import Shards
from dekr_infer.geometry import InputSizes
from dekr_infer.pose.preprocess import as_tensor, warp
from dekr_infer.structures import Frame, Maps, Passes, People

PUBLISHED = "as configured"  # the row with which the others are compared
SHARD = 8  # images, of which little is lost when a run is stopped


@dataclass(frozen=True)
class Row:
    """One way to find people in a network's outputs.

    Args:
        name: of the choice.
        detector: decodes; its backend is not asked.
        settings: what the people depend on.
        shift: whether the flipped image is moved by upstream's 3 pixels.
    """

    name: str
    detector: Detector
    settings: Mapping[str, Any]
    shift: bool = True


@dataclass(frozen=True)
class Group:
    """One way to run the network, and the rows that need it.

    Args:
        open: loads the network.
        input_sizes: what it is fed.
        rows: at least one.
    """

    open: Callable[[], OnnxRuntime]
    input_sizes: InputSizes
    rows: tuple[Row, ...]


def run_group(
    group: Group,
    shards: Mapping[str, Shards],
    data: DataSet,
    files: ImageFiles,
    chosen: Sequence[str],
    workers: int,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Find the people of all rows of a group that are not found yet; write each shard when it is whole.

    Args:
        group: what to run.
        shards: of each row, by its name.
        data: the data set.
        files: its images.
        chosen: keys of the images to evaluate.
        workers: threads beside those that run the network.
        advance: called with the number of images just finished.
    Raises:
        DekrError: an image cannot be read, or the network's outputs are not usable.
    """
    todo = {row.name: {frame.key for frame in shards[row.name].waiting()} for row in group.rows}
    keys = set(chosen)
    frames = [frame for frame in frames_of(data, group.input_sizes, files) if frame.key in keys]
    waiting = [frame for frame in frames if any(frame.key in keys for keys in todo.values())]
    advance(len(frames) - len(waiting))
    if not waiting:
        return
    network = group.open()

    def work(frame: Frame) -> dict[str, Found]:
        return find(network, frame, [row for row in group.rows if frame.key in todo[row.name]])

    for frame, found in in_order(work, waiting, network.passes_at_once + workers):
        for name, one in found.items():
            shards[name].found[frame.key] = one
        for row in group.rows:
            own = shards[row.name]
            number = own.shard[frame.key]
            if frame.key in todo[row.name] and all(
                other.key in own.found for other in own.frames if own.shard[other.key] == number
            ):
                own.write(number)
        advance(1)


def find(network: OnnxRuntime, frame: Frame, rows: Sequence[Row]) -> dict[str, Found]:
    """Return what each row finds in one image; each pass over it is run once."""
    image = frame.read()
    warped = warp(image, frame.placement.input)
    held = replace(frame, read=lambda: image)
    flips = [row for row in rows if row.detector.flip]
    passes = network.infer(held, any(row.shift for row in flips))
    assert isinstance(passes, Passes) and frame.image_id is not None
    unshifted = None
    if not all(row.shift for row in flips):
        tensor = as_tensor(cv2.flip(warped, 1), network.input_dtype)
        heatmap, offset, milliseconds = network.run(tensor)
        unshifted = Maps(heatmap[0], offset[0], milliseconds=milliseconds)
    found = {}
    for row in rows:
        second = (passes.flipped if row.shift else unshifted) if row.detector.flip else None
        used = Passes(passes.original, second)
        times = [maps.milliseconds for maps in used if maps is not None and maps.milliseconds is not None]
        people = row.detector.decode(used, frame.placement)
        found[row.name] = Found(frame.image_id, people, milliseconds=times)
    return found


@dataclass(frozen=True)
class Line:
    """A row of the ledger.

    Args:
        name: of the choice.
        ap: COCO's AP; `None` where nobody is annotated.
        difference, low, high: AP less that of the first row, and its interval by resampling images; `None` without AP.
        agreed: AP with the first row's people, of those that score `SHOWN`, as the truth; -1 where it has none.
        changed: images whose people changed; see `agreement`.
        people: that score `SHOWN`.
        milliseconds: the median of a pass.
    """

    name: str
    ap: float | None
    difference: float | None
    low: float | None
    high: float | None
    agreed: float
    changed: int
    people: int
    milliseconds: float


def line_of(
    name: str,
    data: DataSet,
    first: Sequence[Found],
    second: Sequence[Found],
    resamples: int = RESAMPLES,
) -> Line:
    """Return the line of a row, compared with the first row, on the same images."""
    ids = [one.image_id for one in second]
    images = {image.id: image for image in data.images}
    chosen = replace(data, images=tuple(images[number] for number in ids))
    people: list[list[People]] = [[one.people for one in run] for run in (first, second)]
    agreed = agreement(chosen, *people)
    times = [value for one in second for value in one.milliseconds]
    pace = float(np.median(times)) if times else 0.0
    line = Line(name, None, None, None, None, agreed.ap, agreed.changed, agreed.people[1], pace)
    known = set(ids)
    annotated = tuple(person for person in data.people or () if person.image_id in known)
    if any(person.labelled and not person.iscrowd for person in annotated):
        chosen = replace(chosen, people=annotated)
        runs = [[entry for one in run for entry in entries_of(data, one)] for run in (first, second)]
        moved = bootstrap(chosen, runs, ids, resamples)
        ap = average_precision(chosen, runs[1], ids)
        line = replace(line, ap=ap, difference=moved["difference"], low=moved["low"], high=moved["high"])
    return line
