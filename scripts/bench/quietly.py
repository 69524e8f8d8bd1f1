"""Running one of the project's commands inside a measurement."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

from dekr_infer.cli.app import Arguments
from dekr_infer.errors import DekrError


def quietly(command: Callable[[Arguments], int], *words: object) -> None:
    """Run a command's `main` without its output.

    Raises:
        DekrError: it failed; its own message stands on stderr.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        code = command([str(word) for word in words])
    if code:
        raise DekrError(f"{command.__module__} failed; see its message above")
