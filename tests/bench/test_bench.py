"""The benchmark: the reference's way gives our results, the limits do the work they claim, slow stages are noticed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dekr_infer.backends.output_folder import OutputFolder
from dekr_infer.backends.tensor_folder import write_tensors
from dekr_infer.config.load import load_config
from dekr_infer.config.settings import decode_settings, rescore_net
from dekr_infer.data.coco import DataSet, load_data_set
from dekr_infer.data.sources import ImageFiles, frames_of, image_source
from dekr_infer.detector import Detector
from dekr_infer.errors import DekrError
from dekr_infer.geometry import Size
from dekr_infer.model.blocks import AdaptBlock
from dekr_infer.model.head import build_network
from dekr_infer.pose.encode import Encoding, noisy, write_dumps
from dekr_infer.storage.atomic import folder_lock
from scripts.bench import forward, reference_impl, regression_check, roofline, timing
from scripts.bench import people as people_bench
from scripts.bench import run as bench
from scripts.bench.timing import LIMIT, OURS, REFERENCE, UPSTREAM, Row, alternate, table
from scripts.demo.people import write_data_set
from tests.support.commands import assert_refused, run_command
from tests.support.tiny_models import ONE_THREAD, PAIRS, single_thread

WEIGHTS = Path(__file__).resolve().parents[2] / "scripts/demo/weights"
SPLIT = "val2017"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataSet:
    root = tmp_path_factory.mktemp("drawn")
    write_data_set(root, SPLIT, 8, 5)  # the eighth image shows nobody
    found = load_data_set(root, SPLIT)
    return DataSet(found.annotation, found.images[-3:], found.people, found.category)


@pytest.fixture(scope="module")
def our_tensors(data, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ours")
    folders = folder / "prep", folder / "prep_flip"
    write_tensors(data, image_source(data.annotation.parents[1], SPLIT), folders)
    return folders


def test_reference_tensors_equal_ours_to_the_bit(data, our_tensors, tmp_path):
    folders = tmp_path / "plain", tmp_path / "plain_flip"
    for folder in folders:
        folder.mkdir()
    files = ImageFiles(image_source(data.annotation.parents[1], SPLIT))
    reference_impl.write_tensors(data.images, files, folders)
    for theirs, ours in zip(folders, our_tensors, strict=True):
        for image in data.images:
            name = f"{image.stem}.npy"
            assert (theirs / name).read_bytes() == (ours / name).read_bytes()


def test_reference_decoding_finds_our_people(data, tmp_path):
    rescore = WEIGHTS / "rescore_demo.pth"
    config = load_config(None, ["RESCORE.MODEL_FILE", str(rescore)])
    outputs = write_dumps(data, tmp_path / "outputs", Encoding(distort=noisy))
    detector = Detector(OutputFolder(*outputs), decode_settings(config), rescore=rescore_net(config))
    found = reference_impl.find_people(data.images, outputs, detector.settings, rescore)
    assert sum(len(poses) for poses, _ in found) > 30
    frames = frames_of(data, detector.backend.input_sizes)
    for (poses, scores), (_, people) in zip(found, detector.stream(frames), strict=True):
        np.testing.assert_allclose(poses, people.poses, atol=1e-3)
        np.testing.assert_allclose(scores, people.scores, atol=1e-5)


def test_reference_decoding_of_an_empty_map_finds_nobody():
    settings = decode_settings(load_config(None, []))
    people, scores = reference_impl.decode_poses(torch.zeros(1, 18, 8, 8), torch.zeros(1, 34, 8, 8), settings)
    assert people.shape == (0, 17, 3) and scores.shape == (0,)


def test_ways_take_turns_and_only_they_are_timed(monkeypatch):
    calls = []
    cost = {"-": 100.0, "a": 2.0, "b": 4.0}  # seconds
    monkeypatch.setattr(timing.time, "perf_counter", lambda: sum(cost[call] for call in calls))
    ways = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    assert alternate(ways, 2, lambda: calls.append("-"), per=2) == {"a": [1.0, 1.0], "b": [2.0, 2.0]}
    assert calls == ["-", "a", "-", "b"] * 3  # one round more than is timed


def test_a_row_gives_medians_and_the_median_of_the_rounds_ratios():
    row = Row("s, per unit", {OURS: [1.0, 2.0, 9.0], REFERENCE: [4.0, 6.0, 9.0], LIMIT: [1.0, 1.0, 3.0]}, "what")
    assert row.median(OURS) == 2 and row.median(UPSTREAM) is None
    assert row.ratio(REFERENCE, OURS) == 3 and row.ratio(OURS, LIMIT) == 2 and row.ratio(UPSTREAM, OURS) is None
    assert table([row]).splitlines()[-1] == "| s, per unit | 2000 ms | 6000 ms | 3.00 x |  |  | 1000 ms, what | 2.00 |"


def test_all_multiply_adds_are_counted():
    # W32: 45.4 G at 512 x 512, the adaptive blocks with their 3x3 convolution to 4 + 2 maps and their deformable one
    network = build_network(load_config(None, PAIRS))
    by_hand = 0
    for block in network.modules():
        if isinstance(block, AdaptBlock):
            channels = block.adapt_conv.weight.shape[0]
            by_hand += 9 * channels * (4 + 2 + channels) * (16 * 24)
    with single_thread():
        everything = forward.multiply_adds(network, Size(64, 96))
    assert by_hand > 0
    assert everything == ordinary_multiply_adds(build_network(load_config(None, PAIRS)), (64, 96)) + by_hand


def ordinary_multiply_adds(network: torch.nn.Module, size: tuple[int, int]) -> int:
    """The multiply-adds of a network's convolutions outside the adaptive blocks, from the shapes that torch reports."""
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


def test_the_rate_of_matrix_products_counts_their_operations(monkeypatch):
    """With a clock that counts calls, the rate is the number of operations between two readings."""
    readings = iter(range(100))
    monkeypatch.setattr(roofline, "SIDE", 32)
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: float(next(readings)))
    assert roofline.gemm_rate() == 2 * 32**3 * roofline.PRODUCTS


def test_the_limits_write_and_read_the_bytes_of_preprocessing(data, our_tensors, tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    with folder_lock(folders[0]), folder_lock(folders[1]):
        written = roofline.write_tensors(data.images, folders)
    sizes = [{file.name: file.stat().st_size for file in folder.iterdir()} for folder in folders]
    assert sizes == [{file.name: file.stat().st_size for file in folder.iterdir()} for folder in our_tensors]
    assert roofline.read_files(folders) == written == sum(sum(names.values()) for names in sizes)


@pytest.mark.long
def test_the_command_measures_all_stages_and_leaves_only_its_json(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "SIDE", 64)
    monkeypatch.setattr(bench, "FORWARD_SIZES", (Size(64, 96),))
    report, work = tmp_path / "bench.json", tmp_path / "work"
    with single_thread():
        ran = run_command(bench.main, "--pictures", 2, "--rounds", 2, "--work", work, "--json", report, *PAIRS)
    assert ran.code == 0, ran.err
    assert os.listdir(work) == []
    found = json.loads(report.read_text())
    assert found["environment"]["cores"] >= 1 and found["environment"]["torch"] == torch.__version__
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert list(stages) == [
        *("preprocessing, into the system's cache, per image", "preprocessing, onto the disk, per image"),
        *("forward 64x96, per pass", "postprocessing, per image"),
    ]
    assert table([Row(**stage) for stage in stages.values()]) in ran.out
    for stage in stages.values():
        assert set(stage["seconds"]) == {OURS, REFERENCE, LIMIT}
        assert all(len(rounds) == 2 for rounds in stage["seconds"].values())
    passes = stages["forward 64x96, per pass"]
    rate = max(passes["facts"]["gemm_flops_per_s"])
    assert passes["seconds"][LIMIT] == [2 * passes["facts"]["multiply_adds"] / rate] * 2
    assert stages["postprocessing, per image"]["facts"]["output_bytes_per_image"] > 4 * 52 * 128 * 128


@pytest.mark.parametrize(
    ("words", "part"),
    [(["--only", "cooking"], "cooking"), (["--rounds", "0"], "0 is not"), (["--root", "nowhere"], "nowhere")],
)
def test_mistakes_are_one_error_line(words, part, tmp_path):
    ran = run_command(bench.main, "--work", tmp_path, "--only", "postprocessing", *words, *PAIRS[:2])
    assert_refused(ran, 1 if part == "nowhere" else 2, part)


def test_the_regression_check_names_the_slow_stage_only(capsys):
    quick, slow = (lambda: sum(range(20_000))), (lambda: sum(range(2_000_000)))
    stages = {"this one": {OURS: quick, REFERENCE: slow}, "that one": {OURS: slow, REFERENCE: quick}}
    with pytest.raises(DekrError, match="slower than the limit: that one;"):
        regression_check.check(stages, {"this one": 2, "that one": 2})
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["this one", "that one"]
    regression_check.check({"this one": stages["this one"]}, {"this one": 2})


def test_the_regression_check_compares_equal_work(tmp_path):
    with single_thread():
        stages = regression_check.small_work(tmp_path)
        assert set(stages) == set(regression_check.LEAST)
        people = {way: stages["postprocessing"][way]() for way in (OURS, REFERENCE)}
    ours = [found.poses for _, found in people[OURS]]
    for mine, (theirs, _) in zip(ours, people[REFERENCE], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


@pytest.mark.long
def test_people_are_timed_against_two_passes_and_decoding(capsys):
    assert people_bench.main(["--rounds", "1", *ONE_THREAD, *PAIRS], Size(64, 96)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["two passes and our decoding", "the file that yields people"]
    assert re.fullmatch(r"people of an image of 64x96, .*: \d+\.\d{3}", lines[2])
