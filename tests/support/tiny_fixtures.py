"""Fixtures around the tiny network; see `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.support.tiny_models import Tiny, make_tiny


@contextmanager
def single_thread() -> Iterator[None]:
    """On maps this small, several threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    with single_thread():
        return make_tiny(tmp_path_factory.mktemp("tiny"))
