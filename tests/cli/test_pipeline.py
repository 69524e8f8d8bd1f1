"""scripts/run_pipeline.sh on the demo network and the first of the quickstart's pictures, drawn as there.

Both backends agree to the bit, from dumps to figures, and nothing is done twice.
"""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from dekr_infer.cli import export as export_command
from scripts.demo import people
from tests.support.ascend_host import FAKES, ROOT, Done, Host, executed, refused, steps
from tests.support.tiny_models import ONE_THREAD

pytestmark = pytest.mark.long  # test_pipeline_steps walks the same ways in one process
PICTURES, SEED = 2, "2017"
MODEL = "dekr_bs1.om"
WEIGHTS, RESCORE = (ROOT / "scripts/demo/weights" / name for name in ("pose_dekr_demo.pth", "rescore_demo.pth"))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The demo network, exported."""
    made = tmp_path_factory.mktemp("demo") / "demo.onnx"
    words = ["--output", str(made), "--skip_check", *ONE_THREAD, "--cfg", "demo", "TEST.MODEL_FILE", str(WEIGHTS)]
    assert export_command.main(words) == 0
    return made


def words(graph: Path, backend: str, work: str) -> list[str]:
    files = ["--data", "data", "--work", work, "--onnx", str(graph), "--rescore", str(RESCORE)]
    return ["run_pipeline.sh", "--backend", backend, *files, "--cfg", "demo"]


def dumps(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in [*folder.glob("out*/*.npy"), *folder.glob("results/key*")]
    }


def figures(folder: Path) -> dict[str, float]:
    """The ten metrics."""
    found: dict[str, float] = json.loads((folder / "results" / "metrics.json").read_text())["figures"]
    return found


@dataclass
class Walk:
    """One work folder through a day: first on the CPU, then on the NPU with troubles; how each run ended."""

    onnx: Done
    failed: Done
    stopped: Done
    model_after_stop: bool
    om: Done
    again: Done
    touched: Done
    cpu: dict[str, bytes]
    npu: dict[str, bytes]
    cpu_figures: dict[str, float]
    npu_figures: dict[str, float]
    log: str


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, graph: Path) -> Walk:
    host = Host(tmp_path_factory.mktemp("walk"), "npu-smi")
    host.install_toolkit()
    host.env["PYTHONPATH"] = str(FAKES)
    made = host.folder / "made here"
    assert people.main(["--output", str(host.folder / "data"), "--pictures", str(PICTURES), "--seed", SEED]) == 0
    onnx, cpu = host.run(*words(graph, "onnx", made.name)), dumps(made)
    cpu_figures = figures(made)
    om = words(graph, "om", made.name)
    failed = host.run(*om, ATC_TROUBLE="inner")
    stopped, model_after_stop = stop_at(host, om, "compiling", ATC_TROUBLE="slow"), (made / MODEL).exists()
    done, npu = host.run(*om), dumps(made)
    npu_figures = figures(made)
    again = host.run(*om)
    os.utime(made / MODEL)
    touched = host.run(*om)
    log = (made / "pipeline.log").read_text()
    return Walk(onnx, failed, stopped, model_after_stop, done, again, touched, cpu, npu, cpu_figures, npu_figures, log)


def stop_at(host: Host, command: list[str], text: str, **env: str) -> Done:
    """Send Ctrl-C to the whole group once this text is printed."""
    process = host.start(*command, **env)
    assert process.stdout is not None
    while text not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return Done(command, process.returncode, out, err)


BOTH = ["infer", "infer_flip", "postprocess"]


def test_the_steps_of_the_cpu(walk):
    assert walk.onnx.returncode == 0, walk.onnx
    assert executed(walk.onnx) == ["preprocess", *BOTH]
    assert "AP" in walk.onnx.stdout and "metrics: made here/results/metrics.json" in walk.onnx.stdout


def test_a_run_on_the_npu_converts_infers_and_evaluates_the_right_files(walk):
    """The fake of ais_bench computes with ONNX Runtime: equal bits show the wiring, not that two backends agree."""
    assert walk.om.returncode == 0, walk.om
    assert executed(walk.om) == ["convert", *BOTH]
    assert len(walk.cpu) == 4 * PICTURES + 1 and walk.cpu == walk.npu
    assert len(walk.cpu_figures) == 10 and walk.cpu_figures == walk.npu_figures and walk.npu_figures["AP"] > 0.2


def test_a_failing_step_ends_the_run_with_its_code_and_its_error(walk):
    assert walk.failed.returncode == 1
    error, stopped = walk.failed.stderr.splitlines()[-2:]
    assert error.startswith("error: ") and "E19999" in error and "stopped at the step 'convert'" in stopped
    assert list(steps(walk.failed.stdout)) == ["preprocess", "convert"]


def test_ctrl_c_ends_with_130_and_leaves_no_model(walk):
    assert walk.stopped.returncode == 130 and "error: interrupted" in walk.stopped.stderr
    assert not walk.model_after_stop


def test_what_is_done_is_not_done_again(walk):
    assert walk.again.returncode == 0 and executed(walk.again) == [] and len(steps(walk.again.stdout)) == 5


def test_a_file_that_is_only_newer_makes_nothing_stale(walk):
    assert walk.touched.returncode == 0 and executed(walk.touched) == []


def test_the_log_holds_all_of_it(walk):
    for text in ("backend onnx", "backend om", "E19999", "ATC run success", "published: 7.72", "done before"):
        assert text in walk.log


@pytest.mark.parametrize(
    ("given", "code", "part"),
    [
        (["--backend", "gpu"], 2, "invalid choice: 'gpu'"),
        (["--backend"], 2, "expected one argument"),
        (["--bakend", "om"], 2, "--bakend"),
        (["--weights", "gone.pth"], 1, "gone.pth"),
    ],
)
def test_mistakes(tmp_path, given, code, part):
    refused(Host(tmp_path).run("run_pipeline.sh", *given), code, part)


def test_help_names_the_flags(tmp_path):
    done = Host(tmp_path).run("run_pipeline.sh", "--help")
    assert done.returncode == 0 and "--backend {om,onnx}" in done.stdout and "resumes" in done.stdout
