"""The data set: the annotation file's pictures in its own order, and their bytes from the zip or a folder."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dekr_infer.errors import ConfigError, DekrError, excerpt
from dekr_infer.geometry import Size
from dekr_infer.storage.atomic import open_regular, read_regular

JPEG_START = b"\xff\xd8"
JPEG_SCAN = 0xDA  # the marker after which compressed pixels follow
JPEG_END = b"\xff\xd9"
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers of segments that tell the size
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_HEAD = b"IHDR"  # the first chunk's name: width and height follow
LARGEST_SIDE = 32_766  # pixels; OpenCV warps nothing larger
LARGEST_FILE = 1 << 28  # bytes of one encoded picture; a small zip may announce far more
LARGEST_ID = (1 << 63) - 1  # what numpy, and so pycocotools, keeps exactly


@dataclass(frozen=True)
class Picture:
    """One entry of the annotation file: `id`, `file_name`, `size` in pixels, and the `stem` that names its tensors."""

    id: int
    file_name: str
    size: Size
    stem: str


@dataclass(frozen=True)
class DataSet:
    """The pictures of a split in the order of the annotation file, people in them or not.

    `content` is the whole annotation file as parsed, for the evaluation.
    """

    annotation: Path
    pictures: tuple[Picture, ...]
    content: Mapping[str, Any]


def annotation_path(root: str | Path, split: str) -> Path:
    """Where COCO keeps the keypoints of a split below its root."""
    return Path(root) / "annotations" / f"person_keypoints_{split}.json"


def load_data_set(root: str | Path, split: str) -> DataSet:
    """Read and check the annotation file of a split.

    Raises:
        DekrError: the file is missing or not a COCO annotation, or names pictures that cannot be told apart.
    """
    path = annotation_path(root, split)
    try:
        content = json.loads(read_regular(path))
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); set DATASET.ROOT to the COCO folder") from None
    except (ValueError, RecursionError):
        raise DekrError(f"{path}: not a JSON file, or cut short; fetch it again") from None
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DekrError(f"{path}: lists no images; it must be a COCO annotation file")
    return DataSet(path, _checked([_picture(entry, path) for entry in entries], path), content)


def _picture(entry: Any, path: Path) -> Picture:
    try:
        name, number = entry["file_name"], entry["id"]
        size = Size(entry["height"], entry["width"])
    except (KeyError, TypeError):
        raise DekrError(
            f"{path}: an image lacks id, file_name, height or width; correct it: {excerpt(entry)}"
        ) from None
    pure = PurePosixPath(str(name))
    if not isinstance(name, str) or not pure.stem or pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise DekrError(f"{path}: {name!r} is no file name below the images folder; correct it")
    if "." in pure.stem:
        raise DekrError(f"{path}: {name}: ais_bench cuts names at the first dot; rename the picture")
    if type(number) is not int or abs(number) > LARGEST_ID:
        raise DekrError(f"{path}: {name}: needs a whole-number id of at most 64 bits; correct it")
    if any(type(side) is not int or not 0 < side <= LARGEST_SIDE for side in size):
        raise DekrError(f"{path}: {name}: needs a whole-number height and width from 1 to {LARGEST_SIDE}; correct it")
    return Picture(number, name, size, pure.stem)


def _checked(pictures: Sequence[Picture], path: Path) -> tuple[Picture, ...]:
    ids: dict[int, Picture] = {}
    stems: dict[str, Picture] = {}
    for picture in pictures:
        name = picture.file_name
        other = ids.setdefault(picture.id, picture)
        if other is not picture:
            raise DekrError(f"{path}: {other.file_name} and {name} have the same id {picture.id}; correct one")
        other = stems.setdefault(picture.stem, picture)
        if other is not picture:
            raise DekrError(
                f"{path}: {other.file_name} and {name} would write the same tensor {picture.stem}.npy; rename one"
            )
    return tuple(pictures)


class PictureFiles:
    """The encoded pictures of a split: members of one zip, never unpacked, or files of a folder.

    Each process opens its own; the zip's directory is read once.
    """

    def __init__(self, source: Path, split: str) -> None:
        """`source` is what `picture_source` returned."""
        self.source = source
        self.split = split
        self._zip = _open_zip(source) if source.suffix == ".zip" else None

    def check_present(self, file_names: Sequence[str]) -> None:
        """Refuse to start when pictures are missing, naming the first.

        Raises:
            DekrError: some files are not there.
        """
        if self._zip is None:
            missing = [name for name in file_names if not (self.source / name).is_file()]
        else:
            members = set(self._zip.namelist())
            missing = [name for name in file_names if f"{self.split}/{name}" not in members]
        if missing:
            raise DekrError(
                f"{self.source}: {len(missing)} of {len(file_names)} pictures are missing, the first is {missing[0]}; "
                "fetch the pictures of this annotation file again"
            )

    def mark(self, file_name: str) -> str:
        """What tells a picture from others of its name: its length and CRC-32, the same from a zip and a folder.

        Raises:
            DekrError: it is missing, or cannot be read.
        """
        if self._zip is None:
            data = self.read(file_name)
            length, checksum = len(data), zlib.crc32(data)
        else:
            member = self._member(self._zip, file_name)
            length, checksum = member.file_size, member.CRC
        return f"{length}-{checksum:08x}"

    def _member(self, archive: zipfile.ZipFile, file_name: str) -> zipfile.ZipInfo:
        try:
            return archive.getinfo(f"{self.split}/{file_name}")
        except KeyError:
            raise self._failure(file_name, "no such member") from None

    def _failure(self, file_name: str, reason: str) -> DekrError:
        return DekrError(f"{self.source}: {file_name}: {reason}; fetch this file again")

    def read(self, file_name: str) -> bytes:
        """The encoded picture.

        Raises:
            DekrError: it is missing, too large, encrypted, or fails the zip's checksum.
        """
        try:
            if self._zip is None:
                with open_regular(self.source / file_name) as file:
                    size = os.fstat(file.fileno()).st_size
                    if size <= LARGEST_FILE:
                        return file.readall()
            else:
                member = self._member(self._zip, file_name)
                size = member.file_size
                if size <= LARGEST_FILE:
                    return self._zip.read(member)
            reason = f"announces {size:,} bytes, which no picture has"
        except DekrError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
            reason = str(error)
        except RuntimeError:
            reason = "encrypted"
        except Exception as error:  # zlib.error, lzma.LZMAError and the like: damaged bytes
            reason = f"damaged ({error})"
        raise self._failure(file_name, reason)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror or error}); fetch it again") from None
    except Exception:  # zipfile raises many kinds for a damaged directory; all mean the same to the user
        raise DekrError(f"{path}: not a zip file, or cut short; fetch it again") from None


def picture_source(root: str | Path, split: str, data_format: str = "") -> Path:
    """The zip or folder that holds the pictures of a split.

    Args:
        data_format: `zip`, `jpg` for a plain folder, or empty for what is there (the zip first).
    Raises:
        DekrError: it is not there.
        ConfigError: the format is none of these.
    """
    folder = Path(root) / "images"
    choices = {"zip": folder / f"{split}.zip", "jpg": folder / split}
    if data_format and data_format not in choices:
        raise ConfigError(f"DATASET.DATA_FORMAT {data_format}: zip (images/{split}.zip) or jpg (images/{split}/)")
    wanted = [choices[data_format]] if data_format else list(choices.values())
    for path in wanted:
        if path.is_file() if path.suffix == ".zip" else path.is_dir():
            return path
    raise DekrError(f"{' or '.join(map(str, wanted))}: not there; put COCO's pictures there or set DATASET.ROOT")


def is_cut_short(data: bytes) -> bool:
    """Whether JPEG bytes end before their picture does. Decoders fill the rest with grey and say nothing.

    The end marker of an embedded thumbnail does not count: header segments are skipped by their length.
    """
    if not data.startswith(JPEG_START):
        return False
    scan = next((start for marker, start in _segments(data) if marker == JPEG_SCAN), None)
    return scan is None or JPEG_END not in data[scan:]


def picture_size(data: bytes) -> Size | None:
    """The size that a JPEG's or a PNG's header announces, without decoding it; `None` for everything else."""
    at = len(PNG_START) + 4  # behind the chunk's length
    if data.startswith(PNG_START):
        head, width, height = (data[start : start + 4] for start in (at, at + 4, at + 8))
        return Size(int.from_bytes(height, "big"), int.from_bytes(width, "big")) if head == PNG_HEAD else None
    return jpeg_size(data)


def jpeg_size(data: bytes) -> Size | None:
    """The size that a JPEG's header announces, without decoding it; `None` where it says nothing."""
    for marker, start in _segments(data):
        if marker in JPEG_FRAMES and start + 9 <= len(data):
            return Size(*(int.from_bytes(data[start + at : start + at + 2], "big") for at in (5, 7)))
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The segments of a JPEG's header up to its first scan: marker and position."""
    position = len(JPEG_START) if data.startswith(JPEG_START) else len(data)
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        yield marker, position
        if marker == JPEG_SCAN:
            return
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
