"""scripts/ais_bench.sh against a fake of ais_bench in its three generations, and against the CPU runner."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from dekr_infer.ascend import ais_bench_frontend as frontend
from dekr_infer.ascend.ais_bench import Job, Summary, _speeds
from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.backends.output_folder import OutputFolder
from dekr_infer.cli import preprocess
from dekr_infer.data.coco import load_data_set
from dekr_infer.data.sources import frames_of
from dekr_infer.detector import Detector
from dekr_infer.errors import DekrError
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size
from scripts.demo import people
from tests.support.ascend_host import FAKES, ROOT, Host, compile_fake, refused
from tests.support.commands import run_command
from tests.support.tiny_models import ONE_THREAD, SMALL_INPUT_SIZES, export_command, toy_model, toy_outputs

DIALECTS = ("T23", "T25", "T26")
STRICT = DIALECTS[1:]
STEMS = (
    "a2",
    "a10",
    "B1",
    "c",
)  # in ais_bench's order; the input sizes are those of SMALL_INPUT_SIZES in turn, then again
FOLDERS = {"prep_data": "out", "prep_data_flip": "out_flip"}


def write_tensors(folder: Path) -> None:
    rng = np.random.default_rng(7)
    for source in FOLDERS:
        (folder / source).mkdir()
        for seed, stem in enumerate(STEMS):
            image = rng.integers(-9, 10, (1, 3, *SMALL_INPUT_SIZES[seed % 3])).astype(np.float32)
            np.save(folder / source / f"{stem}.npy", image)


@pytest.fixture
def host(host: Host, tmp_path: Path) -> Host:
    """The host, with a converted toy model and two folders of four tensors, in a folder without odd characters."""
    host.folder = tmp_path / "plain"
    host.folder.mkdir()
    host.env["PYTHONPATH"] = str(FAKES)
    compile_fake(toy_model(), host.folder / "net.om")
    write_tensors(host.folder)
    return host


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


RESULTS = {f"{stem}_{index}.npy" for stem in STEMS for index in (0, 1)}
BEFORE = {"net.om", *FOLDERS}
ENDINGS = ("", "_summary.json", "_record.jsonl")
AFTER = BEFORE | {f"{folder}{ending}" for folder in FOLDERS.values() for ending in ENDINGS}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_both_folders_in_every_dialect(host, dialect):
    """Also with an output folder of the usual rights in the current folder, which 2025 and 2026 refuse by its name."""
    (host.folder / "out").mkdir()
    (host.folder / "out").chmod(0o755)
    done = host.run("ais_bench.sh", "net.om", AIS_BENCH_DIALECT=dialect)
    assert done.returncode == 0, done
    assert names(host.folder) == AFTER
    for source, target in FOLDERS.items():
        assert names(host.folder / target) == RESULTS
        for stem in STEMS:
            wanted = toy_outputs(np.load(host.folder / source / f"{stem}.npy"))
            for index, values in enumerate(wanted):
                assert np.array_equal(np.load(host.folder / target / f"{stem}_{index}.npy"), values)
        summary = json.loads((host.folder / f"{target}_summary.json").read_text())
        files = [file for entry in summary["filesinfo"].values() for file in entry["outfiles"]]
        assert files == [f"{target}/{stem}_{index}.npy" for stem in STEMS for index in (0, 1)]


def test_speed_of_each_input_size_is_printed(host):
    out = host.run("ais_bench.sh", "net.om", "--input", "prep_data", "--output_dirname", "mine").stdout
    counts = dict(re.findall(r"^ +(\d+x\d+) +(\d+) passes", out, re.MULTILINE))
    assert counts == {"64x96": "2", "96x64": "1", "64x160": "1"}
    times = json.loads((host.folder / "mine_summary.json").read_text())["npu_compute_time_list"]
    assert f"{(times[0] + times[3]) / 2:8.2f} ms" in out  # the first and the fourth tensor share an input size
    assert re.search(r"overall: [0-9.]+ passes/s \(published: 7.72\)", out)
    assert "time on the device alone." in out and names(host.folder / "mine") == RESULTS


def test_speed_of_an_input_size_counts_each_loop_of_its_tensors():
    """The times are in the order of the tensors, each with all its loops."""
    small, large = SMALL_INPUT_SIZES[:2]
    summary = Summary(throughput=5.0, npu_compute_time_list=[10.0, 20.0, 100.0, 300.0, 30.0, 40.0])
    lines = [line.split() for line in _speeds(summary, [small, large, small])]
    assert [" ".join(line) for line in lines[:2]] == [
        f"{small} 4 passes 25.00 ms 40.00 passes/s",
        f"{large} 2 passes 200.00 ms 5.00 passes/s",
    ]
    assert lines[2][:3] == ["overall:", "5.00", "passes/s"]


def test_whole_flow_gives_the_bits_of_the_cpu_runner(tmp_path, tiny):
    """Our export through atc.sh and ais_bench.sh, in a folder with a space, and through onnx_infer.py."""
    host = Host(tmp_path, "npu-smi")
    host.install_toolkit()
    host.env["PYTHONPATH"] = str(FAKES)
    model = tiny.model()
    helper.set_model_props(model, {"input_sizes": str(SMALL_INPUT_SIZES)})
    onnx.save(model, host.folder / "net.onnx")
    write_tensors(host.folder)
    assert host.run("atc.sh", "net.onnx").returncode == 0
    done = host.run("ais_bench.sh", "net.om")
    assert done.returncode == 0, done
    words = ("--model", "net.onnx", "--threads", "1", "--output", "cpu")
    command = [sys.executable, str(ROOT / "scripts/onnx_infer.py"), *words]
    subprocess.run(command, cwd=host.folder, env=host.env, check=True, capture_output=True)
    for target in FOLDERS.values():
        assert names(host.folder / target) == names(host.folder / "cpu" / target) == RESULTS
        for name in RESULTS:
            assert (host.folder / target / name).read_bytes() == (host.folder / "cpu" / target / name).read_bytes()


@pytest.mark.long
def test_8_bit_tensors_and_float16_outputs_reach_the_metrics(tmp_path, tiny):
    """From uint8 tensors over a model with float16 outputs; postprocessing finds the people of float32, nearly."""
    host, root = Host(tmp_path, "npu-smi"), tmp_path / "coco"
    host.folder = tmp_path
    host.install_toolkit()
    host.env["PYTHONPATH"] = str(FAKES)
    people.write_data_set(root, "val2017", 1, seed=3)
    words = ["--output", tmp_path / "net.onnx", "--input", "uint8", "--skip_check", *ONE_THREAD, *tiny.pairs()]
    assert run_command(export_command.main, *words).code == 0
    tensors = ("--output", tmp_path / "prep_data", "--output_flip", tmp_path / "prep_data_flip", "DATASET.ROOT", root)
    assert run_command(preprocess.main, "--dtype", "uint8", *tensors).code == 0
    for script in (("atc.sh", "net.onnx", "--output_type", "FP16"), ("ais_bench.sh", "net.om")):
        done = host.run(*script)
        assert done.returncode == 0, done
    assert {np.load(file, mmap_mode="r").dtype for file in (tmp_path / "out").glob("*.npy")} == {np.dtype(np.float16)}
    half = OutputFolder(tmp_path / "out", tmp_path / "out_flip")
    frames = frames_of(load_data_set(root, "val2017"), PUBLISHED_SIZES)
    exact = OnnxRuntime(tmp_path / "net.onnx", 1)
    for frame in frames:
        for kept, full in zip(half.infer(frame, True), _run(exact, tmp_path, frame.key), strict=True):
            heat = kept.heat_at(slice(None), slice(None), slice(None))
            assert heat.dtype == np.float32
            np.testing.assert_allclose(heat, full[0][0], rtol=1e-3, atol=1e-6)
    assert len(Detector(half, threads=1)(frames[0])) > 0
    (tensor,) = (tmp_path / "prep_data").glob("*.npy")
    np.save(tensor, np.load(tensor).astype(np.float32))
    refused(host.run("ais_bench.sh", "net.om"), 1, "holds float32", "net.onnx takes uint8", "--dtype uint8")


def _run(network, folder, key):
    return [network.run(np.load(folder / source / f"{key}.npy"))[:2] for source in FOLDERS]


def test_results_of_other_images_are_refused_before_anything_runs(host):
    (host.folder / "out_flip").mkdir()
    np.save(host.folder / "out_flip" / "other_0.npy", np.zeros(1))
    done = host.run("ais_bench.sh", "net.om")
    refused(done, 1, "out_flip", "other_0.npy", "delete")
    assert names(host.folder) == BEFORE | {"out_flip"} and "warm up" not in done.stdout


def test_results_of_the_same_images_and_their_records_are_replaced(host):
    (host.folder / "out").mkdir()
    np.save(host.folder / "out" / "a2_0.npy", np.zeros(1))
    (host.folder / "out_record.jsonl").write_text("{}")
    assert host.run("ais_bench.sh", "net.om").returncode == 0
    assert names(host.folder) == AFTER and names(host.folder / "out") == RESULTS
    assert names(host.folder) == AFTER
    assert np.load(host.folder / "out" / "a2_0.npy").shape == (1, 18, 16, 24)


def finished(folder: Path) -> dict[str, bytes]:
    """Return the content of every result and summary."""
    places = [*folder.glob("out*/*"), *folder.glob("out*.json*")]
    return {str(place.relative_to(folder)): place.read_bytes() for place in places}


@pytest.mark.parametrize(
    ("words", "trouble", "part"),
    [
        ((), "lost", "c_1.npy is missing"),
        ((), "device", "--device"),
        (("--", "--lupe", "3"), "", "exit code 2"),
        (("--device", "x"), "", "--device"),
    ],
)
def test_failed_run_keeps_the_results_of_an_earlier_run(host, words, trouble, part):
    assert host.run("ais_bench.sh", "net.om").returncode == 0
    assert names(host.folder) == AFTER and names(host.folder / "out") == RESULTS
    before = finished(host.folder)
    assert len(before) == 2 * len(RESULTS) + 4
    done = host.run("ais_bench.sh", "net.om", *words, AIS_BENCH_TROUBLE=trouble)
    refused(done, 2 if words[:1] == ("--device",) else 1, part)
    assert finished(host.folder) == before and names(host.folder) == AFTER


@pytest.mark.parametrize("dialect", STRICT)
def test_write_access_of_others_is_taken_away_where_ais_bench_insists(host, dialect):
    host.folder.chmod(0o777)
    (host.folder / "prep_data").chmod(0o775)
    (host.folder / "prep_data" / "c.npy").chmod(0o666)
    (host.folder / "prep_data" / "notes").mkdir()
    (host.folder / "prep_data" / "notes").chmod(0o775)
    done = host.run("ais_bench.sh", "net.om", AIS_BENCH_DIALECT=dialect)
    assert done.returncode == 0, done
    assert stat.S_IMODE((host.folder / "prep_data" / "c.npy").stat().st_mode) == 0o644
    assert stat.S_IMODE((host.folder / "prep_data" / "notes").stat().st_mode) == 0o755


WIDTHS = ({"COLUMNS": "80"}, {"TERMINAL_WIDTH": "60"}, {"FORCE_COLOR": "1"}, {"FORCE_COLOR": "1", "TERM": "dumb"})


@pytest.mark.parametrize("width", WIDTHS, ids=str)
def test_generation_is_recognised_on_any_terminal(monkeypatch, width):
    for key, value in ({"PYTHONPATH": str(FAKES), "AIS_BENCH_PYTHON": sys.executable} | width).items():
        monkeypatch.setenv(key, value)
    found = {}
    for dialect in DIALECTS:
        monkeypatch.setenv("AIS_BENCH_DIALECT", dialect)
        found[dialect] = (frontend.find_frontend().dashed, frontend.find_frontend().strict)
    assert found == {"T23": (False, False), "T25": (False, True), "T26": (True, True)}


ENTRIES = {
    "a note.txt": "takes only A-Z",
    "link": "is a link",
    "x.bin": "would feed it to the network",
    "x.Npy": "overlooks this ending",
}


@pytest.mark.parametrize("dialect", STRICT)
@pytest.mark.parametrize(("entry", "part"), ENTRIES.items())
def test_odd_entries_of_a_tensor_folder_are_named_before_the_run(host, dialect, entry, part):
    place = host.folder / "prep_data" / entry
    place.symlink_to("/etc/hostname") if entry == "link" else place.write_bytes(b"")
    done = host.run("ais_bench.sh", "net.om", AIS_BENCH_DIALECT=dialect)
    refused(done, 1, f"prep_data/{entry}: ", part)
    assert "warm up" not in done.stdout and "Traceback" not in done.stdout


def test_tensors_of_another_owner_are_named(host, monkeypatch):
    monkeypatch.setattr(frontend.os, "geteuid", lambda: 4321)
    monkeypatch.setattr(frontend.os, "getgroups", lambda: [4321])
    strict = frontend.Frontend("python3", False, True)
    with pytest.raises(DekrError, match=r"net\.om: belongs to another user and group, .* chown it"):
        strict.check(host.folder / "net.om", host.folder / "prep_data", host.folder)
    frontend.Frontend("python3", False, False).check(host.folder / "net.om", host.folder / "prep_data", host.folder)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_linked_output_folder_is_filled(host, dialect):
    (host.folder / "disk").mkdir()
    (host.folder / "out").symlink_to("disk")
    done = host.run("ais_bench.sh", "net.om", "--input", "prep_data", AIS_BENCH_DIALECT=dialect)
    assert done.returncode == 0, done
    assert names(host.folder / "disk") == RESULTS and (host.folder / "out").is_symlink()


WORDS = ("--outfmt BIN", "--outfmt=BIN", "-o x", "--output x", "-d1", "--device 1", "--output-dirname x", "--outf BIN")


@pytest.mark.parametrize("words", WORDS)
def test_further_words_that_the_wrapper_sets_itself_are_refused(host, words):
    done = host.run("ais_bench.sh", "net.om", "--", *words.split())
    refused(done, 2, f"-- {words.split()[0]}: this wrapper sets ")
    assert names(host.folder) == BEFORE


@pytest.mark.parametrize("dialect", STRICT)
def test_links_and_odd_paths_are_refused_where_ais_bench_refuses_them(host, dialect):
    (host.folder / "prep_data" / "c.npy").rename(host.folder / "c.npy")
    (host.folder / "prep_data" / "c.npy").symlink_to("../c.npy")
    refused(host.run("ais_bench.sh", "net.om", AIS_BENCH_DIALECT=dialect), 1, "c.npy", "is a link")
    (host.folder / "prep_data").rename(host.folder / "prep data")
    done = host.run("ais_bench.sh", "net.om", "--input", "prep data", AIS_BENCH_DIALECT=dialect)
    refused(done, 1, "prep data", "rename")
    assert host.run("ais_bench.sh", "net.om", "--input", "prep data").returncode == 0


@pytest.mark.parametrize("dialect", STRICT)
def test_second_folder_is_checked_before_the_first_is_run(host, dialect):
    (host.folder / "prep_data_flip" / "c.npy").rename(host.folder / "c.npy")
    (host.folder / "prep_data_flip" / "c.npy").symlink_to("../c.npy")
    done = host.run("ais_bench.sh", "net.om", AIS_BENCH_DIALECT=dialect)
    refused(done, 1, "prep_data_flip/c.npy", "is a link")
    assert "warm up" not in done.stdout and names(host.folder) == BEFORE | {"c.npy"}


@pytest.mark.parametrize("dialect", STRICT)
def test_model_of_another_ending(host, dialect):
    (host.folder / "net.om").rename(host.folder / "net.bin")
    done = host.run("ais_bench.sh", "net.bin", AIS_BENCH_DIALECT=dialect)
    refused(done, 1, "net.bin", "end in .om", "rename")
    assert host.run("ais_bench.sh", "net.bin").returncode == 0


def test_fake_is_as_strict_as_the_genuine_front_ends(host):
    """Called bare, as printed in the sample: 2025 refuses a plain folder, 2026 the old options."""
    words = ["-m", "ais_bench", "--model", "net.om", "--input", "prep_data", "--output", "./", "--outfmt", "NPY"]
    words += ["--output_dirname", "out", "--auto_set_dymdims_mode", "1"]
    codes = {}
    for dialect in DIALECTS:
        env = host.env | {"AIS_BENCH_DIALECT": dialect}
        done = subprocess.run([sys.executable, *words], cwd=host.folder, env=env, capture_output=True, text=True)
        codes[dialect] = done.returncode
    assert codes == {"T23": 0, "T25": 2, "T26": 2}
    assert "out_summary.json" in names(host.folder)


def damage(kind: str, file: Path) -> None:
    values = np.load(file)
    if kind == "int32":
        np.save(file, values.astype(np.int32))
    elif kind == "fortran":
        np.save(file, np.asfortranarray(values))
    elif kind == "rank":
        np.save(file, values[0])
    elif kind == "short":
        file.write_bytes(file.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("kind", "part"), [("int32", "int32"), ("fortran", "Fortran"), ("rank", "shape"), ("short", "short")]
)
def test_tensors_that_would_give_garbage_are_refused(host, kind, part):
    damage(kind, host.folder / "prep_data_flip" / "B1.npy")
    refused(host.run("ais_bench.sh", "net.om"), 1, "B1.npy", part)
    assert names(host.folder) == BEFORE


@pytest.mark.parametrize("stems", [("B1",), STEMS])
def test_tensors_of_another_dtype_than_the_others_or_the_model_are_refused(host, monkeypatch, stems):
    """ais_bench compares byte counts alone, and stops in the middle."""
    monkeypatch.chdir(host.folder)
    onnx.save(toy_model(), "net.onnx")
    for stem in stems:
        file = Path("prep_data", f"{stem}.npy")
        np.save(file, np.load(file).astype(np.uint8))
    says = "net.onnx takes float32; run DEKR_preprocess.py" if stems == STEMS else "a2.npy holds float32"
    with pytest.raises(DekrError, match=f"holds uint8, .*{says}"):
        Job.of(Path("net.om"), 0, Path("prep_data"), Path("out")).check(Unchecked())


class Unchecked(frontend.Frontend):
    """A front end that refuses no path."""

    def __init__(self) -> None:
        pass

    def check(self, *paths):
        pass


@pytest.mark.parametrize("dialect", DIALECTS)
def test_stray_tensor_is_named_where_ais_bench_stopped(host, dialect):
    """Without the ONNX file next to the model, its sizes are not known before the run."""
    np.save(host.folder / "prep_data" / "b.npy", np.zeros((1, 3, 32, 32), np.float32))
    done = host.run("ais_bench.sh", "net.om", AIS_BENCH_DIALECT=dialect)
    refused(done, 1, "exit code 1", "prep_data/b.npy (32x32) is no input size", "delete this tensor")
    assert names(host.folder) == BEFORE


def test_stray_tensor_is_named_before_the_run_if_the_onnx_file_is_there(host):
    onnx.save(toy_model(), host.folder / "net.onnx")
    np.save(host.folder / "prep_data" / "b.npy", np.zeros((1, 3, 32, 32), np.float32))
    done = host.run("ais_bench.sh", "net.om")
    refused(done, 1, "prep_data/b.npy: its size 32x32", "net.onnx (64x96, 96x64, 64x160)", "delete this tensor")
    assert "warm up" not in done.stdout and names(host.folder) == BEFORE | {"net.onnx"}


@pytest.mark.parametrize("content", ["other sizes", "no ONNX file"])
def test_onnx_file_that_is_not_the_models_is_no_obstacle(host, content):
    other = InputSizes((Size(512, 512), Size(512, 768)))
    onnx.save(toy_model(other), host.folder / "net.onnx")
    if content == "no ONNX file":
        (host.folder / "net.onnx").write_text(content)
    assert host.run("ais_bench.sh", "net.om").returncode == 0
    assert names(host.folder) == AFTER | {"net.onnx"} and names(host.folder / "out") == RESULTS


GENUINE = os.environ.get("AIS_BENCH_FRONT_ENDS")


@pytest.mark.skipif(not GENUINE, reason="AIS_BENCH_FRONT_ENDS names no folder of the genuine T23, T25 and T26")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_genuine_front_ends(host, dialect):
    """AIS_BENCH_FRONT_ENDS: a folder of three executables that stand in for a Python with a stub runtime."""
    model = toy_model()
    shape = {"ascend.input_shape": "image:1,3,-1,-1", "ascend.soc_version": "Ascend310P3"}
    helper.set_model_props(model, shape | {"ascend.dynamic_dims": str(SMALL_INPUT_SIZES)})
    onnx.save(model, host.folder / "net.om")
    (host.folder / "out").mkdir()
    (host.folder / "out").chmod(0o755)
    (host.folder / "prep_data" / "note.txt").touch()
    assert GENUINE is not None
    done = host.run("ais_bench.sh", "net.om", AIS_BENCH_PYTHON=str(Path(GENUINE) / dialect), PYTHONPATH="")
    assert done.returncode == 0, done
    assert names(host.folder / "out") == names(host.folder / "out_flip") == RESULTS


def test_device_that_cannot_be_opened(host):
    refused(host.run("ais_bench.sh", "net.om", AIS_BENCH_TROUBLE="device"), 1, "npu-smi info", "--device")


def test_no_ais_bench(host):
    refused(host.run("ais_bench.sh", "net.om", PYTHONPATH=""), 1, "ais_bench", "wheels", "AIS_BENCH_PYTHON")
    refused(host.run("ais_bench.sh", "net.om", AIS_BENCH_PYTHON="python9"), 1, "python9: not found")


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ([], 2, "--help"),
        (["gone.om"], 1, "atc.sh"),
        (["net.om", "--input", "gone"], 1, "DEKR_preprocess.py"),
        (["net.om", "--output_dirname", "x"], 2, "--input"),
        (["net.om", "--input", "prep_data", "--output_dirname", ".."], 2, "name of a folder"),
        (["net.om", "--device", "x"], 2, "--device"),
        (["net.om", "--", "--lupe", "3"], 1, "exit code 2"),
    ],
)
def test_mistakes(host, words, code, part):
    refused(host.run("ais_bench.sh", *words), code, part)


def test_from_another_folder_and_further_words(host):
    shutil.move(host.folder / "net.om", host.home / "a $(touch x).om")
    done = host.run("ais_bench.sh", host.home / "a $(touch x).om", "--output", host.home / "o", "--", "--loop", "2")
    assert done.returncode == 0, done
    assert names(host.home / "o" / "out") == RESULTS and names(host.folder) == set(FOLDERS)


@pytest.mark.parametrize("earlier", [False, True])
def test_ctrl_c_keeps_finished_results_and_leaves_nothing_half_done(host, earlier):
    if earlier:
        assert host.run("ais_bench.sh", "net.om").returncode == 0
        assert names(host.folder) == AFTER and names(host.folder / "out") == RESULTS
    before, left = finished(host.folder), names(host.folder)
    process = host.start("ais_bench.sh", "net.om", AIS_BENCH_TROUBLE="slow")
    done = host.stop(process, "warm up", signal.SIGINT)
    assert done.returncode == 130 and done.stderr.splitlines()[-1].startswith("error: interrupted")
    assert finished(host.folder) == before and names(host.folder) == left
