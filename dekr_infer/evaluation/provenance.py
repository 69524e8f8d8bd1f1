"""Provenance of network outputs, from the records beside their folders: graph, tensors and images.

Outputs without a record, such as those of ais_bench typed by hand, are of unknown provenance and raise no doubt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dekr_infer.backends.folder_runner import output_stem, summary_path
from dekr_infer.backends.tensor_folder import FLIPPED, ORIGINAL
from dekr_infer.data.sources import ImageFiles
from dekr_infer.errors import DekrError
from dekr_infer.storage.atomic import read_json, refuse_locked
from dekr_infer.storage.run_record import Contents, Entry, FileMark, read_record, record_path
from dekr_infer.structures import output_files

RUN_AGAIN = "run the network again on all tensors, with scripts/onnx_infer.py or scripts/ais_bench.sh"


def require_one_run(folders: Sequence[Path], evaluated: Mapping[str, str], files: ImageFiles | None = None) -> None:
    """Check that the outputs of each folder are of one run, of the tensors and images of today.

    Args:
        folders: of outputs.
        evaluated: the file name of each evaluated image, by its stem.
        files: the images, where they are there.
    Raises:
        DekrError: a run is under way, or outputs, tensors or images have been replaced; it names the first file.
    """
    images: dict[str, str] = {}
    for folder in folders:
        refuse_locked(folder)
        entries = _entries(folder, list(evaluated))
        if not entries:
            continue
        contents = read_record(record_path(folder))
        assert contents is not None
        tensors = _tensor_marks(contents)
        for stem, entry in entries.items():
            made_of, place = entry.inputs.get("tensor"), tensors.get(entry.key)
            if place is not None and (
                place[1].xxh3 != made_of or (place[0].exists() and place[1].renewed(place[0]) is None)
            ):
                raise DekrError(f"{place[0]}: is not the tensor that {folder / stem}_0.npy was made of; {RUN_AGAIN}")
            image = entry.result.get("image") if isinstance(entry.result, dict) else None
            if image is None:
                continue
            if stem not in images:
                images[stem] = _fingerprint(files, evaluated[stem]) or image
            if images[stem] != image:
                raise DekrError(
                    f"{folder / stem}_0.npy: was made of another image of this name; run DEKR_preprocess.py with "
                    f"--overwrite, then {RUN_AGAIN}"
                )


def _fingerprint(files: ImageFiles | None, name: str) -> str | None:
    try:
        return None if files is None else files.fingerprint(name)
    except DekrError:
        return None  # it is not there, and not needed


def _entries(folder: Path, stems: Sequence[str]) -> dict[str, Entry]:
    """Return the entries of the outputs of some stems; none if every output was written by somebody else.

    Raises:
        DekrError: only some of the outputs are as recorded.
    """
    contents = read_record(record_path(folder))
    if contents is None:
        return {}
    known = {output_stem(Path(key)): entry for key, entry in contents.entries.items()}
    found = {stem: known[stem] for stem in stems if stem in known and _is_whole(folder, stem, known[stem])}
    other = next((stem for stem in stems if stem not in found), None)
    if found and other is not None:
        raise DekrError(
            f"{folder / other}_0.npy: is of another run than the outputs in {record_path(folder)}; {RUN_AGAIN}"
        )
    return found


def _is_whole(folder: Path, stem: str, entry: Entry) -> bool:
    return set(entry.outputs) == set(output_files(stem)) and all(
        mark.renewed(folder / name) is not None for name, mark in entry.outputs.items()
    )


def _tensor_marks(contents: Contents) -> dict[str, tuple[Path, FileMark]]:
    """Return path and mark of each tensor by its file name, as the records of the tensor folders have them today."""
    marks: dict[str, tuple[Path, FileMark]] = {}
    for name in _dict(contents.head.about.get("tensors")):
        folder = Path(name)
        try:
            tensors = read_record(record_path(folder)) if record_path(folder).is_file() else None
        except (OSError, ValueError):  # no folder can be called so
            continue
        for entry in tensors.entries.values() if tensors else ():
            marks |= {name: (folder / name, mark) for name, mark in entry.outputs.items()}
    return marks


def origins(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what is known of each output folder.

    Returns:
        graph, checkpoint: SHA-256; weights: their kind; precision: where one was rehearsed; versions: by library;
        tensors: their folder; record: `pass`, `annotations`, `opencv` and `moved_pixels` of the tensors. Unknown things
        are `None` or empty.
    """
    known = []
    for folder in folders:
        contents = read_record(record_path(folder))
        if contents is not None and not any(
            _is_whole(folder, output_stem(Path(key)), entry) for key, entry in list(contents.entries.items())[:1]
        ):
            contents = None  # somebody else has written here since
        settings, about = (contents.head.settings, contents.head.about) if contents else ({}, _summary(folder))
        tensors = _dict(about.get("tensors"))
        first: str | None = next(iter(tensors), None)
        known.append(
            {
                "graph": _text(settings.get("model_sha256", about.get("model_sha256"))),
                "checkpoint": _text(about.get("checkpoint")),
                "weights": _text(about.get("weights")),
                "precision": _text(settings.get("precision", about.get("precision"))),
                "versions": _dict(about.get("versions")),
                "tensors": first,
                "record": {"opencv": [], "moved_pixels": False, **_dict(tensors.get(first or ""))},
            }
        )
    return known


def origin_warnings(known: Sequence[Mapping[str, Any]], annotations: str) -> dict[str, str]:
    """Return what the origins of the original and the flipped pass's outputs say against the metrics, by warning."""
    warnings = {}
    for origin, wanted, flag in zip(known, (ORIGINAL, FLIPPED), ("--dump_dir", "--dump_dir_flip"), strict=False):
        record, tensors = origin["record"], origin["tensors"]
        if record.get("pass") not in (None, wanted):
            warnings["exchanged"] = f"{flag} was made of the {record['pass']} tensors in {tensors}; exchange the two"
        if record.get("annotations") not in (None, annotations):
            warnings["annotations"] = (
                f"{flag}: its tensors in {tensors} were made for another annotation file, or an older one; "
                "set DATASET.ROOT to that data set, or preprocess again"
            )
        if record["moved_pixels"]:
            warnings["opencv"] = moved_warning(record["opencv"])
    tensors = [origin["tensors"] for origin in known if origin["tensors"]]
    if len(set(tensors)) < len(tensors):
        warnings["same_tensors"] = f"both dumps were made of the tensors in {tensors[0]}; run the flipped ones, too"
    if len({(origin["graph"], origin["precision"]) for origin in known if origin["graph"]}) > 1:
        warnings["graphs"] = "the two dumps were made by different graphs or precisions; run one on both folders"
    return warnings


def moved_warning(versions: Sequence[str]) -> str:
    """Return the line for an OpenCV that moves pixels."""
    named = ", ".join(versions)
    return f"OpenCV {named} moves the pixels of warped images, which costs AP; install one from 4.10 to 4.12"


def _summary(folder: Path) -> dict[str, Any]:
    """Return the summary of a folder that has no record; ais_bench's own names no graph."""
    path = summary_path(folder)
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise DekrError(f"{path}: not what these commands write there; delete it, and run the network again")
    return value


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
