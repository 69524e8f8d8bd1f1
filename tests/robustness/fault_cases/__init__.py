"""The tables of faults, one file a stage; `tests/test_faults.py` puts the commands through them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support import corruption as spoil
from tests.support.workspace import Place

Deed = Callable[[Place], object]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        name: what has happened.
        spoil: makes it happen.
        says: parts of the error line: the file, and what to do.
        code: the exit code.
        flags, pairs: more words on the command line.
        mend: what the user does beside bringing the inputs into order and leaving the words out.
        real: run the command as a process of its own.
        again: whether the corrected run follows; an export takes long, so most that are refused before anything is
            written must leave the outputs just as they were instead, which makes the corrected run a first one.
    """

    name: str
    spoil: Deed
    says: tuple[str, ...]
    code: int = 1
    flags: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    mend: Deed = lambda place: None
    real: bool = False
    again: bool = True


def nothing(place: Place) -> None:
    """The words on the command line are the fault."""


def at(path: str | Path, deed: Callable[..., object], *words: object) -> Deed:
    """A deed done to a file of the inputs."""
    return lambda place: deed(place.inputs / path, *words)


def left(path: str, deed: Callable[..., object], *words: object) -> Deed:
    """A deed done to a file among the outputs."""
    return lambda place: deed(place.outputs / path, *words)


def freed(path: str) -> Deed:
    """Remove an output, whatever it is."""

    def deed(place: Place) -> None:
        target = place.outputs / path
        shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink()

    return deed


def small_disk(size: str) -> Deed:
    """All outputs go to a disk of this size."""
    return lambda place: spoil.mount(place.outputs, f"size={size}")


def larger_disk(place: Place) -> None:
    """Somebody frees space."""
    spoil.remount(place.outputs, "size=200m")


def read_only_disk(place: Place) -> None:
    """The output folder is on a disk that takes no writes."""
    spoil.mount(place.outputs, "size=200m")
    spoil.remount(place.outputs, "ro")


def writable_disk(place: Place) -> None:
    """It is made writable."""
    spoil.remount(place.outputs, "rw")


def disk_faults(tight: str, full: str, protected: str, real: bool = False) -> list[Fault]:
    """A disk that is full, and one that takes no writes; `full` and `protected` are the files named."""
    return [
        Fault(
            "full disk", small_disk(tight), (full, "the disk is full", "free some space"), mend=larger_disk, real=real
        ),
        Fault("read-only output", read_only_disk, (protected, "Read-only", "name another"), mend=writable_disk),
    ]
