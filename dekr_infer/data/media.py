"""Images, videos and cameras of one's own: which files the words of a command line mean, and their frames.

Images and videos are turned as their metadata say. COCO's images are another matter: see `data.sources`.
"""

from __future__ import annotations

import glob
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dekr_infer.data.images import bgr, read_image
from dekr_infer.errors import DekrError
from dekr_infer.geometry import InputSizes, Size
from dekr_infer.storage.atomic import open_regular
from dekr_infer.structures import Frame

IMAGE_SUFFIXES = {
    *(".avif", ".bmp", ".dib", ".exr", ".gif", ".hdr", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pfm", ".pgm"),
    *(".pic", ".png", ".pnm", ".ppm", ".ras", ".sr", ".tif", ".tiff", ".webp"),
    *(".heic", ".heif"),  # of telephones; OpenCV does not decode them, so they are reported
}
VIDEO_SUFFIXES = {
    *(
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".webm",
        ".wmv",
    ),
}
USUAL_RATE = 25.0  # frames a second, where a video or a camera names none
MISSING_FRAMES = 0.1  # of those that a video announces: containers count roughly, so only a larger part is damage
WORKING = "; save it again in another format, or check the file with a video player"


@dataclass(frozen=True)
class Source:
    """An image, a video or a camera.

    Args:
        name: as the user knows it.
        place: in the tree of results, relative; unlike that of every other source.
        camera: its number, instead of a file.
        rate: frames a second; `None` for an image.
        frames: how many to expect, of a video without those left out; `None` where nobody knows.
    """

    name: str
    place: Path
    camera: int | None = None
    rate: float | None = None
    frames: int | None = 1


@dataclass(frozen=True)
class MediaFrame(Frame):
    """A frame of a source.

    Args:
        number: of the frame in a video, from 0; a camera's go on while no frame is taken. `None` for an image.
    """

    source: Source = Source("", Path())
    number: int | None = None


Report = Callable[[str, DekrError], object]  # is called with a source's name and what is wrong with it


def find_sources(words: Sequence[str], report: Report, every: int = 1, leave_out: Path | None = None) -> list[Source]:
    """Return the images and videos that are meant by files, folders (with all below them) and glob patterns.

    Args:
        words: of the command line.
        report: called for what cannot be found or opened.
        every: of videos, one frame of this many will be taken.
        leave_out: a folder that is not searched, the one for results.
    """
    roots: list[str] = []
    files: dict[str, str] = {}  # names by absolute path, so that none comes twice
    for word in words:
        found = _files(word, report, leave_out)
        if os.path.isdir(word):
            roots.append(os.path.abspath(word))
            if not found:
                report(word, DekrError(f"{word}: holds no images and no videos; name another folder"))
        for name in found:
            files.setdefault(os.path.abspath(name), name)
            if not os.path.isdir(word):
                roots.append(os.path.dirname(os.path.abspath(name)))
    base = os.path.commonpath(roots) if roots else ""
    sources = []
    for path, name in files.items():
        place = Path(os.path.relpath(path, base))
        try:
            sources.append(_video(name, place, every) if is_video(name) else Source(name, place))
        except DekrError as error:
            report(name, error)
    return sources


def is_video(name: str) -> bool:
    """Return whether a file is read as a video."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def camera(number: int) -> Source:
    """Return a camera; its frames end when the caller stops taking them."""
    return Source(f"camera {number}", Path(f"camera_{number}"), number, USUAL_RATE, None)


def _files(word: str, report: Report, leave_out: Path | None) -> list[str]:
    if os.path.isdir(word):
        return list(_walk(word, report, leave_out))
    if os.path.lexists(word):
        return [word]
    found = [name for name in sorted(glob.glob(word, recursive=True)) if not os.path.isdir(name)]
    if not found:
        report(word, DekrError(f"{word}: no such file or folder, and no file has such a name; check the path"))
    return found


def _walk(folder: str, report: Report, leave_out: Path | None) -> Iterator[str]:
    """Yield the images and videos below a folder, by their suffixes; hidden ones are somebody's own business."""

    def unreadable(error: OSError) -> None:
        place = str(error.filename)
        report(place, DekrError(f"{place}: cannot be searched ({error.strerror}); check your rights"))

    spared = os.path.realpath(leave_out) if leave_out is not None else None
    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(f for f in folders if f[0] != "." and os.path.realpath(os.path.join(place, f)) != spared)
        for name in sorted(names):
            if name[0] != "." and Path(name).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
                yield os.path.join(place, name)


def _video(name: str, place: Path, every: int) -> Source:
    capture = _open(name)
    rate, count = (capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    usable = rate if math.isfinite(rate) and 0 < rate < 1000 else USUAL_RATE
    return Source(name, place, None, usable, -(-int(count) // every) if 0 < count < 2**31 else None)


def _open(source: str | int) -> cv2.VideoCapture:
    """Open a video or a camera."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its complaints come as one line of ours
    name = f"camera {source}" if isinstance(source, int) else source
    if isinstance(source, str):
        try:
            open_regular(Path(source)).close()
        except OSError as error:
            raise DekrError(f"{name}: cannot be read ({error.strerror}); check its name and your rights") from None
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        reason = "; check that it is connected and no other program uses it" if isinstance(source, int) else WORKING
        raise DekrError(f"{name}: cannot be opened{reason}")
    return capture


def frames_of_media(
    sources: Sequence[Source],
    input_sizes: InputSizes,
    report: Report,
    every: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[MediaFrame]:
    """Yield the frames of all sources, each decoded when it is asked for.

    Args:
        sources: of `find_sources` or `camera`.
        input_sizes: of the network.
        report: called for a source that cannot be read, or not to its end.
        every: of videos and cameras, yield one frame of this many.
        stopped: asked before each frame; ends everything.
    """
    number = 0  # of all frames, from 1: COCO's image ids
    for source in sources:
        try:
            for at, pixels in _pixels(source, every):
                if stopped():
                    return
                number += 1
                placement = input_sizes.place(Size(*pixels.shape[:2]))
                key = source.name if at is None else f"{source.name}#{at}"
                yield MediaFrame(key, placement, lambda pixels=pixels: pixels, source.name, number, source, at)  # type: ignore[misc]
        except DekrError as error:
            report(source.name, error)


def _pixels(source: Source, every: int) -> Iterator[tuple[int | None, np.ndarray]]:
    """Yield each frame's number and pixels."""
    if source.rate is None:
        yield None, read_image(Path(source.name))
        return
    capture = _open(source.name if source.camera is None else source.camera)
    number, count, started = 0, 0, time.monotonic()
    try:
        while capture.grab():
            done, pixels = capture.retrieve()
            if not done:
                break
            if source.camera is not None:
                number = max(number, round((time.monotonic() - started) * source.rate))
            yield number, bgr(pixels, source.name)
            count += 1
            number += 1
            for _ in range(every - 1):
                number += capture.grab()
    finally:
        capture.release()
    if not count:
        raise DekrError(f"{source.name}: no frame can be read{WORKING}")
    if source.frames is not None and count < (1 - MISSING_FRAMES) * source.frames - 1:
        raise DekrError(f"{source.name}: ends after {count * every} of {source.frames * every} frames{WORKING}")
