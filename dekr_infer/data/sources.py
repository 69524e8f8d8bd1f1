"""Where the images of a data set come from: a zip that is never unpacked, or a folder."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dekr_infer.data.coco import DataSet, ImageEntry
from dekr_infer.data.images import decode_image
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.geometry import InputSizes
from dekr_infer.storage.atomic import open_regular
from dekr_infer.structures import Frame

LARGEST_FILE = 1 << 28  # bytes of one encoded image; a small zip may announce far more


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
    folder = Path(root) / "images"
    choices = {"zip": folder / f"{split}.zip", "jpg": folder / split}
    if data_format and data_format not in choices:
        raise ConfigError(f"DATASET.DATA_FORMAT {data_format}: zip (images/{split}.zip) or jpg (images/{split}/)")
    wanted = [choices[data_format]] if data_format else list(choices.values())
    for path in wanted:
        if path.is_file() if path.suffix == ".zip" else path.is_dir():
            return path
    raise DekrError(f"{' or '.join(map(str, wanted))}: not there; put COCO's images there or set DATASET.ROOT")


class ImageFiles:
    """The encoded images of a split. Safe to read from several threads.

    Args:
        source: what `image_source` returned.
    """

    def __init__(self, source: Path, split: str) -> None:
        self.source, self.split = source, split
        self._zip = _open_zip(source) if source.suffix == ".zip" else None

    def missing(self, file_names: Sequence[str]) -> list[str]:
        """Return the names of the images that are not there."""
        if self._zip is None:
            return [name for name in file_names if not (self.source / name).is_file()]
        members = set(self._zip.namelist())
        return [name for name in file_names if f"{self.split}/{name}" not in members]

    def check_present(self, file_names: Sequence[str]) -> None:
        """Raise a `DekrError` that names the first missing image, where images are missing."""
        missing = self.missing(file_names)
        if missing:
            raise DekrError(
                f"{self.source}: {len(missing)} of {len(file_names)} images are missing, the first is {missing[0]}; "
                "download the images of this annotation file again"
            )

    def fingerprint(self, file_name: str) -> str:
        """Return an image's length and CRC-32, which are the same from a zip and from a folder.

        Raises:
            DekrError: the image is missing, or cannot be read.
        """
        if self._zip is None:
            data = self.read(file_name)
            length, checksum = len(data), zlib.crc32(data)
        else:
            member = self._member(self._zip, file_name)
            length, checksum = member.file_size, member.CRC
        return f"{length}-{checksum:08x}"

    def read(self, file_name: str) -> bytes:
        """Return an encoded image.

        Raises:
            DekrError: the image is missing, too large, encrypted, or fails the zip's checksum.
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

    def _member(self, archive: zipfile.ZipFile, file_name: str) -> zipfile.ZipInfo:
        try:
            return archive.getinfo(f"{self.split}/{file_name}")
        except KeyError:
            raise self._failure(file_name, "no such member") from None

    def _failure(self, file_name: str, reason: str) -> DekrError:
        return DekrError(f"{self.source}: {file_name}: {reason}; download this file again")


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
