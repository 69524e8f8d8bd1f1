"""Progress of long work: a bar when stderr is a terminal, otherwise a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

LINE_EVERY = 30.0  # seconds between plain lines


def duration(seconds: float) -> str:
    """Return a time for a line: `45 s`, `12 min` or `2 h 19 min`.

    >>> duration(8340)
    '2 h 19 min'
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a function to be called with the number of images just finished; `total` may be unknown."""
    if sys.stderr.isatty():
        with tqdm(total=total, desc=label, unit="image") as bar:
            yield lambda count: bar.update(count) and None
        return
    done, started, shown = 0, time.monotonic(), time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        now = time.monotonic()
        if now - shown >= LINE_EVERY:
            shown = now
            print(
                f"{label}: {done}{f' of {total}' if total is not None else ''} images, {now - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    yield advance
