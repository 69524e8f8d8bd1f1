"""One page on this host: tools, Python, disk and memory, data and models, each good or bad with a remedy.

Called by scripts/doctor.sh. Starts without any package; ends with exit code 1 when something is bad.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

from dekr_infer.errors import DekrError
from dekr_infer.storage.atomic import sha256

PACKAGES = ("numpy", "cv2", "torch", "onnx", "onnxruntime", "pycocotools", "scipy", "yacs", "yaml", "tqdm")
INSTALL = "bash scripts/setup_venv.sh requirements.txt"
FOLDERS = ("prep_data", "prep_data_flip", "out", "out_flip")
MEMORY = 4  # GiB: export and conversion of HRNet-W32 with room to spare
GIB = 1 << 30
TIMEOUT = 120  # seconds
INSTALLED = ("*install.info", "*-linux/*install.info", "version.cfg")
UNKNOWN = "(version unknown)"
IMPORT = f"""import importlib, importlib.metadata as metadata, sys
importlib.import_module(sys.argv[1])
try:
    print("version", metadata.version(sys.argv[1]))
except metadata.PackageNotFoundError:
    print("version {UNKNOWN}")
"""
SET_ENV = "DEKR_SET_ENV"  # the toolkit's script that scripts/common.sh has loaded


class Check(NamedTuple):
    """One line of the page; `good` is None for what is told only."""

    good: bool | None
    name: str
    found: str
    remedy: str = ""


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser("doctor.sh", description=__doc__)
    parser.add_argument("--backend", choices=("om", "onnx"), default="om", help="onnx leaves the NPU's tools out")
    parser.add_argument("--data", type=Path, default=Path("data/coco"))
    parser.add_argument("--models", type=Path, default=Path("models"))
    args = parser.parse_args()
    bad = 0
    for check in [
        *(npu() if args.backend == "om" else ()),
        *python(),
        *memory(),
        *data(args.data),
        *models(args.models),
    ]:
        print(_line(check), flush=True)
        bad += check.good is False
    if bad:
        print(f"error: {bad} things are missing or wrong; each line marked BAD above says what to do", file=sys.stderr)
    return int(bad > 0)


def _line(check: Check) -> str:
    word = {True: "ok", False: "BAD", None: "-"}[check.good]
    if sys.stdout.isatty() and check.good is not None:
        word = f"\033[{32 if check.good else 31}m{word}\033[0m" + " " * (3 - len(word))
    return f"{word:<4}{check.name:<12} {check.found}" + (f"; {check.remedy}" if check.remedy else "")


def npu() -> Iterator[Check]:
    """Driver, chip, toolkit and the tools that run a model."""
    code, text = _ask("npu-smi", "info")
    version = re.search(r"Version:\s*(\S+)", text)
    good = code == 0
    found = (version[1] if version else "answers") if good else "npu-smi does not answer"
    yield Check(good, "driver", found, "" if good else "install or restart the NPU's driver")
    code, text = _ask("bash", str(ROOT / "scripts" / "chip_name.sh"))
    yield Check(code == 0, "chip", _last(text).removeprefix("error: "))
    loaded = os.environ.get(SET_ENV)
    home = os.environ.get("ASCEND_TOOLKIT_HOME") or os.path.dirname(os.environ.get("ASCEND_OPP_PATH", ""))
    found = f"{home} {_toolkit_version(Path(home))}" if home else f"{loaded}: sets nothing" if loaded else "not found"
    remedy = "" if home else "install it anew, or set ASCEND_TOOLKIT_HOME to where it is"
    yield Check(bool(home), "CANN", found, remedy)
    yield _atc()
    yield from _wheels(os.environ.get("AIS_BENCH_PYTHON") or "python3")


def _wheels(python: str) -> Iterator[Check]:
    versions = []
    for package in ("ais_bench", "aclruntime"):
        code, text = _ask(python, "-c", IMPORT, package)
        version = re.search(r"^version (.+)$", text, re.MULTILINE)
        if code == 0 and version:
            versions.append(version[1])
            yield Check(True, package, f"{version[1]} for {python}")
        elif f"No module named '{package}'" in _last(text):
            remedy = "install its wheel, or name the Python that has it in AIS_BENCH_PYTHON"
            yield Check(False, package, f"not installed for {python}", remedy)
        else:
            remedy = "install the wheel that fits this Python and this toolkit, or name another in AIS_BENCH_PYTHON"
            yield Check(False, package, f"cannot be imported by {python}: {_last(text)}", remedy)
    if len(set(versions) - {UNKNOWN}) > 1:
        remedy = "install two of the same version if ais_bench complains of it"
        yield Check(None, "wheels", f"warning: ais_bench {versions[0]} beside aclruntime {versions[1]}", remedy)


def _atc() -> Check:
    atc, loaded = shutil.which("atc"), os.environ.get(SET_ENV)
    if atc:
        versions = (_toolkit_version(folder) for folder in Path(atc).parents)  # it has none of its own
        return Check(True, "atc", f"{atc}, of CANN {next((text for text in versions if text != UNKNOWN), UNKNOWN)}")
    if loaded:
        return Check(False, "atc", f"not found after loading {loaded}", "repair this toolkit")
    return Check(False, "atc", "not found", "it comes with the CANN toolkit")


def _toolkit_version(home: Path) -> str:
    """The version in the file that says what was installed: in older toolkits here, in newer ones in <arch>-linux/."""
    for file in [file for name in INSTALLED for file in sorted(home.glob(name))]:
        if match := re.search(r"version\s*=\s*\W*([\w.]+)", file.read_text(errors="replace"), re.IGNORECASE):
            return match[1]
    return UNKNOWN


def python() -> Iterator[Check]:
    """The interpreter of this project's scripts, and its packages."""
    good = (3, 10) <= sys.version_info[:2] <= (3, 13)
    yield Check(good, "Python", f"{sys.version.split()[0]}, {sys.executable}", "" if good else "3.10 to 3.13 is needed")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    found = f"missing: {', '.join(missing)}" if missing else "all there"
    yield Check(not missing, "packages", found, INSTALL if missing else "")


def memory() -> Iterator[Check]:
    """What the system can give away now."""
    match = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    free = int(match[1]) / (1 << 20) if match else 0.0
    yield Check(free >= MEMORY, "memory", f"{free:.1f} GiB free", "" if free >= MEMORY else f"{MEMORY} GiB are needed")


def data(root: Path) -> Iterator[Check]:
    """Annotation, pictures, and the disk space that they will need here."""
    annotation = root / "annotations" / "person_keypoints_val2017.json"
    try:
        sizes = _sizes(annotation)
        needed = needed_bytes(sizes) if importlib.util.find_spec("numpy") else None
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        yield Check(False, "annotation", f"{annotation}: missing or damaged", "fetch it, see README.md, or name --data")
        return
    yield Check(True, "annotation", f"{annotation}: {len(sizes)} pictures, {_hash(annotation)}")
    yield _pictures(root / "images/val2017.zip", root / "images/val2017")
    if needed is None:
        return
    there = sum(file.stat().st_size for folder in FOLDERS for file in Path(folder).glob("*.npy"))
    free = shutil.disk_usage(".").free
    good = free >= needed - there
    found = f"{free / GIB:.1f} GiB free here; {needed / GIB:.3f} needed in all, {there / GIB:.3f} there already"
    yield Check(good, "disk", found, "" if good else "free some space, or work on fewer pictures (--limit)")


def _sizes(annotation: Path) -> list[tuple[int, int]]:
    """Height and width of each picture; one of the errors that damaged files lead to when they are none."""
    sizes = [(entry["height"], entry["width"]) for entry in json.loads(annotation.read_bytes())["images"]]
    if not sizes or not all(type(side) is int and side > 0 for size in sizes for side in size):
        raise ValueError
    return sizes


def _pictures(packed: Path, folder: Path) -> Check:
    if packed.is_file():
        return Check(True, "pictures", f"{packed}: {_hash(packed)}")
    if folder.is_dir():
        return Check(True, "pictures", str(folder))
    return Check(False, "pictures", f"{packed}: missing", "fetch val2017.zip, see README.md")


def needed_bytes(sizes: list[tuple[int, int]]) -> int:
    """Bytes of tensors and outputs of both passes for pictures of these sizes (h, w), file headers included."""
    from dekr_infer.geometry import PUBLISHED_SIZES, Size, cells
    from dekr_infer.skeleton import COCO_17

    total = 0
    for size in sizes:
        input_size = PUBLISHED_SIZES.place(Size(*size)).input
        small = cells(input_size)
        values = (
            3 * input_size.h * input_size.w + (COCO_17.heatmap_channels + COCO_17.offset_channels) * small.h * small.w
        )
        total += 2 * (4 * values + 3 * 128)
    return total


def models(folder: Path) -> Iterator[Check]:
    """Weights, and what is made of them."""
    for name in ("pose_dekr_hrnetw32_coco.pth", "final_rescore_coco_kpt.pth"):
        path = folder / name
        there = path.is_file()
        yield Check(
            there, "weights", f"{path}: {_hash(path) if there else 'missing'}", "" if there else "see README.md"
        )
    for name in ("dekr_bs1.onnx", "dekr_bs1.om"):
        path = folder / name
        yield Check(None, "model", f"{path}: {_hash(path) if path.is_file() else 'not made yet'}")


def _hash(path: Path) -> str:
    try:
        return f"sha256 {sha256(path)[:16]}"
    except DekrError as error:
        return str(error)


def _ask(*command: str) -> tuple[int, str]:
    """Exit code and output of a command; -1 when it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return done.returncode, done.stdout + done.stderr


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no answer"])[-1]
