"""Times of passes, from summaries of folders and from shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dekr_infer.data.coco import load_data_set
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.timing import latency_table, pass_times
from dekr_infer.geometry import Size
from tests.support.coco_files import write_annotation

SIZES = {"a.jpg": Size(400, 600), "b.jpg": Size(400, 400), "c.jpg": Size(400, 400)}


@pytest.fixture
def data(tmp_path):
    write_annotation(tmp_path, SIZES)
    return load_data_set(tmp_path, "val2017")


def summary(folder: Path, **changes: object) -> Path:
    content = {
        "filesinfo": {str(n): {"infiles": [f"/prep/{stem}.npy"], "outfiles": []} for n, stem in enumerate("bax")},
        "npu_compute_time_list": [5.0, 7.0, 99.0],
    }
    folder.with_name(f"{folder.name}_summary.json").write_text(json.dumps(content | changes))
    return folder


def shard(folder: Path) -> Path:
    lines = [{"kind": "people"}, {"key": "c", "inputs": {}, "milliseconds": [3.0, 4.0]}, {"key": "x", "inputs": {}}]
    folder.mkdir()
    (folder / "shard-000000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_times_of_both_folders_and_of_shards_are_those_of_their_images(data, tmp_path):
    folders = [summary(tmp_path / "out"), summary(tmp_path / "out_flip"), shard(tmp_path / "run")]
    assert pass_times(folders, data) == {1000: [7.0, 7.0], 999: [5.0, 5.0], 998: [3.0, 4.0]}


def test_the_table_has_a_row_for_each_input_size_and_one_for_all(data):
    rows = latency_table({1000: [10.0, 20.0], 999: [4.0], 998: [6.0]}, data)
    assert [(row["size"], row["passes"], row["p50"], row["total"]) for row in rows] == [
        *(("512x512", 2, 5.0, 10.0), ("512x768", 2, 15.0, 30.0)),
        ("all", 4, 8.0, 40.0),
    ]
    assert rows[0]["max"] == 6 and rows[2]["p99"] == pytest.approx(19.7)
    assert latency_table({}, data) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"npu_compute_time_list": [1.0]},
        {"npu_compute_time_list": None},
        {"npu_compute_time_list": ["5"] * 3},
        {"filesinfo": {str(n): {} for n in range(3)}},
    ],
)
def test_a_summary_of_another_form_is_named(data, tmp_path, changes):
    with pytest.raises(DekrError, match=r"out_summary.json: .*--times"):
        pass_times([summary(tmp_path / "out", **changes)], data)


def test_a_folder_without_times_is_named(data, tmp_path):
    with pytest.raises(DekrError, match=r"out_summary.json: cannot be read .*--times"):
        pass_times([tmp_path / "out"], data)
