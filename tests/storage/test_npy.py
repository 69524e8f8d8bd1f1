"""The .npy contract: what is written, that it is whole, that one run at a time writes, and what is refused."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dekr_infer.errors import DekrError
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.atomic import UNFINISHED, folder_lock, refuse_locked, unfinished_folder
from dekr_infer.storage.run_record import mark_file
from tests.support.folders import names_in

ROOT = Path(__file__).resolve().parents[2]


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def save(path, array, **options) -> None:
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, **options)


def test_a_tensor_is_the_file_that_numpy_would_write(tmp_path):
    array = values(1, 3, 5, 7)
    with folder_lock(tmp_path / "t"):
        mark = tensors.write(tmp_path / "t", "a.npy", array)
    expected = io.BytesIO()
    np.save(expected, array)
    assert (tmp_path / "t" / "a.npy").read_bytes() == expected.getvalue()
    assert mark == mark_file(tmp_path / "t" / "a.npy")
    assert mark.size == len(expected.getvalue())


@pytest.mark.parametrize("array", [values(4, 5).T, values(6, 8)[::2, ::-1], values(3, 4).astype(np.float64),
                                   values(3, 4).astype(">f4"), np.arange(6).reshape(2, 3)])  # fmt: skip
def test_whatever_its_layout_an_array_is_stored_as_float32_in_c_order(tmp_path, array):
    with folder_lock(tmp_path / "t"):
        tensors.write(tmp_path / "t", "a.npy", array)
        tensors.write(tmp_path / "t", "a.bin", array)
    loaded = np.load(tmp_path / "t" / "a.npy")
    assert loaded.dtype == np.float32 and loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, array.astype(np.float32))
    assert (tmp_path / "t" / "a.bin").read_bytes() == loaded.tobytes()


def test_the_longest_possible_name_is_written_and_a_longer_one_refused(tmp_path):
    folder = tmp_path / "t"
    with folder_lock(folder):
        tensors.write(folder, f"{'a' * 251}.npy", values(2))
        assert names_in(folder) == [f"{'a' * 251}.npy"]
        with pytest.raises(DekrError, match=r"aaa\.npy: cannot be written \(File name too long\)"):
            tensors.write(folder, f"{'a' * 252}.npy", values(2))
    assert names_in(tmp_path) == ["t"]


def test_a_failure_to_clean_up_does_not_hide_the_first(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with folder_lock(tmp_path / "t"), monkeypatch.context() as patch:
        patch.setattr(os, "writev", fail)
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(DekrError, match=r"a\.npy: cannot be written \(Input/output error\)"):
            tensors.write(tmp_path / "t", "a.npy", values(2))


def test_a_link_that_leads_to_itself_is_one_error(tmp_path):
    (tmp_path / "t").symlink_to(tmp_path / "t")
    with pytest.raises(DekrError, match="t: cannot be created"), folder_lock(tmp_path / "t"):
        pass
    assert names_in(tmp_path) == ["t"]


def test_a_tensor_comes_back_whole(tmp_path):
    array = values(1, 18, 6, 4)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(tensors.read(tmp_path / "a.npy"), array)
    array[0, 3, 2, 1] = np.nan
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(tensors.read_unchecked(tmp_path / "a.npy"), array)
    assert tensors.read_header(tmp_path / "a.npy").shape == (1, 18, 6, 4)


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, failure):
    def full(handle, parts):
        os.write(handle, bytes(parts[0])[:10])
        raise OSError(failure, "no")

    with folder_lock(tmp_path / "t"):
        tensors.write(tmp_path / "t", "a.npy", values(2))
        monkeypatch.setattr(os, "writev", full)
        with pytest.raises(DekrError, match="disk is full" if failure == errno.ENOSPC else "cannot be written"):
            tensors.write(tmp_path / "t", "b.npy", values(3))
        assert names_in(tmp_path / "t") == ["a.npy"] and names_in(unfinished_folder(tmp_path / "t")) == []
    assert names_in(tmp_path) == ["t"]


@pytest.mark.parametrize("first", [1, 100, 128, 140])
def test_a_write_that_the_system_splits_is_finished(tmp_path, monkeypatch, first):
    monkeypatch.setattr(os, "writev", lambda handle, parts: os.write(handle, b"".join(parts)[:first]))
    with folder_lock(tmp_path / "t"):
        tensors.write(tmp_path / "t", "a.npy", values(5, 3))
    np.testing.assert_array_equal(np.load(tmp_path / "t" / "a.npy"), values(5, 3))


def test_a_file_is_written_outside_the_folder_and_appears_when_complete(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def watch(source, target):
        seen.append((names_in(tmp_path / "t"), Path(source).parent.name, Path(source).stat().st_size))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    with folder_lock(tmp_path / "t"):
        mark = tensors.write(tmp_path / "t", "a.npy", values(50))
    assert seen == [([], f".t{UNFINISHED}", mark.size)]


def test_a_second_run_on_the_same_folder_is_refused(tmp_path):
    with folder_lock(tmp_path / "t"):
        with pytest.raises(DekrError, match="another run is writing here"), folder_lock(tmp_path / "t"):
            pass
        with pytest.raises(DekrError, match="another run is writing here"):
            refuse_locked(tmp_path / "t")
        tensors.write(tmp_path / "t", "a.npy", values(2))  # the first one is not disturbed
    refuse_locked(tmp_path / "t")
    with folder_lock(tmp_path / "t"):
        pass
    assert names_in(tmp_path) == ["t"] and names_in(tmp_path / "t") == ["a.npy"]


def test_a_killed_run_leaves_no_lock_and_its_unfinished_file_is_removed(tmp_path):
    code = (
        "import os, pathlib, sys, time; from dekr_infer.storage.atomic import folder_lock, unfinished_folder\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with folder_lock(folder):\n"
        "    (unfinished_folder(folder) / '1').write_bytes(b'half')\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "t")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        with pytest.raises(DekrError, match="another run"), folder_lock(tmp_path / "t"):
            pass
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    assert names_in(unfinished_folder(tmp_path / "t")) == ["1"]
    with folder_lock(tmp_path / "t"):
        assert names_in(unfinished_folder(tmp_path / "t")) == []
    assert time.monotonic() < deadline and names_in(tmp_path) == ["t"] and names_in(tmp_path / "t") == []


def test_a_users_folder_named_like_ours_is_left_alone(tmp_path):
    for name in ("t.partial", ".t.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1-a.npy").write_text("mine")
    (tmp_path / ".t.partial" / "precious").hardlink_to(tmp_path / "t.partial" / "1-a.npy")
    with folder_lock(tmp_path / "t"):
        tensors.write(tmp_path / "t", "a.npy", values(2))
    assert [path.read_text() for path in sorted(tmp_path.glob("*.partial/*")) + sorted(tmp_path.glob(".t.partial/*"))]
    assert (tmp_path / "t.partial" / "1-a.npy").read_text() == "mine"
    assert names_in(tmp_path / ".t.partial") == ["1-a.npy", "precious"]


def test_a_tensor_that_is_cut_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", values(2, 3))
    monkeypatch.setattr(np, "fromfile", lambda file, dtype, count: np.zeros(count - 1, dtype))
    with pytest.raises(DekrError, match=r"a\.npy: cut short while it was read"):
        tensors.read(tmp_path / "a.npy")


def test_a_name_that_is_taken_by_a_file_is_refused(tmp_path):
    (tmp_path / "t").touch()
    with pytest.raises(DekrError, match="t: cannot be created"), folder_lock(tmp_path / "t"):
        pass


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (values(2, 3).astype(np.float64), "holds float64 in C order"),
        (values(2, 3).astype(np.float16), "holds float16"),
        (values(2, 3).astype(">f4"), "holds >f4"),
        (np.asfortranarray(values(2, 3)), "holds float32 in Fortran order"),
        (np.array([{"a": 1}], object), "holds object"),
    ],
)
def test_another_type_or_order_is_refused_and_named(tmp_path, array, part):
    save(tmp_path / "a.npy", array)
    with pytest.raises(DekrError, match=rf"a\.npy: {part}"):
        tensors.read_header(tmp_path / "a.npy")


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:128]])
def test_a_length_that_is_not_the_shapes_is_refused(tmp_path, change):
    np.save(tmp_path / "a.npy", values(2, 3))
    (tmp_path / "a.npy").write_bytes(change((tmp_path / "a.npy").read_bytes()))
    for read in (tensors.read_header, tensors.read, tensors.read_unchecked):
        with pytest.raises(DekrError, match=r"a\.npy: cut short or too long for its shape \(2, 3\)"):
            read(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"hello, I am a text", b"\x93NUMPY\x01\x00v\x00{'descr': "])
def test_what_is_no_npy_file_is_refused(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DekrError, match=r"a\.npy: not a \.npy file, or cut short"):
        tensors.read_header(tmp_path / "a.npy")


ODD_HEADERS = {
    "an empty descr": "{'descr': '', 'fortran_order': False, 'shape': (2,), }",
    "a foreign key": "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}",
    "keys that are numbers": "{1: '<f4', 'fortran_order': False, 'shape': (2,)}",
    "a key that cannot be one": "{[]: '<f4', 'fortran_order': False, 'shape': (2,)}",
    "70 dimensions": f"{{'descr': '<f4', 'fortran_order': False, 'shape': (2, {'1, ' * 69}), }}",
    "booleans as sizes": "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2), }",
    "fractions as sizes": "{'descr': '<f4', 'fortran_order': False, 'shape': (2.0,), }",
    "a set as shape": "{'descr': '<f4', 'fortran_order': False, 'shape': {2}, }",
    "deep nesting": f"{{'descr': {'(' * 200}{')' * 200}}}",
    "no dictionary": "['descr', 'fortran_order', 'shape']",
}


@pytest.mark.parametrize("kind", ODD_HEADERS)
def test_an_odd_header_is_one_line(tmp_path, kind):
    text = ODD_HEADERS[kind].ljust(501).encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(8))
    for read in (tensors.read_header, tensors.read, tensors.read_unchecked):
        with pytest.raises(DekrError, match=r"a\.npy: (not a \.npy file|cut short or too long for its shape)"):
            read(tmp_path / "a.npy")


@pytest.mark.parametrize("version", [(3, 0), (9, 0)])
def test_a_header_of_another_version_is_refused(tmp_path, version):
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }".ljust(115) + b"\n"
    head = b"\x93NUMPY" + bytes(version) + len(text).to_bytes(4, "little")
    (tmp_path / "a.npy").write_bytes(head + text + bytes(8))
    with pytest.raises(DekrError, match=r"a\.npy: not a \.npy file"):
        tensors.read_header(tmp_path / "a.npy")


def test_a_missing_file_is_named(tmp_path):
    for read in (tensors.read_header, tensors.read, tensors.read_unchecked):
        with pytest.raises(DekrError, match=r"a\.npy: cannot be read"):
            read(tmp_path / "a.npy")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tensor_with_nan_is_refused_and_named(tmp_path, bad):
    array = values(2, 3)
    array[1, 2] = bad
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DekrError, match=r"a\.npy: holds NaN"):
        tensors.read(tmp_path / "a.npy")


def test_foreign_files_are_counted_and_the_first_is_named(tmp_path):
    for name in ("a.npy", "b.npy", "x.npy", "w.npy", "notes.txt"):
        (tmp_path / name).touch()
    assert tensors.names_in(tmp_path) == {"a.npy", "b.npy", "x.npy", "w.npy"}
    assert tensors.names_in(tmp_path / "none") == set()
    tensors.refuse_foreign(tmp_path, ["a.npy", "b.npy", "x.npy", "w.npy", "z.npy"], "these")
    with pytest.raises(DekrError, match=r"2 \.npy files do not belong to these pictures, the first is w\.npy"):
        tensors.refuse_foreign(tmp_path, ["a.npy", "b.npy"], "these pictures")
