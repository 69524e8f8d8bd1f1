"""The commands as typed: help, mistakes in one line with exit code 2, whole runs of the two that need no network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dekr_infer.cli import (
    app,
    check_upstream,
    compare,
    doctor,
    draw_results,
    evaluate,
    onnx_infer,
    pipeline,
    random_checkpoint,
    report,
)
from dekr_infer.cli import export as export_command
from dekr_infer.cli import postprocess as postprocess_command
from dekr_infer.cli import preprocess as preprocess_command
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.coco_metrics import METRICS
from dekr_infer.geometry import PUBLISHED_SIZES, Size, cells
from dekr_infer.storage.run_record import Contents, read_record
from tests.support.coco_files import person, write_annotation, write_images, write_outputs
from tests.support.commands import assert_refused, run_command
from tests.support.images import colourful, encode

ROOT = Path(__file__).resolve().parents[2]
CONFIGURED = {
    "DEKR_preprocess.py": (preprocess_command.main, "--limit"),
    "DEKR_pth2onnx.py": (export_command.main, "--threads"),
    "DEKR_postprocess.py": (postprocess_command.main, "--dump_dir"),
    "scripts/random_checkpoint.py": (random_checkpoint.main, "--seed"),
    "scripts/report.py": (report.main, "--output"),
}
MAINS = {name: main for name, (main, _) in CONFIGURED.items()} | {"scripts/onnx_infer.py": onnx_infer.main}
ALL = pytest.mark.parametrize("name", MAINS)
ALL_CONFIGURED = pytest.mark.parametrize("name", CONFIGURED)


# -- all commands ------------------------------------------------------------------------------------------------------


@ALL
def test_help_explains_and_holds_a_line_to_paste(name):
    ran = run_command(MAINS[name], "--help")
    assert ran.code == 0 and ran.err == ""
    assert f"python3 {name} --" in ran.out
    assert "default" in ran.out


@ALL
def test_an_unknown_flag_is_one_line(name):
    assert run_command(MAINS[name], "--modle", "x").code == 2
    assert_refused(run_command(MAINS[name], "--modle"), 2, "--help")


PARALLEL = {"DEKR_preprocess.py": "--workers", "DEKR_pth2onnx.py": "--threads", "scripts/onnx_infer.py": "--threads"}


@pytest.mark.parametrize("name", PARALLEL)
@pytest.mark.parametrize("number", ["0", "-1", "1025", "99999999999", "9" * 5000, "two"])
def test_threads_and_processes_are_a_number_that_a_machine_can_have(name, number):
    assert_refused(run_command(MAINS[name], PARALLEL[name], number), 2, PARALLEL[name], "--help")


@pytest.mark.parametrize("number", ["0", str(2**31)])
def test_a_count_fits_in_31_bits(number):
    assert_refused(run_command(preprocess_command.main, "--limit", number), 2, f"from 1 to {2**31 - 1}")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_change_only_what_is_printed(dumps, closed):
    folder = dumps.parent
    flags = ["--dump_dir", folder / "out", "--dump_dir_flip", folder / "out_flip", "--output", folder / "results"]
    words = [ROOT / "DEKR_postprocess.py", *flags, "DATASET.ROOT", dumps, "RESCORE.VALID", "False"]
    line = ["bash", "-c", f'"$@" {closed}', "-", sys.executable, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert bool(done.stdout) == (">&-" not in closed.replace("2>&-", ""))
    written(dumps)
    (dumps / "annotations" / "person_keypoints_val2017.json").write_text("[]")
    assert subprocess.run(line, capture_output=True).returncode == 1


def test_what_a_terminal_would_act_on_is_spelt_out(capfd):
    def work():
        raise DekrError("a\x1b[2J.npy: cut\nshort")

    assert app.run(work) == 1
    assert capfd.readouterr().err == "error: a\\x1b[2J.npy: cut short\n"


def test_an_error_of_unknown_place_is_reported_without_a_guess(capfd):
    def fail():
        raise OSError(24, "Too many open files")

    assert app.run(fail) == 1
    assert capfd.readouterr().err == "error: Too many open files; resolve this and run the same command again\n"


@ALL_CONFIGURED
def test_a_misspelt_key_names_the_one_meant(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run_command(MAINS[name], "TEST.FLIP_TSET", "True")
    assert_refused(ran, 2, "unknown key TEST.FLIP_TSET; did you mean TEST.FLIP_TEST?")
    assert list(tmp_path.iterdir()) == []


@ALL_CONFIGURED
def test_a_flag_after_the_first_pair_is_not_taken_for_a_key(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run_command(MAINS[name], "TEST.FLIP_TEST", "True", CONFIGURED[name][1], "3")
    assert_refused(ran, 2, f"{CONFIGURED[name][1]} comes after TEST.FLIP_TEST: flags come before")
    assert list(tmp_path.iterdir()) == []


@ALL_CONFIGURED
def test_an_odd_count_and_a_missing_configuration_are_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(run_command(MAINS[name], "TEST.FLIP_TEST"), 2, "TEST.FLIP_TEST, has no partner")
    assert_refused(run_command(MAINS[name], "--cfg", "none.yaml"), 2, "none.yaml: cannot be read")
    assert list(tmp_path.iterdir()) == []


def test_the_runner_has_no_pairs():
    assert_refused(run_command(onnx_infer.main, "--model", "x.onnx", "TEST.FLIP_TEST", "True"), 2, "TEST.FLIP_TEST")


@pytest.mark.parametrize("name", ["DEKR_postprocess.py", "scripts/onnx_infer.py"])
def test_a_command_runs_as_a_script_from_any_folder(name, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / name, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "python3" in done.stdout and list(tmp_path.iterdir()) == []


def test_pre_and_postprocessing_start_without_torch():
    code = "import DEKR_preprocess, DEKR_postprocess, sys; print('torch' in sys.modules, 'onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


# -- DEKR_preprocess.py ------------------------------------------------------------------------------------------------

SIZES = {"000000000030.jpg": Size(333, 481), "000000000007.jpg": Size(640, 427), "c.jpg": Size(90, 171)}
STEMS = ["000000000030", "000000000007", "c"]


@pytest.fixture
def coco(tmp_path) -> Path:
    """A data set of three images in three input sizes, one person in each of the first two; images zipped."""
    rng = np.random.default_rng(0)
    people = []
    for number, size in enumerate(list(SIZES.values())[:2]):
        keypoints = np.concatenate([rng.uniform(0.2, 0.8, (17, 2)) * (size.w, size.h), np.full((17, 1), 2)], axis=1)
        people.append(person(number + 1, 1000 - number, keypoints))
    write_annotation(tmp_path / "coco", SIZES, people)
    write_images(tmp_path / "coco", {name: encode(colourful(size), ".jpg") for name, size in SIZES.items()})
    return tmp_path / "coco"


def preprocess(coco: Path, *words: object, pairs: tuple[object, ...] = ()):
    folder = coco.parent
    flags = ("--output", folder / "prep", "--output_flip", folder / "prep_flip", *words)
    return run_command(preprocess_command.main, *flags, "DATASET.ROOT", coco, *pairs)


def test_preprocessing_ends_with_one_line_of_counts_bytes_and_seconds(coco):
    ran = preprocess(coco, "--workers", 1)
    assert ran.code == 0 and ran.err == "" and ran.out.count("\n") == 1
    input_sizes = "512x768: 1, 512x512: 0, 768x512: 1, 512x1024: 1, 1024x512: 0"
    size = sum(path.stat().st_size for path in coco.parent.rglob("*.npy"))
    assert (
        ran.out.startswith("3 images (0 were there already) -> ") and f"; {input_sizes}; {size:,} bytes in " in ran.out
    )
    assert {path.name for path in (coco.parent / "prep").iterdir()} == {f"{stem}.npy" for stem in STEMS}
    assert "3 images (3 were there already)" in preprocess(coco).out


def test_zip_and_folder_give_the_same_tensors_by_their_format_setting(coco):
    folder = coco / "images" / "val2017"
    assert_refused(preprocess(coco, pairs=("DATASET.DATA_FORMAT", "jpg")), 1, f"{folder}: not there")
    assert preprocess(coco, pairs=("DATASET.DATA_FORMAT", "zip")).code == 0
    zipped = {path.name: path.read_bytes() for path in (coco.parent / "prep_flip").iterdir()}
    (coco / "images" / "val2017.zip").unlink()
    write_images(coco, {name: encode(colourful(size), ".jpg") for name, size in SIZES.items()}, as_zip=False)
    assert_refused(preprocess(coco, pairs=("DATASET.DATA_FORMAT", "zip")), 1, "val2017.zip: not there")
    assert preprocess(coco, "--overwrite").code == 0
    assert {path.name: path.read_bytes() for path in (coco.parent / "prep_flip").iterdir()} == zipped
    assert_refused(preprocess(coco, pairs=("DATASET.DATA_FORMAT", "tar")), 2, "DATASET.DATA_FORMAT tar")


def test_limit_takes_the_first_and_a_later_run_does_the_rest(coco):
    assert preprocess(coco, "--limit", 1).out.startswith("1 images (0 were there already)")
    assert [path.name for path in (coco.parent / "prep").iterdir()] == ["000000000030.npy"]
    assert preprocess(coco).out.startswith("3 images (1 were there already)")


def test_category_chooses_the_people_already_for_preprocessing(coco):
    path = coco / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(path.read_text())
    content["categories"].append(dict(content["categories"][0], id=2, name="dancer"))
    content["annotations"].append(dict(content["annotations"][0], id=99, category_id=2))
    path.write_text(json.dumps(content))
    assert_refused(preprocess(coco), 1, "person, dancer", "--category")
    assert preprocess(coco, "--category", "person").code == 0


@pytest.mark.parametrize(
    "main",
    [
        *(draw_results.main, doctor.main, check_upstream.main, evaluate.main, pipeline.main, postprocess_command.main),
        *(report.main, compare.main),
    ],
)
def test_every_command_that_reads_an_annotation_takes_a_category(main):
    assert "--category NAME" in run_command(main, "--help").out


def record_of(coco: Path, name: str = "prep") -> Contents:
    contents = read_record(coco.parent / f"{name}_record.jsonl")
    assert contents is not None
    return contents


def images_of(coco: Path, name: str = "prep") -> dict[str, str]:
    """Return the recorded fingerprint of each tensor's image."""
    return {stem: entry.inputs["image"] for stem, entry in record_of(coco, name).entries.items()}


def other_pictures(coco: Path, *names: str) -> None:
    """Pictures of the same sizes under the same names, with other pixels."""
    pictures = {name: encode(colourful(size, 9 * (name in names)), ".jpg") for name, size in SIZES.items()}
    write_images(coco, pictures)


OTHERS = "tensors were made of other images or with other settings, the first is"


def test_tensors_of_other_images_are_not_kept(coco):
    assert preprocess(coco, "--workers", 1).code == 0
    before = {path: path.read_bytes() for path in coco.parent.rglob("prep*/*.npy")}
    record, images = record_of(coco), images_of(coco)
    other_pictures(coco, "000000000007.jpg")
    assert_refused(preprocess(coco), 1, f"prep: 1 of its {OTHERS} 000000000007.npy", "--overwrite", "name another one")
    assert_refused(preprocess(coco, "--limit", 1), 1, OTHERS)
    assert_refused(preprocess(coco, "--limit", 1, "--overwrite"), 1, OTHERS, "without --limit")
    assert before == {path: path.read_bytes() for path in coco.parent.rglob("prep*/*.npy")}
    assert record_of(coco) == record and images_of(coco, "prep_flip") == images
    assert preprocess(coco, "--workers", 1, "--overwrite").code == 0
    assert images_of(coco)["000000000007"] != images["000000000007"]
    assert "(3 were there already)" in preprocess(coco).out


def test_a_run_resumes_with_another_annotation_file_of_the_same_images(coco):
    """A longer one, too, and images unpacked from their zip."""
    sizes = dict(list(SIZES.items())[:2])
    write_annotation(coco, sizes)
    assert preprocess(coco, "--workers", 1).code == 0
    old, images = record_of(coco), images_of(coco)
    write_annotation(coco, SIZES)
    pictures = {name: encode(colourful(size), ".jpg") for name, size in SIZES.items()}
    write_images(coco, pictures, as_zip=False)
    (coco / "images" / "val2017.zip").unlink()
    assert preprocess(coco, "--workers", 1).out.startswith("3 images (2 were there already)")
    assert record_of(coco).head.about["annotations"] != old.head.about["annotations"]
    assert images.items() < images_of(coco).items() and sorted(images_of(coco)) == sorted(STEMS)


def test_an_overwriting_run_that_is_stopped_leaves_no_tensor_of_before(coco, monkeypatch):
    assert preprocess(coco, "--workers", 1).code == 0
    other_pictures(coco, *SIZES)

    def stopped(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dekr_infer.backends.tensor_folder.Converter.__call__", stopped)
        assert preprocess(coco, "--overwrite").code == 130
    assert preprocess(coco, "--workers", 1).out.startswith("3 images (0 were there already)")


def test_tensors_without_a_record_are_refused(coco):
    assert preprocess(coco, "--workers", 1).code == 0
    (coco.parent / "prep_record.jsonl").unlink()
    refused = "prep: holds 3 unrecorded tensors, the first is 000000000007.npy; replace them with --overwrite"
    assert_refused(preprocess(coco), 1, refused)
    assert_refused(preprocess(coco, "--limit", 1, "--overwrite"), 1, "prep: holds 2 unrecorded tensors")
    assert "(0 were there already)" in preprocess(coco, "--overwrite").out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--limit", "0"), "--limit"),
        (("--workers", "0"), "--workers"),
        (("--workers", "many"), "--workers"),
        (("--output_flip", "same", "--output", "./same"), "name the same folder"),
        (("DATASET.INPUT_SIZE", "640"), "DATASET.INPUT_SIZE 640"),
    ],
)
def test_preprocessing_refuses_a_command_line_that_makes_no_sense(words, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(run_command(preprocess_command.main, *words), 2, part)
    assert list(tmp_path.iterdir()) == []


MEASURE = r"""
import json, re, sys
from pathlib import Path
from dekr_infer.cli import preprocess as preprocess_command
code = preprocess_command.main(sys.argv[1:])
peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())  # of this program; ru_maxrss is inherited
print(json.dumps([code, int(peak[1]) / 1024]))
"""


def test_preprocessing_with_two_workers_stays_below_half_a_gigabyte(coco):
    """Each worker may see all five input sizes. The script has no main guard: threads need none."""
    sizes = (Size(700, 1380), Size(480, 640), Size(1380, 700), Size(600, 600), Size(640, 480))
    pictures = [encode(colourful(size), ".jpg") for size in sizes]
    names = [f"p{number:02d}.jpg" for number in range(20)]
    write_annotation(coco, {name: sizes[number % 5] for number, name in enumerate(names)})
    write_images(coco, {name: pictures[number % 5] for number, name in enumerate(names)})
    script = coco.parent / "measure.py"
    script.write_text(MEASURE)
    folders = [coco.parent / "prep", coco.parent / "prep_flip"]
    flags = ["--output", folders[0], "--output_flip", folders[1], "--workers", 2, "DATASET.ROOT", coco]
    done = subprocess.run(
        [sys.executable, script, *map(str, flags)], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    for folder in folders:
        assert len(list(folder.iterdir())) == 20
        shutil.rmtree(folder)
    code, megabytes = json.loads(done.stdout.splitlines()[-1])
    assert code == 0 and 50 < megabytes < 500


# -- DEKR_postprocess.py -----------------------------------------------------------------------------------------------


@pytest.fixture
def dumps(coco) -> Path:
    """The data set with dumps of both passes beside it, in out and out_flip; a person in the first image."""
    for stem, size in zip(STEMS, SIZES.values(), strict=True):
        h, w = cells(PUBLISHED_SIZES.place(size).input)
        heat, offset = np.zeros((18, h, w), np.float32), np.zeros((34, h, w), np.float32)
        if stem == STEMS[0]:
            heat[:, 20:40, 30:50] = 0.5
            heat[17, 30, 40] = 0.9
            offset[:] = np.linspace(-9, 9, 34)[:, None, None]
        write_outputs(coco.parent / "out", stem, heat, offset)
        write_outputs(coco.parent / "out_flip", stem, heat[:, :, ::-1], 0.9 * offset)
    return coco


def postprocess(coco: Path, *words: object, pairs: tuple[object, ...] = ("RESCORE.VALID", False)):
    folder = coco.parent
    flags = ("--dump_dir", folder / "out", "--dump_dir_flip", folder / "out_flip", "--output", folder / "results")
    return run_command(postprocess_command.main, *flags, *words, "DATASET.ROOT", coco, *pairs)


def written(coco: Path) -> tuple[list, dict]:
    folder = coco.parent / "results"
    assert sorted(path.name for path in folder.iterdir()) == ["keypoints_val2017_results.json", "metrics.json"]
    names = ("keypoints_val2017_results.json", "metrics.json")
    results, metrics = (json.loads((folder / name).read_text()) for name in names)
    return results, metrics


def rescore_checkpoint(path: Path, factor: float) -> Path:
    """A net that answers the same for everybody."""
    shapes = {"l1": (74, 256), "l2": (256, 256), "l3": (256, 1)}
    net = torch.nn.ModuleDict({name: torch.nn.Linear(*shape) for name, shape in shapes.items()})
    state = {key: torch.zeros_like(value) for key, value in net.state_dict().items()}
    state["l3.bias"][0] = factor
    torch.save(state, path)
    return path


def test_postprocessing_prints_the_table_and_the_counts_and_writes_both_files(dumps):
    ran = postprocess(dumps)
    assert ran.code == 0 and ran.err == ""
    names, values, note, counts, where = ran.out.splitlines()
    assert note == "(-1.000: nobody of that size is annotated)"
    results, metrics = written(dumps)
    assert names.split()[0] == "AP" and len(values.split()) == 10
    assert counts == f"3 images, {len(results)} people, nobody in 2 images"
    assert where.startswith("flip on, rescoring off; ") and "keypoints_val2017_results.json" in where
    assert tuple(metrics["figures"]) == METRICS
    assert values.split() == [f"{value:.3f}" for value in metrics["figures"].values()]
    expected = {"pictures": 3, "evaluated": 3, "missing": 0, "people": len(results), "empty_pictures": 2}
    assert metrics["counts"] == expected
    assert {entry["image_id"] for entry in results} == {1000}
    assert metrics["settings"]["NMS_THRE"] == 0.05 and metrics["settings"]["rescored"] is False
    assert len(metrics["sha256"]["annotations"]) == 64 and "numpy" in metrics["versions"]
    assert metrics["seconds"]["all"] > 0


def test_postprocessing_needs_no_images(dumps):
    assert postprocess(dumps).code == 0
    results, metrics = written(dumps)
    shutil.rmtree(dumps / "images")
    assert postprocess(dumps).code == 0
    results_without, metrics_without = written(dumps)
    assert results_without == results != [] and metrics_without["figures"] == metrics["figures"]


def test_rescoring_multiplies_scores_by_the_nets_answer(dumps):
    assert postprocess(dumps).code == 0
    plain, _ = written(dumps)
    checkpoint = rescore_checkpoint(dumps.parent / "rescore.pth", -0.5)
    assert "rescoring on" in postprocess(dumps, pairs=("RESCORE.MODEL_FILE", checkpoint)).out
    rescored, metrics = written(dumps)
    assert [entry["score"] for entry in rescored] == pytest.approx([-0.5 * entry["score"] for entry in plain])
    assert metrics["settings"]["rescored"] is True and len(metrics["sha256"]["rescore"]) == 64


def test_nobody_in_the_whole_set_is_ap_0_and_no_crash(dumps):
    for path in [*(dumps.parent / "out").glob("*_0.npy"), *(dumps.parent / "out_flip").glob("*_0.npy")]:
        np.save(path, 0 * np.load(path))
    checkpoint = rescore_checkpoint(dumps.parent / "rescore.pth", 0.5)
    for pairs in (("RESCORE.VALID", False), ("RESCORE.MODEL_FILE", checkpoint)):
        ran = postprocess(dumps, pairs=pairs)
        assert ran.code == 0, ran.err
        assert "3 images, 0 people, nobody in 3 images" in ran.out
        results, metrics = written(dumps)
        assert results == [] and metrics["figures"]["AP"] == 0


def test_without_flip_the_second_folder_is_not_asked_for(dumps):
    shutil.rmtree(dumps.parent / "out_flip")
    assert_refused(postprocess(dumps), 1, "out_flip: 6 of 6 files are missing")
    ran = postprocess(dumps, pairs=("RESCORE.VALID", False, "TEST.FLIP_TEST", False))
    assert ran.code == 0 and "flip off" in ran.out
    assert written(dumps)[1]["settings"]["flip"] is False


def test_a_loop_of_links_is_one_line(dumps):
    shutil.rmtree(dumps.parent / "out")
    (dumps.parent / "out").symlink_to("out")
    assert_refused(postprocess(dumps), 1, "out: 6 of 6 files are missing")


def test_missing_outputs_stop_the_run_or_are_counted_in_its_metrics(dumps):
    (dumps.parent / "out" / "c_1.npy").unlink()
    assert_refused(postprocess(dumps), 1, "out: 1 of 6 files are missing, the first is c_1.npy", "--allow_missing")
    assert not (dumps.parent / "results").exists()
    ran = postprocess(dumps, "--allow_missing")
    assert ran.code == 0 and "NOT THE WHOLE DATA SET: 1 images were missing and left out" in ran.out
    counts = written(dumps)[1]["counts"]
    assert (counts["pictures"], counts["evaluated"], counts["missing"]) == (3, 2, 1)


def test_the_hash_of_the_graph_that_made_the_outputs_is_kept(dumps):
    for name, digest in (("out", "a" * 64), ("out_flip", "b" * 64)):
        (dumps.parent / f"{name}_summary.json").write_text(json.dumps({"model_sha256": digest}))
    assert postprocess(dumps).code == 0
    assert written(dumps)[1]["sha256"]["graphs"] == ["a" * 64, "b" * 64]


@pytest.mark.parametrize(
    "module", ["DEKR_preprocess", "DEKR_postprocess", "scripts.onnx_infer", "scripts.draw_results"]
)
def test_torch_is_not_loaded_where_it_is_not_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
