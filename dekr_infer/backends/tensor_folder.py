"""Images -> tensor folders: the original and the flipped tensor of every image of a data set, over several threads.

OpenCV and file writing release Python's lock, so threads use all cores. A thread holds one image and one tensor at a
time, so memory does not grow with the data set.
"""

from __future__ import annotations

import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from dekr_infer.data.coco import DataSet, ImageEntry
from dekr_infer.data.images import decode_image
from dekr_infer.data.sources import ImageFiles
from dekr_infer.errors import DekrError
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size
from dekr_infer.pose.preprocess import as_uint8, mirror, moves_pixels, normalise, warp
from dekr_infer.storage import npy
from dekr_infer.storage.atomic import folder_lock, sha256, write_failure
from dekr_infer.storage.run_record import Entry, FileMark, Head, RunRecord, record_path

KIND = "tensors"  # of the record
ORIGINAL, FLIPPED = "original", "flipped"
OTHERS = "replace them with --overwrite and without --limit, delete this folder, or name another one"


@dataclass
class Summary:
    """What a run of preprocessing did."""

    images: int = 0
    done_before: int = 0
    written: int = 0  # bytes
    input_sizes: Counter[Size] = field(default_factory=Counter)  # of all images, done now or before


def write_tensors(
    data: DataSet,
    source: Path,
    folders: tuple[Path, Path],
    *,
    limit: int | None = None,
    input_sizes: InputSizes = PUBLISHED_SIZES,
    workers: int = 1,
    dtype: np.dtype = npy.DTYPE,
    overwrite: bool = False,
    replace_changed: bool = False,
    allow_missing: bool | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Write the original and the flipped tensor of every image that does not have both yet.

    Args:
        data: the data set.
        source: the zip or folder of images (`image_source`).
        folders: for the original and the flipped tensors; created when absent.
        limit: only the first so many images of the data set.
        input_sizes: what the network may be fed.
        workers: threads.
        dtype: of the tensors: normalised float32, or uint8 RGB for a graph that normalises.
        overwrite: write all tensors again.
        replace_changed: write the tensors of images that have changed again; by default such tensors are refused.
        allow_missing: see `ImageFiles.check_present`.
        advance: called with the number of images that have just been finished.
    Raises:
        DekrError: an image is missing, damaged or of another size, the folders hold tensors of other images or
            unknown ones, or a file cannot be written; finished tensors stay.
    """
    chosen = data.images[:limit]
    files = ImageFiles(source)
    absent = files.check_present([image.file_name for image in chosen], allow_missing)
    chosen = tuple(image for image in chosen if image.file_name not in absent)
    own = {image.stem + npy.SUFFIX for image in data.images}
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(folder_lock(folder))
            npy.refuse_foreign(folder, own, str(data.annotation))
        annotations, moved = sha256(data.annotation), moves_pixels()
        records = []
        for folder, which in zip(folders, (ORIGINAL, FLIPPED), strict=True):
            settings = {
                "pass": which,
                "input_sizes": str(input_sizes),
                "dtype": dtype.str,
                "moved_pixels": moved,
            }
            about = {"annotations": annotations, "opencv": [cv2.__version__]}
            records.append(RunRecord(record_path(folder), Head(KIND, settings, about)))
        replaced = {image.stem for image in chosen} if overwrite else set()
        for folder, record in zip(folders, records, strict=True):
            _refuse_unknown(folder, record, replaced)
        changed = _changed(data, files, records) - replaced
        if changed and not replace_changed:
            raise DekrError(
                f"{folders[0]}: {len(changed)} of its tensors were made of other images or with other settings, "
                f"the first is {min(changed)}{npy.SUFFIX}; {OTHERS}"
            )
        _remove(folders, records, changed | replaced)
        waiting = [image for image in chosen if not _is_done(image, folders, records)]
        for record in records:
            _merge_versions(record)
            stack.enter_context(record)
        summary = Summary(
            len(chosen),
            len(chosen) - len(waiting),
            input_sizes=Counter(input_sizes.place(image.size).input for image in chosen),
        )
        advance(summary.done_before)
        with _converted(waiting, Converter(files, folders, dtype, input_sizes), workers) as finished:
            for image, fingerprint, marks in finished:
                inputs = {"image": fingerprint, "file_name": image.file_name}
                for record, mark in zip(records, marks, strict=True):
                    record.add(Entry(image.stem, inputs, {image.stem + npy.SUFFIX: mark}))
                summary.written += sum(mark.size for mark in marks)
                advance(1)
    return summary


def _merge_versions(record: RunRecord) -> None:
    """Keep the OpenCV versions of tensors that stay."""
    if record.earlier and record.entries:
        earlier = record.earlier.head.about.get("opencv", [])
        record.head.about["opencv"] = sorted({*earlier, *record.head.about["opencv"]})


def _refuse_unknown(folder: Path, record: RunRecord, replaced: Set[str]) -> None:
    """Raise a `DekrError` where tensors that would stay have been recorded by no run."""
    found = npy.names_in(folder) - {stem + npy.SUFFIX for stem in replaced}
    if record.earlier is None and found:
        raise DekrError(f"{folder}: holds {len(found)} unrecorded tensors, the first is {min(found)}; {OTHERS}")


def _changed(data: DataSet, files: ImageFiles, records: Sequence[RunRecord]) -> set[str]:
    """Return the stems of recorded tensors whose image, or whose settings, are not those of today."""
    names = {image.stem: image.file_name for image in data.images}
    for record in records:
        record.drop(record.entries.keys() - names.keys())
    if any(record.has_other_settings for record in records):
        return {stem for record in records for stem in record.entries}
    noted = {(stem, entry.inputs.get("image")) for record in records for stem, entry in record.entries.items()}
    today = {stem: files.fingerprint(names[stem]) for stem in {stem for stem, _ in noted}}
    return {stem for stem, fingerprint in noted if fingerprint != today[stem]}


def _remove(folders: Sequence[Path], records: Sequence[RunRecord], stems: set[str]) -> None:
    """Delete tensors and their entries, so that an interrupted run cannot leave stale ones."""
    for folder, record in zip(folders, records, strict=True):
        record.drop(stems)
        for stem in stems:
            path = folder / (stem + npy.SUFFIX)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise DekrError(write_failure(path, error)) from None


def _is_done(image: ImageEntry, folders: Sequence[Path], records: Sequence[RunRecord]) -> bool:
    return all(
        image.stem in record.entries and record.holds_files(image.stem, folder)
        for folder, record in zip(folders, records, strict=True)
    )


@contextmanager
def _converted(
    images: Sequence[ImageEntry], converter: Converter, workers: int
) -> Iterator[Iterator[tuple[ImageEntry, str, list[FileMark]]]]:
    """Yield an iterator over finished images: entry, fingerprint of the image, marks of both tensors.

    On an error or an interrupt the images under way are finished, and no others are begun.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one for each of ours
    pool = ThreadPoolExecutor(workers)
    try:
        futures = [pool.submit(converter, image) for image in images]
        yield (future.result() for future in as_completed(futures))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        cv2.setNumThreads(threads)


class Converter:
    """Makes both tensors of an image; safe to call from several threads, each of which has its own buffers."""

    def __init__(
        self,
        files: ImageFiles,
        folders: tuple[Path, Path],
        dtype: np.dtype = npy.DTYPE,
        input_sizes: InputSizes = PUBLISHED_SIZES,
    ) -> None:
        self.files, self.folders, self.dtype, self.input_sizes = files, folders, dtype, input_sizes
        self._local = threading.local()

    def __call__(self, image: ImageEntry) -> tuple[ImageEntry, str, list[FileMark]]:
        """Return the image, the fingerprint of the bytes that were read, and the marks of both tensors."""
        data = self.files.read(image.file_name)
        fingerprint = f"{len(data)}-{zlib.crc32(data):08x}"
        pixels = decode_image(data, f"{self.files.source}: {image.file_name}", image.size)
        warped = warp(pixels, self.input_sizes.place(image.size).input)
        marks = [
            npy.write(folder, image.stem + npy.SUFFIX, self._tensor(view), self.dtype)
            for folder, view in zip(self.folders, (warped, mirror(warped)), strict=True)
        ]
        return image, fingerprint, marks

    def _tensor(self, warped: np.ndarray) -> np.ndarray:
        if self.dtype == npy.UINT8:
            return as_uint8(warped)
        return normalise(warped, self._buffer(Size(*warped.shape[:2])))

    def _buffer(self, input_size: Size) -> np.ndarray:
        buffers: dict[Size, np.ndarray] = self._local.__dict__.setdefault("buffers", {})
        if input_size not in buffers:
            buffers[input_size] = np.empty((1, 3, *input_size), np.float32)
        return buffers[input_size]


def input_size_table(counts: Counter[Size], input_sizes: InputSizes = PUBLISHED_SIZES) -> str:
    """Return how many images each input size got, as one line: `512x768: 41, ...` (height x width)."""
    listed = sorted(counts) if input_sizes.exact else input_sizes
    return ", ".join(f"{input_size}: {counts[input_size]}" for input_size in listed)
