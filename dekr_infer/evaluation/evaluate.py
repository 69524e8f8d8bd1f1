"""Two dump folders -> people in image pixels, picture by picture; memory does not grow with their number."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dekr_infer.data.coco import DataSet, Picture
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.coco_metrics import person_category, results_of
from dekr_infer.evaluation.diagnostics import Measures, compare_passes, passes_to_compare
from dekr_infer.geometry import PUBLISHED_SIZES, Placement, cells
from dekr_infer.pose.decode import DecodeSettings, NotFiniteError, Passes, decode, transform_poses
from dekr_infer.pose.refine import MatchSettings, match_to_heatmap
from dekr_infer.pose.rescore import RescoreNet
from dekr_infer.skeleton import COCO_17
from dekr_infer.storage import npy as tensors

BLOCK = 4096  # people that the rescoring net sees at a time
MAPS = {
    "heat": ("_0", COCO_17.heatmap_channels),
    "offset": ("_1", COCO_17.offset_channels),
}  # a dump's suffixes: output order


@dataclass(frozen=True)
class Settings:
    """How maps become scored people; `match` and `rescore` are `None` when not wanted."""

    decode: DecodeSettings
    match: MatchSettings | None = None
    rescore: RescoreNet | None = None


@dataclass
class Outcome:
    """What a data set's dumps held: COCO result entries, and counts and seconds for the summary."""

    results: list[dict[str, Any]] = field(default_factory=list)
    seen: list[Picture] = field(default_factory=list)
    empty: int = 0  # pictures in which nobody was found
    seconds: float = 0.0
    passes: Measures = field(default_factory=Measures)  # what comparing the two passes of a few pictures gave

    @property
    def pictures(self) -> int:
        """How many pictures were looked at."""
        return len(self.seen)

    @property
    def people(self) -> int:
        """How many people were found."""
        return len(self.results)


def available(data: DataSet, folders: Sequence[Path], allow_missing: bool) -> list[Picture]:
    """The pictures whose dumps are all there; by default that must be the data set's, and no others.

    Args:
        folders: the original pass's dump and, if there is one, the flipped pass's.
        allow_missing: go on with the pictures that are there. Foreign files are refused all the same.
    Raises:
        DekrError: files are missing or left over, or none are there.
    """
    wanted = {p.stem: [p.stem + suffix + tensors.SUFFIX for suffix, _ in MAPS.values()] for p in data.pictures}
    there = {folder: tensors.names_in(folder) for folder in folders}
    complaints = []
    for folder, names in there.items():
        expected = {name for pair in wanted.values() for name in pair}
        if not allow_missing:
            complaints += _complaint(folder, sorted(expected - names), len(expected), "missing")
        complaints += _complaint(folder, sorted(names - expected), len(names), f"not of {data.annotation.name}")
    if complaints:
        raise DekrError(
            f"{'; '.join(complaints)}; run the network on all pictures into empty folders, "
            "or add --allow_missing to evaluate what is there"
        )
    complete = [p for p in data.pictures if all(set(wanted[p.stem]) <= names for names in there.values())]
    if not complete:
        raise DekrError(f"{', '.join(map(str, folders))}: no picture's outputs are complete; run the network first")
    return complete


def _complaint(folder: Path, names: Sequence[str], total: int, what: str) -> list[str]:
    return [f"{folder}: {len(names)} of {total} files are {what}, the first is {names[0]}"] if names else []


def process(
    data: DataSet,
    pictures: Sequence[Picture],
    folders: Sequence[Path],
    settings: Settings,
    advance: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Find the people in every picture.

    Args:
        pictures: those of `available`.
        folders: the original pass's dump and, for the flip merge, the flipped pass's.
        advance: called after each picture.
    Raises:
        DekrError: a dump is damaged, of another shape, or holds NaN or huge values where it matters.
    """
    outcome, category, started = Outcome(), person_category(data), time.perf_counter()
    found = []
    looked_at = {picture.id for picture in passes_to_compare(pictures)}
    for person in find_people(pictures, folders, settings):
        found.append(person)
        if person[0].id in looked_at:
            compare_passes(outcome.passes, _open_passes(person[0], folders), settings.decode)
        advance(1)
    factors = _factors([poses for _, poses, _ in found], settings.rescore)
    for (picture, poses, scores), factor in zip(found, factors, strict=True):
        with np.errstate(over="ignore"):
            rescored = scores * factor
        if not np.isfinite(rescored).all():
            raise _beyond_bounds(picture, folders)
        outcome.results += results_of(picture.id, category, poses, rescored)
        outcome.seen.append(picture)
        outcome.empty += not len(poses)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _factors(poses: Sequence[np.ndarray], rescore: RescoreNet | None) -> list[np.ndarray]:
    """What each picture's scores are multiplied by; the net runs over all people, a block of them at a time."""
    if rescore is None:
        return [np.ones(len(people), np.float32) for people in poses]
    everyone = np.concatenate(poses)
    with np.errstate(over="ignore", invalid="ignore"):
        blocks = [rescore(everyone[start : start + BLOCK]) for start in range(0, max(len(everyone), 1), BLOCK)]
    factors = np.concatenate(blocks)
    if not np.isfinite(factors).all():
        raise DekrError(
            "RESCORE.MODEL_FILE: its net gives infinite scores; check that file, or add RESCORE.VALID False"
        )
    return np.split(factors, np.cumsum([len(people) for people in poses])[:-1])


def find_people(
    pictures: Sequence[Picture], folders: Sequence[Path], settings: Settings
) -> Iterator[tuple[Picture, np.ndarray, np.ndarray]]:
    """Yields each picture with its poses (people, 17, 3) float32 in image pixels and their raw scores (people,)."""
    for picture in pictures:
        passes = _open_passes(picture, folders)
        input_size = PUBLISHED_SIZES.place(picture.size).input
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # absurd values are refused below
                poses, scores = decode(passes, settings.decode)
        except NotFiniteError as error:
            path = _path(folders["flip" in str(error)], picture, str(error).removesuffix("_flip"))
            raise DekrError(f"{path}: holds NaN or infinite values; run the network on this picture again") from None
        if settings.match is not None and len(poses):
            poses = match_to_heatmap(poses, passes, settings.match)
        with np.errstate(over="ignore", invalid="ignore"):
            poses = transform_poses(poses, Placement(picture.size, input_size).to_image)
        if not (np.isfinite(poses).all() and np.isfinite(scores).all()):
            raise _beyond_bounds(picture, folders)
        yield picture, poses, scores


def _beyond_bounds(picture: Picture, folders: Sequence[Path]) -> DekrError:
    paths = " or ".join(str(_path(folder, picture, name)) for folder in folders for name in MAPS)
    return DekrError(f"{paths}: holds values beyond all bounds; run the network on this picture again")


def _open_passes(picture: Picture, folders: Sequence[Path]) -> Passes:
    small = cells(PUBLISHED_SIZES.place(picture.size).input)
    maps = []
    for folder in folders:
        for name, (_, channels) in MAPS.items():
            path = _path(folder, picture, name)
            values = tensors.open_map(path)
            if values.shape != (1, channels, *small):
                raise DekrError(
                    f"{path}: has shape {values.shape}, {picture.file_name} needs {(1, channels, *small)}; "
                    "it is of another picture or network"
                )
            maps.append(values[0])
    return Passes(*maps)


def _path(folder: Path, picture: Picture, name: str) -> Path:
    return folder / (picture.stem + MAPS[name][0] + tensors.SUFFIX)
