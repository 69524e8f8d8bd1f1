"""Check this host: tools, Python, disk and memory, data and models, one line each, with a remedy where one is needed.

Runs without any package. The exit code is 1 when something is missing or wrong.

  bash scripts/doctor.sh
  bash scripts/doctor.sh --backend onnx --data data/coco --models models
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dekr_infer.ascend.subprocess_runner import ask_tool
from dekr_infer.errors import DekrError
from dekr_infer.launch import DISTRIBUTIONS, python_error
from dekr_infer.model.weights import NOTES, weights_kind

if TYPE_CHECKING:
    from dekr_infer.geometry import InputSizes, Size

PACKAGES = (
    *("cv2", "jinja2", "msgspec", "numpy", "onnx", "onnx_ir", "onnxruntime", "pycocotools"),
    *("torch", "tqdm", "xxhash", "yacs", "yaml"),
)
INSTALL = "bash scripts/setup_venv.sh requirements.txt"
SPLIT = "val2017"
FOLDERS = ("prep_data", "prep_data_flip", "out", "out_flip")
MEMORY = 4  # GiB: export and conversion of HRNet-W32 with room to spare
GIB = 1 << 30
HEADER = 128  # bytes of a .npy file before its values
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
    """One line of the page; `good` is `None` for mere information."""

    good: bool | None
    name: str
    found: str
    remedy: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("om", "onnx"), default="om", help="onnx leaves out the NPU (default: om)")
    parser.add_argument("--data", type=Path, default=Path("data/coco"), help="the COCO folder (default: data/coco)")
    parser.add_argument("--models", type=Path, default=Path("models"), help="the folder of weights (default: models)")
    parser.add_argument(
        "--cfg", metavar="FILE", help="split, joints and input sizes of this configuration (default: W32 on COCO)"
    )
    parser.add_argument("--category", metavar="NAME", help="the people's category, where several have keypoints")
    args = parser.parse_args(argv)
    bad = 0
    for check in (
        *(npu() if args.backend == "om" else ()),
        *python(),
        memory(),
        *data(args.data, args.category, args.cfg),
        *models(args.models),
    ):
        print(_line(check), flush=True)
        bad += check.good is False
    if bad:
        print(f"error: {bad} checks failed; each line marked BAD above names a remedy", file=sys.stderr)
    return int(bad > 0)


def _line(check: Check) -> str:
    word = {True: "ok", False: "BAD", None: "-"}[check.good]
    if sys.stdout.isatty() and check.good is not None:
        word = f"\033[{32 if check.good else 31}m{word}\033[0m" + " " * (3 - len(word))
    return f"{word:<4}{check.name:<12} {check.found}" + (f"; {check.remedy}" if check.remedy else "")


def npu() -> Iterator[Check]:
    """Check the driver, the chip, the toolkit and the tools that run a model."""
    code, text = _ask("npu-smi", "info")
    version = re.search(r"Version:\s*(\S+)", text)
    good = code == 0
    found = (version[1] if version else "answers") if good else "npu-smi does not answer"
    yield Check(good, "driver", found, "" if good else "install or restart the NPU's driver")
    yield _chip()
    loaded = os.environ.get(SET_ENV)
    home = os.environ.get("ASCEND_TOOLKIT_HOME") or os.path.dirname(os.environ.get("ASCEND_OPP_PATH", ""))
    found = f"{home} {_toolkit_version(Path(home))}" if home else f"{loaded}: sets nothing" if loaded else "not found"
    remedy = "" if home else "install it again, or set ASCEND_TOOLKIT_HOME to its folder"
    yield Check(bool(home), "CANN", found, remedy)
    yield _atc()
    yield from _wheels(os.environ.get("AIS_BENCH_PYTHON") or "python3")


def _chip() -> Check:
    try:
        from dekr_infer.ascend.soc_version import chip_name

        return Check(True, "chip", chip_name(None, None))
    except ImportError as error:
        return Check(False, "chip", f"not checked: Python has no package {error.name}", INSTALL)
    except DekrError as error:
        return Check(False, "chip", str(error))


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
        yield Check(None, "wheels", f"warning: ais_bench {versions[0]} with aclruntime {versions[1]}", remedy)


def _atc() -> Check:
    atc, loaded = shutil.which("atc"), os.environ.get(SET_ENV)
    if atc:
        versions = (_toolkit_version(folder) for folder in Path(atc).parents)  # atc prints none
        return Check(True, "atc", f"{atc}, of CANN {next((text for text in versions if text != UNKNOWN), UNKNOWN)}")
    if loaded:
        return Check(False, "atc", f"not found after loading {loaded}", "repair this toolkit")
    return Check(False, "atc", "not found", "it comes with the CANN toolkit")


def _toolkit_version(home: Path) -> str:
    """Return the version in the file that lists what was installed: here, or (newer toolkits) in <arch>-linux/."""
    for file in [file for name in INSTALLED for file in sorted(home.glob(name))]:
        if match := re.search(r"version\s*=\s*\W*([\w.]+)", file.read_text(errors="replace"), re.IGNORECASE):
            return match[1]
    return UNKNOWN


def python() -> Iterator[Check]:
    """Check the interpreter of this project's commands, and its packages, whichever distribution brings them."""
    error = python_error()
    yield Check(not error, "Python", error or f"{sys.version.split()[0]}, {sys.executable}", INSTALL if error else "")
    missing = [DISTRIBUTIONS.get(name, name) for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        yield Check(False, "packages", f"missing: {', '.join(missing)}", INSTALL)
        return
    brought = packages_distributions().get("onnxruntime", ["onnxruntime"])
    found = "all present" + (f"; onnxruntime is of {', '.join(brought)}" if "onnxruntime" not in brought else "")
    yield Check(True, "packages", found)


def memory() -> Check:
    """Check the memory that is free now."""
    match = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    free = int(match[1]) / (1 << 20) if match else 0.0
    return Check(free >= MEMORY, "memory", f"{free:.1f} GiB free", "" if free >= MEMORY else f"{MEMORY} GiB are needed")


def data(root: Path, category: str | None, cfg: str | None = None) -> Iterator[Check]:
    """Check the data set as every command checks it, its images, and the disk space that it needs here."""
    annotation = root / "annotations" / f"person_keypoints_{SPLIT}.json"
    if cfg is None and not annotation.is_file():
        yield Check(False, "annotation", f"{annotation}: not found", "download it, see README.md, or name --data")
        return
    try:
        from dekr_infer.config.load import load_config, skeleton_of
        from dekr_infer.config.settings import configured_sizes
        from dekr_infer.data.coco import load_data_set
        from dekr_infer.data.sources import image_choices

        config = load_config(cfg)
        split, skeleton, input_sizes = config.DATASET.TEST, skeleton_of(config), configured_sizes(config)
        data_set = load_data_set(root, split, category, skeleton)
        sizes = [image.size for image in data_set.images]
    except ImportError as error:
        yield Check(False, "annotation", f"{annotation}: not checked: Python has no package {error.name}", INSTALL)
        return
    except DekrError as error:
        yield Check(False, "annotation", str(error))
        return
    yield Check(True, "annotation", f"{data_set.annotation}: {len(sizes)} images, {_hash(data_set.annotation)}")
    yield _images(*image_choices(root, split).values())
    needed = needed_bytes(sizes, input_sizes, len(skeleton))
    present = sum(file.stat().st_size for folder in FOLDERS for file in Path(folder).glob("*.npy"))
    free = shutil.disk_usage(".").free
    good = free >= needed - present
    found = f"{free / GIB:.1f} GiB free here; {needed / GIB:.3f} needed in all, {present / GIB:.3f} present already"
    yield Check(good, "disk", found, "" if good else "free some space, or work on fewer images (--limit)")


def _images(packed: Path, folder: Path) -> Check:
    if packed.is_file():
        return Check(True, "images", f"{packed}: {_hash(packed)}")
    if folder.is_dir():
        return Check(True, "images", str(folder))
    return Check(False, "images", f"{packed}: not found", f"download {packed.name}, see README.md")


def needed_bytes(sizes: Iterable[Size], input_sizes: InputSizes | None = None, joints: int = 17) -> int:
    """Return the bytes of tensors and outputs of both passes for images of these sizes, file headers included."""
    from dekr_infer.geometry import PUBLISHED_SIZES

    total = 0
    for placement in map((input_sizes or PUBLISHED_SIZES).place, sizes):
        values = 3 * placement.input.h * placement.input.w
        values += (joints + 1 + 2 * joints) * placement.cells.h * placement.cells.w
        total += 2 * (4 * values + 3 * HEADER)
    return total


def models(folder: Path) -> Iterator[Check]:
    """Check the weights, and the files that are made of them."""
    for name in ("pose_dekr_hrnetw32_coco.pth", "final_rescore_coco_kpt.pth"):
        path = folder / name
        if path.is_file():
            yield Check(True, "weights", f"{path}: {_hash(path)}{_kind(path)}")
        else:
            yield Check(False, "weights", f"{path}: not found", "download it, see README.md, or name --models")
    for name in ("dekr_bs1.onnx", "dekr_bs1.om"):
        path = folder / name
        yield Check(None, "model", f"{path}: {_hash(path) + _kind(path) if path.is_file() else 'not made yet'}")


def _kind(path: Path) -> str:
    """Return the note on random or demo weights, for a line."""
    try:
        if path.suffix == ".pth":
            kind = weights_kind(path)
        else:
            import onnx

            model = onnx.load(path, load_external_data=False)
            kind = {entry.key: entry.value for entry in model.metadata_props}.get("weights", "")
    except Exception:  # no package onnx, not an ONNX file, not to be read
        return ""
    return f"; {NOTES[kind]}" if kind in NOTES else ""


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _ask(*command: str) -> tuple[int, str]:
    """Return the exit code and the output of a command; -1 when it cannot be run."""
    try:
        return ask_tool(command, TIMEOUT)
    except DekrError as error:
        return -1, str(error)


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no answer"])[-1]
