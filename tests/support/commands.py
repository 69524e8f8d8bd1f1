"""Run a command in this process, and check how it was refused."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest

from dekr_infer.errors import DekrError


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run_command(main: Callable[[Sequence[str]], int], *words: object) -> Ran:
    """A command's `main` with these words, its output caught; argparse's way out counts as well."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return Ran(code, out.getvalue(), err.getvalue())


def assert_refused(ran: Ran, code: int, *parts: str) -> None:
    """It ended with this exit code and one line on stderr that starts with `error: ` and holds the parts."""
    assert ran.code == code, ran
    assert ran.err.startswith("error: ") and ran.err.endswith("\n") and ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err + ran.out
    for part in parts:
        assert part in ran.err, ran.err


def error_of(function: Callable[..., object], *arguments: object) -> str:
    """Return the message, one line, of the DekrError that a call raises."""
    with pytest.raises(DekrError) as caught:  # the callers check the message
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
