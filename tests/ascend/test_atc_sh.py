"""scripts/atc.sh against a strict fake of atc, from a folder with a space in its name."""

import os
import shlex
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dekr_infer.ascend.atc import REMEDIES
from dekr_infer.ascend.subprocess_runner import remedy
from tests.support.ascend_host import FAKES, Done, Host, refused
from tests.support.tiny_models import toy_model

PUBLISHED_SIZES = "512,768;512,512;768,512;512,1024;1024,512"


def options(model: Path) -> list[str]:
    """Return the options that the fake was given, without the paths."""
    words = zipfile.ZipFile(model).read("options").decode().split("\n")
    return [word for word in words if not word.startswith(("--model=", "--output="))]


def left(host: Host) -> set[str]:
    return {entry.name for entry in host.folder.iterdir()}


def assert_converted(host: Host, done: Done) -> None:
    """Assert that net.onnx, as it is, became net.om for the host's chip, and that nothing else was left."""
    assert done.returncode == 0, done
    assert left(host) == {"net.onnx", "net.om"}
    assert "--soc_version=Ascend310P3" in options(host.folder / "net.om")
    with zipfile.ZipFile(host.folder / "net.om") as stand_in:
        assert stand_in.read("model.onnx") == (host.folder / "net.onnx").read_bytes()


def test_weights_in_a_file_of_their_own_go_with_the_model(host):
    """The folder's name has a space, so that atc is given a copy."""
    onnx.save(toy_model(), host.folder / "ext.onnx", save_as_external_data=True, location="w", size_threshold=0)
    done = host.run("atc.sh", "ext.onnx")
    assert done.returncode == 0, done
    with zipfile.ZipFile(host.folder / "ext.om") as stand_in:
        copy = onnx.load_from_string(stand_in.read("model.onnx"))
    for given, arrived in zip(toy_model().graph.initializer, copy.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(arrived), numpy_helper.to_array(given))


def test_our_export_is_converted_with_the_published_options(host, tiny):
    shutil.copy(tiny.graph, host.folder / "dekr_bs1.onnx")
    done = host.run("atc.sh", "dekr_bs1.onnx")
    assert done.returncode == 0, done
    assert options(host.folder / "dekr_bs1.om") == [
        "--framework=5",
        "--input_format=ND",
        "--input_shape=image:1,3,-1,-1",
        f"--dynamic_dims={PUBLISHED_SIZES}",
        "--soc_version=Ascend310P3",
        "--log=error",
    ]
    with zipfile.ZipFile(host.folder / "dekr_bs1.om") as stand_in:
        assert stand_in.read("model.onnx") == tiny.graph.read_bytes()
    last = done.stdout.splitlines()[-1]
    assert last.startswith("dekr_bs1.om: ") and "Ascend310P3" in last and PUBLISHED_SIZES in last
    assert "warning: " in done.stderr and "no multiple of 16" in done.stderr
    assert left(host) == {"net.onnx", "dekr_bs1.onnx", "dekr_bs1.om"}


def test_options_output_and_words_for_atc(host):
    (host.folder / "keep these").write_text("node\n")
    words = ("net.onnx", "models/other", "--chip", "910B4", "--precision_mode", "force_fp32")
    words += ("--output_type", "FP16")
    done = host.run("atc.sh", *words, "--keep_dtype", "keep these", "--cache", "force", "--", "--log=info")
    assert done.returncode == 0, done
    given = options(host.folder / "models" / "other.om")
    assert {"--soc_version=Ascend910B4", "--precision_mode=force_fp32", "--output_type=FP16"} <= set(given)
    assert given[-1] == "--log=info" and any(word.startswith("--keep_dtype=") for word in given)
    assert given.count("--op_compiler_cache_mode=force") == 1 and "--log=error" not in given


def test_cache_that_the_words_for_atc_name_counts(host):
    words = ("net.onnx", "--cache", "enable", "--", "--op_compiler_cache_mode=disable")
    assert host.run("atc.sh", *words).returncode == 0
    given = options(host.folder / "net.om")
    assert [word for word in given if "cache" in word] == ["--op_compiler_cache_mode=disable"]


def test_dry_run_prints_a_command_that_can_be_pasted(host):
    shutil.copy(host.folder / "net.onnx", host.folder / "a $(touch x) net.onnx")
    done = host.run("atc.sh", "a $(touch x) net.onnx", "made", "--dry-run", "--chip", "310P3")
    assert done.returncode == 0, done
    words = shlex.split(done.stdout)
    assert words[:3] == ["atc", "--framework=5", "--model=a $(touch x) net.onnx"]
    assert words[3] == "--output=made"
    assert left(host) == {"net.onnx", "a $(touch x) net.onnx"}


@pytest.mark.parametrize("place", ["Ascend/ascend-toolkit", "Ascend/cann"])
def test_both_known_places_of_the_toolkit(tmp_path, place):
    host = Host(tmp_path, "npu-smi")
    host.install_toolkit(place)
    onnx.save(toy_model(), host.folder / "net.onnx")
    assert_converted(host, host.run("atc.sh", "net.onnx"))


@pytest.mark.parametrize("below", ["", "latest"])
def test_toolkit_named_by_the_environment(tmp_path, below):
    host = Host(tmp_path, "npu-smi")
    toolkit = host.install_toolkit("else where")
    onnx.save(toy_model(), host.folder / "net.onnx")
    assert_converted(host, host.run("atc.sh", "net.onnx", ASCEND_TOOLKIT_HOME=str(toolkit / below)))


def test_loaded_toolkit_is_not_loaded_again(host):
    host.install("atc")
    done = host.run("atc.sh", "net.onnx", ASCEND_OPP_PATH="/somewhere")
    assert_converted(host, done)
    assert "loaded" not in done.stderr


MEDDLING = (
    "cd /; set -- a b; python=false root=/; export root=/tmp python=false place=1; readonly root; exec >/dev/null"
)


@pytest.mark.parametrize("line", [MEDDLING, "set -u -e -f", "trap 'exit 9' EXIT"])
def test_toolkit_can_change_nothing_but_the_environment(host, line):
    script = host.home / "Ascend/ascend-toolkit/set_env.sh"
    script.write_text(f"{script.read_text().replace('$UNSET_VARIABLE', '')}{line}\n")
    done = host.run("atc.sh", "net.onnx")
    assert_converted(host, done)


@pytest.mark.parametrize("script", ["exit 3", "return 1", "if (", "exit 0", ""])
def test_toolkit_that_does_not_load_is_named(host, script):
    path = host.home / "Ascend/ascend-toolkit/set_env.sh"
    path.write_text(f"{script}\n")
    done = host.run("atc.sh", "net.onnx")
    refused(done, 1, f"atc: not found after loading {path}", "ASCEND_TOOLKIT_HOME")
    ended = f"warning: {path}: ended its shell with exit code {script[5:]}; the toolkit is not loaded"
    assert (ended in done.stderr) == script.startswith("exit")


def test_exported_cdpath_changes_nothing(host):
    words = ["bash", "scripts/atc.sh", host.folder / "net.onnx", host.folder / "net"]
    env = host.env | {"CDPATH": str(FAKES.parents[1])}
    done = subprocess.run(words, cwd=FAKES.parents[1], env=env, capture_output=True, text=True)
    assert_converted(host, done)


def test_variable_that_bash_cannot_name_is_no_obstacle(host):
    assert_converted(host, host.run("atc.sh", "net.onnx", **{"a.b": "1", "c": "two\nlines"}))


def test_no_toolkit(tmp_path):
    host = Host(tmp_path, "npu-smi")
    onnx.save(toy_model(), host.folder / "net.onnx")
    refused(host.run("atc.sh", "net.onnx"), 1, "atc: not found", "CANN", "ASCEND_TOOLKIT_HOME")


def test_atc_without_its_environment(tmp_path):
    host = Host(tmp_path, "npu-smi", "atc")
    onnx.save(toy_model(), host.folder / "net.onnx")
    refused(host.run("atc.sh", "net.onnx"), 1, "exit code 255", "E10501", "set_env.sh")
    assert left(host) == {"net.onnx"}


def test_what_the_pre_flight_refuses_never_reaches_atc(host):
    model = toy_model()
    helper.set_model_props(model, {"input_sizes": "512,512"})
    onnx.save(model, host.folder / "net.onnx")
    done = host.run("atc.sh", "net.onnx")
    refused(done, 1, "E10035")
    assert "ATC start" not in done.stdout


TROUBLES = {
    "inner": ("exit code 255", "E19999", "ascend/log"),
    "EZ3002": ("EZ3002: ", "ascend/log"),
    "E90003": ("E90003: ", "ascend/log"),
    "module": ("ModuleNotFoundError", "pip3 install"),
    "silent": ("exit code 0", "messages above"),
    "nothing": ("not made", "reported success"),
}


@pytest.mark.parametrize(("trouble", "parts"), TROUBLES.items())
def test_failure_leaves_the_model_before_as_it_was(host, trouble, parts):
    (host.folder / "net.om").write_text("older")
    refused(host.run("atc.sh", "net.onnx", ATC_TROUBLE=trouble), 1, "net.om", *parts)
    assert (host.folder / "net.om").read_text() == "older"
    assert left(host) == {"net.onnx", "net.om"}


def test_longer_name_of_newer_versions(host):
    assert_converted(host, host.run("atc.sh", "net.onnx", ATC_TROUBLE="suffix"))


def test_chip_that_the_toolkit_does_not_know(host):
    refused(host.run("atc.sh", "net.onnx", "--chip", "320"), 1, "E10001", "chip_name.sh")


def test_chip_is_asked_for_once_at_the_host(host):
    refused(host.run("atc.sh", "net.onnx", NPU_SMI_LAYOUT="mixed"), 1, "different chips", "--device")
    assert_converted(host, host.run("atc.sh", "net.onnx", "--device", 0, NPU_SMI_LAYOUT="mixed"))


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ([], 2, "--help"),
        (["gone.onnx"], 1, "gone.onnx"),
        (["net.onnx", "."], 2, "is a folder"),
        (["net.onnx", "a b"], 2, "choose another"),
        (["net.onnx", "--precision_mode", "fp8"], 2, "fp8"),
        (["net.onnx", "--keep_dtype", "gone"], 1, "gone"),
        (["net.onnx", "b.onnx"], 2, "one file at a time"),
        (["net.onnx", "--", "--precision_mode_v2=fp8"], 1, "E10001: check the option"),
        (["net.onnx", "--", "--lag=info"], 1, "E10003"),
        (["net.onnx", "--", "--dynamic_batch_size=1,2"], 1, "E10009"),
    ],
)
def test_mistakes(host, words, code, part):
    refused(host.run("atc.sh", *words), code, part)


def test_ctrl_c_ends_atc_and_leaves_nothing(host):
    process = subprocess.Popen(
        host.command("atc.sh", "net.onnx"),
        cwd=host.folder,
        env=host.env | {"ATC_TROUBLE": "slow", "TMPDIR": str(host.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while "compiling" not in process.stdout.readline():
        assert process.poll() is None
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err.splitlines()[-1].startswith("error: interrupted")
    assert time.monotonic() - began < 20
    assert left(host) == {"net.onnx"} and not list(host.home.glob("net.*"))


def test_two_conversions_at_the_same_time_leave_each_other_alone(host):
    first = host.start("atc.sh", "net.onnx", ATC_TROUBLE="slow", TMPDIR=str(host.home))
    assert first.stdout is not None
    while "compiling" not in first.stdout.readline():
        assert first.poll() is None
    (place,) = host.home.glob("net.om.partial.*")
    assert host.run("atc.sh", "net.onnx", TMPDIR=str(host.home)).returncode == 0
    assert (place / "net.om").is_file() and len(list(host.home.glob("net.*"))) == 1
    os.kill(first.pid, signal.SIGINT)
    first.communicate(timeout=60)
    assert not list(host.home.glob("net.*"))


@pytest.mark.parametrize("name", ["a b", "gone"])
def test_temporary_folder_that_atc_cannot_use(host, name):
    (host.home / "a b").mkdir()
    assert_converted(host, host.run("atc.sh", "net.onnx", TMPDIR=str(host.home / name)))


def test_remedy_of_a_code_is_found_in_a_long_log():
    lines = ["EZ9999: Inner Error!", "x" * 50, "E16002: no parser"]
    assert remedy(lines, REMEDIES).startswith("E16002: ") and remedy(["fine"], REMEDIES) == ""


def test_fake_itself_refuses_a_wrong_graph(host, tiny):
    """The fake refuses what the pre-flight would have refused, so a gap in the pre-flight shows."""
    model = tiny.model()
    model.opset_import[0].version = 19
    onnx.save(model, host.home / "new.onnx")
    words = ["--framework=5", f"--model={host.home}/new.onnx", f"--output={host.home}/new", "--input_format=ND"]
    words += ["--input_shape=image:1,3,-1,-1", f"--dynamic_dims={PUBLISHED_SIZES}", "--soc_version=Ascend310P3"]
    env = host.env | {"ASCEND_OPP_PATH": "x"}
    done = subprocess.run([FAKES / "atc", *words], env=env, capture_output=True, text=True)
    assert done.returncode == 255 and "E16002" in done.stdout
