"""The .npy contract: names, exclusive and atomic writing, validated reading.

Only finished .npy files ever stand in a tensor folder, because the accelerator's tool runs whatever it finds there:
each is written in a folder beside it (`<folder>.partial`) and then renamed. That folder also is the lock.
"""

from __future__ import annotations

import fcntl
import io
import os
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
from dekr_infer.files import write_failure

SUFFIX = ".npy"
DTYPE = np.dtype("<f4")


def partial_folder(folder: Path) -> Path:
    """Where the files of a tensor folder are written before they are renamed into it."""
    real = folder.resolve()  # of a link, so that renaming never crosses disks
    if not real.name:
        raise DekrError(f"{folder}: cannot hold tensors; name a folder of their own")
    return real.with_name(real.name + ".partial")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Create a tensor folder and hold it for this run alone; unfinished files of a killed run are removed.

    Raises:
        DekrError: another run writes there now, or the folder cannot be made.
    """
    partial = partial_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(partial)
    except BlockingIOError:
        raise DekrError(f"{folder}: another run is writing here; wait for it or name another folder") from None
    except OSError as error:
        raise DekrError(f"{error.filename or folder}: cannot be made ({error.strerror}); free this name") from None
    try:
        _empty(partial)
        yield
    finally:
        _empty(partial)
        partial.rmdir()
        os.close(lock)


def _locked(partial: Path) -> int:
    while True:
        partial.mkdir(exist_ok=True)
        try:
            handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
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
    for file in partial.iterdir():
        file.unlink()


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
    temporary = partial_folder(folder) / f"{os.getpid()}-{name}"
    try:
        with open(temporary, "wb", buffering=0) as file:
            written = os.writev(file.fileno(), parts)
            if written < total:  # a signal or a nearly full disk: the rest, or the reason
                rest = memoryview(b"".join(parts))[written:]
                while rest:
                    rest = rest[file.write(rest) or 0 :]
        os.replace(temporary, folder / name)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DekrError(write_failure(folder / name, error)) from None
    return total


@dataclass(frozen=True)
class Header:
    """What stands before the values of a float32, C-ordered .npy file: its shape, and where the values begin."""

    shape: tuple[int, ...]
    offset: int


def read_header(path: Path) -> Header:
    """Check a tensor file without reading its values.

    Raises:
        DekrError: not a .npy file of float32 in C order, or its length is not what its header says.
    """
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy parses the header as Python, which warns of odd escapes
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, EOFError, SyntaxError, TokenError, MemoryError, RecursionError):
        raise DekrError(f"{path}: not a .npy file, or cut short; delete it and make it again") from None
    if dtype != DTYPE or fortran:
        order = "Fortran" if fortran else "C"
        raise DekrError(f"{path}: holds {dtype} in {order} order, not float32 in C order; make it again")
    if size != start + int(np.prod(shape, dtype=np.int64)) * DTYPE.itemsize:
        raise DekrError(f"{path}: cut short or too long for its shape {shape}; delete it and make it again")
    return Header(shape, start)


def is_finished(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file is a tensor of just this shape, by its header and its length."""
    expected = header(shape)
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size - len(expected)
            return length == int(np.prod(shape)) * DTYPE.itemsize and file.read(len(expected)) == expected
    except OSError:
        return False


def read(path: Path) -> np.ndarray:
    """A whole tensor, float32.

    Raises:
        DekrError: see `read_header`; or a value is NaN or infinite.
    """
    found = read_header(path)
    try:
        with open(path, "rb") as file:
            file.seek(found.offset)
            values = np.fromfile(file, DTYPE, int(np.prod(found.shape)))
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror})") from None
    if not np.isfinite(values).all():
        raise DekrError(f"{path}: holds NaN or infinite values; delete it and make it again")
    return values.reshape(found.shape)


def open_map(path: Path) -> np.ndarray:
    """A tensor whose values are read from the disk when they are touched: read-only, float32.

    Raises:
        DekrError: see `read_header`.
    """
    found = read_header(path)
    return np.memmap(path, DTYPE, "r", found.offset, found.shape)


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
