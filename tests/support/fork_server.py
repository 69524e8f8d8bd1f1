"""Starts commands at once: everything is imported a single time, and each command runs in a fork of this process.

Reads lines of JSON, [folder, log file, stage, words...], and answers each with the fork's process id, then, when it
has ended, with its exit code, which is below zero for a signal. A fork leads a session of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


class Running(NamedTuple):
    """A command that was started."""

    pid: int
    zygote: Zygote
    log: Path

    def end(self) -> tuple[int, str]:
        """Wait for it: exit code and what it printed."""
        code = int(self.zygote.line())
        self.zygote.running = None
        return code, self.log.read_text()


class Zygote:
    """The process that forks, seen from a test."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.running: Running | None = None
        assert self.line() == "ready"

    def line(self) -> str:
        """The next line of its answer."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, folder: Path, log: Path, stage: str, words: list[str]) -> Running:
        """Start a command."""
        self._end_forgotten()
        log.write_text("")  # a command killed before it opens it would seem to have said what the one before said
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(folder), str(log), stage, *words]) + "\n")
        self.process.stdin.flush()
        self.running = Running(int(self.line()), self, log)
        return self.running

    def _end_forgotten(self) -> None:
        """Kill a command that a failed test did not wait for: its exit code would be taken for the next process id."""
        if self.running is not None:
            with suppress(ProcessLookupError):  # it has ended already
                os.kill(self.running.pid, signal.SIGKILL)
            self.running.end()

    def close(self) -> None:
        """End it."""
        self._end_forgotten()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def serve() -> None:
    """The loop of the process itself."""
    import torch

    from tests.support.workspace import main_of

    torch.set_num_threads(1)
    main_of("export")
    print("ready", flush=True)
    for line in sys.stdin:
        folder, log, stage, *words = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _command(folder, log, stage, words)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _command(folder: str, log: str, stage: str, words: list[str]) -> None:
    from dekr_infer.launch import SIGNAL_CODE
    from tests.support.workspace import main_of

    code = SIGNAL_CODE + signal.SIGINT  # also when the signal comes before the command has begun
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(handle, descriptor)
        code = main_of(stage)(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is over
        atexit._run_exitfuncs()  # as at the end of any process: multiprocessing clears up there
        os._exit(code)


if __name__ == "__main__":
    serve()
