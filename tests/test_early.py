"""Ctrl-C while a command still imports: the one line and the exit code that it has later, and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from dekr_infer import early
from tests.place import ROOT, SCRIPTS

OTHERS = ("scripts/ascend.py", "scripts/check_atc.py", "scripts/draw_results.py", "scripts/random_checkpoint.py")
WORDS = {"scripts/ascend.py": ["tune", "--help"]}


def interrupted(script: str, module: str) -> tuple[int, list[str]]:
    """Send SIGINT once this module is imported; returns the exit code and what else stood on stderr."""
    words = [sys.executable, "-X", "importtime", str(ROOT / script), *WORDS.get(script, ["--help"])]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        if not line.startswith("import time:"):
            lines.append(line)
        elif line.split("|")[-1].strip() == module:
            process.send_signal(signal.SIGINT)
    return process.wait(), lines


@pytest.mark.parametrize(
    ("script", "module"),
    [
        *((script, module) for script in SCRIPTS.values() for module in ("numpy._globals", "yaml.tokens")),
        *((script, "numpy._globals") for script in OTHERS),
    ],
)
def test_a_command_that_still_imports_ends_with_one_line(script, module):
    assert interrupted(script, module) == (130, [f"error: {early.INTERRUPTED}\n"])


def test_a_module_that_is_only_imported_changes_nothing():
    before = signal.getsignal(signal.SIGINT)
    early.answer_interrupts("DEKR_preprocess")
    early.begin_work()
    assert signal.getsignal(signal.SIGINT) is before


def test_where_ctrl_c_is_ignored_it_stays_ignored():
    code = (
        "import signal; from dekr_infer import early; early.answer_interrupts('__main__'); early.begin_work();"
        "print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.stdout == "True\n"


def test_once_the_work_begins_it_is_an_exception_again(monkeypatch):
    handlers = {signal.SIGINT: signal.default_int_handler}
    monkeypatch.setattr(signal, "getsignal", handlers.get)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    early.answer_interrupts("__main__")
    assert handlers[signal.SIGINT] is early._end
    early.begin_work()
    assert handlers[signal.SIGINT] is signal.default_int_handler
