"""What happens to files: cut short, replaced, damaged, of another type; and checkpoints and images that lie."""

from __future__ import annotations

import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.coco_files import write_images


def replace(path: Path, data: bytes) -> None:
    """Another content in a file's place; what it was linked to stays."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def cut(path: Path, keep: float) -> None:
    """A file's first part."""
    data = path.read_bytes()
    replace(path, data[: int(len(data) * keep)])


def resave(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """A .npy file with a changed array; objects are pickled."""
    array = change(np.load(path))
    path.unlink()
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=True)


def set_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """A change: every value of the array is this one."""
    return lambda array: np.full_like(array, value)


def reshape_header(path: Path, shape: str) -> None:
    """Claim another shape in a .npy header of the same length."""
    data = path.read_bytes()
    start = data.index(b"'shape': ") + len(b"'shape': ")
    end = data.index(b"\n", start)
    replace(path, data[:start] + f"{shape}, }}".encode().ljust(end - start) + data[end:])


def pipe(path: Path) -> None:
    """A pipe that nobody writes to, in a file's place."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def folder(path: Path) -> None:
    """A folder in a file's place."""
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def trap_array(path: Path) -> None:
    """A .npy file of objects whose unpickling would make a folder `sprung` beside the file."""
    array = np.empty(1, object)
    array[0] = Trap(path.with_name("sprung"))
    path.unlink()
    np.save(path, array, allow_pickle=True)


def trap_checkpoint(path: Path) -> None:
    """A checkpoint whose loading would make a folder `sprung` beside it, if it were unpickled freely."""
    path.unlink()
    path.write_bytes(pickle.dumps({"weight": Trap(path.with_name("sprung"))}))


def change_state(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """A checkpoint with a changed state dict."""
    state = torch.load(path, weights_only=True)
    path.unlink()
    torch.save(change(state), path)


def vast(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state whose first tensor claims a terabyte and stores one number."""
    first = next(iter(state))
    return state | {first: torch.zeros(1).expand(2**40)}


def members(path: Path) -> dict[str, bytes]:
    """A zip's members by file name, without the split's folder."""
    with zipfile.ZipFile(path) as files:
        return {name.split("/", 1)[1]: files.read(name) for name in files.namelist()}


def change_member(coco: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """A zip with one image changed, its checksum right."""
    path = coco / "images" / "val2017.zip"
    pictures = members(path)
    path.unlink()
    write_images(coco, pictures | {name: change(pictures[name])})


def set_zip_fields(path: Path, local: dict[int, bytes], central: dict[int, bytes]) -> None:
    """Overwrite bytes in every local header and every directory entry of a zip, at offsets within them."""
    data = bytearray(path.read_bytes())
    for mark, fields in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        start = data.find(mark)
        while start >= 0:
            for offset, value in fields.items():
                data[start + offset : start + offset + len(value)] = value
            start = data.find(mark, start + 4)
    replace(path, bytes(data))


def announce(width: int, height: int) -> Callable[[bytes], bytes]:
    """A change to a JPEG: its header names another size."""

    def change(data: bytes) -> bytes:
        start = next(data.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in data)
        return data[: start + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[start + 9 :]

    return change


def mount(path: Path, options: str) -> None:
    """A small disk of its own at a folder; the test is skipped where that is not allowed."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small disk is not allowed here")


def remount(path: Path, options: str) -> None:
    """Other options for a disk of `mount`."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True, capture_output=True)


def unmount(path: Path) -> None:
    """Take a disk of `mount` away, if there is one."""
    if os.path.ismount(path):
        subprocess.run(["umount", str(path)], check=True)
