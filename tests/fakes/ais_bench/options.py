"""The command line in three generations: options, checks of paths and rights, exit codes."""

from __future__ import annotations

import argparse
import os
import re
import stat
import sys
from collections.abc import Callable

DIALECT = os.environ.get("AIS_BENCH_DIALECT", "T23")
ODD = re.compile(r"[^A-Za-z0-9_/.-]")


def switch(text: str) -> bool:
    word = text.lower()
    if word in ("yes", "true", "t", "y", "1"):
        return True
    if word in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError("Boolean value expected.")


def illegal(path: str, writing: bool = False) -> str:
    """Return what the front ends of 2025 and 2026 have against a path; empty if they take it."""
    path = os.path.abspath(path)
    if ODD.search(path):
        return "create FileStat failed"  # without a name
    if not os.path.exists(path):
        return "" if writing else f"{path} not exist"
    if os.path.islink(path):
        return f"{path} is a soft link"
    found = os.stat(path)
    if found.st_uid != os.geteuid() and found.st_gid not in os.getgroups():
        return f"current user isn't {path}'s owner or ownergroup"
    others = stat.S_IWGRP | stat.S_IWOTH | (stat.S_IROTH | stat.S_IXOTH if writing else 0)
    if found.st_mode & others:
        return f"permission of {path} should not be over {'0o750' if writing else '0o755'}"
    return "" if found.st_mode & stat.S_IRUSR else f"no read permission to {path}"


def checked(option: str) -> Callable[[str], str]:
    """Return an argument type; each path is checked by itself, from the current folder, --output_dirname too."""

    def check(text: str) -> str:
        problem = illegal(text, writing="output" in option) if DIALECT != "T23" else ""
        if DIALECT != "T23" and not problem and option == "model" and os.path.splitext(text)[1] != ".om":
            problem = f"file type of {text} not in ['om']"
        if problem and DIALECT == "T25":
            print(f"[ERROR] {problem}")
            raise argparse.ArgumentTypeError(f"path:{text} is illegal. Please check.")
        if problem:
            raise RuntimeError(f"path:{text} is illegal: {problem}")  # typer lets it through as a traceback
        return text

    return check


class TableHelp(argparse.Action):
    """The help of 2026: a table as wide as the terminal, in which long names are cut; parts of a name are coloured."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        coloured = "FORCE_COLOR" in os.environ
        width = int(os.environ.get("TERMINAL_WIDTH") or os.environ.get("COLUMNS") or 80)
        if coloured and os.environ.get("TERM") in ("dumb", "unknown"):
            width = 80
        room = 15 if width < 82 else 40
        for option in (action.option_strings[-1] for action in parser._actions):
            name = option if len(option) <= room else f"{option[: room - 1]}…"
            parts = re.findall(r"-?[^-]+|-", name)
            print("│    " + ("".join(f"\x1b[1;36m{part}\x1b[0m" for part in parts) if coloured else name))
        parser.exit()


def read(words: list[str]) -> argparse.Namespace:
    """The options, or exit code 2."""
    parser = argparse.ArgumentParser("ais_bench", allow_abbrev=DIALECT != "T26", add_help=DIALECT != "T26")
    add = parser.add_argument
    check = {name: checked(name) for name in ("model", "input", "output", "output_dirname")}
    early = check if DIALECT != "T26" else dict.fromkeys(check, str)  # typer reads all options before it checks any
    add("-m", "--model", required=True, type=early["model"])
    add("-i", "--input", type=early["input"])
    add("-o", "--output", type=early["output"])
    add("--outfmt", default="BIN", choices=["NPY", "BIN", "TXT"])
    add("-d", "--device", type=int, default=0)
    add("--loop", type=int, default=1)
    if DIALECT == "T26":
        add("--help", action=TableHelp, nargs=0)
        add("--output-dirname", dest="output_dirname")
        add("--auto-set-dymdims-mode", dest="auto_set_dymdims_mode", action="store_true")
        add("--divide-input", action="store_true")
    else:
        add("--output_dirname", type=early["output_dirname"])
        add("--auto_set_dymdims_mode", type=switch, default=False)
        add("--warmup_count", type=int, default=1)
    if DIALECT == "T25":
        add("--divide_input", type=switch, default=False)
        add("--energy_consumption", type=switch, default=False)
    args = parser.parse_args(words)
    for name in check if DIALECT == "T26" else ():
        if getattr(args, name):
            check[name](getattr(args, name))
    return args


def stop(code: int, text: str) -> None:
    """End as the tool does."""
    print(f"[ERROR] {text}", file=sys.stderr)
    sys.exit(code)
