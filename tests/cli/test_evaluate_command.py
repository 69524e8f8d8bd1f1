"""`dekr evaluate`: people, metrics and files as of the three steps; resumed, shared, merged; bad images; checks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from dekr_infer.cli import evaluate as command
from dekr_infer.evaluation.shards import PEOPLE_BYTES, _short
from dekr_infer.geometry import PUBLISHED_SIZES, Size
from tests.support.commands import Ran, assert_refused, run_command
from tests.support.folders import contents
from tests.support.images import colourful, encode
from tests.support.tiny_models import toy_model
from tests.support.workspace import (
    EVALUATE,
    INFER,
    POSTPROCESS,
    PREPROCESS,
    make_inputs,
    run_through,
    write_rescore_net,
)

ROOT = Path(__file__).resolve().parents[2]
SIZES = {f"p{number}.jpg": Size(40 + number, 40 + (number + number * number) % 31) for number in range(8)}
RESULTS, METRICS = "keypoints_val2017_results.json", "metrics.json"
ARCHIVE = Path("coco/images/val2017.zip")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images, and what the three steps and one evaluation make of them, in `w`."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_inputs(folder, SIZES)
    (folder / "in" / "model.pth").touch()
    for stage in (PREPROCESS, INFER):
        run_through(folder, (stage,))
        for record in (folder / "w").glob("*_record.jsonl"):  # so that the provenance is known, as of the evaluation
            if not (folder / "in" / record.name).exists():
                os.link(record, folder / "in" / record.name)
    run_through(folder, (POSTPROCESS, EVALUATE))
    return folder


@pytest.fixture
def place(source, tmp_path, monkeypatch) -> Path:
    """A copy of the inputs, as the current folder; results go to `r`."""
    for name in ("coco", "net.onnx", "rescore.pth"):
        copy = shutil.copytree if (source / "in" / name).is_dir() else shutil.copyfile
        copy(source / "in" / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*flags: object, pairs: tuple[str, ...] = (), output: str = "r") -> Ran:
    words = ["--model", "net.onnx", "--output", output, "--run", "run", "--shard_images", 3, *flags]
    settings = ["DATASET.ROOT", "coco", "RESCORE.MODEL_FILE", "rescore.pth", *pairs]
    return run_command(command.main, *words, *settings)


def passed(ran: Ran) -> Ran:
    assert ran.code == 0, ran
    return ran


def replace_member(name: str, data: bytes | None) -> None:
    """Replace or remove an image of the zip."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members[f"val2017/{name}"] = data or b""
    with zipfile.ZipFile(ARCHIVE, "w") as archive:
        for member, content in members.items():
            if data is not None or member != f"val2017/{name}":
                archive.writestr(member, content)


# -- the three steps ---------------------------------------------------------------------------------------------------


def test_results_and_metrics_are_those_of_the_three_steps(source):
    steps, one = contents(source / "w" / "results"), contents(source / "w" / "evaluated")
    assert one[RESULTS] == steps[RESULTS] and len(json.loads(one[RESULTS])) > 8
    assert json.loads(one[METRICS]) == json.loads(steps[METRICS])
    assert sorted(one) == [RESULTS, METRICS, "run", *(f"run/shard-00000{number}.jsonl" for number in range(3))]


@pytest.mark.parametrize(
    "pairs",
    [("TEST.FLIP_TEST", "False"), ("TEST.MATCH_HMP", "True", "DATASET.MAX_NUM_PEOPLE", "2", "RESCORE.VALID", "False")],
)
def test_other_settings_give_the_three_steps_results_as_well(source, place, pairs):
    from dekr_infer.cli import postprocess

    out = source / "w"
    words = ["--dump_dir", out / "out", "--dump_dir_flip", out / "out_flip", "--output", "steps"]
    settings = ["DATASET.ROOT", "coco", "RESCORE.MODEL_FILE", "rescore.pth", *pairs]
    passed(run_command(postprocess.main, *words, *settings))
    passed(evaluate(pairs=pairs))
    steps, one = contents(place / "steps"), contents(place / "r")
    assert one[RESULTS] == steps[RESULTS] and json.loads(one[METRICS]) == json.loads(steps[METRICS])


def test_nothing_but_people_is_written_and_fewer_bytes_than_announced(source):
    files = [path for path in (source / "w" / "evaluated").rglob("*") if path.is_file() and path.name != METRICS]
    people = len(json.loads((source / "w" / "evaluated" / RESULTS).read_text()))
    overhead = 3 * 1200 + len(SIZES) * 150  # heads of the shards; rows
    assert sum(path.stat().st_size for path in files) < PEOPLE_BYTES * people + overhead


def test_the_start_tells_images_passes_and_what_both_ways_need_on_the_disk(place):
    ran = passed(evaluate("--limit", 2))
    line = ran.out.splitlines()[0]
    assert line.startswith("2 images, 0 of them done before, 4 passes (512x512: 1")
    assert "at most 0.1 MB on the disk, the three steps write " in line
    assert "NOT THE WHOLE DATA SET: 6 images were missing" in ran.out


def test_shortened_values_are_the_same_in_float32():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    np.testing.assert_array_equal(np.array(_short(values), np.float32).view(np.uint32), values.view(np.uint32))


# -- resumed -----------------------------------------------------------------------------------------------------------


def test_finished_shards_are_not_done_again(source, place, monkeypatch):
    shutil.copytree(source / "w" / "evaluated", place / "r")
    (place / "r" / "run" / "shard-000001.jsonl").unlink()
    wanted, seen = contents(source / "w" / "evaluated"), []
    found = command.find_people
    monkeypatch.setattr(
        command, "find_people", lambda d, frames, *w, **k: seen.extend(frames) or found(d, frames, *w, **k)
    )
    assert "5 of them done before" in passed(evaluate()).out
    assert [frame.key for frame in seen] == ["p3", "p4", "p5"]
    assert contents(place / "r") == wanted


def test_a_limit_is_extended_later(source, place):
    passed(evaluate("--limit", 4))
    assert "8 images, 4 of them done before" in passed(evaluate()).out
    assert contents(place / "r") == contents(source / "w" / "evaluated")


def change_graph(place: Path) -> None:
    onnx.save(toy_model(PUBLISHED_SIZES, 0.03), place / "net.onnx")


def change_rescore(place: Path) -> None:
    write_rescore_net(place / "rescore.pth", 0.5)


def change_annotation(place: Path) -> None:
    path = place / "coco" / "annotations" / "person_keypoints_val2017.json"
    path.write_text(path.read_text() + " ")


def change_image(place: Path) -> None:
    replace_member("p4.jpg", encode(colourful(SIZES["p4.jpg"], 99), ".jpg"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_graph, "was written with graph "),
        (change_rescore, "was written with rescore "),
        (change_annotation, "was written with annotations "),
        (change_image, "p4.jpg, an image that has changed since"),
    ],
)
def test_people_of_other_files_are_refused_and_another_run_is_free(place, change, named):
    passed(evaluate("--limit", 5))
    before = contents(place / "r")
    change(place)
    assert_refused(evaluate(), 1, named, "name another run with --run")
    assert contents(place / "r") == before
    passed(evaluate("--run", "other"))


@pytest.mark.parametrize(
    ("flags", "pairs", "named"),
    [
        ((), ("TEST.FLIP_TEST", "False"), "was written with flip True; this run has flip False"),
        ((), ("TEST.NMS_THRE", "0.2"), "was written with NMS_THRE 0.05; this run has NMS_THRE 0.2"),
        (("--shard_images", "4"), (), "was written with shard_images 3; this run has shard_images 4"),
    ],
)
def test_people_of_other_settings_are_refused(place, flags, pairs, named):
    passed(evaluate("--limit", 1))
    assert_refused(evaluate(*flags, pairs=pairs), 1, named)


def test_a_damaged_shard_is_named(place):
    passed(evaluate())
    path = place / "r" / "run" / "shard-000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{\n", *lines[2:]]))
    assert_refused(evaluate(), 1, "shard-000001.jsonl: line 2 is damaged", "delete it")
    path.write_bytes(lines[0] + lines[1].replace(b'"scores":[', b'"scores":[0.5,'))
    assert_refused(evaluate(), 1, "shard-000001.jsonl: p3 is damaged")


# -- shared ------------------------------------------------------------------------------------------------------------


def test_three_shares_and_a_merge_equal_one_process(source, place):
    for share in (2, 0, 1):
        assert not (place / "r" / RESULTS).exists()
        assert f"share {share}/3: " in passed(evaluate("--shard", f"{share}/3")).out
    passed(evaluate("--merge"))
    assert contents(place / "r") == contents(source / "w" / "evaluated")


def test_a_merge_names_what_is_missing(place):
    passed(evaluate("--shard", "0/3"))
    assert_refused(evaluate("--merge"), 1, "5 of 8 images are not done, the first is p3.jpg", "not whole: 1, 2;")
    assert not (place / "r" / RESULTS).exists()


def test_a_merge_names_what_is_doubled(place):
    passed(evaluate())
    shutil.copyfile(place / "r/run/shard-000001.jsonl", place / "r/run/shard-000007.jsonl")
    assert_refused(evaluate("--merge"), 1, "shard-000007.jsonl: holds p3, which shard-000001.jsonl holds, too")


@pytest.mark.parametrize("share", ["3/3", "-1/3", "1", "a/b", "0/0"])
def test_a_share_is_one_of_n(place, share):
    assert_refused(evaluate(f"--shard={share}"), 2, "i/n")


# -- bad images --------------------------------------------------------------------------------------------------------


def test_a_bad_image_is_an_error_row_and_the_others_are_evaluated(source, place):
    whole = contents(source / "w" / "evaluated")
    with zipfile.ZipFile(ARCHIVE) as archive:
        good = archive.read("val2017/p4.jpg")
    replace_member("p4.jpg", good[:200])
    ran = evaluate()
    assert ran.code == 1 and "7 images, " in ran.out
    *_, listed, error = ran.err.splitlines()
    assert "p4.jpg: not an image, or damaged" in listed and listed.startswith("warning: ")
    assert error.startswith("error: 1 of 8 images could not be read, the first is p4.jpg;")
    p4 = 1000 - 4
    others = [entry for entry in json.loads(whole[RESULTS]) if entry["image_id"] != p4]
    assert json.loads((place / "r" / RESULTS).read_text()) == others
    rows = [json.loads(line) for line in (place / "r/run/shard-000001.jsonl").read_text().splitlines()[1:]]
    assert ["error" in row["result"] for row in rows] == [False, True, False]
    replace_member("p4.jpg", good)
    assert "8 images, 7 of them done before" in passed(evaluate()).out
    assert contents(place / "r") == whole


def test_a_run_without_any_readable_image_ends_with_its_line(place):
    for name in SIZES:
        replace_member(name, b"no image")
    ran = evaluate()
    assert ran.code == 1 and "Traceback" not in ran.err
    assert ran.err.splitlines()[-1].startswith("error: 8 of 8 images could not be read, the first is p0.jpg;")


def test_absent_images_are_refused_unless_they_may_be_missing(place):
    replace_member("p4.jpg", None)
    assert_refused(evaluate(), 1, "1 of 8 images are missing, the first is p4.jpg", "--allow_missing")
    ran = passed(evaluate("--allow_missing"))
    assert "NOT THE WHOLE DATA SET: 1 images were missing" in ran.out


# -- checks ------------------------------------------------------------------------------------------------------------


def test_an_expected_ap_is_held_and_a_missed_one_is_one_line(place):
    passed(evaluate())
    ap = json.loads((place / "r" / METRICS).read_text())["figures"]["AP"]
    passed(evaluate("--expect", ap + 0.002))
    ran = evaluate("--expect", ap + 0.2)
    assert ran.code == 1 and ran.err.splitlines()[-1] == f"error: AP is {ap:.4f}, expected {ap + 0.2} within 0.003"
    passed(evaluate("--expect", ap + 0.2, "--tolerance", 0.3))
    assert_refused(evaluate("--expect", "nan"), 2, "from 0 to 1")
    assert_refused(evaluate("--expect", "0.5", "--shard", "0/2"), 2, "--merge")


def test_the_running_ap_of_all_images_but_one_is_near_the_last(place):
    ran = passed(evaluate("--report_every", 4))
    line = next(line for line in ran.err.splitlines() if "so far" in line)
    assert line.startswith("evaluate: 4 of 8 images, ") and " left; AP " in line


def test_bad_names_are_refused(place):
    assert_refused(evaluate("--run", "a/b"), 2, "--run a/b")
    assert_refused(evaluate("--run", ".."), 2, "--run ..: it must be the name of a folder below --output")
    assert_refused(evaluate("--provider", "NoProvider"), 1, "has no NoProvider; it has ", "CPUExecutionProvider")
    assert_refused(evaluate("--model", "none.onnx"), 1, "none.onnx: cannot be read")


# -- memory ------------------------------------------------------------------------------------------------------------

MEASURE = r"""
import json, re, sys
from pathlib import Path
from dekr_infer.cli import evaluate
code = evaluate.main(sys.argv[1:])
peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())  # of this program; ru_maxrss is inherited
print(json.dumps([code, int(peak[1]) / 1024]))
"""


@pytest.mark.long
def test_peak_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Three people an image: what is found is kept until the end and takes about 5 KB a person."""
    peaks = []
    for count in (80, 400):
        folder = tmp_path / str(count)
        make_inputs(folder, {f"p{number}.jpg": Size(48, 48) for number in range(count)})
        words = ["--model", "net.onnx", "DATASET.ROOT", "coco", "RESCORE.MODEL_FILE", "rescore.pth"]
        words += ["DATASET.MAX_NUM_PEOPLE", "3"]
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *words],
            cwd=folder / "in",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        code, megabytes = json.loads(done.stdout.splitlines()[-1])
        assert code == 0, done.stderr
        peaks.append(megabytes)
    assert peaks[1] - peaks[0] < 25, peaks


def test_a_set_without_annotations_gets_its_results_file_and_no_metrics(place):
    annotation = place / "coco/annotations/person_keypoints_val2017.json"
    content = json.loads(annotation.read_text())
    del content["annotations"], content["categories"][0]["keypoints"]
    content["categories"][0]["id"] = 1
    (annotation.parent / "image_info_test-dev2017.json").write_text(json.dumps(content))
    annotation.unlink()
    with zipfile.ZipFile(place / ARCHIVE) as packed, zipfile.ZipFile(place / "coco/images/test2017.zip", "w") as target:
        for info in packed.infolist():
            target.writestr(info.filename.replace("val2017/", "test2017/"), packed.read(info))
    (place / ARCHIVE).unlink()
    ran = passed(evaluate("--run", "dev", "--report", "r.html", pairs=("DATASET.TEST", "test-dev2017")))
    assert "no report: coco/annotations/image_info_test-dev2017.json has no annotations" in ran.out
    assert not Path("r.html").exists()
    assert "image_info_test-dev2017.json has no annotations: there are no metrics" in ran.out
    assert "warning" not in ran.err
    results = json.loads((place / "r" / "keypoints_test-dev2017_results.json").read_text())
    assert results and {entry["category_id"] for entry in results} == {1}
    assert json.loads((place / "r" / METRICS).read_text())["figures"] == {}
    assert_refused(
        evaluate("--run", "dev", "--expect", "0.5", pairs=("DATASET.TEST", "test-dev2017")), 1, "no AP to expect"
    )


def test_several_scales_are_evaluated_and_recorded(place):
    first = passed(evaluate("--limit", 2))
    scaled = passed(evaluate("--run", "scales", "--limit", 2, pairs=("TEST.SCALE_FACTOR", "0.5,1,2")))
    assert "4 passes" in first.out and "12 passes" in scaled.out
    assert json.loads((place / "r" / METRICS).read_text())["settings"]["scales"] == [0.5, 1, 2]
    assert_refused(evaluate("--run", "scales", "--limit", 2), 1, "was written with ")


def test_input_sizes_other_than_the_graphs_are_refused(place):
    ran = evaluate(pairs=("DATASET.INPUT_SIZE", "640", "DATASET.OUTPUT_SIZE", "160"))
    assert_refused(ran, 2, "net.onnx: takes the input sizes 512,768;", "the configuration has 640,960;")
