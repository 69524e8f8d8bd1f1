"""Where dumps come from: what the runner's summary and the tensors' record tell, where they are still at hand.

`<tensor folder>_record.json` is written by preprocessing; `<dump folder>_summary.json` by the runner, and names the
tensors. Both stand beside their folders.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dekr_infer.errors import DekrError
from dekr_infer.storage.atomic import beside, read_json, write_json

ORIGINAL, FLIPPED = "original", "flipped"


def record_path(folder: Path) -> Path:
    """Where the record of a tensor folder stands: beside it."""
    return beside(folder, "_record.json")


def _summary_of(dump: Path) -> Path:
    return beside(dump, "_summary.json")


@dataclass(frozen=True)
class Making:
    """How a run makes tensors: the annotation file's SHA-256, OpenCV's version, and whether that moves pixels."""

    annotations: str
    opencv: str
    moved: bool


def refuse_others(folders: Sequence[Path], making: Making, marks: Mapping[str, str]) -> None:
    """Stop when tensors that would be kept were made of other pictures, by what is noted of them.

    Where a tensor's picture was not noted, the annotation file must be the one that was.
    Args:
        marks: what tells the pictures now (`PictureFiles.mark`), by the stems of the tensors.
    Raises:
        DekrError: some were; it names the first.
    """
    for folder in folders:
        record = read_record(folder)
        noted, same = record["pictures"], record.get("annotations") in (None, making.annotations)
        others = [stem for stem, mark in marks.items() if noted.get(stem, mark if same else None) != mark]
        if others:
            raise DekrError(
                f"{folder}: {len(others)} of its tensors were made of other pictures, the first is {others[0]}.npy; "
                "make all anew by --overwrite without --limit, or name another folder"
            )


def write_records(folders: Sequence[Path], making: Making, marks: Mapping[str, str], kept: Collection[str]) -> None:
    """Note how the tensors of both folders are made; tensors that are kept keep what was noted of them.

    Args:
        folders: of the original and of the flipped tensors.
        marks: what tells the pictures, by the stems of all tensors, those to be written and those that are kept.
        kept: the stems of tensors that are there and stay; `refuse_others` has looked at them.
    """
    for folder, which in zip(folders, (ORIGINAL, FLIPPED), strict=True):
        before = read_record(folder) if kept else _record_in({})
        record = {
            "pass": which,
            "annotations": making.annotations,
            "opencv": sorted({*before["opencv"], making.opencv}),
            "moved_pixels": making.moved or before["moved_pixels"],
            "pictures": {stem: mark for stem, mark in marks.items() if stem not in kept or stem in before["pictures"]},
        }
        write_json(record_path(folder), record)


def read_record(folder: Path) -> dict[str, Any]:
    """What is noted of a tensor folder: `moved_pixels`, `opencv`, `pictures`, and `pass` and `annotations` if known.

    Raises:
        DekrError: the record is damaged.
    """
    return _record_in(_object(record_path(folder)))


def _record_in(value: dict[str, Any]) -> dict[str, Any]:
    """A record with only what is written there; what is of another kind counts as not noted."""
    record = {key: value[key] for key in ("pass", "annotations") if isinstance(value.get(key), str)}
    record["moved_pixels"] = value.get("moved_pixels") is True
    record["opencv"] = [version for version in _list(value.get("opencv")) if isinstance(version, str)]
    record["pictures"] = {stem: mark for stem, mark in _dict(value.get("pictures")).items() if isinstance(mark, str)}
    return record


def origins(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What is known of each dump folder: `graph`, `checkpoint`, `versions`, `tensors` (a folder), `record`, `stale`.

    The record is the one that the runner read, else the one beside the tensors now; stale are dumps whose tensors have
    been made of other pictures since. Unknown things are absent or empty: ais_bench knows nothing of graphs and
    records, and dumps may have come from another machine.
    """
    known = []
    for folder in folders:
        summary = _object(_summary_of(folder))
        tensors = _tensor_folder(summary)
        now = read_record(tensors) if tensors else _record_in({})
        then = _record_in(summary["tensors"]) if isinstance(summary.get("tensors"), dict) else now
        known.append(
            {
                "graph": _text(summary.get("model_sha256")),
                "checkpoint": _text(summary.get("checkpoint_sha256")),
                "versions": _dict(summary.get("versions")),
                "tensors": str(tensors) if tensors else None,
                "record": then,
                "stale": any(now["pictures"].get(stem, mark) != mark for stem, mark in then["pictures"].items()),
            }
        )
    return known


def origin_warnings(known: Sequence[dict[str, Any]], annotations: str) -> dict[str, str]:
    """What the origins of the original pass's and the flipped pass's dump say against the figures, by guard."""
    warnings = {}
    for origin, wanted, flag in zip(known, (ORIGINAL, FLIPPED), ("--dump_dir", "--dump_dir_flip"), strict=False):
        which = origin["record"].get("pass")
        if which not in (None, wanted):
            warnings["exchanged"] = f"{flag} was made of the {which} tensors in {origin['tensors']}; exchange the two"
        if origin["record"].get("annotations") not in (None, annotations):
            warnings["annotations"] = (
                f"{flag}: its tensors in {origin['tensors']} were made for another annotation file, or an older one; "
                "set DATASET.ROOT to that data set, or preprocess again"
            )
        if origin["stale"]:
            warnings["stale"] = (
                f"{flag}: its tensors in {origin['tensors']} have been made of other pictures since; "
                "run the network on them again"
            )
        if origin["record"]["moved_pixels"]:
            warnings["opencv"] = moved_warning(origin["record"]["opencv"])
    tensors = [origin["tensors"] for origin in known if origin["tensors"]]
    if len(set(tensors)) < len(tensors):
        warnings["same_tensors"] = f"both dumps were made of the tensors in {tensors[0]}; run the flipped ones, too"
    graphs = [origin["graph"] for origin in known if origin["graph"]]
    if len(set(graphs)) > 1:
        warnings["graphs"] = "the two dumps were made by different graphs; run one graph on both folders"
    return warnings


def moved_warning(versions: Sequence[str]) -> str:
    """The line for an OpenCV that moves pixels."""
    named = ", ".join(versions)
    return f"OpenCV {named} moves the pixels of warped pictures, which costs AP; install one from 4.10 to 4.12"


def _tensor_folder(summary: dict[str, Any]) -> Path | None:
    """The folder of the tensors that a summary names, its links followed; `None` for what no file can be called."""
    files = _dict(summary.get("filesinfo"))
    names = _list(_dict(next(iter(files.values()), None)).get("infiles"))
    if not names or not isinstance(names[0], str):
        return None
    try:
        folder = Path(os.path.realpath(Path(names[0]).parent))
        record_path(folder).is_file()
    except (OSError, ValueError):  # too long; a NUL, or half a character
        return None
    return folder


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file that may be missing.

    Raises:
        DekrError: the file holds something else.
    """
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise DekrError(f"{path}: not what these commands write there; delete it, and make it again")
    return value


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
