"""Ctrl-C as at a terminal, also where the tests run in the background: a shell has it ignored there, by every child.

At the end, a line counts the faults, kills and fuzz cases that the commands were put through.
"""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support import counts

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

FAST = (  # the beginnings of what `pytest -m fast` runs below tests/
    "config/",
    "data/",
    "evaluation/test_coco_metrics.py",
    "model/test_deform.py",
    "model/test_model.py",
    "onnx_graph/",
    "pose/",
    "storage/",
    "test_docs.py",
    "test_geometry.py",
    "visualization/",
)


def _is_fast(path: Path) -> bool:
    return path.relative_to(Path(__file__).parent).as_posix().startswith(FAST)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare `pytest -m fast` the imports of all other test modules."""
    if config.option.markexpr != "fast" or collection_path.suffix != ".py" or _is_fast(collection_path):
        return None  # as pytest decides
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_fast(item.path) and not item.get_closest_marker("long"):
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
