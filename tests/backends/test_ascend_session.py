"""A model on NPUs in process: ais_bench's InferSession of three generations, fake and genuine; people; faults."""

from __future__ import annotations

import ast
import gc
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from dekr_infer.backends import ascend_session
from dekr_infer.backends.ascend_session import WORKER, AscendSession
from dekr_infer.backends.base import open_network
from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.cli import ais_bench, evaluate, postprocess, predict
from dekr_infer.detector import Detector
from dekr_infer.errors import ConfigError
from dekr_infer.export.uint8_input import take_uint8
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size
from dekr_infer.model.weights import NOTES
from tests.support.ascend_host import FAKES, compile_fake
from tests.support.commands import assert_refused, error_of, run_command
from tests.support.folders import contents
from tests.support.images import colourful, encode
from tests.support.tiny_models import SMALL_INPUT_SIZES, toy_model, toy_outputs
from tests.support.workspace import INFER, POSTPROCESS, PREPROCESS, ROOT, make_inputs, run_through

DIALECTS = ("T23", "T25", "T26")
GENUINE = os.environ.get("AIS_BENCH_FRONT_ENDS")
OLD_PYTHON = os.environ.get("AIS_BENCH_OLD_PYTHON")
RESULTS, METRICS = "keypoints_val2017_results.json", "metrics.json"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The current folder, with the model `net.om`, its graph beside it, and the fake of ais_bench in its Python."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(FAKES))
    monkeypatch.setenv("AIS_BENCH_PYTHON", sys.executable)
    monkeypatch.setenv("AIS_BENCH_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    write_model(Path("net.om"))
    onnx.save(toy_model(), "net.onnx")
    return tmp_path


def write_model(path: Path, sizes: InputSizes = SMALL_INPUT_SIZES, scale: float = 1.0) -> None:
    """Write what the fake atc would write of a toy model."""
    with zipfile.ZipFile(path, "w") as stand_in:
        stand_in.writestr("model.onnx", toy_model(sizes, scale).SerializeToString())
        stand_in.writestr("input_sizes", str(sizes))
        stand_in.writestr("toy", str(scale))


def tensor(size: Size, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9, 10, (1, 3, *size)).astype(np.float32)


def check(session: AscendSession, size: Size, seed: int = 0) -> None:
    image = tensor(size, seed)
    *outputs, milliseconds = session.run(image)
    for values, wanted in zip(outputs, toy_outputs(image), strict=True):
        assert values.dtype == np.float32 and np.array_equal(values, wanted)
    assert 0 < milliseconds < 60_000


def use_genuine(monkeypatch: pytest.MonkeyPatch, dialect: str, path: Path, model: onnx.ModelProto) -> None:
    """Write a model for the stub of aclruntime, and name the genuine front end; see `test_genuine_front_ends`."""
    assert GENUINE is not None
    sizes = next(entry.value for entry in model.metadata_props if entry.key == "input_sizes")
    shape = {"ascend.input_shape": "image:1,3,-1,-1", "ascend.soc_version": "Ascend310P3"}
    helper.set_model_props(model, {"input_sizes": sizes, "ascend.dynamic_dims": sizes} | shape)
    onnx.save(model, path)
    path.chmod(0o640)
    monkeypatch.setenv("AIS_BENCH_PYTHON", str(Path(GENUINE) / dialect))
    monkeypatch.setenv("PYTHONPATH", "")


needs_genuine = pytest.mark.skipif(
    not GENUINE, reason="AIS_BENCH_FRONT_ENDS names no folder of the genuine T23, T25 and T26"
)


# -- outputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_outputs_at_every_size_in_every_generation_and_the_device_is_freed(place, monkeypatch, dialect):
    monkeypatch.setenv("AIS_BENCH_DIALECT", dialect)
    session = AscendSession(Path("net.om"))
    assert session.input_sizes.sizes == SMALL_INPUT_SIZES.sizes and session.input_dtype == "float32"
    for seed, size in enumerate((*SMALL_INPUT_SIZES, *SMALL_INPUT_SIZES)):
        check(session, size, seed)
    (device,) = session._devices
    process = device.worker._process
    del session
    gc.collect()
    assert process.returncode == 0
    assert (place / "log").read_text().split("\n") == ["open 0", "free 0", ""]


@needs_genuine
@pytest.mark.parametrize("dialect", DIALECTS)
def test_outputs_of_the_genuine_front_ends(monkeypatch, dialect):
    use_genuine(monkeypatch, dialect, Path("net.om"), toy_model())
    session = AscendSession(Path("net.om"))
    for seed, size in enumerate((*SMALL_INPUT_SIZES, *SMALL_INPUT_SIZES)):
        check(session, size, seed)


@pytest.mark.skipif(not OLD_PYTHON, reason="AIS_BENCH_OLD_PYTHON names no old Python with numpy")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_outputs_under_an_old_python(monkeypatch, dialect):
    assert OLD_PYTHON is not None
    monkeypatch.setenv("AIS_BENCH_DIALECT", dialect)
    monkeypatch.setenv("AIS_BENCH_PYTHON", OLD_PYTHON)
    session = AscendSession(Path("net.om"))
    for seed, size in enumerate(SMALL_INPUT_SIZES):
        check(session, size, seed)


def test_the_worker_is_a_script_for_python_3_7_without_this_project():
    tree = ast.parse(WORKER.read_text(), feature_version=(3, 7))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported <= sys.stdlib_module_names | {"numpy", "ais_bench"}


def test_threads_share_two_devices(place):
    session = AscendSession(Path("net.om"), (0, 3))
    assert session.passes_at_once == 4
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: check(session, SMALL_INPUT_SIZES[seed % 3], seed), range(60)))
    assert (place / "log").read_text().split() == ["open", "0", "open", "3"]


def test_8_bit_inputs_and_float16_outputs():
    model = take_uint8(toy_model())
    compile_fake(model, Path("net.om"))
    with zipfile.ZipFile("net.om", "a") as stand_in:
        stand_in.writestr("options", "--output_type=FP16")
    onnx.save(model, "cpu.onnx")
    session, cpu = AscendSession(Path("net.om")), OnnxRuntime(Path("cpu.onnx"), 1)
    assert session.input_dtype == "uint8"
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96), np.uint8)
    for values, wanted in zip(session.run(image)[:2], cpu.run(image)[:2], strict=True):
        assert values.dtype == np.float16 and np.array_equal(values, wanted.astype(np.float16))


def test_what_the_tool_prints_does_not_disturb(monkeypatch):
    """More than a pipe holds."""
    monkeypatch.setenv("AIS_BENCH_TROUBLE", "noisy")
    session = AscendSession(Path("net.om"))
    for seed in range(5):
        check(session, SMALL_INPUT_SIZES[0], seed)


# -- people ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes and their tensors, in `in`."""
    folder = tmp_path_factory.mktemp("npu")
    make_inputs(folder, {f"p{number}.jpg": Size(40 + number, 40 + 9 * number) for number in range(5)})
    (folder / "in" / "model.pth").touch()
    run_through(folder, (PREPROCESS, INFER, POSTPROCESS))
    return folder


FRONT_ENDS = [
    "T23",
    *(pytest.param(dialect, marks=pytest.mark.long) for dialect in DIALECTS[1:]),
    *(pytest.param(f"genuine {dialect}", marks=needs_genuine) for dialect in DIALECTS),
]


@pytest.mark.parametrize("dialect", FRONT_ENDS)
def test_people_and_metrics_are_those_of_the_three_steps(source, tmp_path, monkeypatch, dialect):
    """The steps run ais_bench over folders of tensors."""
    kind, _, age = dialect.rpartition(" ")
    monkeypatch.setenv("AIS_BENCH_DIALECT", age)
    tmp_path.chmod(0o750)
    for name in ("prep_data_record.jsonl", "prep_data_flip_record.jsonl"):
        Path(name).write_bytes((source / "w" / name).read_bytes())
    for name in ("coco", "rescore.pth", "prep_data", "prep_data_flip"):
        os.symlink(source / "in" / name, name) if name in ("coco", "rescore.pth") else copy(source / "w" / name, name)
    model = toy_model(PUBLISHED_SIZES, 0.02)
    helper.set_model_props(model, {"input_sizes": str(PUBLISHED_SIZES), "weights": "random"})
    write_model(Path("net.om"), PUBLISHED_SIZES, 0.02)
    onnx.save(model, "net.onnx")
    if kind:
        use_genuine(monkeypatch, age, Path("net.om"), model)
    pairs = ("DATASET.ROOT", "coco", "RESCORE.MODEL_FILE", "rescore.pth")
    assert run_command(ais_bench.main, "net.om").code == 0
    dumps = ("--dump_dir", "out", "--dump_dir_flip", "out_flip")
    assert run_command(postprocess.main, *dumps, "--output", "steps", *pairs).code == 0
    ran = run_command(evaluate.main, "--model", "net.om", "--output", "one", "--device", "0,1", *pairs)
    assert ran.code == 0, ran
    steps, one = contents(tmp_path / "steps"), contents(tmp_path / "one")
    assert one[RESULTS] == steps[RESULTS] and len(json.loads(one[RESULTS])) > 5
    assert json.loads(one[METRICS]) == json.loads(steps[METRICS])
    assert json.loads(one[METRICS])["weights"] == "random" and NOTES["random"] in ran.out


def copy(folder: Path, name: str) -> None:
    os.mkdir(name, 0o750)
    for file in folder.iterdir():
        Path(name, file.name).write_bytes(file.read_bytes())
        Path(name, file.name).chmod(0o640)


def test_the_detector_and_predict_find_the_people_of_the_graph(place):
    write_model(Path("net.om"), scale=0.02)
    onnx.save(toy_model(scale=0.02), "net.onnx")
    image = colourful(Size(60, 90), 1)
    Path("a.png").write_bytes(encode(image, ".png"))
    found, wanted = Detector("net.om")(image), Detector("net.onnx")(image)
    assert len(found) > 0 and np.array_equal(found.poses, wanted.poses) and np.array_equal(found.scores, wanted.scores)
    for suffix in ("om", "onnx"):
        ran = run_command(
            predict.main, "--model", f"net.{suffix}", "--no_overlays", "--json", f"{suffix}.json", "a.png"
        )
        assert ran.code == 0, ran
    assert (place / "om.json").read_bytes() == (place / "onnx.json").read_bytes()


# -- input sizes -------------------------------------------------------------------------------------------------------


def test_without_the_graph_beside_it_a_model_has_the_published_sizes():
    Path("net.onnx").write_text("no graph")
    write_model(Path("net.om"), PUBLISHED_SIZES)
    assert AscendSession(Path("net.om")).input_sizes == PUBLISHED_SIZES


def test_a_model_of_one_size_has_that_whatever_lies_beside_it():
    one = Size(96, 64)
    write_model(Path("net.om"), InputSizes((one,)))
    session = AscendSession(Path("net.om"))
    assert session.input_sizes.sizes == (one,)
    check(session, one)
    assert "it takes float32 (1, 3, H, W) of the sizes 96x64" in error_of(session.run, tensor(Size(64, 64)))
    assert "was given float64" in error_of(session.run, tensor(one).astype(np.float64))


def test_sizes_that_are_not_the_models_are_named():
    other = InputSizes((Size(64, 96), Size(64, 128), Size(64, 160)))
    onnx.save(toy_model(other), "net.onnx")
    text = error_of(AscendSession, Path("net.om"))
    assert "net.om: does not take 64x128, an input size of net.onnx (RuntimeError: [-1][ACL: general failure])" in text
    assert "atc.sh, or move it away" in text
    Path("net.onnx").unlink()
    text = error_of(AscendSession, Path("net.om"))
    assert "largest input has 122880 bytes; 512x1024, a published input size, is another; put the ONNX file" in text


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_runtime_without_ais_bench_is_one_line(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    text = error_of(AscendSession, Path("net.om"))
    assert f"{sys.executable}: cannot import ais_bench (ModuleNotFoundError: " in text and "AIS_BENCH_PYTHON" in text
    monkeypatch.setenv("AIS_BENCH_PYTHON", "python9")
    assert "python9: not found" in error_of(AscendSession, Path("net.om"))


def test_a_toolkit_that_is_not_loaded_is_one_line(place, monkeypatch):
    (place / "ais_bench" / "infer").mkdir(parents=True)
    broken = "raise ImportError('libascendcl.so: cannot open shared object file')"
    (place / "ais_bench" / "infer" / "interface.py").write_text(broken)
    monkeypatch.setenv("PYTHONPATH", str(place))
    assert "set_env.sh" in error_of(AscendSession, Path("net.om"))


@pytest.mark.parametrize(
    ("trouble", "dialect", "parts"),
    [
        ("device", "T23", ("NPU 0 reports RuntimeError: ", "open device 0 failed", "npu-smi info")),
        ("illegal", "T25", ("net.om is illegal", "chmod go-w")),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_line(monkeypatch, trouble, dialect, parts):
    monkeypatch.setenv("AIS_BENCH_DIALECT", dialect)
    monkeypatch.setenv("AIS_BENCH_TROUBLE", trouble)
    if trouble == "illegal":
        Path("net.om").chmod(0o666)
    text = error_of(AscendSession, Path("net.om"))
    assert all(part in text for part in parts), text


def test_an_error_of_the_tool_is_one_line_and_ends_the_command(source, monkeypatch):
    monkeypatch.setenv("AIS_BENCH_TROUBLE", "fails")
    write_model(Path("net.om"), PUBLISHED_SIZES)
    Path("net.onnx").unlink()
    ran = run_command(evaluate.main, "--model", "net.om", "DATASET.ROOT", source / "in/coco", "RESCORE.VALID", "False")
    assert_refused(ran, 1, "net.om: ais_bench on NPU 0 reports RuntimeError: [-1][ACL: general failure]; see ")


@pytest.mark.parametrize("trouble", ["dies", "hangs"])
def test_a_worker_that_is_lost_is_replaced_once(place, monkeypatch, caplog, trouble):
    monkeypatch.setattr(ascend_session, "PASS_SECONDS", 0.5 if trouble == "hangs" else 60.0)
    monkeypatch.setattr(ascend_session, "PATIENCE", 0.1)
    monkeypatch.setenv("AIS_BENCH_TROUBLE", trouble)
    session = AscendSession(Path("net.om"))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: check(session, SMALL_INPUT_SIZES[seed % 3], seed), range(6)))
    (warning,) = caplog.messages
    how = "ended by SIGKILL: the driver is gone" if trouble == "dies" else "did not answer in 0.5 s"
    assert warning == f"net.om: ais_bench on NPU 0 {how}; it is started again, once"
    assert (place / "log").read_text().count("open") == 2


@pytest.mark.parametrize("trouble", ["dies", "hangs"])
def test_a_worker_that_is_lost_again_is_an_error(monkeypatch, trouble):
    monkeypatch.setattr(ascend_session, "PASS_SECONDS", 0.3 if trouble == "hangs" else 60.0)
    monkeypatch.setattr(ascend_session, "PATIENCE", 0.1)
    monkeypatch.setenv("AIS_BENCH_TROUBLE", f"always_{trouble}")
    session = AscendSession(Path("net.om"))
    assert ", for the second time; check the device" in error_of(session.run, tensor(SMALL_INPUT_SIZES[0]))


def test_words_of_the_other_runtime_are_refused():
    with pytest.raises(ConfigError, match=r"--provider X: is of ONNX Runtime, and net\.om runs on an NPU"):
        open_network(Path("net.om"), provider="X")
    with pytest.raises(ConfigError, match=r"--device: net\.onnx runs on ONNX Runtime"):
        open_network(Path("net.onnx"), devices=[0])
    assert "gone.om: no such model" in error_of(open_network, Path("gone.om"))
    for words in ("0,0", "256", "x"):
        assert_refused(run_command(evaluate.main, "--model", "net.om", "--device", words), 2, "--device")


def test_ctrl_c_ends_the_command_and_its_worker(source, place):
    """As at a terminal, where the worker's own group does not receive the signal."""
    write_model(Path("net.om"), PUBLISHED_SIZES)
    Path("net.onnx").unlink()
    pairs = ["DATASET.ROOT", str(source / "in" / "coco"), "RESCORE.VALID", "False"]
    command = [sys.executable, str(ROOT / "scripts/evaluate.py"), "--model", "net.om", *pairs]
    process = subprocess.Popen(
        command,
        env=os.environ | {"AIS_BENCH_TROUBLE": "slow"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while "pass" not in (place / "log").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err.splitlines()[-1].startswith("error: interrupted")
    log = (place / "log").read_text().splitlines()
    assert log[0] == "open 0" and log[-1] == "free 0"
    assert log.count("open 0") == 1 and "warning: " not in err
