"""Files that are written whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dekr_infer.errors import DekrError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to; on success it becomes `path`, on failure nothing of it is left.

    Raises:
        DekrError: the disk is full, or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise DekrError(write_failure(path, error)) from None
    finally:
        with contextlib.suppress(OSError):  # it is gone already, or its folder is none; said above
            temporary.unlink()


def write_failure(path: Path, error: OSError) -> str:
    """The line for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full; free some space and run the same command again"
    return f"{path}: cannot be written ({error.strerror})"


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a value as JSON, all or nothing; NaN is refused."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DekrError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise DekrError(f"{path}: not a JSON file, or cut short; make it again") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror})") from None
