"""The .npy contract: names, atomic writing, validated reading.

A tensor folder only ever holds finished .npy files, because the accelerator's tool runs every file that it finds there.
Each file is written beside the folder, in `unfinished_folder`, and then renamed.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tokenize import TokenError

import numpy as np
import xxhash
from numpy.lib import format as npy

from dekr_infer.errors import DekrError
from dekr_infer.storage.atomic import open_regular, unfinished_folder, write_failure
from dekr_infer.storage.run_record import FileMark, stamps_of

SUFFIX = ".npy"
DTYPE = np.dtype("<f4")
UINT8 = np.dtype("|u1")
TENSORS = (DTYPE, UINT8)  # what the network may be fed
OUTPUTS = (DTYPE, np.dtype("<f2"))  # what it may return: float16 from a model of `atc --output_type FP16`
USUAL_HEADER = 128  # bytes, of a tensor of up to four dimensions
MOST_DIMENSIONS = 8  # ours have four
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}  # 3.0 is for fields with names
MOST_KNOWN = 64  # headers remembered; a data set has one for each input size and kind of tensor


@cache
def header(shape: tuple[int, ...], dtype: np.dtype = DTYPE) -> bytes:
    """Return the .npy header of a C-ordered array of this shape and dtype."""
    text = io.BytesIO()
    npy.write_array_header_1_0(text, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return text.getvalue()


def write(folder: Path, name: str, array: np.ndarray, dtype: np.dtype = DTYPE) -> FileMark:
    """Write one array in C order, all or nothing; the folder is held by `folder_lock`.

    Args:
        folder: for the file.
        array: of any numeric dtype.
        dtype: in the file.
        name: file name with its suffix; `.npy` gets a header, anything else (`.bin`) the bare values.
    Returns:
        The mark of the file.
    Raises:
        DekrError: the disk is full, or the file cannot be written.
    """
    values = np.ascontiguousarray(array, dtype)
    parts: list[bytes | memoryview] = [values.reshape(-1).data.cast("B")]
    if name.endswith(SUFFIX):
        parts.insert(0, header(values.shape, dtype))
    total = sum(len(part) for part in parts)
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    temporary = unfinished_folder(folder) / str(threading.get_native_id())
    try:
        with open(temporary, "wb", buffering=0) as file:
            written = os.writev(file.fileno(), parts)
            if written < total:  # a signal or a nearly full disk: the rest, or the reason
                rest = memoryview(b"".join(parts))[written:]
                while rest:
                    rest = rest[file.write(rest) or 0 :]
            os.replace(temporary, folder / name)
            stamps = stamps_of(os.fstat(file.fileno()))  # after renaming, which changes them
    except OSError as error:
        with contextlib.suppress(OSError):  # the first failure is the one to report
            temporary.unlink()
        raise DekrError(write_failure(folder / name, error)) from None
    return FileMark(total, digest.hexdigest(), stamps)


@dataclass(frozen=True)
class Header:
    """What stands before the values of a C-ordered .npy file: shape, where the values begin, and their dtype."""

    shape: tuple[int, ...]
    offset: int
    dtype: np.dtype = DTYPE


_known: dict[bytes, Header] = {}  # headers that were parsed before, by their bytes: parsing takes longer than reading


def read_header(path: Path, dtypes: Sequence[np.dtype] = (DTYPE,)) -> Header:
    """Check a tensor file without reading its values.

    Raises:
        DekrError: not a .npy file of one of the dtypes in C order, or its length is not what its header says.
    """
    with _opened(path) as file:
        return _header_of(path, file, dtypes)


@contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    """Return a file for reading, whose errors name it."""
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); make it again") from None


def _header_of(path: Path, file: io.FileIO, dtypes: Sequence[np.dtype]) -> Header:
    """`read_header` of a file that is open at its beginning; its position afterwards is anywhere."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(USUAL_HEADER)
    found = _known.get(start)
    if found is None:
        file.seek(0)
        found = _parsed(path, file, dtypes)
        if found.offset == USUAL_HEADER and len(_known) < MOST_KNOWN:
            _known[start] = found
    if found.dtype not in dtypes:
        raise DekrError(_wrong_values(path, found.dtype, "C", dtypes))
    if size != found.offset + math.prod(found.shape) * found.dtype.itemsize:
        raise DekrError(f"{path}: cut short or too long for its shape {found.shape}; delete it and make it again")
    return found


def _wrong_values(path: Path, dtype: np.dtype, order: str, dtypes: Sequence[np.dtype]) -> str:
    wanted = " or ".join(str(one) for one in dtypes)
    return f"{path}: holds {dtype} in {order} order, not {wanted} in C order; make it again"


def _parsed(path: Path, file: io.FileIO, dtypes: Sequence[np.dtype]) -> Header:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy parses the header as Python, which warns of odd escapes
            read = HEADERS[npy.read_magic(file)]
            shape, fortran, dtype = read(file)
    except (ValueError, TypeError, LookupError, EOFError, SyntaxError, TokenError, MemoryError, RecursionError):
        raise DekrError(f"{path}: not a .npy file, or cut short; delete it and make it again") from None
    if dtype not in dtypes or fortran:
        raise DekrError(_wrong_values(path, dtype, "Fortran" if fortran else "C", dtypes))
    if len(shape) > MOST_DIMENSIONS or any(type(side) is not int or side < 0 for side in shape):
        raise DekrError(f"{path}: cut short or too long for its shape {shape}; delete it and make it again")
    return Header(shape, file.tell(), dtype)


def read(path: Path) -> np.ndarray:
    """Read a whole tensor, float32.

    Raises:
        DekrError: see `read_header`; or a value is NaN or infinite.
    """
    return read_hashed(path)[0]


def read_hashed(path: Path, dtypes: Sequence[np.dtype] = (DTYPE,)) -> tuple[np.ndarray, str]:
    """Read a whole tensor, and return the XXH3-128 of the bytes that were read with it; see `read`."""
    with _opened(path) as file:
        found = _header_of(path, file, dtypes)
        file.seek(0)
        start = file.read(found.offset)
        values = _values(path, file, found)
    if not np.isfinite(values).all():
        raise DekrError(f"{path}: holds NaN or infinite values; delete it and make it again")
    digest = xxhash.xxh3_128(start)
    digest.update(values.data)
    return values, digest.hexdigest()


def read_unchecked(path: Path, dtypes: Sequence[np.dtype] = (DTYPE,)) -> np.ndarray:
    """Read a whole tensor of one of the dtypes; its values may be NaN or infinite.

    It is read, not mapped: a mapped file that somebody cuts ends the process.

    Raises:
        DekrError: see `read_header`; or the file is cut while it is read.
    """
    with _opened(path) as file:
        found = _header_of(path, file, dtypes)
        file.seek(found.offset)
        return _values(path, file, found)


def _values(path: Path, file: io.FileIO, found: Header) -> np.ndarray:
    """Read the values of a file that is open behind its header."""
    values = np.fromfile(file, found.dtype, math.prod(found.shape))
    if values.size < math.prod(found.shape):
        raise DekrError(f"{path}: cut short while it was read; delete it and make it again")
    return values.reshape(found.shape)


def names_in(folder: Path) -> set[str]:
    """Return the names of the .npy files in a folder; empty when there is no folder."""
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
