"""Dumps to people in image pixels: which dumps must be there, what is refused, and memory; [22], [24] to [26]."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dekr_infer.backends.output_folder import OutputFolder
from dekr_infer.data.coco import load_data_set
from dekr_infer.data.sources import frames_of
from dekr_infer.detector import Detector
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.evaluate import Evaluation, evaluate
from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.pose.decode import decode
from dekr_infer.pose.refine import match_to_heatmap
from dekr_infer.pose.rescore import RescoreNet
from dekr_infer.structures import Passes
from tests.support.coco_files import write_annotation, write_outputs
from tests.support.recipe import DECODE, REFINE, passes_of

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"000000000030.jpg": Size(333, 481), "000000000007.jpg": Size(640, 427), "c.jpg": Size(90, 171)}
STEMS = ["000000000030", "000000000007", "c"]


def detector(folders, settings=DECODE, **options) -> Detector:
    return Detector(OutputFolder(*folders), settings, flip=len(folders) == 2, **options)


def frames(data):
    return frames_of(data, PUBLISHED_SIZES)


def process(data, folders, settings=DECODE, advance=lambda count: None, **options) -> Evaluation:
    return evaluate(detector(folders, settings, **options), data, frames(data), advance)


def complete(data, folders, allow_missing: bool) -> list[str]:
    found = OutputFolder(*folders).complete(frames(data), data.annotation.name, allow_missing)
    return [frame.key for frame in found]


def maps(image: Size, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Heatmap (18, h, w) with three people and offsets (34, h, w) of the image's input size."""
    rng = np.random.default_rng(seed)
    h, w = PUBLISHED_SIZES.place(image).cells
    heat = 0.009 * rng.uniform(size=(18, h, w))
    for _ in range(3):
        heat[17, rng.integers(h), rng.integers(w)] = rng.uniform(0.3, 1)
    heat[:17] += 0.3
    return heat.astype(np.float32), (12 * rng.normal(size=(34, h, w))).astype(np.float32)


@pytest.fixture
def data(tmp_path):
    """Three images of three input sizes, and their dumps in out and out_flip; the second shows nobody."""
    write_annotation(tmp_path, SIZES)
    for seed, (stem, size) in enumerate(zip(STEMS, SIZES.values(), strict=True)):
        for name in ("out", "out_flip"):
            heat, offset = maps(size, 2 * seed + (name == "out_flip"))
            if seed == 1:
                heat[17] = 0
            write_outputs(tmp_path / name, stem, heat, offset)
    return load_data_set(tmp_path, "val2017")


@pytest.fixture
def folders(data, tmp_path):
    return [tmp_path / "out", tmp_path / "out_flip"]


def loaded(folders, stem: str) -> Passes:
    return passes_of(*(np.load(folder / f"{stem}_{index}.npy")[0] for folder in folders for index in (0, 1)))


def test_outputs_of_float16_are_taken_and_computed_with_in_float32(data, folders):
    exact = process(data, folders)
    for file in (file for folder in folders for file in folder.glob("*.npy")):
        np.save(file, np.load(file).astype(np.float16))
    half = process(data, folders)
    assert len(half.results) == len(exact.results) > 3
    for one, other in zip(half.results, exact.results, strict=True):
        np.testing.assert_allclose(one["keypoints"][:2], other["keypoints"][:2], atol=0.3)
        assert one["score"] == pytest.approx(other["score"], rel=1e-2)
    assert process(data, folders, refine=REFINE).results
    passes = OutputFolder(*folders).infer(frames(data)[0], flip=True)
    y = x = np.arange(3)
    assert passes.original.offset_at(y, x).dtype == passes.original.heat_at(0, y, x).dtype == np.float32


# -- which dumps are there ---------------------------------------------------------------------------------------------


def test_the_images_are_the_data_sets_in_its_order(data, folders):
    assert complete(data, folders, allow_missing=False) == STEMS


def test_missing_and_foreign_outputs_are_counted_and_named_for_each_folder(data, folders):
    (folders[0] / "c_1.npy").unlink()
    (folders[0] / "000000000030_0.npy").unlink()
    (folders[1] / "zebra_0.npy").touch()
    with pytest.raises(DekrError) as caught:
        complete(data, folders, allow_missing=False)
    message = str(caught.value)
    assert f"{folders[0]}: 2 of 6 files are missing, the first is 000000000030_0.npy" in message
    assert f"{folders[1]}: 1 of 7 files are not of person_keypoints_val2017.json, the first is zebra_0.npy" in message
    assert "--allow_missing" in message


def test_missing_outputs_may_be_allowed_and_only_whole_images_count(data, folders):
    (folders[1] / "c_1.npy").unlink()
    assert complete(data, folders, allow_missing=True) == STEMS[:2]
    assert complete(data, folders[:1], allow_missing=True) == STEMS


def test_foreign_outputs_are_refused_even_then_and_so_are_none_at_all(data, folders, tmp_path):
    with pytest.raises(DekrError, match="no image's outputs are complete"):
        complete(data, [folders[0], tmp_path / "none"], allow_missing=True)
    (folders[0] / "zebra_0.npy").touch()
    with pytest.raises(DekrError, match=r"zebra_0\.npy"):
        complete(data, folders, allow_missing=True)
    with pytest.raises(DekrError, match="6 of 6 files are missing"):
        complete(data, [tmp_path / "none"], allow_missing=False)


# -- people ------------------------------------------------------------------------------------------------------------


def test_each_image_gets_the_people_of_its_own_outputs_in_image_pixels(data, folders):
    seen = list(detector(folders).stream(frames(data)))
    assert [frame.key for frame, _ in seen] == STEMS
    for frame, people in seen:
        in_input, expected_scores = decode(loaded(folders, frame.key), DECODE)
        matrix = frame.placement.to_image
        assert len(people) == len(in_input)
        for pose, before in zip(people.poses, in_input, strict=True):
            for joint, (x, y, score) in zip(pose, before.tolist(), strict=True):
                expected = matrix @ [x, y, 1.0]
                assert joint.tolist() == [np.float32(expected[0]), np.float32(expected[1]), score]
        np.testing.assert_array_equal(people.scores, expected_scores)
    assert [len(people) > 0 for _, people in seen] == [True, False, True]


@pytest.mark.parametrize("workers", [2, 5])
def test_a_stream_of_several_workers_yields_the_same_people_in_order(data, folders, workers):
    many = frames(data) * 7
    one, several = (list(detector(folders).stream(many, count)) for count in (1, workers))
    assert [frame for frame, _ in several] == many
    for (_, people), (_, other) in zip(one, several, strict=True):
        np.testing.assert_array_equal(people.poses, other.poses)
        np.testing.assert_array_equal(people.scores, other.scores)


def test_a_stream_takes_only_as_many_frames_as_are_under_way(data, folders):
    taken = []
    source = (taken.append(frame) or frame for frame in frames(data) * 50)
    stream = detector(folders).stream(source, 2)
    next(stream)
    assert len(taken) <= 5
    stream.close()


def test_without_flip_only_the_first_folder_is_read(data, folders):
    for path in folders[1].iterdir():
        path.unlink()
    _, people = next(detector(folders[:1]).stream(frames(data)))
    passes = loaded(folders[:1], STEMS[0])
    assert passes.flipped is None and len(people) == len(decode(passes, DECODE)[0])


def test_matching_happens_in_input_pixels_before_the_way_back(data, folders):
    first = replace(DECODE, max_people=1)
    frame, people = next(detector(folders, first, refine=REFINE).stream(frames(data)))
    passes = loaded(folders, frame.key)
    expected = match_to_heatmap(decode(passes, first)[0], passes, REFINE)
    matrix = frame.placement.to_image
    np.testing.assert_allclose(
        people.poses[..., :2], expected[..., :2] @ matrix[:, :2].T + matrix[:, 2], rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("image", [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3)), np.zeros((0, 5, 3), np.uint8)])
def test_what_is_no_image_is_refused(folders, image):
    with pytest.raises(DekrError, match=r"expected \(h, w, 3\) uint8 BGR"):
        detector(folders)(image)


@pytest.fixture
def net() -> RescoreNet:
    rng = np.random.default_rng(0)
    shapes = ((8, 74), (8, 8), (1, 8))
    return RescoreNet(
        tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes),
        tuple(rng.normal(size=shape[0]).astype(np.float32) for shape in shapes),
    )


def test_a_rescored_score_is_the_nets_factor_times_the_score(data, folders, net):
    plain = process(data, folders).results
    rescored = process(data, folders, rescore=net).results
    assert len(rescored) == len(plain) > 3
    for entry, before in zip(rescored, plain, strict=True):
        pose = np.reshape(before["keypoints"], (1, 17, 3)).astype(np.float32)
        assert entry["score"] == pytest.approx(float(net(pose)[0]) * before["score"], rel=1e-4, abs=1e-6)
        assert entry | {"score": 0} == before | {"score": 0}


def test_nobody_in_the_whole_set_is_a_valid_result_rescored_or_not(data, folders, net):
    for path in [*folders[0].glob("*_0.npy"), *folders[1].glob("*_0.npy")]:
        np.save(path, 0 * np.load(path))
    for rescore in (None, net):
        outcome = process(data, folders, rescore=rescore)
        assert (outcome.results, len(outcome.evaluated), outcome.empty) == ([], 3, 3)


def test_results_hold_no_entry_for_an_image_with_nobody_and_count_it(data, folders):
    steps = []
    outcome = process(data, folders, advance=steps.append)
    assert (outcome.evaluated, outcome.empty) == ([1000, 999, 998], 1)
    assert {entry["image_id"] for entry in outcome.results} == {1000, 998}
    assert {entry["category_id"] for entry in outcome.results} == {1}
    assert steps == [1, 1, 1] and outcome.seconds > 0


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out", "out_flip"])
@pytest.mark.parametrize("index", [0, 1])
def test_an_output_of_another_shape_is_refused_and_named(data, folders, tmp_path, name, index):
    path = tmp_path / name / f"c_{index}.npy"
    np.save(path, np.ascontiguousarray(np.load(path).transpose(0, 1, 3, 2)))
    with pytest.raises(DekrError, match=rf"{name}/c_{index}\.npy: has shape .* c\.jpg needs"):
        process(data, folders)


@pytest.mark.parametrize("name", ["out", "out_flip"])
def test_exchanged_heatmap_and_offset_are_refused(data, folders, tmp_path, name):
    (tmp_path / name / "c_0.npy").rename(tmp_path / "x.npy")
    (tmp_path / name / "c_1.npy").rename(tmp_path / name / "c_0.npy")
    (tmp_path / "x.npy").rename(tmp_path / name / "c_1.npy")
    with pytest.raises(DekrError, match=r"c_0\.npy: has shape"):
        process(data, folders)


def test_an_output_cut_short_is_named(data, folders):
    os.truncate(folders[1] / "c_1.npy", 4000)
    with pytest.raises(DekrError, match=r"out_flip/c_1\.npy: cut short"):
        process(data, folders)


@pytest.mark.parametrize("name", ["out", "out_flip"])
@pytest.mark.parametrize("index", [0, 1])
def test_nan_that_matters_is_refused_and_its_file_named(data, folders, tmp_path, name, index):
    path = tmp_path / name / f"c_{index}.npy"
    values = np.load(path)
    values[0, :17] = np.nan  # of the heatmap: the joints, not the centre
    np.save(path, values)
    with pytest.raises(DekrError, match=rf"{name}/c_{index}\.npy: holds NaN or infinite values"):
        process(data, folders)


def test_scores_that_only_the_nets_factor_carries_beyond_all_bounds_are_refused(data, folders, net):
    for folder in folders:
        heat = np.load(folder / "c_0.npy")
        heat[:, :17] = 1e-3
        heat[:, 17][heat[:, 17] > 0.1] = 3e38
        np.save(folder / "c_0.npy", heat)
    large = RescoreNet(net.weights, (*net.biases[:2], np.full(1, 1e6, np.float32)))
    assert np.isfinite(process(data, folders).results[-1]["score"])
    with pytest.raises(DekrError, match=r"c_0\.npy.*: holds values beyond all bounds; run the network"):
        process(data, folders, rescore=large)


# -- memory ------------------------------------------------------------------------------------------------------------

MEASURE = r"""
import json, re, sys
from pathlib import Path
from dekr_infer.cli import postprocess as postprocess_command
code = postprocess_command.main(sys.argv[1:])
peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())  # of this program; ru_maxrss is inherited
print(json.dumps([code, int(peak[1]) / 1024]))
"""


@pytest.mark.long
def test_peak_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """80 and 800 images with the largest input size: every 80 of them share one set of files."""
    size = Size(500, 900)
    peaks = []
    for folder, seed in (("out", 0), ("out_flip", 1)):
        write_outputs(tmp_path / "source" / folder, "p", *maps(size, seed))
    for count in (80, 800):
        root = tmp_path / str(count)
        names = [f"p{number:03d}" for number in range(count)]
        write_annotation(root, {f"{name}.jpg": size for name in names})
        for folder in ("out", "out_flip"):
            (root / folder).mkdir()
            for name in names:
                for index in (0, 1):
                    os.link(tmp_path / "source" / folder / f"p_{index}.npy", root / folder / f"{name}_{index}.npy")
        words = ["--dump_dir", root / "out", "--dump_dir_flip", root / "out_flip", "--output", root / "results"]
        pairs = ["DATASET.ROOT", root, "RESCORE.VALID", "False"]
        command = [sys.executable, "-c", MEASURE, *map(str, words + pairs)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        code, megabytes = json.loads(done.stdout.splitlines()[-1])
        assert code == 0, done.stderr
        assert len(json.loads((root / "results" / "keypoints_val2017_results.json").read_text())) >= 2 * count
        peaks.append(megabytes)
    assert peaks[1] - peaks[0] < 25, peaks
