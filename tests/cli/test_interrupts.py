"""Ctrl-C while a command still imports: the one line and the exit code that it has later, and no traceback."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dekr_infer import launch
from dekr_infer.launch import INTERRUPTED
from tests.support.workspace import ROOT, SCRIPTS

OTHERS = ("scripts/ascend.py", "scripts/check_atc.py", "scripts/draw_results.py", "scripts/random_checkpoint.py")
WORDS = {"scripts/ascend.py": ["tune_npu", "--help"]}


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
    assert interrupted(script, module) == (130, [f"error: {INTERRUPTED}\n"])


def test_a_script_that_is_only_imported_changes_no_handler():
    before = signal.getsignal(signal.SIGINT)
    importlib.import_module("DEKR_preprocess")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_command_called_from_python_changes_no_handler():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        launch.launch("check_atc", ["--help"])
    assert signal.getsignal(signal.SIGINT) is before


def test_where_ctrl_c_is_ignored_it_stays_ignored(monkeypatch):
    handlers = {signal.SIGINT: signal.SIG_IGN}
    monkeypatch.setattr(signal, "getsignal", handlers.get)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(launch.importlib, "import_module", lambda name: SimpleNamespace(main=lambda argv: 0))
    assert launch.launch("atc") == 0 and handlers == {signal.SIGINT: signal.SIG_IGN}


def test_ctrl_c_is_an_exception_again_once_the_command_runs(monkeypatch):
    handlers = {signal.SIGINT: signal.default_int_handler}
    monkeypatch.setattr(signal, "getsignal", handlers.get)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)

    def imported(name: str) -> SimpleNamespace:
        assert handlers[signal.SIGINT] is launch._end
        return SimpleNamespace(main=lambda argv: handlers[signal.SIGINT] is signal.default_int_handler)

    monkeypatch.setattr(launch.importlib, "import_module", imported)
    assert launch.launch("atc") is True


@pytest.mark.parametrize("code", [130, 1])
def test_an_interrupted_command_does_not_wait_for_a_stuck_thread_but_one_that_failed_does(code):
    program = f"""
import sys, threading, time, types
from dekr_infer import launch

def main(argv):
    threading.Thread(target=lambda: (time.sleep(1.5), print("done", flush=True))).start()
    print("out")
    return {code}

sys.modules["dekr_infer.cli.stuck"] = types.SimpleNamespace(main=main)
launch.COMMANDS["stuck"] = ("cli.stuck", "")
sys.exit(launch.launch("stuck"))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "out\n" if code == 130 else "out\ndone\n"), done.stderr
