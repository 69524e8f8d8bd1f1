"""The fixtures that several folders share, the `fast` marker, and a last line that counts faults, kills and fuzz cases.

Ctrl-C works as at a terminal also where the tests run in the background, where a shell makes every child ignore it.
Libraries read the environment of a launched command, whichever test comes first: one thread of OpenBLAS sums otherwise
than two.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dekr_infer.launch import ENVIRONMENT

os.environ.update(ENVIRONMENT)

import onnx
import pytest

from tests.support import counts
from tests.support.ascend_host import Host
from tests.support.coco_files import COCO_MINI
from tests.support.tiny_models import Tiny, make_tiny, single_thread, toy_model

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
    """Skip the imports of all other test modules in `pytest -m fast`."""
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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run torch on one thread."""
    with single_thread():
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny network with its checkpoint and its exported graph."""
    with single_thread():
        return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of ten drawn images in all five input sizes: 22 people, nobody in one image."""
    from scripts.demo import people

    root = tmp_path_factory.mktemp("drawn")
    people.write_data_set(root, "val2017", 10, seed=3)
    return root


@pytest.fixture
def root(which: str, drawn: Path) -> Path:
    """The folder of the drawn or of the real data set; see `DRAWN_AND_REAL`."""
    return drawn if which == "drawn" else COCO_MINI


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with an NPU, the CANN toolkit below the home folder, and a toy graph, net.onnx, in its folder."""
    host = Host(tmp_path, "npu-smi")
    host.install_toolkit()
    onnx.save(toy_model(), host.folder / "net.onnx")
    return host
