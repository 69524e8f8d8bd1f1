"""The one memory of what is done: a JSON-lines file beside a folder, decided by content, never by dates.

The first line is the head: what all entries depend on. Each further line is a finished entry: the hashes of its inputs
and the marks of the files that it wrote. The last entry of a key counts. A last line that a killed run left unfinished
is ignored.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import msgspec
import xxhash

from dekr_infer.errors import DekrError
from dekr_infer.storage.atomic import atomic_write, open_regular, read_regular, sibling_path, write_failure

SUFFIX = "_record.jsonl"  # behind the name of the folder
BLOCK = 1 << 20  # bytes read at a time
Stamps = tuple[int, int, int]  # mtime and ctime in nanoseconds, inode


class FileMark(msgspec.Struct, frozen=True):
    """The content of a file: its size in bytes and its XXH3-128. Equal stamps only save reading it again."""

    size: int
    xxh3: str
    stamps: Stamps

    def renewed(self, path: Path) -> FileMark | None:
        """Return this mark with the stamps of today if `path` is a file with this content, otherwise `None`."""
        try:
            found = path.stat()
            if found.st_size != self.size or not stat.S_ISREG(found.st_mode):
                return None
            if stamps_of(found) == self.stamps:
                return self
            mark = mark_file(path)
        except (OSError, DekrError):
            return None
        return mark if mark.xxh3 == self.xxh3 else None


class Head(msgspec.Struct):
    """What a folder holds.

    Args:
        kind: `tensors`, `outputs`, `steps` or `people`.
        settings: what every entry depends on; entries made with other settings do not count as done.
        about: what is noted of the run and changes no entry, such as versions and paths.
    """

    kind: str
    settings: dict[str, Any] = {}
    about: dict[str, Any] = {}


class Entry(msgspec.Struct, omit_defaults=True):
    """One finished piece of work.

    Args:
        inputs: content hashes, or other values of JSON, by name.
        outputs: the files written, by their names in the folder.
        milliseconds: of each timed pass of the network.
        result: what else the work yielded; a value of JSON.
    """

    key: str
    inputs: dict[str, Any]
    outputs: dict[str, FileMark] = {}
    milliseconds: list[Annotated[float, msgspec.Meta(gt=0, lt=1e12)]] = []
    result: Any = None


class Contents(msgspec.Struct):
    """A record as it is read."""

    head: Head
    entries: dict[str, Entry]


def record_path(folder: Path) -> Path:
    """Return the place of a folder's record: beside the folder."""
    return sibling_path(folder, SUFFIX)


def read_record(path: Path) -> Contents | None:
    """Read a record; `None` where there is no file.

    Raises:
        DekrError: the file cannot be read, or a line of it is damaged.
    """
    described = str(path).removesuffix(SUFFIX)
    remedy = "delete it" if described == str(path) else f"delete it together with what it describes, {described}"
    try:
        lines = read_regular(path).split(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    contents = None
    for number, line in enumerate(lines, 1):
        try:
            if contents is None:
                contents = Contents(msgspec.json.decode(line, type=Head), {})
            elif line:
                entry = msgspec.json.decode(line, type=Entry)
                contents.entries[entry.key] = entry
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if number == 1 or number < len(lines):
                raise DekrError(f"{path}: line {number} is damaged ({error}); {remedy}") from None
    return contents


class RunRecord:
    """A record that is read at once, and written within `with`; its folder is locked by the caller.

    Args:
        path: see `record_path`.
        head: of this run.
    """

    def __init__(self, path: Path, head: Head) -> None:
        self.path, self.head = path, head
        self.earlier = read_record(path)
        self.entries = dict(self.earlier.entries) if self.earlier else {}
        if self.earlier and self.earlier.head.kind != head.kind:
            raise DekrError(f"{path}: is a record of {self.earlier.head.kind}, not of {head.kind}; name another folder")
        self._file: TextIO | None = None

    @property
    def has_other_settings(self) -> bool:
        """Whether entries of an earlier run were made with other settings than this run's."""
        return bool(self.earlier and self.entries and self.earlier.head.settings != _plain(self.head.settings))

    def __enter__(self) -> RunRecord:
        with atomic_write(self.path) as temporary:  # at no moment are finished entries missing from the file
            lines = [self.head, *self.entries.values()]
            temporary.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        try:
            self._file = open(self.path, "a", encoding="utf-8")
        except OSError as error:
            raise DekrError(write_failure(self.path, error)) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # every entry was flushed, or `add` has raised
                self._file.close()

    def is_done(self, key: str, inputs: Mapping[str, Any], place: Path) -> bool:
        """Return whether an entry has just these inputs and all its files in `place` are as it wrote them."""
        entry = self.entries.get(key)
        return entry is not None and entry.inputs == _plain(inputs) and self.holds_files(key, place)

    def holds_files(self, key: str, place: Path) -> bool:
        """Return whether all files of an entry are as it wrote them; note their new stamps where only these differ."""
        entry = self.entries[key]
        renewed = {name: mark.renewed(place / name) for name, mark in entry.outputs.items()}
        outputs = {name: mark for name, mark in renewed.items() if mark is not None}
        if len(outputs) < len(renewed):
            return False
        if outputs != entry.outputs:
            self.entries[key] = msgspec.structs.replace(entry, outputs=outputs)
        return True

    def add(self, entry: Entry) -> None:
        """Note a finished entry; it is in the file when this returns.

        Raises:
            DekrError: the record cannot be written.
        """
        self.entries[entry.key] = entry
        assert self._file is not None, "outside `with`"
        try:
            self._file.write(msgspec.json.encode(entry).decode() + "\n")
            self._file.flush()
        except OSError as error:
            raise DekrError(write_failure(self.path, error)) from None

    def drop(self, keys: Iterable[str]) -> None:
        """Forget entries; the file holds them until the next `with`."""
        for key in keys:
            self.entries.pop(key, None)

    def step(
        self, name: str, inputs: Mapping[str, Any], work: Callable[[], Any], makes: Path | Sequence[Path] = ()
    ) -> Any:
        """Do a step unless it is done; print which of both.

        Args:
            name: the entry's key.
            inputs: content hashes and settings that decide the step's result.
            work: does the step; returns a value of JSON.
            makes: the files that the step writes, and folders that have a record of their own.
        Returns:
            The result of `work`, of now or of an earlier run.
        """
        made = {text_of(path): path for path in ([makes] if isinstance(makes, Path) else makes)}
        entry = self.entries.get(name)
        if (
            entry is not None
            and entry.inputs == _plain(inputs)
            and entry.outputs.keys() == made.keys()
            and all(_is_unchanged(path, entry.outputs[text]) for text, path in made.items())
        ):
            print(f"== {name}: done before", flush=True)
            return entry.result
        print(f"== {name}", flush=True)
        result = work()
        self.add(Entry(name, _plain(inputs), {text: mark_path(path) for text, path in made.items()}, result=result))
        return result


def text_of(path: Path) -> str:
    """Return a path as text; a path need not be text, but JSON must."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _plain(values: Mapping[str, Any]) -> Any:
    """Return values as they come back from JSON."""
    return msgspec.json.decode(msgspec.json.encode(dict(values)))


def stamps_of(found: os.stat_result) -> Stamps:
    """Return what changes when a file is replaced or written."""
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def mark_file(path: Path) -> FileMark:
    """Read a file and return its mark.

    Raises:
        DekrError: the file cannot be read.
    """
    digest, size = xxhash.xxh3_128(), 0
    try:
        with open_regular(path) as file:
            stamps = stamps_of(os.fstat(file.fileno()))
            while block := file.read(BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); check its name and your rights") from None
    return FileMark(size, digest.hexdigest(), stamps)


def mark_folder(folder: Path) -> FileMark:
    """Return the mark of a folder with a record: the number of its files, and a hash over head, names and contents.

    Raises:
        DekrError: there is no record, or a file is not as its record has it.
    """
    contents = read_record(record_path(folder))
    if contents is None:
        raise DekrError(f"{folder}: has no record {record_path(folder)}; run the command that fills it again")
    marks = {name: mark for entry in contents.entries.values() for name, mark in entry.outputs.items()}
    digest = xxhash.xxh3_128(msgspec.json.encode(contents.head))
    for name, mark in sorted(marks.items()):
        if mark.renewed(folder / name) is None:
            raise DekrError(f"{folder / name}: is not as it was written; run the command that wrote it again")
        digest.update(f"{name}\0{mark.xxh3}\0".encode())
    return FileMark(len(marks), digest.hexdigest(), (0, 0, 0))


def mark_path(path: Path) -> FileMark:
    """Return the mark of a file, or of a folder with a record."""
    return mark_folder(path) if path.is_dir() else mark_file(path)


def _is_unchanged(path: Path, mark: FileMark) -> bool:
    if not path.is_dir():
        return mark.renewed(path) is not None
    try:
        return mark_folder(path) == mark
    except DekrError:
        return False
