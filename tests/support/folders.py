"""What is in a folder, and copies by links."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

TIMED = ("_summary.json", "_record.jsonl")  # files that hold times and process ids


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def copy_linked(source: Path, target: Path) -> None:
    """A file or folder once more, by hard links."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=os.link)
    else:
        os.link(source, target)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their path in it; metrics without their seconds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = b"folder"
        elif not path.is_file():
            found[name] = b"no regular file"
        else:
            found[name] = without_times(path)
    return found


def without_times(path: Path) -> bytes:
    """A file's bytes, but for the times that some hold."""
    if path.name.endswith(TIMED):
        return b"times"
    if path.name.startswith("shard-") and path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        return json.dumps([{key: row[key] for key in row if key != "milliseconds"} for row in rows]).encode()
    if path.name == "metrics.json":
        metrics = json.loads(path.read_bytes())
        return json.dumps({key: value for key, value in metrics.items() if key != "seconds"}).encode()
    return path.read_bytes()
