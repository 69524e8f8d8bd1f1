"""Run one of Ascend's tools: its lines are shown as they come and kept, and its known errors become remedies."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dekr_infer.cli.app import defer_signals
from dekr_infer.errors import DekrError

KEPT = 2000  # lines: what is looked through for errors
PATIENCE = 10  # seconds that an interrupted tool has to end
_LIBC = ctypes.CDLL(None)  # loaded here, because between fork and exec little may be done
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Ran(NamedTuple):
    """How a tool ended, and its last lines."""

    code: int
    lines: list[str]


def run_tool(command: Sequence[str], cwd: Path | None = None) -> Ran:
    """Run it to its end, showing its output.

    Raises:
        DekrError: it cannot be started.
        KeyboardInterrupt: Ctrl-C or another signal to stop; the tool and all it started are stopped first.
    """
    process = None
    lines: deque[str] = deque(maxlen=KEPT)
    try:
        with defer_signals():
            process = _start(command, cwd)
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
        return Ran(process.wait(), list(lines))
    except BaseException:
        if process is not None:
            _stop(process)
        raise


def _start(command: Sequence[str], cwd: Path | None) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_end_with_parent if hasattr(_LIBC, "prctl") else None,
        )
    except OSError as error:
        raise DekrError(f"{command[0]}: cannot be started ({error.strerror}); check the installation") from None


def _end_with_parent() -> None:
    """In the child: be asked to end when the parent is killed, which then can stop nobody itself."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _stop(process: subprocess.Popen[str]) -> None:
    """End a tool and all it started: first asked, then forced; one more Ctrl-C forces at once."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)
    with contextlib.suppress(ProcessLookupError):  # its helpers may outlive it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def remedy(lines: Iterable[str], known: Mapping[str, str]) -> str:
    """The first of the known patterns that a tool printed, in the mapping's order, and what helps; empty: none."""
    text = "\n".join(lines)
    found = ((re.search(pattern, text), helps) for pattern, helps in known.items())
    return next((f"{match[0]}: {helps}" for match, helps in found if match), "")
