"""scripts/ais_bench.sh against a double of ais_bench in its three ages, and against the CPU runner."""

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

from dekr_infer.ascend.ais_bench import _speeds
from tests.support.ascend_host import DOUBLES, ROOT, Host, compile_double, refused
from tests.support.tiny_models import SMALL_INPUT_SIZES, toy_model, toy_outputs

DIALECTS = ("T23", "T25", "T26")
STEMS = ("a2", "a10", "B1", "c")  # in ais_bench's order; the input sizes are those of SMALL_GEARS in turn, then again
FOLDERS = {"prep_data": "out", "prep_data_flip": "out_flip"}
pytest_plugins = ["tests.support.tiny_fixtures"]


def write_tensors(folder: Path) -> None:
    rng = np.random.default_rng(7)
    for source in FOLDERS:
        (folder / source).mkdir()
        for seed, stem in enumerate(STEMS):
            image = rng.integers(-9, 10, (1, 3, *SMALL_INPUT_SIZES[seed % 3])).astype(np.float32)
            np.save(folder / source / f"{stem}.npy", image)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with a converted toy model and two folders of four tensors, in a folder without odd characters."""
    host = Host(tmp_path)
    host.folder = tmp_path / "plain"
    host.folder.mkdir()
    host.env["PYTHONPATH"] = str(DOUBLES)
    compile_double(toy_model(), host.folder / "net.om")
    write_tensors(host.folder)
    return host


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


RESULTS = {f"{stem}_{index}.npy" for stem in STEMS for index in (0, 1)}
BEFORE = {"net.om", *FOLDERS}
AFTER = BEFORE | {"out", "out_flip", "out_summary.json", "out_flip_summary.json"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_both_folders_in_every_dialect(host, dialect):
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


def test_the_speed_of_each_input_size_beside_the_published_one(host):
    out = host.run("ais_bench.sh", "net.om", "--input", "prep_data", "--output_dirname", "mine").stdout
    counts = dict(re.findall(r"^ +(\d+x\d+) +(\d+) passes", out, re.MULTILINE))
    assert counts == {"64x96": "2", "96x64": "1", "64x160": "1"}
    times = json.loads((host.folder / "mine_summary.json").read_text())["npu_compute_time_list"]
    assert f"{(times[0] + times[3]) / 2:8.2f} ms" in out  # the first and the fourth tensor share a input size
    assert re.search(r"overall: [0-9.]+ passes/s \(published: 7.72\)", out)
    assert "time on the device alone" in out and names(host.folder / "mine") == RESULTS


def test_the_speed_of_a_input_size_counts_each_loop_of_its_tensors():
    """The times stand tensor by tensor, each with all its loops."""
    small, large = SMALL_INPUT_SIZES[:2]
    summary = {"npu_compute_time_list": [10.0, 20.0, 100.0, 300.0, 30.0, 40.0], "throughput": 5.0}
    lines = [line.split() for line in _speeds(summary, [small, large, small])]
    assert [line[:4] for line in lines[:2]] == [
        [str(small), "4", "passes", "25.00"],
        [str(large), "2", "passes", "200.00"],
    ]
    assert lines[2][:3] == ["overall:", "5.00", "passes/s"]


def test_the_whole_flow_gives_the_bits_of_the_cpu_runner(tmp_path, tiny):
    """Our export through atc.sh and ais_bench.sh, in a folder with a space, and through onnx_infer.py."""
    host = Host(tmp_path, "npu-smi")
    host.install_toolkit()
    host.env["PYTHONPATH"] = str(DOUBLES)
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


def test_results_of_other_pictures_are_refused_before_anything_runs(host):
    (host.folder / "out_flip").mkdir()
    np.save(host.folder / "out_flip" / "other_0.npy", np.zeros(1))
    done = host.run("ais_bench.sh", "net.om")
    refused(done, 1, "out_flip", "other_0.npy", "delete")
    assert names(host.folder) == BEFORE | {"out_flip"} and "warm up" not in done.stdout


def test_results_of_the_same_pictures_are_replaced_and_their_records_go(host):
    (host.folder / "out").mkdir()
    np.save(host.folder / "out" / "a2_0.npy", np.zeros(1))
    (host.folder / "out_record.jsonl").write_text("{}")
    assert host.run("ais_bench.sh", "net.om").returncode == 0
    assert names(host.folder) == AFTER
    assert np.load(host.folder / "out" / "a2_0.npy").shape == (1, 18, 16, 24)


def test_a_failed_run_leaves_no_results_of_an_earlier_one(host):
    assert host.run("ais_bench.sh", "net.om").returncode == 0
    refused(host.run("ais_bench.sh", "net.om", AIS_BENCH_TROUBLE="lost"), 1, "c_1.npy", "missing")
    assert names(host.folder / "out") == set() and names(host.folder) == AFTER - {"out_summary.json"}


def test_the_rights_that_the_frontend_of_2025_wants(host):
    host.folder.chmod(0o777)
    (host.folder / "prep_data").chmod(0o775)
    (host.folder / "prep_data" / "c.npy").chmod(0o666)
    (host.folder / "out").mkdir(mode=0o755)
    done = host.run("ais_bench.sh", "net.om", AIS_BENCH_DIALECT="T25")
    assert done.returncode == 0, done
    assert stat.S_IMODE((host.folder / "prep_data" / "c.npy").stat().st_mode) == 0o644


def test_what_the_frontend_of_2025_never_takes(host):
    (host.folder / "prep_data" / "c.npy").rename(host.folder / "c.npy")
    (host.folder / "prep_data" / "c.npy").symlink_to("../c.npy")
    refused(host.run("ais_bench.sh", "net.om", AIS_BENCH_DIALECT="T25"), 1, "c.npy", "is a link")
    (host.folder / "prep_data").rename(host.folder / "prep data")
    done = host.run("ais_bench.sh", "net.om", "--input", "prep data", AIS_BENCH_DIALECT="T25")
    refused(done, 1, "prep data", "rename")
    assert host.run("ais_bench.sh", "net.om", "--input", "prep data").returncode == 0


def test_the_second_folder_is_looked_at_before_the_first_is_run(host):
    (host.folder / "prep_data_flip" / "c.npy").rename(host.folder / "c.npy")
    (host.folder / "prep_data_flip" / "c.npy").symlink_to("../c.npy")
    done = host.run("ais_bench.sh", "net.om", AIS_BENCH_DIALECT="T25")
    refused(done, 1, "prep_data_flip/c.npy", "is a link")
    assert "warm up" not in done.stdout and names(host.folder) == BEFORE | {"c.npy"}


def test_a_model_of_another_ending(host):
    (host.folder / "net.om").rename(host.folder / "net.bin")
    done = host.run("ais_bench.sh", "net.bin", AIS_BENCH_DIALECT="T25")
    refused(done, 1, "net.bin", "end in .om", "rename")
    assert host.run("ais_bench.sh", "net.bin").returncode == 0


def test_the_double_itself_is_as_strict(host):
    """Called bare, as printed in the sample, the frontend of 2025 refuses a plain folder and 2026 the old options."""
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
def test_tensors_that_would_pass_as_garbage_are_refused(host, kind, part):
    damage(kind, host.folder / "prep_data_flip" / "B1.npy")
    refused(host.run("ais_bench.sh", "net.om"), 1, "B1.npy", part)
    assert names(host.folder) == BEFORE


def test_a_tensor_of_no_input_size(host):
    np.save(host.folder / "prep_data" / "b.npy", np.zeros((1, 3, 32, 32), np.float32))
    refused(host.run("ais_bench.sh", "net.om"), 1, "prep_data", "exit code 1", "no input size")
    assert names(host.folder) == BEFORE | {"out"} and names(host.folder / "out") == set()


def test_a_device_that_cannot_be_opened(host):
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


def test_ctrl_c_leaves_nothing_half_done(host):
    process = subprocess.Popen(
        host.command("ais_bench.sh", "net.om"),
        cwd=host.folder,
        env=host.env | {"AIS_BENCH_TROUBLE": "slow"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while "warm up" not in process.stdout.readline():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err.splitlines()[-1].startswith("error: interrupted")
    assert names(host.folder) == BEFORE | {"out"} and names(host.folder / "out") == set()
