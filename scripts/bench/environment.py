"""The machine and the library versions of a measurement."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from dekr_infer.cli.app import cores

LIBRARIES = ("numpy", "opencv-python-headless", "torch", "onnxruntime", "pycocotools")
CPU_INFO = Path("/proc/cpuinfo")
VECTOR_UNITS = ("avx512f", "avx2", "asimd")  # the widest first


def environment() -> dict[str, str | int | float]:
    """Return processor with its vector units, cores, memory, system and the versions that matter."""
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = next((name for name in VECTOR_UNITS if name in facts.get("flags", "").split()), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": f"{facts.get('model name', platform.machine())} {units}".strip(),
        "cores": cores(),
        "memory_GiB": round(memory, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }
