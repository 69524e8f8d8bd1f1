"""Files: written whole or not at all, read only when they are regular ones, hashed; folders for what is unfinished."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dekr_infer.errors import DekrError

UNFINISHED = ".dekr-unfinished"  # ends the name of everything that is unfinished; nobody else's file has it
_LOCK = ".lock"  # in a scratch folder; the lock of a killed run is free


def sibling_path(folder: Path, ending: str) -> Path:
    """Return the path beside a folder that begins with its name, also when the folder is given as `.` or `..`."""
    named = folder if folder.name not in ("", "..") else Path(os.path.realpath(folder))
    return named.parent / f"{named.name}{ending}"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; on success it becomes `path`, on failure nothing of it is left.

    Raises:
        DekrError: the disk is full, the file cannot be written, or another run is writing it.
    """
    temporary = path.with_name(f".{path.name}{UNFINISHED}")
    lock = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(temporary)
        yield temporary
        os.replace(temporary, path)
    except BlockingIOError:
        raise DekrError(f"{path}: another run is writing this file; wait for it or name another") from None
    except OSError as error:
        raise DekrError(write_failure(path, error)) from None
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):  # it has its name
                temporary.unlink()
            os.close(lock)


def _locked(path: Path, *, folder: bool = False) -> int:
    """Create a file or folder, unless it exists, and lock it for this process; the lock ends with the process.

    Returns:
        The descriptor that holds the lock until it is closed. A file is empty.
    Raises:
        BlockingIOError: another process holds the lock.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT
    while True:
        if folder:
            path.mkdir(exist_ok=True)
        try:
            handle = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if folder:
                continue  # the run before this one ended, and removed its folder, between the two calls
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                if folder:
                    return handle
                if os.fstat(handle).st_nlink == 1:
                    os.truncate(handle, 0)
                    return handle
                os.unlink(path)  # a hard link to somebody's file, which keeps its content
        except FileNotFoundError:
            pass  # the same, a moment later
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def unfinished_folder(folder: Path) -> Path:
    """Return the place where the files of a folder are written before they are renamed into it; it is also the lock."""
    real = Path(os.path.realpath(folder))  # of a link, so that no renaming crosses disks
    if not real.name:
        raise DekrError(f"{folder}: cannot hold results; name a folder of their own")
    return real.with_name(f".{real.name}{UNFINISHED}")


@contextmanager
def folder_lock(folder: Path, *, create: bool = True) -> Iterator[None]:
    """Lock a folder for this run alone; remove the unfinished files of a killed run.

    Args:
        folder: to hold.
        create: create the folder if it is missing.
    Raises:
        DekrError: another run holds the lock, or the folder or its lock cannot be created.
    """
    unfinished = unfinished_folder(folder)
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(unfinished, folder=True)
        for name in os.listdir(unfinished):
            os.unlink(unfinished / name)
    except BlockingIOError:
        raise DekrError(f"{folder}: another run is writing here; wait for it or name another folder") from None
    except OSError as error:
        raise DekrError(_not_created(folder, error)) from None
    try:
        if create:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DekrError(_not_created(folder, error)) from None
        yield
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        os.close(lock)


def refuse_locked(folder: Path) -> None:
    """Raise a `DekrError` while another run holds the lock of a folder."""
    try:
        handle = os.open(unfinished_folder(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # no run has locked it
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DekrError(f"{folder}: another run is writing here; wait for it or name another folder") from None
    finally:
        os.close(handle)


def _not_created(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return write_failure(folder, error)
    return f"{folder}: cannot be created ({error.strerror}); free this name, or name another folder"


@contextmanager
def scratch_folder(parent: Path, stem: str) -> Iterator[Path]:
    """Create an empty folder `<parent>/<stem>.<random>` for this run alone (mode 0700); remove it at the end.

    The folders of killed runs are removed first. The name is a new one each time, so a tool that outlived a killed run
    writes into its own folder, not into this one.
    """
    name = re.compile(re.escape(stem) + r"\.[a-z0-9_]{8}")
    for entry in list(os.scandir(parent)):
        if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):  # held by a run, or not ours
                _remove(Path(entry), _locked(Path(entry) / _LOCK))
    made, lock = _new_scratch(parent, stem)
    try:
        yield made
    finally:
        _remove(made, lock)


def _new_scratch(parent: Path, stem: str) -> tuple[Path, int]:
    """Return a new folder, and the handle that holds it for as long as this process lives."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=f"{stem}.", dir=parent))
        try:
            return made, _locked(made / _LOCK)
        except (BlockingIOError, FileNotFoundError):
            pass  # another run took it for a killed run's before it was held, and removes it


def _remove(scratch: Path, lock: int) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    os.close(lock)


def write_failure(path: Path, error: OSError) -> str:
    """Return the line for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full; free some space and run the same command again"
    return f"{path}: cannot be written ({error.strerror}); correct this, or name another place"


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a value as JSON, all or nothing; NaN is refused."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def open_regular(path: Path) -> io.FileIO:
    """Open a file for reading: one on a disk, as a pipe would be waited on, and a device read, for ever.

    Raises:
        OSError: there is none, or it is not to be opened.
    """
    return io.FileIO(path, "rb", opener=_regular_handle)  # its alone to close: a signal may come at any moment


def _regular_handle(path: str, flags: int) -> int:
    handle = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: Path) -> bytes:
    """Return the content of a file; see `open_regular`."""
    with open_regular(path) as file:
        return file.readall()


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        DekrError: the file is missing or not JSON.
    """
    try:
        return json.loads(read_regular(path))
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); check its name and your rights") from None
    except (ValueError, RecursionError):
        raise DekrError(f"{path}: not a JSON file, or cut short; write it again") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); check its name and your rights") from None
