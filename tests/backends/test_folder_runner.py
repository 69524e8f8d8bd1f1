"""The CPU runner in ais_bench's place: order, names, refusals, summary, and going on after a stop."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from dekr_infer.backends.folder_runner import (
    Options,
    list_tensors,
    natural_order,
    output_stem,
    record_outputs,
    run_folder,
    summary_path,
)
from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.cli import onnx_infer
from dekr_infer.errors import DekrError
from dekr_infer.geometry import Size
from dekr_infer.storage.atomic import UNFINISHED
from dekr_infer.storage.run_record import Entry, Head, RunRecord, mark_file, read_record, record_path
from tests.support.folders import contents
from tests.support.tiny_models import SMALL_INPUT_SIZES, toy_model, toy_outputs

ROOT = Path(__file__).resolve().parents[2]
STEMS = ("a2", "a10", "B1", "c")  # in ais_bench's order
AIS_BENCH_KEYS = {
    *("filesinfo", "args", "NPU_compute_time", "H2D_latency", "D2H_latency", "npu_compute_time_list"),
    *("throughput", "pid"),
}
OURS = {"model_sha256", "checkpoint_sha256", "versions"}  # what ais_bench does not tell
STATISTICS = {"min", "max", "mean", "median", "percentile(99%)", "count"}


def picture(seed: int, input_size: Size) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9, 10, (1, 3, *input_size)).astype(np.float32)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a toy graph and four tensors of three input sizes in prep_data."""
    monkeypatch.chdir(tmp_path)
    onnx.save(toy_model(), tmp_path / "net.onnx")
    (tmp_path / "prep_data").mkdir()
    for seed, stem in enumerate(STEMS):
        np.save(tmp_path / "prep_data" / f"{stem}.npy", picture(seed, SMALL_INPUT_SIZES[seed % 3]))
    return tmp_path


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The images that the network is run on, as they come."""
    seen: list[np.ndarray] = []
    real = OnnxRuntime.run

    def spy(network: OnnxRuntime, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        seen.append(image)
        heatmap, offset, _ = real(network, image)
        return heatmap, offset, 5.0 * 2 ** len(seen)

    monkeypatch.setattr(OnnxRuntime, "run", spy)
    return seen


def infer(*flags: str) -> int:
    """Run prep_data into out, but for what the flags say."""
    return onnx_infer.main(
        ["--model", "net.onnx", "--input", "prep_data", "--output", "./", "--output_dirname", "out", "--threads", "1"]
        + list(flags)
    )


def failure(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def summary(place: Path, folder: str = "out") -> dict[str, object]:
    found = json.loads((place / f"{folder}_summary.json").read_text())
    assert isinstance(found, dict)
    return found


# --- order and names


def test_names_come_in_natural_order_without_case():
    names = ["b.npy", "A.npy", "000000000010.npy", "9.npy", "000000000002.npy", "a10.npy", "a9.npy", "a.npy"]
    assert natural_order(names)[:3] == ["000000000002.npy", "9.npy", "000000000010.npy"]
    assert natural_order(["x10y2", "x10y10", "X9", "x10Y1"]) == ["X9", "x10Y1", "x10y2", "x10y10"]
    assert natural_order(["b", "A", "10", "9"]) == ["9", "10", "A", "b"]


def test_a_superscript_in_a_name_is_a_letter():
    assert natural_order(["²1.npy", "1.npy"]) == ["1.npy", "²1.npy"]


def test_names_are_cut_at_their_first_dot():
    assert output_stem(Path("x/000000000139.v2.final.npy")) == "000000000139"


def test_names_that_would_write_the_same_outputs_are_refused(place):
    shutil.copy("prep_data/c.npy", "prep_data/c.v2.npy")
    with pytest.raises(DekrError, match=r"c\.v2\.npy would write the same outputs") as caught:
        list_tensors([Path("prep_data")])
    assert str(Path("prep_data/c.npy")) in str(caught.value)


def test_only_npy_files_are_run_and_folders_inside_are_not_entered(place, passes):
    (place / "prep_data" / "notes.txt").write_text("x")
    (place / "prep_data" / "deeper").mkdir()
    shutil.copy("prep_data/c.npy", "prep_data/deeper/d.npy")
    assert infer("--warmup_count", "0") == 0
    assert len(passes) == 4


def test_tensors_run_in_order_and_outputs_are_heatmap_then_offset(place, passes):
    assert infer("--warmup_count", "0") == 0
    assert [image.shape[2:] for image in passes] == [tuple(SMALL_INPUT_SIZES[i % 3]) for i in range(4)]
    for seed, (stem, image) in enumerate(zip(STEMS, passes, strict=True)):
        np.testing.assert_array_equal(image, picture(seed, SMALL_INPUT_SIZES[seed % 3]))
        for index, wanted in enumerate(toy_outputs(image)):
            found = np.load(place / "out" / f"{stem}_{index}.npy")
            assert found.dtype == np.float32 and found.flags.c_contiguous
            np.testing.assert_array_equal(found, wanted)
    assert set(contents(place / "out")) == {f"{stem}_{index}.npy" for stem in STEMS for index in (0, 1)}


def test_files_are_run_in_the_order_they_are_named(place, passes):
    assert infer("--input", "prep_data/c.npy,prep_data/a2.npy", "--warmup_count", "0") == 0
    np.testing.assert_array_equal(passes[0], picture(3, SMALL_INPUT_SIZES[0]))
    assert set(contents(place / "out")) == {"c_0.npy", "c_1.npy", "a2_0.npy", "a2_1.npy"}


def test_bin_outputs_are_the_bare_values(place):
    assert infer("--outfmt", "BIN") == 0
    for index, wanted in enumerate(toy_outputs(picture(1, SMALL_INPUT_SIZES[1]))):
        found = np.fromfile(place / "out" / f"a10_{index}.bin", "<f4")
        np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)
    assert all(name.endswith(".bin") for name in contents(place / "out"))


# --- counts and the summary


def test_warm_up_runs_on_the_first_tensor_only_and_every_loop_is_timed(place, passes):
    assert infer("--loop", "3", "--warmup_count", "2") == 0
    assert len(passes) == 2 + 4 * 3
    assert all(image is passes[0] for image in passes[:5])
    found = summary(place)
    assert found["npu_compute_time_list"] == [5.0 * 2**n for n in range(3, 15)]  # the first two were for warming up


def test_the_summary_has_the_keys_of_ais_bench(place, passes):
    assert infer("--warmup_count", "0") == 0
    found = summary(place)
    assert set(found) == AIS_BENCH_KEYS | OURS
    assert found["NPU_compute_time"] == {
        "min": 10.0,
        "max": 80.0,
        "mean": 37.5,
        "median": 30.0,
        "percentile(99%)": pytest.approx(78.8),
        "count": 4,
    }
    assert found["throughput"] == 1000 / 37.5
    for key in ("H2D_latency", "D2H_latency"):
        entry = found[key]
        assert isinstance(entry, dict) and set(entry) == STATISTICS and entry["count"] == 4 and entry["max"] == 0
    assert found["pid"] == os.getpid()
    args = found["args"]
    assert isinstance(args, dict) and args["model"] == "net.onnx" and args["outfmt"] == "NPY"
    info = found["filesinfo"]
    assert isinstance(info, dict) and list(info) == ["0", "1", "2", "3"]
    assert info["1"] == {"infiles": ["prep_data/a10.npy"], "outfiles": ["out/a10_0.npy", "out/a10_1.npy"]}


def test_the_record_names_tensors_and_images(place):
    with RunRecord(
        record_path(Path("prep_data")), Head("tensors", {"pass": "original"}, {"opencv": ["4.12.0"]})
    ) as made:
        for stem in ("a2", "c"):
            marks = {f"{stem}.npy": mark_file(Path("prep_data") / f"{stem}.npy")}
            made.add(Entry(stem, {"image": f"9-{stem}"}, marks))
    np.save("prep_data/c.npy", picture(77, SMALL_INPUT_SIZES[0]))
    assert infer() == 0
    contents = read_record(record_path(Path("out")))
    assert contents is not None
    assert contents.head.about["tensors"] == {str(place / "prep_data"): {"pass": "original", "opencv": ["4.12.0"]}}
    assert list(contents.entries) == [f"{stem}.npy" for stem in STEMS]
    for name, entry in contents.entries.items():
        assert entry.inputs == {"tensor": mark_file(Path("prep_data") / name).xxh3}
    known = {name: entry.result for name, entry in contents.entries.items() if entry.result}
    assert known == {"a2.npy": {"image": "9-a2"}}, "the other tensor is not the recorded one"


def test_the_summary_is_written_next_to_the_folder(place):
    assert summary_path(Path("x/out")) == Path("x/out_summary.json")
    assert infer() == 0
    assert {path.name for path in place.iterdir()} == {
        *("net.onnx", "prep_data", "out", "out_summary.json", "out_record.jsonl")
    }


def test_the_printed_line_has_count_and_rate(place, capsys, passes):
    assert infer("--warmup_count", "0") == 0
    out = capsys.readouterr().out
    assert re.search(r"4 tensors -> out: .*mean = 37\.5, .*throughput 26\.667 passes/s", out)


def test_without_input_both_passes_are_run(place):
    (place / "prep_data_flip").mkdir()
    np.save("prep_data_flip/f.npy", picture(9, SMALL_INPUT_SIZES[2]))
    assert onnx_infer.main(["--model", "net.onnx", "--threads", "1"]) == 0
    assert len(contents(place / "out")) == 8
    assert set(contents(place / "out_flip")) == {"f_0.npy", "f_1.npy"}
    assert set(summary(place, "out_flip")) == AIS_BENCH_KEYS | OURS


def test_without_input_a_missing_flipped_folder_stops_before_anything_runs(place, passes, capsys):
    assert onnx_infer.main(["--model", "net.onnx"]) == 1
    assert "prep_data_flip" in failure(capsys)
    assert passes == [] and not (place / "out").exists()


def test_without_output_nothing_is_written(place, passes, capsys):
    assert onnx_infer.main(["--model", "net.onnx", "--input", "prep_data", "--threads", "1"]) == 0
    assert len(passes) == 5
    assert {path.name for path in place.iterdir()} == {"net.onnx", "prep_data"}
    assert "nowhere" in capsys.readouterr().out


def test_without_a_name_the_output_folder_is_the_time(place):
    assert onnx_infer.main(["--model", "net.onnx", "--input", "prep_data", "--output", "results"]) == 0
    (folder,) = [path for path in (place / "results").iterdir() if path.is_dir()]
    assert re.fullmatch(r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d", folder.name)


# --- what is refused


def test_a_shape_that_is_no_input_size_is_refused_before_anything_runs(place, passes, capsys):
    np.save("prep_data/zz.npy", picture(0, Size(64, 64)))
    assert infer() == 1
    message = failure(capsys)
    assert "prep_data/zz.npy: its shape (1, 3, 64, 64) is no input size of net.onnx" in message
    assert "(1, 3, 64, 160)" in message
    assert passes == [] and not (place / "out").exists()


@pytest.mark.parametrize("shape", [(3, 64, 96), (2, 3, 64, 96), (1, 1, 64, 96), (1, 3, 64, 96, 1), (0, 3, 64, 96)])
def test_every_dimension_counts(place, capsys, shape):
    np.save("prep_data/zz.npy", np.zeros(shape, np.float32))
    assert infer() == 1
    assert f"its shape {shape} is no input size" in failure(capsys)


@pytest.mark.parametrize(
    ("source", "says"),
    [("none", "none: no such folder"), ("prep_data/c.npy,x.npy", "x.npy: no such"), ("empty", "no ")],
)
def test_inputs_that_are_not_there_are_named(place, capsys, source, says):
    (place / "empty").mkdir()
    assert infer("--input", source) == 1
    assert says in failure(capsys)
    assert not (place / "out").exists()


def test_an_empty_input_is_one_clear_line(place, capsys):
    assert infer("--input", ",") in (1, 2)
    failure(capsys)


@pytest.mark.parametrize(
    "flags",
    [
        ["--outfmt", "npy"],
        ["--loop", "0"],
        ["--warmup_count", "-1"],
        ["--auto_set_dymdims_mode", "maybe"],
        ["--dev", "0"],
    ],
)
def test_wrong_flags_end_with_code_2(place, flags):
    with pytest.raises(SystemExit) as caught:
        infer(*flags)
    assert caught.value.code == 2


def test_input_size_cannot_be_switched_off(place, capsys):
    assert infer("--auto_set_dymdims_mode", "0") == 1
    assert "--auto_set_dymdims_mode must be on" in failure(capsys)
    assert infer("--auto_set_dymdims_mode", "1") == 0


def test_a_network_that_yields_nan_is_stopped(place, capsys):
    onnx.save(toy_model(scale=float("inf")), "net.onnx")
    assert infer() == 1
    assert "prep_data/a2.npy: the network's output for it holds NaN" in failure(capsys)
    assert contents(place / "out") == {}


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_unfinished(place, capsys, monkeypatch):
    real, calls = os.writev, []

    def full(handle: int, parts: list[bytes]) -> int:
        calls.append(handle)
        if len(calls) > 3:
            os.write(handle, b"half of")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, parts)

    monkeypatch.setattr(os, "writev", full)
    assert infer() == 1
    assert "out/a10_1.npy: the disk is full" in failure(capsys)
    assert set(contents(place / "out")) == {"a2_0.npy", "a2_1.npy", "a10_0.npy"}
    assert not (place / f".out{UNFINISHED}").exists()
    monkeypatch.undo()
    os.chdir(place)
    assert infer() == 0


def test_the_summary_of_an_earlier_run_is_gone_once_passes_are_run_again(place, monkeypatch):
    assert infer() == 0
    next((place / "out").glob("*_0.npy")).unlink()

    def fail(*_: object) -> None:
        raise DekrError("stopped")

    monkeypatch.setattr(OnnxRuntime, "run", fail)
    assert infer() == 1 and not (place / "out_summary.json").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/out", "out/"])
def test_the_output_folder_is_one_below_the_output(place, capsys, name):
    assert infer("--output_dirname", name) == 2
    assert f"--output_dirname {name!r}: it must be the name of a folder below --output" in capsys.readouterr().err


# --- going on


@pytest.fixture
def whole(place: Path) -> dict[str, bytes]:
    """What a run without a stop writes."""
    assert infer("--output_dirname", "reference") == 0
    return contents(place / "reference")


def test_a_second_run_runs_nothing_and_repeats_the_summary(place, passes):
    assert infer() == 0
    before, first = contents(place / "out"), summary(place)
    passes.clear()
    assert infer() == 0
    assert passes == []
    assert contents(place / "out") == before
    assert summary(place) == first


def test_a_run_stopped_by_an_error_resumes_where_it_was(place, whole, monkeypatch, passes):
    with monkeypatch.context() as patch:
        spied = OnnxRuntime.run

        def breaking(network: OnnxRuntime, image: np.ndarray) -> object:
            if len(passes) == 2:
                raise KeyboardInterrupt
            return spied(network, image)

        patch.setattr(OnnxRuntime, "run", breaking)
        passes.clear()
        assert infer("--warmup_count", "0") == 130
    assert set(contents(place / "out")) == {"a2_0.npy", "a2_1.npy", "a10_0.npy", "a10_1.npy"}
    assert not (place / "out_summary.json").exists() and not (place / f".out{UNFINISHED}").exists()
    assert infer("--warmup_count", "0") == 0
    assert len(passes) == 4, "two before, two after"
    assert contents(place / "out") == whole
    assert summary(place)["npu_compute_time_list"] == [10.0, 20.0, 40.0, 80.0]


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from dekr_infer.cli import onnx_infer
real, done = os.replace, []
def replace(a, b):
    done.append(b)
    if len(done) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    real(a, b)
os.replace = replace
onnx_infer.main("--model net.onnx --input prep_data --output ./ --output_dirname out --threads 1".split())
"""


@pytest.mark.parametrize("after", [5, 10])  # between the two outputs of the second tensor; at the summary
def test_a_killed_run_resumes_and_ends_with_the_same_bytes(place, whole, passes, after):
    program = KILLED.format(root=str(ROOT), after=after)
    ended = subprocess.run([sys.executable, "-c", program], cwd=place, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(contents(place / "out")) == after - 2
    assert (place / f".out{UNFINISHED}").exists() and not (place / "out_summary.json").exists()
    passes.clear()
    assert infer("--warmup_count", "0") == 0
    assert len(passes) == {5: 3, 10: 0}[after]
    assert contents(place / "out") == whole
    assert not (place / f".out{UNFINISHED}").exists()
    found = summary(place)
    assert isinstance(found["npu_compute_time_list"], list) and len(found["npu_compute_time_list"]) == 4
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("cut", [1, 20])
def test_an_unfinished_line_of_the_record_does_not_count(place, whole, passes, cut):
    assert infer() == 0
    record = place / "out_record.jsonl"
    record.write_bytes(record.read_bytes()[:-cut] if cut > 1 else record.read_bytes() + b'{"key": "c.np')
    passes.clear()
    assert infer("--warmup_count", "0") == 0
    assert len(passes) == (1 if cut > 1 else 0)
    assert contents(place / "out") == whole
    assert all(json.loads(line) for line in record.read_text().splitlines())


def test_outputs_that_are_gone_or_cut_short_are_made_again(place, whole, passes):
    assert infer() == 0
    (place / "out" / "a2_1.npy").unlink()
    (place / "out" / "c_0.npy").write_bytes(whole["c_0.npy"][:-1])
    passes.clear()
    assert infer("--warmup_count", "0") == 0
    assert len(passes) == 2
    assert contents(place / "out") == whole


@pytest.mark.parametrize("date", [1, 2_000_000_000_000_000_000])
def test_a_replaced_tensor_is_run_again_whatever_its_date(place, whole, passes, date):
    assert infer() == 0
    np.save("prep_data/B1.npy", picture(77, SMALL_INPUT_SIZES[2]))
    for name in ("B1", "c"):
        os.utime(f"prep_data/{name}.npy", ns=(date, date))
    passes.clear()
    assert infer("--warmup_count", "0") == 0
    assert len(passes) == 1
    found = contents(place / "out")
    assert found.keys() == whole.keys()
    assert {name for name in whole if found[name] != whole[name]} == {"B1_0.npy", "B1_1.npy"}


def test_outputs_that_another_tool_wrote_are_not_passed_off_as_ours(place, whole, passes):
    """As ais_bench typed by hand does it, with the same names, shapes, and even dates."""
    assert infer() == 0
    for path in (place / "out").iterdir():
        before = path.stat()
        np.save(path, np.load(path) + 1)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    passes.clear()
    assert infer("--warmup_count", "0") == 0
    assert len(passes) == 4 and contents(place / "out") == whole


def test_outputs_without_a_record_are_run(place, whole, passes):
    assert infer() == 0
    record_path(Path("out")).unlink()
    np.save("out/a2_0.npy", np.load("out/a2_0.npy") + 1)
    passes.clear()
    assert infer("--warmup_count", "0") == 0
    assert len(passes) == 4 and contents(place / "out") == whole


def test_the_outputs_of_another_tool_get_the_same_record(place):
    assert infer("--warmup_count", "0") == 0
    ours = read_record(record_path(Path("out")))
    record_path(Path("out")).unlink()
    record_outputs(Path("out"), list_tensors([Path("prep_data")]), "aa")
    theirs = read_record(record_path(Path("out")))
    assert ours is not None and theirs is not None
    assert theirs.head.settings == ours.head.settings | {"model_sha256": "aa"}
    for name, entry in theirs.entries.items():
        assert (entry.inputs, entry.outputs) == (ours.entries[name].inputs, ours.entries[name].outputs)


def test_outputs_of_another_model_are_replaced_where_that_is_asked_for(place):
    assert infer() == 0
    onnx.save(toy_model(scale=2.0), "net.onnx")
    files, network = list_tensors([Path("prep_data")]), OnnxRuntime(Path("net.onnx"), 1)
    run_folder(network, files, Path("out"), Options(replace_others=True), {})
    np.testing.assert_array_equal(np.load("out/a2_0.npy"), toy_outputs(picture(0, SMALL_INPUT_SIZES[0]), 2.0)[0])


def test_outputs_of_another_model_are_refused_unless_overwritten(place, whole, capsys):
    assert infer() == 0
    onnx.save(toy_model(scale=2.0), "net.onnx")
    assert infer() == 1
    assert "outputs of another model or of other options" in failure(capsys)
    assert contents(place / "out") == whole
    assert infer("--overwrite") == 0
    np.testing.assert_array_equal(np.load("out/a2_0.npy"), toy_outputs(picture(0, SMALL_INPUT_SIZES[0]), 2.0)[0])
    assert infer() == 0, "the record is the new model's"


def test_outputs_of_another_loop_count_are_refused(place, capsys):
    assert infer() == 0
    assert infer("--loop", "2") == 1
    assert "other options" in failure(capsys)


def test_overwrite_runs_everything_again(place, passes):
    assert infer() == 0
    passes.clear()
    assert infer("--overwrite", "--warmup_count", "0") == 0
    assert len(passes) == 4
