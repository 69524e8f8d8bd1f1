"""Where the images of a data set come from: a zip that is never unpacked, or a folder."""

from __future__ import annotations

import logging
import os
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from dekr_infer.data.coco import CROWD_FOLDER, DataSet, ImageEntry, annotation_path
from dekr_infer.data.images import decode_image
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.geometry import InputSizes
from dekr_infer.storage.atomic import open_regular
from dekr_infer.structures import Frame

LARGEST_FILE = 1 << 28  # bytes of one encoded image; a small zip may announce far more
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # methods; the others give whatever a member unpacks to at once
UTF8_NAME = 0x800  # flag of a member whose name is UTF-8

TEST_IMAGES = {"test-dev2017": "test2017"}  # by the name of their annotation file: part of another split's images

_log = logging.getLogger(__name__)


def image_choices(root: str | Path, split: str) -> dict[str, Path]:
    """Return where the images of a split may be, by DATASET.DATA_FORMAT: the zip, then the plain folder."""
    folder, name = Path(root) / "images", TEST_IMAGES.get(split, split)
    if annotation_path(root, split).parent.name == CROWD_FOLDER:
        folder, name = Path(root), "images"  # as CrowdPose has them
    return {"zip": folder / f"{name}.zip", "jpg": folder / name}


def image_source(root: str | Path, split: str, data_format: str = "") -> Path:
    """Find the zip or folder that holds the images of a split.

    Args:
        root: the COCO folder.
        split: for example `val2017`.
        data_format: `zip`, `jpg` for a plain folder, or empty for whichever exists (the zip first).
    Raises:
        DekrError: neither exists.
        ConfigError: the format is none of these.
    """
    choices = image_choices(root, split)
    if data_format and data_format not in choices:
        zipped, plain = (path.relative_to(root) for path in choices.values())
        raise ConfigError(f"DATASET.DATA_FORMAT {data_format}: zip ({zipped}) or jpg ({plain}/)")
    wanted = [choices[data_format]] if data_format else list(choices.values())
    for path in wanted:
        if path.is_file() if path.suffix == ".zip" else path.is_dir():
            return path
    raise DekrError(f"{' or '.join(map(str, wanted))}: not there; put COCO's images there or set DATASET.ROOT")


class ImageFiles:
    """The encoded images of a split. Safe to read from several threads.

    An image is looked for where COCO has it: `<name of the zip>/<file name>` in the zip, `<file name>` in the folder.
    If it is not there, it is taken from another path that ends alike, if there is just one: see `_Index`.

    Args:
        source: what `image_source` returned.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self._zip = _open_zip(source) if source.suffix == ".zip" else None
        self._members = {info.filename: info for info in self._zip.infolist()} if self._zip else {}
        self._elsewhere: _Index | None = None
        self._lock = threading.Lock()

    def _missing(self, file_names: Sequence[str]) -> list[str]:
        """Return the names of the images that are not there; log where images are found under other paths."""
        places = {name: self._place(name) for name in file_names}
        moved = [(name, place) for name, place in places.items() if place not in (None, self._usual(name))]
        if moved:
            name, place = moved[0]
            _log.warning(
                "%s: %d of %d images are under other paths and taken from there, the first is %s instead of %s",
                *(self.source, len(moved), len(places), place, self._usual(name)),
            )
        return [name for name, place in places.items() if place is None]

    def check_present(self, file_names: Sequence[str], allow_missing: bool | None = None) -> set[str]:
        """Check that images are there.

        Args:
            file_names: of the images.
            allow_missing: whether only some need to be there; `None` where a command has no such flag.
        Returns:
            The names of the images that are missing and allowed to be.
        Raises:
            DekrError: images are missing, or could be any of several files.
        """
        missing = self._missing(file_names)
        if missing and (not allow_missing or len(missing) == len(file_names)):
            there = self._paths()
            found = f"{len(there)} files, the first is {there[0]}" if there else "no files"
            remedy = "" if allow_missing is None else ", or add --allow_missing to do without them"
            raise DekrError(
                f"{self.source}: {len(missing)} of {len(file_names)} images are missing, the first is {missing[0]}; "
                f"looked for {self._usual(missing[0])}, found {found}; download the images of this annotation file "
                f"again{remedy}"
            )
        return set(missing)

    def _usual(self, file_name: str) -> str:
        """Return the path where COCO has an image."""
        return f"{self.source.stem}/{file_name}" if self._zip else file_name

    def _place(self, file_name: str) -> str | None:
        """Return the path of an image below the source; `None` where it is not there."""
        usual = self._usual(file_name)
        if usual in self._members if self._zip else (self.source / usual).is_file():
            return usual
        with self._lock:
            if self._elsewhere is None:
                self._elsewhere = _Index(self._paths(), self._members)
        found = self._elsewhere.find(file_name)
        if len(found) > 1:
            raise DekrError(
                f"{self.source}: {file_name}: {usual} is not there, and {len(found)} files could be meant, such as "
                f"{found[0]} and {found[1]}; move the right one to {usual}"
            )
        return found[0] if found else None

    def _paths(self) -> list[str]:
        """Return the paths of all files of the source."""
        if self._zip:
            return [path for path, info in self._members.items() if not info.is_dir()]
        return [
            os.path.relpath(os.path.join(folder, name), self.source)
            for folder, _, names in sorted(os.walk(self.source))
            for name in sorted(names)
        ]

    def fingerprint(self, file_name: str) -> str:
        """Return an image's length and CRC-32, which are the same from a zip and from a folder.

        Raises:
            DekrError: the image is missing, or cannot be read.
        """
        if self._zip is None:
            data = self.read(file_name)
            length, checksum = len(data), zlib.crc32(data)
        else:
            member = self._members[self._found(file_name)]
            length, checksum = member.file_size, member.CRC
        return f"{length}-{checksum:08x}"

    def read(self, file_name: str) -> bytes:
        """Return an encoded image.

        Raises:
            DekrError: the image is missing, too large, encrypted, or fails the zip's checksum.
        """
        try:
            if self._zip is None:
                with open_regular(self.source / self._found(file_name)) as file:
                    size = os.fstat(file.fileno()).st_size
                    if size <= LARGEST_FILE:
                        return file.readall()
            else:
                member = self._members[self._found(file_name)]
                size = member.file_size
                if member.compress_type not in BOUNDED:
                    raise self._failure(file_name, "is packed by another method than deflate", "pack the zip again")
                if size <= LARGEST_FILE:
                    with self._zip.open(member) as unpacked:
                        return unpacked.read(size + 1)  # bounds what is unpacked; the checksum is looked at, too
            reason = f"announces {size:,} bytes, which no image has"
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

    def decode(self, image: ImageEntry) -> np.ndarray:
        """Return an image of the data set: (h, w, 3) uint8 BGR.

        Raises:
            DekrError: the image is missing, damaged, or of another size than annotated.
        """
        return decode_image(self.read(image.file_name), f"{self.source}: {image.file_name}", image.size)

    def _found(self, file_name: str) -> str:
        place = self._place(file_name)
        if place is None:
            raise self._failure(file_name, "is not there")
        return place

    def _failure(self, file_name: str, reason: str, remedy: str = "download this file again") -> DekrError:
        return DekrError(f"{self.source}: {file_name}: {reason}; {remedy}")


class _Index:
    """Finds images whose path is not COCO's: in other folders or none, with backslashes, in another case or encoding.

    Args:
        paths: of all files.
        members: of a zip, by path; their flags tell the encoding of their names.
    """

    def __init__(self, paths: Sequence[str], members: Mapping[str, zipfile.ZipInfo]) -> None:
        self._by_name: dict[str, list[tuple[list[str], str]]] = {}
        for path in paths:
            info = members.get(path)
            parts = _parts(path if info is None else _decoded(info))
            self._by_name.setdefault(parts[-1], []).append((parts, path))

    def find(self, file_name: str) -> list[str]:
        """Return the paths that end as a file name does: in as many parts as any path has in common with it."""
        wanted = _parts(file_name)
        candidates = [(_common_end(parts, wanted), path) for parts, path in self._by_name.get(wanted[-1], [])]
        most = max((common for common, _ in candidates), default=0)
        return [path for common, path in candidates if common == most]


def _parts(path: str) -> list[str]:
    """Return a path's parts as they are compared."""
    plain = unicodedata.normalize("NFC", path.replace("\\", "/")).casefold()
    return list(PurePosixPath(plain).parts) or [""]


def _common_end(parts: Sequence[str], others: Sequence[str]) -> int:
    pairs = zip(reversed(parts), reversed(others), strict=False)
    return next((index for index, (part, other) in enumerate(pairs) if part != other), min(len(parts), len(others)))


def _decoded(info: zipfile.ZipInfo) -> str:
    """Return a member's path. Without a flag zipfile takes its bytes for code page 437; most tools write UTF-8."""
    if not info.flag_bits & UTF8_NAME:
        try:
            return info.filename.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return info.filename


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror or error}); download it again") from None
    except Exception:  # zipfile raises many kinds for a damaged directory; all mean the same to the user
        raise DekrError(f"{path}: not a zip file, or cut short; download it again") from None


def frames_of(data: DataSet, input_sizes: InputSizes, files: ImageFiles | None = None) -> list[Frame]:
    """Return the data set's images as frames, in the order of the annotation file.

    Args:
        data: the data set.
        input_sizes: what the network may be fed.
        files: their source; without one the frames cannot be decoded, as outputs on the disk do not need it.
    """

    def frame(image: ImageEntry) -> Frame:
        def read() -> np.ndarray:
            if files is None:
                raise DekrError(f"{image.file_name}: the images of this data set are not open")
            return files.decode(image)

        return Frame(image.stem, input_sizes.place(image.size), read, image.file_name, image.id)

    return [frame(image) for image in data.images]
