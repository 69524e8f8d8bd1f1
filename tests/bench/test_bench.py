"""The benchmark: the reference's way as written there gives our results, and the command's table and JSON are whole."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dekr_infer.cli.postprocess import settings_of
from dekr_infer.config.load import load_config
from dekr_infer.data.coco import DataSet, PictureFiles, load_data_set, picture_source
from dekr_infer.evaluation.evaluate import process
from dekr_infer.geometry import Size
from dekr_infer.model.blocks import AdaptBlock
from dekr_infer.model.head import build_network
from dekr_infer.pose import decode, preprocess
from dekr_infer.pose.encode import Encoding, noisy, write_dumps
from dekr_infer.storage import npy as tensors
from scripts.bench import forward, growth, guard, limits, plain
from scripts.bench import run as bench
from scripts.bench.measure import LIMIT, OURS, REFERENCE, UPSTREAM, Row, alternate, table
from scripts.demo.people import write_data_set
from tests.support.helpers import assert_refused, run_command
from tests.support.tiny_fixtures import single_thread
from tests.support.tiny_models import PAIRS

WEIGHTS = Path(__file__).resolve().parents[2] / "scripts/demo/weights"
SPLIT = "val2017"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataSet:
    root = tmp_path_factory.mktemp("drawn")
    write_data_set(root, SPLIT, 8, 5)  # the eighth shows nobody
    found = load_data_set(root, SPLIT)
    return DataSet(found.annotation, found.pictures[-3:], found.content)


def test_the_plain_tensors_are_ours_to_the_bit(data, tmp_path):
    source = picture_source(data.annotation.parents[1], SPLIT)
    folders = tmp_path / "plain", tmp_path / "plain_flip"
    for folder in folders:
        folder.mkdir()
    plain.write_tensors(data.pictures, PictureFiles(source, SPLIT), folders)
    ours = tmp_path / "ours", tmp_path / "ours_flip"
    preprocess.write_tensors(data, source, SPLIT, ours)
    for theirs, own in zip(folders, ours, strict=True):
        for picture in data.pictures:
            name = f"{picture.stem}.npy"
            assert (theirs / name).read_bytes() == (own / name).read_bytes()


def test_the_plain_decoding_finds_our_people(data, tmp_path):
    rescore = WEIGHTS / "rescore_demo.pth"
    settings = settings_of(load_config(None, ["RESCORE.MODEL_FILE", str(rescore)]))
    dumps = write_dumps(data, tmp_path / "dumps", Encoding(distort=noisy))
    outcome = process(data, data.pictures, dumps, settings)
    found = plain.find_people(data.pictures, dumps, settings.decode, rescore)
    poses = np.concatenate([people for people, _ in found])
    scores = np.concatenate([values for _, values in found])
    assert len(poses) == outcome.people > 30
    ours = np.array([entry["keypoints"] for entry in outcome.results]).reshape(-1, 17, 3)
    np.testing.assert_allclose(poses, ours, atol=1e-3)
    np.testing.assert_allclose(scores, [entry["score"] for entry in outcome.results], atol=1e-5)


def test_the_plain_decoding_of_an_empty_map_finds_nobody():
    people, scores = plain.decode(torch.zeros(1, 18, 8, 8), torch.zeros(1, 34, 8, 8), decode.DecodeSettings())
    assert people.shape == (0, 17, 3) and scores.shape == (0,)


def test_the_ways_take_turns_and_what_is_between_is_not_timed():
    calls = []
    ways = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = alternate(ways, 2, lambda: (calls.append("-"), time.sleep(0.02)))
    assert calls == ["-", "a", "-", "b"] * 2
    assert all(len(values) == 2 and max(values) < 0.02 for values in seconds.values())


def test_a_row_gives_medians_and_the_median_of_the_rounds_ratios():
    row = Row("s", "per thing", {OURS: [1.0, 2.0, 9.0], REFERENCE: [4.0, 6.0, 9.0], LIMIT: [1.0, 1.0, 3.0]}, "what")
    assert row.median(OURS) == 2 and row.median(UPSTREAM) is None
    assert row.ratio(REFERENCE, OURS) == 3 and row.ratio(OURS, LIMIT) == 2 and row.ratio(UPSTREAM, OURS) is None
    found = row.as_json()
    assert (found["faster_than_reference"], found["of_limit"], found["faster_than_upstream"]) == (3, 2, None)
    line = table([row]).splitlines()[-1]
    assert line == "| s, per thing | 2000 ms | 6000 ms | 3.00 x |  |  | 1000 ms, what | 2.00 |"


def test_all_multiply_adds_are_counted():
    # W32: 45.4 G at 512 x 512, the adaptive blocks with their 3x3 convolution to 4 + 2 maps and their deformable one
    config = load_config(None, PAIRS)
    network = build_network(config)
    by_hand = 0
    for block in network.modules():
        if isinstance(block, AdaptBlock):
            channels = block.adapt_conv.weight.shape[0]
            by_hand += 9 * channels * (4 + 2 + channels) * (16 * 24)
    with single_thread():
        everything = forward.multiply_adds(network, Size(64, 96))
    assert by_hand > 0
    assert everything == forward_of_torch(build_network(config), (64, 96)) + by_hand


def forward_of_torch(network: torch.nn.Module, size: tuple[int, int]) -> int:
    """The multiply-adds of a network's ordinary convolutions outside the adaptive blocks, as torch counts them."""
    inside = {id(m) for b in network.modules() if isinstance(b, AdaptBlock) for m in b.modules()}
    total = 0

    def count(module, inputs, output):
        nonlocal total
        total += output.numel() * inputs[0].shape[1] * module.kernel_size[0] * module.kernel_size[1]

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and id(module) not in inside:
            module.register_forward_hook(count)
    with torch.inference_mode(), single_thread():
        network(torch.zeros(1, 3, *size))
    return total


def test_the_rate_of_matrix_products_is_that_of_a_machine():
    assert 1e8 < limits.gemm_rate(1) < 1e14


def test_writing_alone_writes_the_files_that_preprocessing_writes(data, tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    with tensors.exclusive(folders[0]), tensors.exclusive(folders[1]):
        written = limits.write_tensors(data.pictures, folders)
        assert limits.read_files(folders) == written
        limits.forget(folders)
    source = picture_source(data.annotation.parents[1], SPLIT)
    ours = tmp_path / "ours", tmp_path / "ours_flip"
    assert preprocess.write_tensors(data, source, SPLIT, ours).written == written
    for blank, own in zip(folders, ours, strict=True):
        assert {f.name: f.stat().st_size for f in blank.iterdir()} == {f.name: f.stat().st_size for f in own.iterdir()}


def test_the_command_measures_all_stages_and_leaves_only_its_json(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SIDE", 64)
    monkeypatch.setattr(forward.measure, "__defaults__", ((Size(64, 96),),))
    report, work = tmp_path / "bench.json", tmp_path / "work"
    with single_thread():
        ran = run_command(bench.main, "--pictures", 2, "--rounds", 1, "--work", work, "--json", report, *PAIRS)
    assert ran.code == 0, ran.err
    assert os.listdir(work) == []
    found = json.loads(report.read_text())
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert len(stages) == 5 and ran.out.count("\n|") == 2 + len(stages)
    for stage in stages.values():
        assert stage["median_seconds"][OURS] > 0 and stage["faster_than_reference"] > 0
    assert {"preprocessing, onto the disk", "forward 64x96", "postprocessing", "COCO evaluation"} < set(stages)
    assert stages["forward 64x96"]["multiply_adds"] > 1e6
    assert {"write_disk_MB_per_s", "read_cache_MB_per_s", "jpeg_decode_ms", "gemm_GFLOP_per_s"} < set(found["limits"])
    assert {"processor", "cores", "memory_GiB", "torch"} <= set(found["machine"])


@pytest.mark.parametrize(
    ("words", "part"),
    [(["--only", "cooking"], "cooking"), (["--rounds", "0"], "0 is not"), (["--root", "nowhere"], "nowhere")],
)
def test_mistakes_are_answered_in_one_line(words, part, tmp_path):
    ran = run_command(bench.main, "--work", tmp_path, "--only", "postprocessing", *words, *PAIRS[:2])
    assert_refused(ran, 1 if part == "nowhere" else 2, part)


def test_growth_links_many_pictures_of_a_few(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "DRAWN", 3)
    points = tmp_path / "points.json"
    ran = run_command(
        growth.main, "--sizes", "4,7", "--only", "preprocess,postprocess", "--work", tmp_path, "--json", points
    )
    assert ran.code == 0, ran.err
    found = json.loads(points.read_text())
    assert [(p["stage"], p["pictures"]) for p in found] == [
        (stage, size) for stage in ("preprocess", "postprocess") for size in (4, 7)
    ]
    assert all(p["seconds"] > 0 and 20 < p["peak_MiB"] < 4000 for p in found)
    assert list(tmp_path.glob("growth-*")) == []


def test_growth_names_what_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "DRAWN", 1)
    monkeypatch.setattr(growth, "WEIGHTS", tmp_path)
    ran = run_command(growth.main, "--sizes", "1", "--only", "postprocess", "--work", tmp_path)
    assert_refused(ran, 1, "DEKR_postprocess.py", "rescore_demo.pth")


def test_the_guard_names_the_stage_that_is_slow(monkeypatch):
    def sums(count: int) -> None:
        sum(range(count))

    quick, slow = (lambda: sums(20_000)), (lambda: sums(2_000_000))
    fine, bad = guard.Check("this one", 2, quick, slow), guard.Check("that one", 2, slow, quick)
    monkeypatch.setattr(guard, "checks", lambda _folder: [fine, bad])
    with single_thread():
        ran = run_command(guard.main)
    assert_refused(ran, 1, "that one")
    assert "this one" not in ran.err and "this one" in ran.out
    assert fine.ratio() > 2 > bad.ratio()
