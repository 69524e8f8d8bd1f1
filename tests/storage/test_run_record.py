"""The record of what is done: by content, whatever the dates, and after any end of the run before."""

import json
import os
from pathlib import Path

import pytest

from dekr_infer.errors import DekrError
from dekr_infer.storage import run_record
from dekr_infer.storage.run_record import Entry, Head, RunRecord, mark_file, mark_path, read_record, record_path

HEAD = Head("outputs", {"graph": "aa"}, {"version": "1"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


def write(folder: Path, *names: str, head: Head = HEAD) -> Path:
    """Write a file and its entry for each name; return the record."""
    with RunRecord(record_path(folder), head) as record:
        for name in names:
            (folder / name).write_text(f"content of {name}")
            record.add(Entry(name, {"tensor": name}, {name: mark_file(folder / name)}, [1.5]))
    return record_path(folder)


def is_done(folder: Path, name: str, tensor: str | None = None) -> bool:
    return RunRecord(record_path(folder), HEAD).is_done(name, {"tensor": tensor or name}, folder)


def test_what_is_written_comes_back(folder):
    path = write(folder, "a", "b")
    contents = read_record(path)
    assert path == folder.with_name("out_record.jsonl") and contents is not None
    assert contents.head == HEAD and list(contents.entries) == ["a", "b"]
    assert contents.entries["b"].milliseconds == [1.5]
    assert read_record(folder / "none") is None
    assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())


def test_an_entry_is_done_if_inputs_and_files_are_the_same(folder):
    write(folder, "a", "b")
    assert is_done(folder, "a") and is_done(folder, "b") and not is_done(folder, "c")
    assert not is_done(folder, "a", "another tensor")
    (folder / "a").unlink()
    (folder / "b").write_text("content of x")
    assert not is_done(folder, "a") and not is_done(folder, "b")


@pytest.mark.parametrize("date", [1, 2_000_000_000_000_000_000])
def test_dates_decide_nothing(folder, date):
    write(folder, "a", "b")
    os.utime(folder / "a", ns=(date, date))
    (folder / "b").write_text("content of x")
    os.utime(folder / "b", ns=(date, date))
    assert is_done(folder, "a") and not is_done(folder, "b")


def test_a_file_with_equal_stamps_is_not_read(folder, monkeypatch):
    write(folder, "a")
    monkeypatch.setattr(run_record, "mark_file", lambda path: pytest.fail("was read"))
    assert is_done(folder, "a")


def test_other_content_with_the_modification_time_of_before_is_noticed(folder):
    write(folder, "a")
    before = (folder / "a").stat()
    (folder / "a").write_text("content of x")
    os.utime(folder / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not is_done(folder, "a")


def test_a_copied_folder_is_read_once_and_its_stamps_are_noted(folder, monkeypatch):
    path = write(folder, "a")
    content = (folder / "a").read_bytes()
    (folder / "a").unlink()
    (folder / "a").write_bytes(content)
    record = RunRecord(path, HEAD)
    assert record.is_done("a", {"tensor": "a"}, folder)
    with record:
        pass
    monkeypatch.setattr(run_record, "mark_file", lambda path: pytest.fail("was read again"))
    assert is_done(folder, "a")


@pytest.mark.parametrize("place", ["folder", "pipe"])
def test_what_is_no_file_is_not_done(folder, place):
    write(folder, "a")
    (folder / "a").unlink()
    (folder / "a").mkdir() if place == "folder" else os.mkfifo(folder / "a")
    assert not is_done(folder, "a")


def test_the_last_entry_of_a_key_counts(folder):
    path = write(folder, "a")
    with RunRecord(path, HEAD) as record:
        record.add(Entry("a", {"tensor": "new"}))
    contents = read_record(path)
    assert contents is not None and contents.entries["a"].inputs == {"tensor": "new"}


@pytest.mark.parametrize("torn", [b"{", b'{"key": "c", "inp', b"\xff\xfe"])
def test_an_unfinished_last_line_is_ignored_and_removed(folder, torn):
    path = write(folder, "a", "b")
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert is_done(folder, "b")
    with RunRecord(path, HEAD):
        pass
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b"\xff", b'{"key": 1, "inputs": {}}', b'{"key": "a", "inputs": {}, "milliseconds": [-1]}']
)
def test_a_damaged_line_is_named(folder, line):
    path = write(folder, "a")
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join((first, line, second, b"")))
    with pytest.raises(DekrError, match=r"out_record\.jsonl: line 2 is damaged .*; delete it together with .*out$"):
        read_record(path)
    path.write_bytes(b"\n".join((line, second, b"")))
    with pytest.raises(DekrError, match=r"out_record\.jsonl: line 1 is damaged"):
        read_record(path)


@pytest.mark.parametrize("content", [b"", b"{"])
def test_a_record_without_a_head_is_damaged(folder, content):
    record_path(folder).write_bytes(content)
    with pytest.raises(DekrError, match="line 1 is damaged"):
        read_record(record_path(folder))


def test_a_record_of_another_kind_is_refused(folder):
    path = write(folder, "a")
    with pytest.raises(DekrError, match="is a record of outputs, not of tensors; name another folder"):
        RunRecord(path, Head("tensors"))


def test_changed_settings_are_named_apart_from_changed_facts(folder):
    path = write(folder, "a")
    assert not RunRecord(path, Head("outputs", {"graph": "aa"}, {"version": "2"})).has_other_settings
    assert RunRecord(path, Head("outputs", {"graph": "bb"})).has_other_settings
    with RunRecord(path, HEAD) as record:
        record.drop(["a"])
    with record:
        pass
    assert not RunRecord(path, Head("outputs", {"graph": "bb"})).has_other_settings, "nothing depends on them"


def test_finished_entries_are_in_the_file_at_every_moment(folder, monkeypatch):
    path = write(folder, "a")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DekrError, match=r"out_record\.jsonl: the disk is full"), RunRecord(path, HEAD):
        pass
    assert path.read_bytes() == before


def test_the_mark_of_a_folder_is_that_of_its_contents(folder):
    write(folder, "a", "b")
    before = mark_path(folder)
    os.utime(folder / "a", ns=(1, 1))
    assert mark_path(folder) == before and before.size == 2
    (folder / "b").write_text("content of x")
    with pytest.raises(DekrError, match="out/b: is not as it was written"):
        mark_path(folder)
    write(folder, "b")
    assert mark_path(folder) == before
    with RunRecord(record_path(folder), HEAD) as record:
        (folder / "b").write_text("else")
        record.add(Entry("b", {"tensor": "b"}, {"b": mark_file(folder / "b")}))
    assert mark_path(folder) != before
    record_path(folder).unlink()
    with pytest.raises(DekrError, match="has no record"):
        mark_path(folder)


def test_what_cannot_be_read_is_named(folder):
    path = write(folder, "a")
    with pytest.raises(DekrError, match=r"none: cannot be read \(No such file or directory\)"):
        mark_file(folder / "none")
    path.unlink()
    path.mkdir()
    with pytest.raises(DekrError, match=r"out_record\.jsonl: .*delete it together with what it describes, "):
        read_record(path)


def test_the_file_is_closed_behind_with(folder):
    opened = len(os.listdir("/proc/self/fd"))
    record = RunRecord(record_path(folder), HEAD)
    with record:
        assert len(os.listdir("/proc/self/fd")) > opened
    assert len(os.listdir("/proc/self/fd")) == opened


# --- steps


@pytest.fixture
def steps(tmp_path: Path):
    """Return a function that does a step in a record of its own; it returns what was done."""
    done: list[str] = []

    def step(name: str, inputs: dict[str, object], makes: Path | tuple[Path, ...] = (), text: str = "made") -> object:
        def work() -> list[str]:
            done.append(name)
            for path in [makes] if isinstance(makes, Path) else makes:
                path.write_text(text)
            return list(done)

        with RunRecord(tmp_path / "steps_record.jsonl", Head("steps")) as record:
            return record.step(name, inputs, work, makes)

    step.done = done  # type: ignore[attr-defined]
    return step


def test_a_step_with_the_same_inputs_is_done_once(steps, capsys):
    assert steps("a", {"x": (1, 2)}) == steps("a", {"x": [1, 2]}) == ["a"]
    assert steps("b", {}) == ["a", "b"] and steps("a", {"x": [1, 3]}) == ["a", "b", "a"]
    assert capsys.readouterr().out.splitlines() == ["== a", "== a: done before", "== b", "== a"]


def test_a_step_is_done_again_if_what_it_makes_is_not_as_it_was(steps, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    steps("a", {}, (first, second))
    os.utime(first, ns=(1, 1))
    steps("a", {}, (first, second))
    assert steps.done == ["a"]
    second.unlink()
    steps("a", {}, (first, second))
    first.write_text("else")
    steps("a", {}, (first, second))
    assert steps.done == ["a"] * 3 and first.read_text() == "made"


def test_a_step_whose_folder_has_lost_its_record_is_done_again(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    path, done = record_path(folder), []

    def fill() -> None:
        done.append(write(folder, "a"))

    def step() -> None:
        with RunRecord(tmp_path / "steps_record.jsonl", Head("steps")) as record:
            record.step("fill", {}, fill, folder)

    for _ in range(2):
        step()
    assert done == [path]
    path.unlink()
    step()
    assert done == [path] * 2


def test_a_step_that_fails_is_not_done(tmp_path):
    def fail() -> None:
        raise DekrError("no")

    with RunRecord(tmp_path / "steps_record.jsonl", Head("steps")) as record:
        with pytest.raises(DekrError, match="no"):
            record.step("a", {}, fail)
        assert record.step("a", {}, lambda: 7) == 7
