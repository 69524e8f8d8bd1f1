"""Files appear whole or not at all."""

import errno
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dekr_infer.errors import DekrError
from dekr_infer.storage import atomic as files
from dekr_infer.storage.atomic import (
    UNFINISHED,
    atomic_write,
    open_regular,
    read_json,
    read_regular,
    scratch_folder,
    sha256,
    sibling_path,
    write_json,
)
from tests.support.folders import names_in


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "model.onnx"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_bytes() == b"half" and names_in(path.parent) == ["model.onnx"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")

    def fail():
        with atomic_write(path) as temporary:
            temporary.write_text("new, unfinished")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old" and names_in(tmp_path) == ["results.json"]


@pytest.mark.parametrize(("number", "part"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"),
                                              (errno.EACCES, "cannot be written")])  # fmt: skip
def test_a_disk_that_refuses_is_one_line_with_the_files_name(tmp_path, number, part):
    path = tmp_path / "results.json"
    with pytest.raises(DekrError, match=f"results.json: {part}"), atomic_write(path):
        raise OSError(number, "no")
    assert names_in(tmp_path) == []


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(DekrError, match=r"results\.json: cannot be written"):
        write_json(tmp_path / "results.json", {})
    (tmp_path / "file").touch()
    with pytest.raises(DekrError, match="cannot be written"):
        write_json(tmp_path / "file" / "results.json", {})


def test_json_comes_back_and_nan_is_refused(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json(path, {"AP": 0.5, "name": "é"}, indent=2)
    assert read_json(path) == {"AP": 0.5, "name": "é"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"AP": float("nan")})
    assert read_json(path)["AP"] == 0.5 and names_in(path.parent) == ["b.json"]


def test_what_is_no_json_is_named(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(DekrError, match=r"x\.json: cannot be read"):
        read_json(path)
    for content in (b'{"a": ', b"\xff\xfe\x00", b""):
        path.write_bytes(content)
        with pytest.raises(DekrError, match=r"x\.json: not a JSON file"):
            read_json(path)


@pytest.mark.parametrize("read", [read_regular, read_json, sha256])
def test_neither_a_pipe_nor_a_device_is_waited_on(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises((DekrError, OSError), match="not a regular file"):
            read(path)
    with pytest.raises((DekrError, OSError), match="Is a directory"):
        read(tmp_path)


def test_what_is_refused_is_not_left_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"directory|regular"):
            read_regular(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_hash_is_of_the_whole_file(tmp_path):
    path = tmp_path / "weights.pth"
    data = bytes(range(256)) * 9000 + b"tail"  # more than two blocks
    path.write_bytes(data)
    assert sha256(path) == hashlib.sha256(data).hexdigest()
    with pytest.raises(DekrError, match="none: cannot be read"):
        sha256(tmp_path / "none")


@pytest.mark.parametrize("folder", ["out", ".", "../out", ""])
def test_files_next_to_a_folder_begin_with_its_name(tmp_path, monkeypatch, folder):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out" if folder != "out" else tmp_path)
    assert sibling_path(Path(folder), "_summary.json").resolve() == tmp_path / "out_summary.json"


def test_a_scratch_folder_is_private_and_leaves_nothing(tmp_path):
    with scratch_folder(tmp_path, "out") as first, scratch_folder(tmp_path, "out") as second:
        assert first != second and first.is_dir(), "a run that goes on is left alone"
        assert first.stat().st_mode & 0o777 == 0o700
        (first / "half").write_text("")
    assert names_in(tmp_path) == []


def test_the_scratch_folders_of_killed_runs_are_removed_and_nothing_else(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from dekr_infer.storage.atomic import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1]), 'out') as made: (made / 'half').write_text(''); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2])
    (left,) = names_in(tmp_path)
    others = ["out", "out.abcdefg", "out.abcdefgh.om", "out_abcdefgh", "xout.abcdefgh"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "out.12345678").write_text("a file")
    with scratch_folder(tmp_path, "out") as made:
        assert made.name != left and not (tmp_path / left).exists()
    assert names_in(tmp_path) == sorted([*others, "out.12345678"])


def test_a_scratch_folder_that_another_run_removes_is_created_again(tmp_path, monkeypatch):
    lock, taken = files._locked, []

    def taken_first(path):
        if not taken:
            taken.append(lock(path))
        return lock(path)

    monkeypatch.setattr(files, "_locked", taken_first)
    with scratch_folder(tmp_path, "out") as made:
        assert len(names_in(tmp_path)) == 2 and made.is_dir()
    os.close(taken[0])


def test_an_interrupt_while_a_file_is_opened_stays_one(tmp_path, monkeypatch):
    real = io.FileIO

    def opened_and_interrupted(*words, **named):
        real(*words, **named).close()  # as when Python drops what it has just made
        raise KeyboardInterrupt

    (tmp_path / "a").touch()
    monkeypatch.setattr(files.io, "FileIO", opened_and_interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_regular(tmp_path / "a")


def test_a_file_linked_at_the_name_of_the_unfinished_one_keeps_its_content(tmp_path):
    (tmp_path / "precious").write_text("mine")
    os.link(tmp_path / "precious", tmp_path / f".a.json{UNFINISHED}")
    files.write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert names_in(tmp_path) == ["a.json", "precious"]
