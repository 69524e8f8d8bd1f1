"""Ctrl-C as at a terminal, also where the tests run in the background: a shell has it ignored there, by every child.

At the end, a line counts the faults, kills and fuzz cases that the commands were put through.
"""

import signal
from typing import Any

import pytest

from tests.support import counts

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

FAST = (  # folders and files below tests/ that `pytest -m fast` runs
    *("config/", "data/", "evaluation/test_coco_metrics.py", "model/", "onnx_graph/", "pose/", "storage/"),
    *("test_docs.py", "test_geometry.py", "visualization/"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(item.config.rootpath / "tests").as_posix().startswith(FAST):
            item.add_marker("fast")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if counts.DONE:
        terminalreporter.write_line(f"put through: {counts.summary()}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the counts of a worker of pytest-xdist to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counts"] = dict(counts.DONE)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    counts.DONE.update(getattr(node, "workeroutput", {}).get("counts", {}))
