"""Progress of long work: a bar when stderr is a terminal, otherwise a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

LINE_EVERY = 30.0  # seconds between plain lines


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
