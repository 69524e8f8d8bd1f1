"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from dekr_infer.cli.app import cores

LIBRARIES = ("numpy", "opencv-python-headless", "torch", "onnxruntime", "pycocotools")


def machine() -> dict[str, str | int | float]:
    """Processor, cores, memory, system and the versions that matter."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_GiB": round(memory, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def sentence() -> str:
    """The same as one line."""
    facts = machine()
    libraries = ", ".join(f"{name} {facts[name]}" for name in LIBRARIES)
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_GiB']} GiB; {facts['system']}; "
        f"Python {facts['python']}, {libraries}"
    )


def _processor() -> str:
    """The processor's name and, for those that hide it in a virtual machine, its vector units."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = next((name for name in ("avx512f", "avx2", "asimd") if name in facts.get("flags", "").split()), "")
    return f"{facts.get('model name', platform.machine())} {units}".strip()
