"""The installed ais_bench: which of its three generations it is, and which paths, owners and rights it refuses.

The front ends of 2025 and 2026 make the same checks; the front end of 2023 makes none.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dekr_infer.ascend.subprocess_runner import ask_tool
from dekr_infer.backends.ascend_session import DEVICE, INSTALL, MODEL, WHEELS, ais_bench_python
from dekr_infer.errors import ConfigError, DekrError

# The help of 2026 is a table that cuts names to the terminal's width, and may colour parts of a name.
HELP = {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "TERM": "xterm"}
TIMEOUT = 120  # seconds
MOST_ENTRIES = 100_000  # of a folder of tensors
REMEDIES = {  # by regular expression; {tensor} is where ais_bench stopped
    "open device": DEVICE,
    "general failure": (
        "the size of {tensor} is no input size of the model; delete this tensor and run DEKR_preprocess.py again, "
        "or convert an ONNX file that has this input size"
    ),
    "invalid parameter": MODEL,
    "version is lower": WHEELS,
    "not match": "the size or type of {tensor} is not the model's; run DEKR_preprocess.py again",
    "No space left": "the disk is full; free some space and run the same command again",
}
_OURS = {  # options that the wrapper sets, and how its user sets them
    **dict.fromkeys(("--model", "-m"), "name the model as the first word"),
    **dict.fromkeys(("--input", "-i", "--output", "-o", "--output_dirname"), "write it before --"),
    **dict.fromkeys(("--device", "-d"), "write --device N before --"),
    **dict.fromkeys(("--outfmt", "--auto_set_dymdims_mode"), "leave it out; the results are always .npy files"),
}
_ODD = re.compile(r"[^A-Za-z0-9_/.-]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Frontend:
    """An installed ais_bench; `dashed`: the spelling of 2026; `strict`: the checks of 2025 and 2026."""

    python: str
    dashed: bool
    strict: bool

    def command(self, model: Path, source: Path, output: Path, dirname: str, device: int) -> list[str]:
        """Return the published command in this front end's spelling."""
        paths = ["--model", str(model), "--input", str(source), "--output", str(output)]
        if self.dashed:
            own = ["--output-dirname", dirname, "--auto-set-dymdims-mode"]
        else:
            own = ["--output_dirname", dirname, "--auto_set_dymdims_mode", "1"]
        return [self.python, "-m", "ais_bench", *paths, "--outfmt", "NPY", "--device", str(device), *own]

    def check(self, model: Path, source: Path, output: Path) -> None:
        """Refuse what ais_bench would refuse or misread; take away others' right to write where it insists on that.

        Args:
            model: the .om file.
            source: the folder of tensors, of which ais_bench looks at every entry.
            output: the folder in which ais_bench creates its own.
        Raises:
            DekrError: a path, an owner or rights that it does not take.
        """
        if "," in str(source):
            raise DekrError(f"{source}: ais_bench cuts --input at commas; rename the folder")
        self.check_output(output)
        if not self.strict:
            return
        if not model.name.endswith(".om"):
            raise DekrError(f"{model}: this ais_bench takes only models whose names end in .om; rename it")
        _check_readable(model, "rename it", "put the model itself there")
        _check_readable(source, "rename it", "name the folder itself")
        entries = list(os.scandir(source))
        if len(entries) > MOST_ENTRIES:
            raise DekrError(f"{source}: {len(entries)} entries; this ais_bench takes at most {MOST_ENTRIES}; split it")
        for entry in entries:
            if entry.name.lower().endswith(".npy"):
                remedies = "rename its image, and run DEKR_preprocess.py again", "put the file itself there"
            else:
                remedies = (f"move it out of {source}, of which ais_bench checks every entry",) * 2
            _check_readable(Path(entry), *remedies)

    def check_output(self, path: Path) -> None:
        """Raise a `DekrError` if ais_bench does not take the characters of the path of an output or current folder."""
        if self.strict:
            _check_characters(path, "name another folder")
            _check_characters(Path(), "start this command from another folder")  # of which it takes --output_dirname


def _check_characters(path: Path, remedy: str) -> None:
    if _ODD.search(os.path.abspath(path)):
        raise DekrError(f"{os.path.abspath(path)}: this ais_bench takes only A-Z a-z 0-9 _ / . - in paths; {remedy}")


def _check_readable(path: Path, renamed: str, linked: str) -> None:
    """Raise a `DekrError` unless the front ends of 2025 and 2026 take a path as input."""
    _check_characters(path, renamed)
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise DekrError(f"{path}: is a link, which this ais_bench refuses; {linked}")
    if found.st_uid != os.geteuid() and found.st_gid not in os.getgroups():
        raise DekrError(f"{path}: belongs to another user and group, which this ais_bench refuses; chown it to yours")
    if not found.st_mode & stat.S_IRUSR or not os.access(path, os.R_OK):
        raise DekrError(f"{path}: cannot be read, and this ais_bench checks that; chmod u+r it")
    if found.st_mode & _OTHERS_WRITE:
        try:
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
        except OSError:
            raise DekrError(f"{path}: others may write it, which this ais_bench refuses; chmod go-w it") from None


def check_further_words(words: Iterable[str]) -> None:
    """Refuse further words for ais_bench that change what the wrapper relies on; argparse takes abbreviations, too.

    Raises:
        ConfigError: an option that the wrapper sets itself.
    """
    for word in words:
        name = word.partition("=")[0]
        dashless = name if not name.startswith("--") else "--" + name[2:].replace("-", "_")
        for own, remedy in _OURS.items():
            short = len(own) == 2 and not name.startswith("--") and name.startswith(own)
            if short or (len(dashless) > 2 and dashless.startswith("--") and own.startswith(dashless)):
                raise ConfigError(f"-- {word}: this wrapper sets {own} itself; {remedy}")


def find_frontend() -> Frontend:
    """Ask the installed ais_bench for its options.

    Raises:
        DekrError: there is no ais_bench, or it cannot be run.
    """
    found = ais_bench_python()
    command = [found, "-m", "ais_bench", "--help"]
    try:
        code, text = ask_tool(command, TIMEOUT, HELP)
    except DekrError as error:
        raise DekrError(f"{error}; {INSTALL}") from None
    text = _COLOUR.sub("", text)
    if code:
        reason = (text.strip().splitlines() or ["no message"])[-1][:200]
        raise DekrError(f"{found}: cannot run ais_bench ({reason}); {INSTALL}")
    dashed = "--output-dirname" in text
    return Frontend(found, dashed, strict=dashed or "--divide_input" in text)
