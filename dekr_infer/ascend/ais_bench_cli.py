"""The installed ais_bench: which of its three dialects it speaks, and what it demands of files and folders."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dekr_infer.errors import DekrError

INSTALL = "install the wheels aclruntime and ais_bench for it, or name another Python in AIS_BENCH_PYTHON"
_ODD = re.compile(r"[^A-Za-z0-9_/.-]")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
REMEDIES = {  # by regular expression
    "open device": "the device cannot be opened: look at 'npu-smi info', its driver and rights, and --device",
    "general failure": "a tensor's size is no input size of this model; convert the ONNX file of these tensors",
    "invalid parameter": "the model cannot be loaded; convert it again with scripts/atc.sh on this toolkit",
    "version is lower": "aclruntime and ais_bench do not match; build and install both wheels together",
    "not match": "a tensor's size or type is not the model's; make the tensors again with DEKR_preprocess.py",
    "No space left": "the disk is full; free some space and run it again",
}


@dataclass(frozen=True)
class Frontend:
    """An installed ais_bench; `dashed`: options of the rewrite of 2026; `strict`: the checks of 2025."""

    python: str
    dashed: bool
    strict: bool

    def command(self, model: Path, source: Path, output: Path, dirname: str, device: int) -> list[str]:
        """The published command in this frontend's spelling."""
        paths = ["--model", str(model), "--input", str(source), "--output", str(output)]
        if self.dashed:
            own = ["--output-dirname", dirname, "--auto-set-dymdims-mode"]
        else:
            own = ["--output_dirname", dirname, "--auto_set_dymdims_mode", "1"]
        return [self.python, "-m", "ais_bench", *paths, "--outfmt", "NPY", "--device", str(device), *own]

    def check_model(self, model: Path) -> None:
        """Refuse a name that it does not take for a model's.

        Raises:
            DekrError: it has another ending.
        """
        if self.strict and not model.name.endswith(".om"):
            raise DekrError(f"{model}: this ais_bench takes only models whose names end in .om; rename it")

    def check_paths(self, paths: Iterable[Path]) -> None:
        """Refuse what it would misread, and take others' right to write where it insists on that.

        Raises:
            DekrError: a path with a character it does not take, a link, or rights that cannot be changed.
        """
        for path in paths:
            if "," in str(path):
                raise DekrError(f"{path}: ais_bench cuts paths at commas; rename it")
            if not self.strict:
                continue
            if _ODD.search(str(path.absolute())):
                raise DekrError(f"{path.absolute()}: this ais_bench takes only A-Z a-z 0-9 _ / . - in paths; rename it")
            if path.is_symlink():
                raise DekrError(f"{path}: is a link, which this ais_bench refuses; put the file itself there")
            if path.exists() and (mode := path.stat().st_mode) & _OTHERS_WRITE:
                try:
                    path.chmod(stat.S_IMODE(mode) & ~_OTHERS_WRITE)
                except OSError:
                    raise DekrError(f"{path}: others may write it, which this ais_bench refuses; chmod go-w") from None


def find_frontend() -> Frontend:
    """Ask the installed tool for its options.

    Raises:
        DekrError: there is none.
    """
    python = os.environ.get("AIS_BENCH_PYTHON") or "python3"
    found = shutil.which(python)
    if found is None:
        raise DekrError(f"{python}: not found; name the Python that has ais_bench in AIS_BENCH_PYTHON")
    done = subprocess.run([found, "-m", "ais_bench", "--help"], capture_output=True, text=True, errors="replace")
    text = done.stdout + done.stderr
    if done.returncode:
        reason = (text.strip().splitlines() or ["no message"])[-1][:200]
        raise DekrError(f"{found}: cannot run ais_bench ({reason}); {INSTALL}")
    return Frontend(found, "--output-dirname" in text, "--divide_input" in text)
