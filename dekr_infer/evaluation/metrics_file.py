"""metrics.json: the figures and everything they depend on; written together with the results, compared with another."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

import dekr_infer
from dekr_infer.data.coco import DataSet
from dekr_infer.errors import DekrError, excerpt, one_line
from dekr_infer.evaluation.coco_metrics import FIGURES
from dekr_infer.evaluation.diagnostics import judge, measure
from dekr_infer.evaluation.evaluate import Outcome
from dekr_infer.evaluation.provenance import origin_warnings, origins
from dekr_infer.storage.atomic import read_json, sha256, write_failure, write_json

LIBRARIES = ("numpy", "scipy", "pycocotools", "torch")
TEST_SETTINGS = (
    *("KEYPOINT_THRESHOLD", "NMS_THRE", "NMS_NUM_THRE", "POOL_THRESHOLD1", "POOL_THRESHOLD2"),
    *("MATCH_HMP", "MAX_ABSORB_DISTANCE", "ADJUST_THRESHOLD", "GUASSIAN_KERNEL"),
)
PARTS = {"sha256": "inputs", "settings": "settings", "versions": "versions", "counts": "counts", "warnings": "warnings"}
SAME = 1e-6  # figures this near each other are the same; the ten of one run are equal to the last bit


def metrics_of(
    config: CfgNode, data: DataSet, folders: Sequence[Path], figures: dict[str, float], outcome: Outcome
) -> dict[str, Any]:
    """Everything that the figures depend on, beside the figures, and what the guards say of them.

    Args:
        folders: the dumps; what is known of their origin stands beside them.
    Raises:
        DekrError: a file beside the dumps is damaged.
    """
    known = origins(folders)
    annotations = sha256(data.annotation)
    measures = measure(data, outcome.seen, outcome.results)
    for name in ("compared", "same", "exchanged"):
        setattr(measures, name, getattr(outcome.passes, name))
    sanity = judge(measures, figures, outcome.pictures, len(data.pictures))
    return {
        "figures": figures,
        "counts": {
            "pictures": len(data.pictures),
            "evaluated": outcome.pictures,
            "missing": len(data.pictures) - outcome.pictures,
            "people": outcome.people,
            "empty_pictures": outcome.empty,
        },
        "settings": {"split": config.DATASET.TEST, "flip": config.TEST.FLIP_TEST, "rescored": config.RESCORE.VALID}
        | {key: config.TEST[key] for key in TEST_SETTINGS}
        | {key: config.DATASET[key] for key in ("MAX_NUM_PEOPLE", "SIGMA")}
        | {"HIDDEN_LAYER": config.RESCORE.HIDDEN_LAYER},
        "sha256": {
            "annotations": annotations,
            "rescore": sha256(Path(config.RESCORE.MODEL_FILE)) if config.RESCORE.VALID else None,
            "graphs": [origin["graph"] for origin in known],
            "checkpoints": [origin["checkpoint"] for origin in known],
        },
        "versions": {"dekr_infer": dekr_infer.__version__, "python": platform.python_version()}
        | {name: _version(name) for name in LIBRARIES}
        | {"onnxruntime": [origin["versions"].get("onnxruntime") for origin in known]}
        | {"opencv": [origin["record"]["opencv"] or None for origin in known]},
        "sanity": sanity.measures.as_json(),
        "warnings": sanity.warnings | origin_warnings(known, annotations),
    }


def _version(library: str) -> str | None:
    """The version that is installed: reading it imports nothing. Without rescoring, torch may be missing."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def write_both(results: Path, entries: Sequence[Mapping[str, Any]], path: Path, metrics: dict[str, Any]) -> None:
    """Write the results, then the metrics with the results' SHA-256; never are metrics beside results of another run.

    Raises:
        DekrError: a file cannot be written; then there are no metrics.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DekrError(write_failure(path, error)) from None
    write_json(results, entries)
    metrics["sha256"]["results"] = sha256(results)
    write_json(path, metrics, indent=2)


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of a metrics.json.

    Raises:
        DekrError: it is missing, damaged or something else.
    """
    found = read_json(path)
    figures = found.get("figures") if isinstance(found, dict) else None
    if not isinstance(figures, dict) or not all(_is_figure(figures.get(name)) for name in FIGURES):
        raise DekrError(f"{path}: holds no ten figures from -1 to 1; --compare wants a metrics.json of this command")
    return dict(found)


def _is_figure(value: Any) -> bool:
    return type(value) in (int, float) and -1 <= value <= 1


def difference_lines(old: Mapping[str, Any], new: Mapping[str, Any], name: Path) -> list[str]:
    """What differs between two runs, a line each, in the order of a possible cause to its effect."""
    lines = []
    for part, label in PARTS.items():
        before, after = dict(_leaves(old.get(part), "")), dict(_leaves(new.get(part), ""))
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                lines.append(f"  {label}: {one_line(key)}: {_short(before.get(key))} -> {_short(after.get(key))}")
    for figure in FIGURES:
        before, after = old["figures"][figure], new["figures"][figure]
        if abs(after - before) > SAME:
            lines.append(f"  figures: {figure}: {before:.6f} -> {after:.6f} ({after - before:+.6f})")
    return [f"compared with {name}:", *(lines or ["  nothing differs"])]


def require_same_figures(old: Mapping[str, Any], new: Mapping[str, Any], name: Path) -> None:
    """Fail when a figure differs.

    Raises:
        DekrError: one does; it names the first.
    """
    for figure in FIGURES:
        before, after = old["figures"][figure], new["figures"][figure]
        if abs(after - before) > SAME:
            raise DekrError(
                f"{name}: {figure} was {before:.6f} and is {after:.6f} now; the lines above tell what else differs"
            )


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix} {key}".strip())
    elif value is not None:
        yield prefix, value


def _short(value: Any) -> str:
    """A value, or a list of some, for a line."""
    return ", ".join(map(_text, value)) if isinstance(value, list) else _text(value)


def _text(value: Any) -> str:
    """A value for a line: hashes by their first digits, other texts by their first hundred."""
    text = "nothing" if value is None else excerpt(value, 100)
    is_hash = len(text) == 2 * hashlib.sha256().digest_size and " " not in text
    return one_line(f"{text[:12]}..." if is_hash else text)
