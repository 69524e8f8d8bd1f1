"""Shards of people: all that a long evaluation writes, one file per so many images, each written whole or not at all.

A shard is a record (`storage.run_record`): its head holds what all people depend on, and each line is one image with
its fingerprint. Whatever kills a run, or however many hosts share one, finished shards are not done again. Values are
float32; the shortest decimals that give the same bits are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dekr_infer.data.coco import DataSet
from dekr_infer.errors import DekrError, excerpt
from dekr_infer.evaluation.evaluate import Found
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.storage.atomic import atomic_write
from dekr_infer.storage.run_record import Entry, Head, read_record
from dekr_infer.structures import Frame, People

KIND = "people"  # of the record
IMAGES = 64  # of a shard, by default
PEOPLE_BYTES = 2048  # of a person, in the shard and in the results together; measured: 1,850


class Row(msgspec.Struct, omit_defaults=True):
    """One image of a shard; poses are lists of joints (x, y, score). See `Found` and `People`."""

    image_id: int
    file_name: str
    poses: list[list[tuple[float, float, float]]] = []
    scores: list[float] = []
    decoded_scores: list[float] | None = None
    compared: tuple[int, int, int] = (0, 0, 0)
    error: str | None = None


class Shards:
    """The shards of one run, and what is in them already.

    Args:
        folder: of the run.
        settings: what all people depend on.
        about: further facts of the run.
        size: images of a shard; the shard of an image follows from its place in the data set.
        data: the data set.
        frames: the images to evaluate, in the data set's order.
        fingerprint: of the content of a frame's image.
        skeleton: of the people.
        remedy: what to do where the folder holds people of another run.
    Raises:
        DekrError: the folder holds people of another run, of images that have changed, or of an image twice.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
        size: int,
        data: DataSet,
        frames: Sequence[Frame],
        fingerprint: Callable[[Frame], str],
        skeleton: Skeleton = COCO_17,
        remedy: str = "name another run with --run",
    ) -> None:
        self.folder, self.frames, self.fingerprint, self.skeleton = folder, frames, fingerprint, skeleton
        self.remedy = remedy
        self.head = Head(KIND, {**settings, "shard_images": size}, dict(about))
        self.found: dict[str, Found] = {}
        number = {image.stem: index // size for index, image in enumerate(data.images)}
        self.shard = {frame.key: number[frame.key] for frame in frames}
        self._read()

    def _read(self) -> None:
        frames, places = {frame.key: frame for frame in self.frames}, dict[str, Path]()
        for path in sorted(self.folder.glob("shard-*.jsonl")):
            contents = read_record(path)
            if contents is None:
                continue
            self._check_settings(path, contents.head)
            for key, entry in contents.entries.items():
                if places.setdefault(key, path) != path:
                    raise DekrError(f"{path}: holds {key}, which {places[key].name} holds, too; delete one of them")
                if key not in frames:
                    continue  # of a run without --limit
                found = _found(path, entry, self.skeleton)
                if found.error is None and entry.inputs.get("image") != self.fingerprint(frames[key]):
                    raise DekrError(
                        f"{path}: holds people of {frames[key].name}, an image that has changed since; "
                        f"delete this file, or {self.remedy}"
                    )
                self.found[key] = found

    def _check_settings(self, path: Path, head: Head) -> None:
        wanted, there = msgspec.to_builtins(self.head), msgspec.to_builtins(head)
        new, old = ({**side["settings"], "kind": side["kind"]} for side in (wanted, there))
        other = [name for name in sorted({*new, *old}) if new.get(name) != old.get(name)]
        if other:
            had, has = (", ".join(f"{name} {excerpt(side.get(name))}" for name in other) for side in (old, new))
            raise DekrError(f"{path}: was written with {had}; this run has {has}; {self.remedy}, or delete that folder")

    def waiting(self, share: int = 0, shares: int = 1) -> list[Frame]:
        """Return the images of a share that are not done; those that could not be read are tried again."""
        return [
            frame
            for frame in self.frames
            if self.shard[frame.key] % shares == share
            and (frame.key not in self.found or self.found[frame.key].error is not None)
        ]

    def write(self, number: int) -> None:
        """Write a shard of which all images are done.

        Raises:
            DekrError: the file cannot be written.
        """
        lines: list[Head | Entry] = [self.head]
        for frame in self.frames:
            if self.shard[frame.key] == number:
                found = self.found[frame.key]
                inputs = {"image": self.fingerprint(frame)}
                lines.append(Entry(frame.key, inputs, milliseconds=found.milliseconds, result=_row(frame, found)))
        with atomic_write(self.folder / f"shard-{number:06d}.jsonl") as temporary:
            temporary.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def _row(frame: Frame, found: Found) -> Row:
    people, decoded = found.people, found.people.decoded_scores
    return Row(
        found.image_id,
        frame.file_name,
        _short(people.poses),
        _short(people.scores),
        None if decoded is None else _short(decoded),
        found.compared,
        found.error,
    )


def _found(path: Path, entry: Entry, skeleton: Skeleton) -> Found:
    try:
        row = msgspec.convert(entry.result, Row)
        poses = np.array(row.poses, np.float32).reshape(len(row.scores), len(skeleton), 3)
        decoded = None if row.decoded_scores is None else np.array(row.decoded_scores, np.float32)
        if decoded is not None and len(decoded) != len(row.scores):
            raise ValueError("decoded_scores has another length than scores")
    except ValueError as error:  # msgspec's ValidationError is one
        raise DekrError(f"{path}: {entry.key} is damaged ({error}); delete this file") from None
    people = People(poses, np.array(row.scores, np.float32), decoded, skeleton)
    return Found(row.image_id, people, row.compared, entry.milliseconds, row.error)


def _short(values: np.ndarray) -> Any:
    """Return float32 values as the shortest doubles, by their decimals, that are these values in float32."""
    short = values.astype(str).astype(np.float64)
    return np.where(short.astype(np.float32) == values, short, values).tolist()
