"""scripts/run_pipeline.sh on the tiny network and drawn people: both backends agree, and nothing is done twice."""

import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.demo import people
from tests.host import DOUBLES, Done, Host, refused
from tests.toys import PAIRS, Tiny

PICTURES = 2
MODEL = "dekr_bs1.om"
pytest_plugins = ["tests.tiny"]


def words(tiny, backend: str, work: str, *more: str) -> list[str]:
    files = ["--onnx", str(tiny.graph), "--rescore", str(tiny.checkpoint.with_name("rescore.pth"))]
    return ["run_pipeline.sh", "--backend", backend, "--data", "data", "--work", work, *files, *more, *PAIRS]


def steps(out: str) -> dict[str, bool]:
    """Each step's name, and whether it was done anew."""
    return {name: not before for name, before in re.findall(r"^== (\w+)(: done before)?$", out, re.MULTILINE)}


def dumps(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in [*folder.glob("out*/*.npy"), *folder.glob("results/key*")]
    }


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
    log: str


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Walk:
    host = Host(tmp_path_factory.mktemp("walk"), "npu-smi")
    host.install_toolkit()
    host.env["PYTHONPATH"] = str(DOUBLES)
    made = host.folder / "made here"
    assert people.main(["--output", str(host.folder / "data"), "--pictures", str(PICTURES), "--seed", "1"]) == 0
    onnx, cpu = host.run(*words(tiny, "onnx", made.name)), dumps(made)
    om = words(tiny, "om", made.name)
    failed = host.run(*om, ATC_TROUBLE="inner")
    stopped, model_after_stop = stop_at(host, om, "compiling", ATC_TROUBLE="slow"), (made / MODEL).exists()
    done, npu = host.run(*om), dumps(made)
    again = host.run(*om)
    os.utime(made / MODEL)
    touched = host.run(*om)
    log = (made / "pipeline.log").read_text()
    return Walk(onnx, failed, stopped, model_after_stop, done, again, touched, cpu, npu, log)


def stop_at(host: Host, command: list[str], text: str, **env: str) -> Done:
    """Ctrl-C once this text is printed."""
    process = subprocess.Popen(
        host.command(*command),
        cwd=host.folder,
        env=host.env | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while text not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return Done(command, process.returncode, out, err)


BOTH = ["infer", "infer_flip", "postprocess"]


def anew(done: Done) -> list[str]:
    return [name for name, fresh in steps(done.stdout).items() if fresh]


def test_the_steps_of_the_cpu(walk):
    assert walk.onnx.returncode == 0, walk.onnx
    assert anew(walk.onnx) == ["preprocess", *BOTH]
    assert "AP" in walk.onnx.stdout and "figures: made here/results/metrics.json" in walk.onnx.stdout


def test_the_npu_does_only_what_is_its_own_and_gives_the_same_bits(walk):
    assert walk.om.returncode == 0, walk.om
    assert anew(walk.om) == ["convert", *BOTH]
    assert len(walk.cpu) == 4 * PICTURES + 1 and walk.cpu == walk.npu


def test_the_export_is_a_step_when_no_file_is_named(tmp_path, tiny):
    """With a stand-in for Python, because the export itself takes long."""
    host = Host(tmp_path)
    (host.folder / "data" / "annotations").mkdir(parents=True)
    files = ["--weights", str(tiny.checkpoint), "--rescore", str(tiny.checkpoint)]
    fake = host.folder / "python"  # preprocessing succeeds, the export fails
    fake.write_text(
        '#!/bin/sh\ncase $1 in *pth2onnx*) echo "$@"; exit 7 ;; *) mkdir -p prep_data prep_data_flip ;; esac\n'
    )
    fake.chmod(0o755)
    done = host.run("run_pipeline.sh", "--data", "data", *files, "TEST.FLIP_TEST", "False", PYTHON=str(fake))
    assert done.returncode == 7 and "stopped at the step 'export'" in done.stderr
    wanted = f"--output ./dekr_bs1.onnx DATASET.ROOT data TEST.MODEL_FILE {tiny.checkpoint} RESCORE.MODEL_FILE"
    assert wanted in done.stdout and "TEST.FLIP_TEST False" in done.stdout


def test_a_failing_step_ends_the_run_with_its_code_and_its_error(walk):
    assert walk.failed.returncode == 1
    error, stopped = walk.failed.stderr.splitlines()[-2:]
    assert error.startswith("error: ") and "E19999" in error and "stopped at the step 'convert'" in stopped
    assert list(steps(walk.failed.stdout)) == ["preprocess", "convert"]


def test_ctrl_c_ends_with_130_and_leaves_no_model(walk):
    assert walk.stopped.returncode == 130 and "error: interrupted" in walk.stopped.stderr
    assert not walk.model_after_stop


def test_what_is_done_is_not_done_again(walk):
    assert walk.again.returncode == 0 and anew(walk.again) == [] and len(steps(walk.again.stdout)) == 5


def test_what_a_newer_file_makes_stale_is_done_again(walk):
    assert walk.touched.returncode == 0 and anew(walk.touched) == BOTH


def test_the_log_holds_all_of_it(walk):
    for text in ("backend onnx", "backend om", "E19999", "ATC run success", "published: 7.72", "done before"):
        assert text in walk.log


@pytest.mark.parametrize(
    ("given", "code", "part"),
    [
        (["--backend", "gpu"], 2, "om or onnx"),
        (["--backend"], 2, "wants a value"),
        (["--bakend", "om"], 2, "unknown flag"),
        (["--weights", "gone.pth"], 1, "gone.pth"),
    ],
)
def test_mistakes(tmp_path, given, code, part):
    refused(Host(tmp_path).run("run_pipeline.sh", *given), code, part)


def test_help_names_the_flags(tmp_path):
    done = Host(tmp_path).run("run_pipeline.sh", "--help")
    assert done.returncode == 0 and "--backend om|onnx" in done.stdout and "go" in done.stdout
