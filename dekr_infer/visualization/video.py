"""Write a video that every browser plays: H.264 in MP4, through PyAV, which is the extra `video`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dekr_infer.errors import DekrError
from dekr_infer.storage.atomic import atomic_write

QUALITY = {"crf": "20", "preset": "veryfast"}  # of x264: hardly any loss to be seen


def require_pyav() -> None:
    """Check that videos can be written.

    Raises:
        DekrError: PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError:
        raise DekrError(
            "drawing over a video needs PyAV; run pip install 'dekr-infer[video]', or add --no_overlays"
        ) from None


@contextmanager
def write_video(path: Path, rate: float, every: int = 1) -> Iterator[Callable[[np.ndarray, int], None]]:
    """Yield a function that adds a frame, (h, w, 3) uint8 BGR and its number; the file appears whole or not at all.

    Args:
        path: an MP4 file.
        rate: numbers a second; the frames come in the order of their numbers.
        every: usually, one frame comes for this many numbers.
    Raises:
        DekrError: the file cannot be written.
    """
    import av

    tick = 1 / Fraction(rate).limit_denominator(1001)
    stream: Any = None
    try:
        with atomic_write(path) as temporary:
            options = {"movflags": "faststart"}  # it plays while it still loads
            with av.open(str(temporary), "w", format="mp4", options=options) as file:

                def add(image: np.ndarray, number: int) -> None:
                    nonlocal stream
                    h, w = image.shape[:2]
                    if stream is None:
                        stream = file.add_stream("libx264", rate=1 / (tick * every), options=QUALITY)
                        stream.width, stream.height, stream.pix_fmt = w + w % 2, h + h % 2, "yuv420p"
                        stream.time_base = stream.codec_context.time_base = tick
                    # H.264 with colours at half size has even sides: the last row and column are repeated
                    even = cv2.copyMakeBorder(image, 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE)
                    frame = av.VideoFrame.from_ndarray(even, format="bgr24")
                    frame.pts, frame.time_base = number, tick
                    file.mux(stream.encode(frame))

                yield add
                if stream is not None:
                    file.mux(stream.encode())
    except av.error.FFmpegError as error:
        raise DekrError(f"{path}: cannot be written ({error.strerror}); check the disk, or add --no_overlays") from None
