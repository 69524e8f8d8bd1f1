"""The machine and the library versions of a measurement."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from dekr_infer.cli.app import cores

LIBRARIES = ("numpy", "opencv-python-headless", "torch", "onnxruntime", "pycocotools")


def environment() -> dict[str, str | int | float]:
    """Return processor, cores, memory, system and the versions that matter."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_GiB": round(memory, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    """Return the processor's name and its widest vector units, which a virtual machine's name may hide."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = next((name for name in ("avx512f", "avx2", "asimd") if name in facts.get("flags", "").split()), "")
    return f"{facts.get('model name', platform.machine())} {units}".strip()
