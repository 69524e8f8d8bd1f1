"""Where dumps come from: what the runner's summary and the tensors' record tell, where they are still at hand.

`<tensor folder>_record.json` is written by preprocessing; `<dump folder>_summary.json` by the runner, and names the
tensors. Both stand beside their folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dekr_infer.errors import DekrError
from dekr_infer.files import beside, read_json, write_json

ORIGINAL, FLIPPED = "original", "flipped"


def record_path(folder: Path) -> Path:
    """Where the record of a tensor folder stands: beside it."""
    return beside(folder, "_record.json")


def _summary_of(dump: Path) -> Path:
    return beside(dump, "_summary.json")


def write_records(folders: Sequence[Path], annotations: str, opencv: str, moved: bool, overwrite: bool) -> None:
    """Note how the tensors of both folders are made; tensors that are kept keep what was noted of them.

    Args:
        folders: of the original and of the flipped tensors.
        annotations: the annotation file's SHA-256.
        opencv: its version.
        moved: whether it moves pixels.
    """
    for folder, which in zip(folders, (ORIGINAL, FLIPPED), strict=True):
        before = {} if overwrite else _object(record_path(folder))
        versions = {str(version) for version in _list(before.get("opencv"))} | {opencv}
        record = {
            "pass": which,
            "annotations": annotations,
            "opencv": sorted(versions),
            "moved_pixels": moved or before.get("moved_pixels") is True,
        }
        write_json(record_path(folder), record)


def origins(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What is known of each dump folder: `graph`, `checkpoint`, `versions`, `tensors` (a folder), `record`.

    Unknown things are absent or empty: ais_bench knows nothing of graphs, and dumps may have come from another machine.
    """
    known = []
    for folder in folders:
        summary = _object(_summary_of(folder))
        tensors = _tensor_folder(summary)
        known.append(
            {
                "graph": _text(summary.get("model_sha256")),
                "checkpoint": _text(summary.get("checkpoint_sha256")),
                "versions": _dict(summary.get("versions")),
                "tensors": str(tensors.resolve()) if tensors else None,
                "record": _object(record_path(tensors)) if tensors else {},
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
        if origin["record"].get("moved_pixels") is True:
            warnings["opencv"] = moved_warning(origin["record"].get("opencv"))
    tensors = [origin["tensors"] for origin in known if origin["tensors"]]
    if len(set(tensors)) < len(tensors):
        warnings["same_tensors"] = f"both dumps were made of the tensors in {tensors[0]}; run the flipped ones, too"
    graphs = [origin["graph"] for origin in known if origin["graph"]]
    if len(set(graphs)) > 1:
        warnings["graphs"] = "the two dumps were made by different graphs; run one graph on both folders"
    return warnings


def moved_warning(versions: object) -> str:
    """The line for an OpenCV that moves pixels."""
    named = ", ".join(map(str, _list(versions)))
    return f"OpenCV {named} moves the pixels of warped pictures, which costs AP; install one from 4.10 to 4.12"


def _tensor_folder(summary: dict[str, Any]) -> Path | None:
    files = _dict(summary.get("filesinfo"))
    names = _list(_dict(next(iter(files.values()), None)).get("infiles"))
    return Path(names[0]).parent if names and isinstance(names[0], str) and "\0" not in names[0] else None


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
