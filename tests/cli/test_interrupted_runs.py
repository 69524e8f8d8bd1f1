"""SIGINT, SIGTERM and SIGHUP to a wrapper: tools and their children end with it, and nothing half-written stays."""

import signal
import time

import numpy as np
import onnx
import pytest

from dekr_infer.ascend import ais_bench as bench
from dekr_infer.ascend import subprocess_runner as tool
from dekr_infer.ascend import tune
from dekr_infer.cli import ais_bench as ais_bench_command
from dekr_infer.cli import app, tune_npu
from dekr_infer.cli.app import raise_on_sigterm
from scripts.demo import people
from tests.support.ascend_host import FAKES, Done, Host, compile_fake
from tests.support.commands import run_command
from tests.support.tiny_models import PAIRS, SMALL_INPUT_SIZES, toy_model, toy_outputs

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture
def host(host: Host) -> Host:
    """The host, with the fake ais_bench and a folder of its own for temporary files."""
    (host.home / "tmp").mkdir()
    host.env |= {"PYTHONPATH": str(FAKES), "TMPDIR": str(host.home / "tmp")}
    return host


def assert_stopped(host: Host, done: Done, number: int, left: set[str]) -> None:
    assert done.returncode == CODES[signal.Signals(number)], done
    assert "error: interrupted" in done.stderr and "Traceback" not in done.stdout + done.stderr
    host.wait_for_quiet(2)  # what was killed needs a moment to be gone
    assert {entry.name for entry in host.folder.iterdir()} == left
    temporary = {entry.name for entry in (host.home / "tmp").iterdir()}
    assert temporary <= {".ses"}, "ONNX Runtime's own"


@pytest.mark.parametrize("number", CODES)
def test_atc_and_its_deaf_child_end_with_the_wrapper(host, number):
    process = host.start("atc.sh", "net.onnx", ATC_TROUBLE="child")
    assert_stopped(host, host.stop(process, "compiling", number), number, {"net.onnx"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ais_bench_and_its_child_end_with_the_wrapper(host, number):
    compile_fake(toy_model(), host.folder / "net.om")
    (host.folder / "prep_data").mkdir()
    np.save(host.folder / "prep_data" / "a.npy", np.zeros((1, 3, *SMALL_INPUT_SIZES[0]), np.float32))
    process = host.start("ais_bench.sh", "net.om", "--input", "prep_data", AIS_BENCH_TROUBLE="child")
    done = host.stop(process, "a child", number)
    assert_stopped(host, done, number, {"net.onnx", "net.om", "prep_data"})


def test_what_a_killed_conversion_leaves_goes_with_the_next(host):
    process = host.start("atc.sh", "net.onnx", ATC_TROUBLE="slow")
    assert host.stop(process, "compiling", signal.SIGKILL).returncode == -signal.SIGKILL
    host.wait_for_quiet(20)
    assert list((host.home / "tmp").glob("net.om.partial.*"))
    assert host.run("atc.sh", "net.onnx").returncode == 0
    assert not list((host.home / "tmp").glob("net.*"))
    assert {entry.name for entry in host.folder.iterdir()} == {"net.onnx", "net.om"}


def bench_killed(host: Host, trouble: str, text: str) -> None:
    """Two models, one folder of two tensors; the run of the first model ended by SIGKILL."""
    (host.folder / "prep_data").mkdir()
    for stem in "ab":
        np.save(host.folder / "prep_data" / f"{stem}.npy", np.ones((1, 3, *SMALL_INPUT_SIZES[0]), np.float32))
    compile_fake(toy_model(scale=2), host.folder / "older.om")
    compile_fake(toy_model(), host.folder / "net.om")
    process = host.start("ais_bench.sh", "older.om", "--input", "prep_data", AIS_BENCH_TROUBLE=trouble)
    assert host.stop(process, text, signal.SIGKILL).returncode == -signal.SIGKILL


def test_ais_bench_ends_with_a_killed_wrapper(host):
    bench_killed(host, "slow", "warm up")
    host.wait_for_quiet(20)


def test_tool_that_outlives_a_killed_wrapper_spoils_no_later_run(host, monkeypatch):
    hold = host.folder / "hold"
    hold.touch()
    bench_killed(host, "deaf", "on hold")
    (left,) = host.folder.glob("out.ais_bench*")

    def run_then_let_the_older_go_on(command):
        assert not left.exists()
        ran = tool.run_tool(command)
        hold.unlink()
        host.wait_for_quiet(20)
        return ran

    monkeypatch.setattr(bench, "run_tool", run_then_let_the_older_go_on)
    monkeypatch.chdir(host.folder)
    for key in ("PATH", "PYTHONPATH"):
        monkeypatch.setenv(key, host.env[key])
    assert run_command(ais_bench_command.main, "net.om", "--input", "prep_data").code == 0
    wanted = toy_outputs(np.load(host.folder / "prep_data" / "b.npy"))
    for index, values in enumerate(wanted):
        assert np.array_equal(np.load(host.folder / "out" / f"b_{index}.npy"), values)
    assert not list(host.folder.glob("out.ais_bench*"))


def test_a_run_under_nohup_survives_the_end_of_its_terminal(host):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = host.start("atc.sh", "net.onnx", ATC_TROUBLE="child")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.stdout is not None
    while "compiling" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert_stopped(host, Done(process.args, process.returncode, out, err), signal.SIGTERM, {"net.onnx"})


@pytest.mark.parametrize("number", CODES)
def test_signal_while_a_tool_is_being_started_ends_the_tool(monkeypatch, number):
    start, started = tool._start, []

    def start_and_be_told(*args):
        started.append(start(*args))
        signal.raise_signal(number)
        return started[0]

    monkeypatch.setattr(tool, "_start", start_and_be_told)
    with pytest.raises(KeyboardInterrupt), raise_on_sigterm():
        tool.run_tool(["sleep", "60"])
    assert started[0].poll() is not None


class StruckInFinaliser:
    """An object in whose finaliser a signal arrives, where Python prints an exception and goes on."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("left", [60, 0])
@pytest.mark.parametrize("number", CODES)
def test_signal_in_a_finaliser_is_not_lost(capfd, number, left):
    def work() -> None:
        StruckInFinaliser(number)
        time.sleep(left)

    began = time.monotonic()
    assert app.run(work) == CODES[number]
    assert time.monotonic() - began < 30
    err = capfd.readouterr().err
    assert err.startswith("error: interrupted") and len(err.splitlines()) == 1


@pytest.mark.long
def test_tuning_resumes(host, monkeypatch):
    (host.folder / "net.pth").write_text("weights")
    words = ("--work", "work", "--loop", "1", "--variants", "gather", "TEST.MODEL_FILE", "net.pth")
    with monkeypatch.context() as patch:  # the export done, and refused by atc
        patch.chdir(host.folder)
        host.install("atc")
        for key, value in (host.env | {"ASCEND_OPP_PATH": "loaded", "ATC_TROUBLE": "inner"}).items():
            patch.setenv(key, value)
        toy = toy_model(tune.PUBLISHED_SIZES)
        patch.setattr(tune.Tuning, "export", lambda tuning, variant: onnx.save(toy, tuning.graph(variant)))
        assert run_command(tune_npu.main, *words).code == 1
    process = host.start("tune_npu.sh", *words, ATC_TROUBLE="child")
    done = host.stop(process, "compiling", signal.SIGTERM)
    assert_stopped(host, done, signal.SIGTERM, {"net.onnx", "net.pth", "work"})
    made = {entry.name for entry in (host.folder / "work").iterdir()}
    assert made == {"dekr_gather.onnx", "steps_record.jsonl", "tune.json"}
    done = host.stop(host.start("tune_npu.sh", *words, AIS_BENCH_TROUBLE="child"), "a child", signal.SIGTERM)
    assert_stopped(host, done, signal.SIGTERM, {"net.onnx", "net.pth", "work"})
    made |= {"dekr_gather.om"}
    assert {entry.name for entry in (host.folder / "work").iterdir()} == made
    done = host.run("tune_npu.sh", *words)
    assert done.returncode == 0 and "gather: convert: done before" in done.stdout, done


def test_stopped_export_leaves_no_graph(host, tiny):
    words = ("--work", "work", "--variants", "grouped", *PAIRS, "TEST.MODEL_FILE", tiny.checkpoint)
    done = host.stop(host.start("tune_npu.sh", *words), "grouped: export", signal.SIGTERM)
    assert_stopped(host, done, signal.SIGTERM, {"net.onnx", "work"})
    assert [entry.name for entry in (host.folder / "work").iterdir()] == ["steps_record.jsonl"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_pipeline_ends_its_step(host, tiny, number):
    assert people.main(["--output", str(host.folder / "data"), "--pictures", "1", "--seed", "1"]) == 0
    files = ("--onnx", tiny.graph, "--rescore", tiny.checkpoint.with_name("rescore.pth"))
    words = ("--backend", "om", "--data", "data", "--work", "work", *files, *PAIRS)
    done = host.stop(host.start("run_pipeline.sh", *words, ATC_TROUBLE="child"), "compiling", number)
    assert_stopped(host, done, number, {"net.onnx", "data", "work"})
    assert "stopped at the step 'convert'" in done.stderr.splitlines()[-1]
    made = {entry.name for entry in (host.folder / "work").iterdir()}
    folders = {"prep_data", "prep_data_flip"}
    assert made == {"pipeline.log", *folders, *(f"{name}_record.jsonl" for name in ("pipeline", *folders))}
    assert "error: interrupted" in (host.folder / "work" / "pipeline.log").read_text()
