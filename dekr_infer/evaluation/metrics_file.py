"""metrics.json: the metrics and everything that they depend on, written with the results and compared later."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dekr_infer
from dekr_infer.data.coco import DataSet
from dekr_infer.errors import DekrError, excerpt, one_line
from dekr_infer.evaluation.coco_metrics import CROWD_METRICS, METRICS
from dekr_infer.evaluation.evaluate import Evaluation
from dekr_infer.evaluation.provenance import origin_warnings
from dekr_infer.model.weights import least_trained, weights_kind
from dekr_infer.storage.atomic import read_json, sha256, write_failure, write_json

LIBRARIES = ("numpy", "pycocotools", "torch")
PARTS = {"sha256": "inputs", "settings": "settings", "versions": "versions", "counts": "counts", "warnings": "warnings"}
SAME = 1e-6  # metrics closer than this count as equal (repeated runs are bit-identical)
TOLERANCE = 0.003  # of an expected AP, both ways


def metrics_content(
    evaluation: Evaluation,
    data: DataSet,
    settings: Mapping[str, Any],
    rescore: Path | None,
    known: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Collect the metrics and everything that they depend on.

    Args:
        evaluation: the results.
        data: the ground truth.
        settings: what influences the metrics, by name.
        rescore: the rescoring net's checkpoint.
        known: the provenance of each pass's outputs; see `origins`.
    Raises:
        DekrError: a file cannot be read.
    """
    annotations = sha256(data.annotation)
    evaluated = len(evaluation.evaluated)
    precisions = [origin["precision"] for origin in known if origin["precision"] is not None]
    return {
        "figures": evaluation.metrics,
        "counts": {
            "pictures": len(data.images),
            "evaluated": evaluated,
            "missing": len(data.images) - evaluated,
            "people": len(evaluation.results),
            "empty_pictures": evaluation.empty,
        },
        "weights": least_trained(
            *(origin["weights"] for origin in known), weights_kind(rescore) if rescore is not None else None
        ),
        "settings": dict(settings) | ({"precision": precisions[0]} if precisions else {}),
        "sha256": {
            "annotations": annotations,
            "rescore": sha256(rescore) if rescore is not None else None,
            "graphs": [origin["graph"] for origin in known],
            "checkpoints": [origin["checkpoint"] for origin in known],
        },
        "versions": {"dekr_infer": dekr_infer.__version__, "python": platform.python_version()}
        | {name: _version(name) for name in LIBRARIES}
        | {"onnxruntime": [origin["versions"].get("onnxruntime") for origin in known]}
        | {"opencv": [origin["record"]["opencv"] or None for origin in known]},
        "diagnostics": dict(vars(evaluation.counts)),
        "warnings": data.warnings | evaluation.warnings | origin_warnings(known, annotations),
    }


def _version(library: str) -> str | None:
    """Return the installed version without an import; without rescoring, torch may be missing."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def write_both(results: Path, entries: Sequence[Mapping[str, Any]], path: Path, metrics: dict[str, Any]) -> None:
    """Write the results, then the metrics with the results' SHA-256; metrics never accompany results of another run.

    Raises:
        DekrError: a file cannot be written; then no metrics exist.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DekrError(write_failure(path, error)) from None
    write_json(results, entries)
    metrics["sha256"]["results"] = sha256(results)
    write_json(path, metrics, indent=2)


def read_metrics(path: Path) -> dict[str, Any]:
    """Read a metrics.json.

    Raises:
        DekrError: the file is missing, damaged or of another form.
    """
    found = read_json(path)
    values = found.get("figures") if isinstance(found, dict) else None
    if not isinstance(values, dict) or not any(
        all(_is_metric(values.get(name)) for name in names) for names in (METRICS, CROWD_METRICS)
    ):
        raise DekrError(
            f"{path}: lacks the ten metrics, numbers from -1 to 1; --compare expects a metrics.json of this command"
        )
    return dict(found)


def _is_metric(value: Any) -> bool:
    return type(value) in (int, float) and -1 <= value <= 1


def difference_lines(old: Mapping[str, Any], new: Mapping[str, Any], name: Path) -> list[str]:
    """Return what differs between two runs, one line each, causes before effects."""
    lines = []
    for part, label in PARTS.items():
        before, after = dict(leaves(old.get(part))), dict(leaves(new.get(part)))
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                lines.append(f"  {label}: {one_line(key)}: {_short(before.get(key))} -> {_short(after.get(key))}")
    for metric, (was, now) in _both(old, new, name).items():
        if abs(now - was) > SAME:
            lines.append(f"  metrics: {metric}: {was:.6f} -> {now:.6f} ({now - was:+.6f})")
    return [f"compared with {name}:", *(lines or ["  nothing differs"])]


def require_same_metrics(old: Mapping[str, Any], new: Mapping[str, Any], name: Path) -> None:
    """Raise when a metric differs.

    Raises:
        DekrError: a metric differs; the message names the first.
    """
    for metric, (before, after) in _both(old, new, name).items():
        if abs(after - before) > SAME:
            raise DekrError(
                f"{name}: {metric} was {before:.6f} and is {after:.6f} now; the lines above show what else differs"
            )


def _both(old: Mapping[str, Any], new: Mapping[str, Any], name: Path) -> dict[str, tuple[float, float]]:
    """Return each metric before and now; raise a `DekrError` where the protocols differ."""
    if missing := [metric for metric in new["figures"] if metric not in old["figures"]]:
        raise DekrError(f"{name}: has no {missing[0]}: its metrics are of another data set's protocol")
    return {metric: (old["figures"][metric], value) for metric, value in new["figures"].items()}


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values in nested dictionaries by the names that lead to them; `None` is left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{prefix} {key}".strip())
    elif value is not None:
        yield prefix, value


def _short(value: Any) -> str:
    """Return a value, or a list of values, for a line."""
    return ", ".join(map(_text, value)) if isinstance(value, list) else _text(value)


def _text(value: Any) -> str:
    """Return a value for a line: hashes by their first digits, other texts by their first hundred characters."""
    text = "nothing" if value is None else excerpt(value, 100)
    is_hash = len(text) == 2 * hashlib.sha256().digest_size and " " not in text
    return one_line(f"{text[:12]}..." if is_hash else text)
