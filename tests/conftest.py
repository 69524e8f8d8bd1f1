"""Ctrl-C as at a terminal, also where the tests run in the background: a shell has it ignored there, by every child.

At the end, a line tells how many faults, kills and fuzz cases the commands were put through.
"""

import signal

import pytest

from tests.support import counts

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if counts.DONE:
        terminalreporter.write_line(f"put through: {counts.summary()}")
