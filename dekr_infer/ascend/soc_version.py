"""The name of this host's Ascend chip as atc's --soc_version takes it, e.g. Ascend310P3, from `npu-smi info`."""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import NamedTuple

from dekr_infer.ascend.subprocess_runner import ask_tool
from dekr_infer.errors import ConfigError, DekrError

PREFIX = "Ascend"
OVERRIDE = "name the chip with --chip, or set CHIP_NAME, e.g. --chip Ascend310P3"
TIMEOUT = 60  # seconds; npu-smi hangs when the driver does
_DEVICE = re.compile(r"(\d+)\s+(\S+)")
_HEALTH = re.compile(r"[A-Za-z]+")
_CHIP = re.compile(r"\d+(?:\s+(\d+))?")


class Device(NamedTuple):
    """A chip as `npu-smi info` lists it: its card's number, and the number by which programs open it (`--device`)."""

    npu: int
    device: int
    name: str
    health: str


def chip_name(chip: str | None, device: int | None) -> str:
    """Return the SoC name: as given, else from CHIP_NAME, else from npu-smi.

    Args:
        chip: a name with or without its prefix.
        device: the number by which ais_bench opens the chip; `None` if all chips are alike.
    Raises:
        DekrError: npu-smi is missing, fails, or shows no chip or several different ones.
        ConfigError: the name has characters that no chip's name has.
    """
    given = chip if chip is not None else os.environ.get("CHIP_NAME") or None
    if given is not None:
        if not re.fullmatch(r"[A-Za-z0-9_]+", given):
            raise ConfigError(f"chip name {given!r}: letters, digits and _ only, e.g. {PREFIX}310P3")
        return _prefixed(given)
    chosen = choose(devices(ask("info")), device)
    if chosen.health != "OK":
        print(f"warning: npu-smi shows NPU {chosen.npu} with health {chosen.health}", file=sys.stderr)
    return board_name(chosen) if chosen.name.startswith(PREFIX) else _prefixed(chosen.name)


def devices(text: str) -> list[Device]:
    """Return the chips that `npu-smi info` lists, in any of its layouts: a row of the NPU, then a row of its chip.

    An NPU's row has a number and a name in its first cell, a health word in its second; `310` is a name, too. The rows
    of chips and processes have digits or `NA` in the second cell. A chip's row has its number on the card and, where a
    card can have several chips, its number on the host (Device, Phy-ID); otherwise that is the NPU's number.
    """
    found: list[Device] = []
    in_card = False  # the next row may be the chip's
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 3:
            continue
        match = _DEVICE.fullmatch(cells[1])
        if match and _HEALTH.fullmatch(cells[2]) and cells[2] != "NA":
            found.append(Device(int(match[1]), int(match[1]), match[2], cells[2]))
            in_card = True
        elif in_card and (chip := _CHIP.fullmatch(cells[1])):
            found[-1] = found[-1]._replace(device=int(chip[1] or found[-1].npu))
            in_card = False
    return found


def choose(found: list[Device], number: int | None) -> Device:
    """Return the chip of a device number, or the first healthy chip if all are alike.

    Raises:
        DekrError: there is no chip, or chips differ and the number is missing or no chip's.
    """
    if not found:
        raise DekrError(f"npu-smi info: shows no NPU; check the driver, or {OVERRIDE}")
    chosen = next((device for device in found if device.device == number), None)
    if chosen is not None:
        return chosen
    if len({device.name for device in found}) > 1:
        listed = ", ".join(f"{device.device}: {device.name}" for device in found)
        if number is not None:
            raise DekrError(f"npu-smi info: shows no device {number} (there are {listed}); choose one with --device")
        raise DekrError(f"npu-smi info: shows different chips ({listed}); choose one with --device, or {OVERRIDE}")
    return next((device for device in found if device.health == "OK"), found[0])


def board_name(device: Device) -> str:
    """Return the full name of a chip whose row in `npu-smi info` names only the family (A3 and later)."""
    for words in ((), ("-c", "0")):
        text = ask("info", "-t", "board", "-i", str(device.npu), *words)
        pairs = dict(re.findall(r"^\s*(\w[\w ]*?)\s*:\s*(\S+)\s*$", text, re.MULTILINE))
        if "Chip Name" in pairs and "NPU Name" in pairs:
            return _prefixed(f"{pairs['Chip Name']}_{pairs['NPU Name']}")
    raise DekrError(
        f"npu-smi info: calls NPU {device.npu} {device.name}, which is a family of chips; read Chip Name and "
        f"NPU Name in 'npu-smi info -t board -i {device.npu} -c 0', join them by _ and {OVERRIDE}"
    )


def ask(*words: str) -> str:
    """Return the text that npu-smi prints.

    Raises:
        DekrError: npu-smi is missing, fails, or does not answer.
    """
    command = " ".join(("npu-smi", *words))
    tool = shutil.which("npu-smi")
    if tool is None:
        raise DekrError(f"npu-smi: not found; install the NPU's driver, or {OVERRIDE}")
    try:
        code, text = ask_tool([tool, *words], TIMEOUT)
    except DekrError as error:
        raise DekrError(f"{error}; restart the driver, or {OVERRIDE}") from None
    if code:
        reason = text.strip().splitlines() or ["no message"]
        raise DekrError(f"{command}: failed ({reason[-1].strip()[:200]}); check the driver, or {OVERRIDE}")
    return text


def _prefixed(name: str) -> str:
    return name if name.startswith(PREFIX) else PREFIX + name
