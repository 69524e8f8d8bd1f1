"""Run one of Ascend's tools: show and keep its lines, turn its known errors into remedies, end it with the wrapper."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dekr_infer.errors import DekrError

KEPT = 2000  # lines that are searched for known errors
MOST_ANSWER = 1 << 22  # bytes that a short command may print
PATIENCE = 10  # seconds that an interrupted tool has to end
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LIBC = ctypes.CDLL(None)  # loaded here, because between fork and exec little may be done
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Ran(NamedTuple):
    """How a tool ended, and its last lines."""

    code: int
    lines: list[str]


def run_tool(command: Sequence[str]) -> Ran:
    """Run a tool to its end and show its output.

    Raises:
        DekrError: it cannot be started.
        KeyboardInterrupt: Ctrl-C or another signal to stop; the tool and everything that it started are stopped first.
    """
    process = None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the process is known here
    try:
        process = _start(command, mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        lines: deque[str] = deque(maxlen=KEPT)
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
        return Ran(process.wait(), list(lines))
    except BaseException:
        if process is not None:
            _stop(process)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def ask_tool(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Return the exit code of a short command and what it prints, on either stream.

    Args:
        command: to run.
        seconds: in which it must end.
        environment: variables that replace those of this process.
    Raises:
        DekrError: it cannot be started, does not end in time, or prints more than any answer has.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(environment or {}),
            start_new_session=True,
        )
    except OSError as error:
        raise DekrError(f"{command[0]}: cannot be started ({error.strerror}); check the installation") from None
    name, late = " ".join((os.path.basename(command[0]), *command[1:])), threading.Event()

    def stop() -> None:
        late.set()
        kill()

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):  # with its children, which hold the pipe open
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, stop)
    timer.start()
    with process:
        try:
            assert process.stdout is not None
            answer = process.stdout.read(MOST_ANSWER)
            if len(answer) == MOST_ANSWER:
                raise DekrError(f"{name}: prints without end")
            process.wait()
        finally:
            timer.cancel()
            kill()
    if late.is_set():
        raise DekrError(f"{name}: no answer in {seconds:g} s")
    return process.returncode, answer.decode(errors="replace")


def _start(command: Sequence[str], mask: Iterable[int]) -> subprocess.Popen[str]:
    def in_child() -> None:
        """Restore the signals, and be asked to end when the wrapper is killed, which then cannot stop the tool."""
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if hasattr(_LIBC, "prctl"):
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))

    try:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=in_child,
        )
    except OSError as error:
        raise DekrError(f"{command[0]}: cannot be started ({error.strerror}); check the installation") from None


def _stop(process: subprocess.Popen[str]) -> None:
    """End a tool and everything it started: asked first, then by force; a second Ctrl-C uses force at once."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)
    with contextlib.suppress(ProcessLookupError):  # its helpers may outlive it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def remedy(lines: Iterable[str], known: Mapping[str, str]) -> str:
    """Return the first of the known patterns that is in a tool's lines, and its remedy; empty if there is none.

    Args:
        lines: what the tool printed.
        known: remedies by regular expression; its order decides.
    """
    text = "\n".join(lines)
    found = ((re.search(pattern, text), helps) for pattern, helps in known.items())
    return next((f"{match[0]}: {helps}" for match, helps in found if match), "")
