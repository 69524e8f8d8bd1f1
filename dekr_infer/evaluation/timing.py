"""Times of forward passes, as the runs that made them wrote them down."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from dekr_infer.backends.folder_runner import summary_path
from dekr_infer.data.coco import DataSet
from dekr_infer.errors import DekrError
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size
from dekr_infer.storage.atomic import read_regular
from dekr_infer.storage.run_record import read_record

Milliseconds = Annotated[float, msgspec.Meta(ge=0, lt=1e12)]


class _Files(msgspec.Struct):
    infiles: list[str] = []


class _Summary(msgspec.Struct):
    """What is needed of the summary of a run over a folder; the keys are those of ais_bench."""

    filesinfo: dict[str, _Files]
    npu_compute_time_list: list[Milliseconds]


def pass_times(folders: Iterable[Path], data: DataSet) -> dict[int, list[float]]:
    """Return the milliseconds of each image's passes, by image id.

    Args:
        folders: of outputs, with a summary beside each, or of shards of `scripts/evaluate.py`.
        data: the images.
    Raises:
        DekrError: a folder has neither summary nor shards, or one of them is damaged.
    """
    ids = {image.stem: image.id for image in data.images}
    times: dict[int, list[float]] = defaultdict(list)
    for folder in folders:
        shards = sorted(folder.glob("shard-*.jsonl"))
        for shard in shards:
            contents = read_record(shard)
            for key, entry in (contents.entries if contents is not None else {}).items():
                if key in ids:
                    times[ids[key]] += entry.milliseconds
        if not shards:
            for stem, milliseconds in _summary_times(summary_path(folder)):
                if stem in ids:
                    times[ids[stem]].append(milliseconds)
    return dict(times)


def _summary_times(path: Path) -> Iterable[tuple[str, float]]:
    remedy = "name the folder of a finished run with --times, or leave --times out"
    try:
        summary = msgspec.json.decode(read_regular(path), type=_Summary)
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DekrError(f"{path}: not the summary of a run over a folder ({error}); {remedy}") from None
    files, times = summary.filesinfo, summary.npu_compute_time_list
    if len(files) != len(times) or not all(info.infiles for info in files.values()):
        raise DekrError(f"{path}: names {len(files)} runs and {len(times)} times; {remedy}")
    for info, milliseconds in zip(files.values(), times, strict=True):
        yield Path(info.infiles[0]).stem, milliseconds


def latency_table(
    times: Mapping[int, Iterable[float]], data: DataSet, input_sizes: InputSizes = PUBLISHED_SIZES
) -> list[dict[str, Any]]:
    """Return the distribution of the passes' milliseconds at each input size, the fastest first, and at all sizes.

    Args:
        times: milliseconds of each image's passes, by image id.
        data: the images.
        input_sizes: what the network was fed.
    """
    by_size: dict[Size, list[float]] = defaultdict(list)
    for image in data.images:
        by_size[input_sizes.place(image.size).input] += times.get(image.id, ())
    filled = {str(size): values for size, values in by_size.items() if values}
    rows: list[dict[str, Any]] = [{"size": size, **_distribution(values)} for size, values in filled.items()]
    rows.sort(key=lambda row: row["p50"])
    if len(rows) > 1:
        rows.append({"size": "all", **_distribution([value for values in filled.values() for value in values])})
    return rows


def _distribution(values: list[float]) -> dict[str, float]:
    p50, p90, p99 = map(float, np.percentile(values, (50, 90, 99)))
    return {"passes": len(values), "mean": float(np.mean(values)), "p50": p50, "p90": p90, "p99": p99} | {
        "max": max(values),
        "total": sum(values),
    }
