"""The errors that users see: one line each, with the file and the remedy, and an exit code."""

from __future__ import annotations

NO_THREADS = "no further thread or process can be started; raise the limit (ulimit -u) or use fewer"


class DekrError(Exception):
    """The work failed (data, model, a failed check): exit code 1."""

    exit_code = 1


class ConfigError(DekrError):
    """The command line or the configuration is wrong: exit code 2."""

    exit_code = 2


def one_line(text: str) -> str:
    r"""Return a text from a file as it may be printed: without line breaks, control characters escaped.

    >>> print(one_line("a\n b\x1b[2J"))
    a b\x1b[2J
    """
    shown = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def excerpt(value: object, length: int = 80) -> str:
    """Return the beginning of a value from a file, for a line; JSON may be nested deeper than Python prints."""
    try:
        return str(value)[:length]
    except RecursionError:
        return "nested too deep to print"
