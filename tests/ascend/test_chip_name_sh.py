"""scripts/chip_name.sh on every layout of `npu-smi info`."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dekr_infer.ascend import soc_version
from dekr_infer.ascend.soc_version import Device, devices
from dekr_infer.errors import DekrError
from tests.support.ascend_host import FAKES, Host, refused

NAMES = {
    "310P3": "Ascend310P3",
    "310P3-two": "Ascend310P3",
    "310": "Ascend310",
    "910A": "Ascend910A",
    "910B4": "Ascend910B4",
    "910B": "Ascend910B",
    "A3": "Ascend910_9392",
}


@pytest.mark.parametrize(("layout", "name"), NAMES.items())
def test_name_of_every_layout(host, layout, name):
    done = host.run("chip_name.sh", NPU_SMI_LAYOUT=layout)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}\n", "")


def test_only_device_rows_count():
    text = (FAKES / "npu_smi" / "310P3-two.txt").read_text()
    assert devices(text) == [Device(0, 0, "310P3", "OK"), Device(64, 1, "310P3", "OK")]


@pytest.mark.parametrize("row", ["| 0 0 | NA | 0 |", "| 0 310 | 0000:01:00.0 | 0 |", "| 0 | OK | 1 |", "| 0 310 OK |"])
def test_other_rows_do_not(row):
    assert devices(row) == []


def test_board_that_answers_without_a_chip_number(host):
    assert host.run("chip_name.sh", NPU_SMI_LAYOUT="A3", NPU_SMI_BOARD="whole").stdout == "Ascend910_9392\n"


def test_poor_health_is_a_warning(host):
    done = host.run("chip_name.sh", NPU_SMI_LAYOUT="910A-warning")
    assert (done.returncode, done.stdout) == (0, "Ascend910A\n")
    assert done.stderr == "warning: npu-smi shows NPU 0 with health Warning\n"


def test_different_chips_need_a_choice(host):
    refused(host.run("chip_name.sh", NPU_SMI_LAYOUT="mixed"), 1, "0: 310P3, 1: 310", "--device", "--chip")
    assert host.run("chip_name.sh", "--device", 1, NPU_SMI_LAYOUT="mixed").stdout == "Ascend310\n"
    refused(host.run("chip_name.sh", "--device", 2, NPU_SMI_LAYOUT="mixed"), 1, "no device 2")


@pytest.mark.parametrize(("number", "name"), [("0", "310"), ("1", "310"), ("2", "310P3")])
def test_number_is_that_of_the_device_and_not_of_its_card(host, number, name):
    assert host.run("chip_name.sh", "--device", number, NPU_SMI_LAYOUT="mixed-cards").stdout == f"Ascend{name}\n"


def test_cards_of_one_chip_are_counted_by_their_own_numbers():
    text = (FAKES / "npu_smi" / "910A.txt").read_text()
    assert [(found.npu, found.device) for found in devices(text)] == [(0, 0), (1, 1)]


def test_number_does_not_matter_where_all_are_alike(host):
    """In a container, npu-smi may show card 5 alone, which programs open by 0."""
    assert host.run("chip_name.sh", "--device", 7, NPU_SMI_LAYOUT="310P3-two").stdout == "Ascend310P3\n"


def test_no_chip(host):
    refused(host.run("chip_name.sh", NPU_SMI_LAYOUT="none"), 1, "shows no NPU", "--chip")


def test_no_driver(host):
    refused(host.run("chip_name.sh", NPU_SMI_LAYOUT="failing"), 1, "dcmi module initialize failed", "driver")


def test_no_npu_smi(tmp_path):
    refused(Host(tmp_path).run("chip_name.sh"), 1, "npu-smi: not found", "driver", "CHIP_NAME")


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ("sleep 60", r"npu-smi info: no answer in 0\.3 s; restart the driver"),
        ("(sleep 60 &) ; echo hello", r"npu-smi info: no answer in 0\.3 s"),  # a child holds the pipe
        ("yes", r"npu-smi info: prints without end"),
    ],
)
def test_npu_smi_that_hangs_or_floods_is_ended(tmp_path, monkeypatch, answer, part):
    (tmp_path / "npu-smi").write_text(f"#!/bin/bash\n{answer}\n")
    (tmp_path / "npu-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(soc_version, "TIMEOUT", 5 if answer == "yes" else 0.3)
    began = time.monotonic()
    with pytest.raises(DekrError, match=part):
        soc_version.ask("info")
    assert time.monotonic() - began < 5


def test_name_given_counts_first(tmp_path):
    host = Host(tmp_path)
    assert host.run("chip_name.sh", "--chip", "310P3", CHIP_NAME="910A").stdout == "Ascend310P3\n"
    assert host.run("chip_name.sh", CHIP_NAME="Ascend910_9392").stdout == "Ascend910_9392\n"


@pytest.mark.parametrize("name", ["", "310 P3", "310P3;ls", "$(id)"])
def test_what_is_no_name_is_refused(host, name):
    refused(host.run("chip_name.sh", "--chip", name), 2, "chip name")


def test_unknown_flag(host):
    refused(host.run("chip_name.sh", "--chop"), 2, "--help")


def test_wrappers_are_shellcheck_clean():
    scripts = sorted(map(str, (FAKES.parents[1] / "scripts").glob("*.sh")))
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "-x", "-P", "SCRIPTDIR", *scripts],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
