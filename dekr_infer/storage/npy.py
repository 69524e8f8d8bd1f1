"""The .npy contract: names, exclusive and atomic writing, validated reading.

Only finished .npy files ever stand in a tensor folder, because the accelerator's tool runs whatever it finds there:
each is written in a folder beside it (`<folder>.partial`) and then renamed. That folder also is the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import math
import mmap
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.lib import format as npy

from dekr_infer.errors import DekrError
from dekr_infer.storage.atomic import open_regular, write_failure

SUFFIX = ".npy"
DTYPE = np.dtype("<f4")
_UNFINISHED = re.compile(r"\d+-")  # how the names of unfinished files begin: with the writer's process id
USUAL_HEADER = 128  # bytes, of a tensor of up to four dimensions
MOST_KNOWN = 64  # headers remembered; a data set has one for each input size and kind of tensor


def partial_folder(folder: Path) -> Path:
    """Where the files of a tensor folder are written before they are renamed into it."""
    real = Path(os.path.realpath(folder))  # of a link, so that renaming never crosses disks
    if not real.name:
        raise DekrError(f"{folder}: cannot hold tensors; name a folder of their own")
    return real.with_name(real.name + ".partial")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Create a tensor folder and hold it for this run alone; unfinished files of a killed run are removed.

    Raises:
        DekrError: another run writes there now, or the folder cannot be made.
    """
    with held(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DekrError(_not_made(folder, error)) from None
        yield


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for this run alone, whether or not it is there yet.

    Raises:
        DekrError: another run holds it, or the folder beside it that is the lock cannot be made, or is none of ours.
    """
    partial = partial_folder(folder)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(partial)
    except BlockingIOError:
        raise DekrError(f"{folder}: another run is writing here; wait for it or name another folder") from None
    except OSError as error:
        raise DekrError(_not_made(partial, error)) from None
    try:
        _empty(partial)
        try:
            yield
        finally:
            _empty(partial)
            partial.rmdir()
    finally:
        os.close(lock)


def _not_made(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return write_failure(folder, error)
    return f"{error.filename or folder}: cannot be made ({error.strerror}); free this name, or name another folder"


def _locked(partial: Path) -> int:
    while True:
        partial.mkdir(exist_ok=True)
        try:
            handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)  # a link could lead anywhere
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(partial), os.fstat(handle)):
                return handle
        except FileNotFoundError:
            pass  # the run before us ended, and removed its folder, between our two calls
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _empty(partial: Path) -> None:
    """Remove what runs leave unfinished, and nothing else."""
    for entry in list(os.scandir(partial)):
        if not _UNFINISHED.match(entry.name) or entry.is_dir(follow_symlinks=False):
            raise DekrError(f"{entry.path}: was not left by a run of these commands; move it elsewhere")
        os.unlink(entry.path)


@cache
def header(shape: tuple[int, ...]) -> bytes:
    """The .npy header of a C-ordered float32 array of this shape."""
    text = io.BytesIO()
    npy.write_array_header_1_0(text, {"descr": DTYPE.str, "fortran_order": False, "shape": shape})
    return text.getvalue()


def write(folder: Path, name: str, array: np.ndarray) -> int:
    """Write one array as float32 in C order, all or nothing; the folder is held by `exclusive`.

    Args:
        name: file name with its suffix; `.npy` gets a header, anything else (`.bin`) the bare values.
    Returns:
        The number of bytes written.
    Raises:
        DekrError: the disk is full, or the file cannot be written.
    """
    values = np.ascontiguousarray(array, DTYPE)
    parts: list[bytes | memoryview] = [values.reshape(-1).data.cast("B")]
    if name.endswith(SUFFIX):
        parts.insert(0, header(values.shape))
    return write_parts(folder, name, parts)


def write_parts(folder: Path, name: str, parts: list[bytes | memoryview]) -> int:
    """Write a file out of byte parts, all or nothing; see `write`."""
    total = sum(len(part) for part in parts)
    temporary = partial_folder(folder) / f"{os.getpid()}-unfinished"  # short: the name itself may be as long as can be
    try:
        with open(temporary, "wb", buffering=0) as file:
            written = os.writev(file.fileno(), parts)
            if written < total:  # a signal or a nearly full disk: the rest, or the reason
                rest = memoryview(b"".join(parts))[written:]
                while rest:
                    rest = rest[file.write(rest) or 0 :]
        os.replace(temporary, folder / name)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first failure is the one to tell
            temporary.unlink()
        raise DekrError(write_failure(folder / name, error)) from None
    return total


@dataclass(frozen=True)
class Header:
    """What stands before the values of a float32, C-ordered .npy file: its shape, and where the values begin."""

    shape: tuple[int, ...]
    offset: int


_known: dict[bytes, Header] = {}  # headers that were parsed before, by their bytes: parsing takes longer than reading


def read_header(path: Path) -> Header:
    """Check a tensor file without reading its values.

    Raises:
        DekrError: not a .npy file of float32 in C order, or its length is not what its header says.
    """
    with _opened(path) as file:
        return _header_of(path, file)


@contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    """A file for reading, whose errors name it."""
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); make it again") from None


def _header_of(path: Path, file: io.FileIO) -> Header:
    """`read_header` of a file that is open at its beginning; its position afterwards is anywhere."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(USUAL_HEADER)
    found = _known.get(start)
    if found is None:
        file.seek(0)
        found = _parsed(path, file)
        if found.offset == USUAL_HEADER and len(_known) < MOST_KNOWN:
            _known[start] = found
    if size != found.offset + math.prod(found.shape) * DTYPE.itemsize:
        raise DekrError(f"{path}: cut short or too long for its shape {found.shape}; delete it and make it again")
    return found


def _parsed(path: Path, file: io.FileIO) -> Header:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy parses the header as Python, which warns of odd escapes
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
    except (ValueError, EOFError, SyntaxError, TokenError, MemoryError, RecursionError):
        raise DekrError(f"{path}: not a .npy file, or cut short; delete it and make it again") from None
    if dtype != DTYPE or fortran:
        order = "Fortran" if fortran else "C"
        raise DekrError(f"{path}: holds {dtype} in {order} order, not float32 in C order; make it again")
    if any(side < 0 for side in shape):
        raise DekrError(f"{path}: cut short or too long for its shape {shape}; delete it and make it again")
    return Header(shape, file.tell())


def is_finished(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file is a tensor of just this shape, by its header and its length."""
    expected = header(shape)
    try:
        with open_regular(path) as file:
            length = os.fstat(file.fileno()).st_size - len(expected)
            return length == int(np.prod(shape)) * DTYPE.itemsize and file.read(len(expected)) == expected
    except OSError:
        return False


def read(path: Path) -> np.ndarray:
    """A whole tensor, float32.

    Raises:
        DekrError: see `read_header`; or a value is NaN or infinite.
    """
    with _opened(path) as file:
        found = _header_of(path, file)
        file.seek(found.offset)
        values = np.fromfile(file, DTYPE, math.prod(found.shape))
    if not np.isfinite(values).all():
        raise DekrError(f"{path}: holds NaN or infinite values; delete it and make it again")
    return values.reshape(found.shape)


def open_map(path: Path) -> np.ndarray:
    """A tensor whose values are read from the disk when they are touched: read-only, float32.

    Raises:
        DekrError: see `read_header`.
    """
    with _opened(path) as file:
        found = _header_of(path, file)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, DTYPE, offset=found.offset).reshape(found.shape)


def names_in(folder: Path) -> set[str]:
    """The names of the .npy files in a folder; empty when there is no folder."""
    if not folder.is_dir():
        return set()
    return {entry.name for entry in os.scandir(folder) if entry.name.endswith(SUFFIX)}


def refuse_foreign(folder: Path, expected: Iterable[str], owner: str) -> None:
    """Stop when a folder holds .npy files that do not belong there, naming the first.

    Raises:
        DekrError: there are such files.
    """
    foreign = sorted(names_in(folder) - set(expected))
    if foreign:
        raise DekrError(
            f"{folder}: {len(foreign)} .npy files do not belong to {owner}, the first is {foreign[0]}; "
            "delete them or name another folder"
        )
