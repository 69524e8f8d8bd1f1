"""Ctrl-C while a command is still importing what it needs, which takes seconds; itself it imports next to nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

INTERRUPTED = "interrupted; what was finished stays, run the same command again to go on"
SIGNAL_CODE = 128  # the shell's exit code for a signal is this and its number, so 130 for Ctrl-C


def answer_interrupts(name: str) -> None:
    """Until the work begins, Ctrl-C ends the process as it will then: one line, exit code 130.

    Args:
        name: the script's `__name__`; nothing is done when it is only imported, nor where Ctrl-C is ignored.
    """
    if name == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def begin_work() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt again, so that the work can clean up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, _frame: FrameType | None) -> None:
    """An exception would end in the middle of an import, where some are caught and others are dressed up."""
    with contextlib.suppress(OSError, AttributeError, ValueError):  # nobody may be listening
        sys.stderr.write(f"error: {INTERRUPTED}\n")
        sys.stderr.flush()
    os._exit(SIGNAL_CODE + number)
