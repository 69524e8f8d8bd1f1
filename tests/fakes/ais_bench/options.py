"""The command line in three ages: what is taken, and what ends with exit code 2."""

from __future__ import annotations

import argparse
import os
import re
import stat
import sys
from pathlib import Path

DIALECT = os.environ.get("AIS_BENCH_DIALECT", "T23")
ODD = re.compile(r"[^A-Za-z0-9_/.-]")


def switch(text: str) -> bool:
    word = text.lower()
    if word in ("yes", "true", "t", "y", "1"):
        return True
    if word in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError("Boolean value expected.")


def read(words: list[str]) -> argparse.Namespace:
    """The options, or exit code 2."""
    parser = argparse.ArgumentParser("ais_bench", allow_abbrev=False)
    add = parser.add_argument
    add("-m", "--model", required=True)
    add("-i", "--input")
    add("-o", "--output")
    add("--outfmt", default="BIN", choices=["NPY", "BIN", "TXT"])
    add("-d", "--device", type=int, default=0)
    add("--loop", type=int, default=1)
    if DIALECT == "T26":
        add("--output-dirname", dest="output_dirname")
        add("--auto-set-dymdims-mode", dest="auto_set_dymdims_mode", action="store_true")
    else:
        add("--output_dirname")
        add("--auto_set_dymdims_mode", type=switch, default=False)
        add("--warmup_count", type=int, default=1)
    if DIALECT == "T25":
        add("--divide_input", type=switch, default=False)
        add("--energy_consumption", type=switch, default=False)
    return parser.parse_args(words)


def check(args: argparse.Namespace, files: list[Path]) -> None:
    """What the frontend of 2025 refuses; the others check nothing here."""
    if DIALECT != "T25":
        return
    if not args.model.endswith(".om") or not Path(args.model).is_file():
        stop(2, f"model path {args.model} is illegal")
    for path in (args.model, args.output or "", *map(str, files)):
        if ODD.search(os.path.abspath(path) if path else ""):
            stop(1, f"path {path} contains special char")
    for folder in filter(None, (args.output, args.output_dirname and os.path.join(args.output, args.output_dirname))):
        if os.path.isdir(folder) and stat.S_IMODE(os.stat(folder).st_mode) & ~0o750:
            stop(2, f"output path {folder}: permission is wider than 0750")
    for path in {*files, *(file.parent for file in files)}:
        if path.is_symlink():
            stop(1, f"{path} is a symlink")
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            stop(1, f"{path} is writable by group or others")


def stop(code: int, text: str) -> None:
    """End as the tool does."""
    print(f"[ERROR] {text}", file=sys.stderr)
    sys.exit(code)
