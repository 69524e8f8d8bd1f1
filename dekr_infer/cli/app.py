"""What all commands share: the form of the command line, and errors as one line with an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from tqdm import tqdm
from yacs.config import CfgNode

from dekr_infer.config.load import load_config
from dekr_infer.errors import NO_THREADS, DekrError, one_line
from dekr_infer.launch import INTERRUPTED, NO_MEMORY, SIGNAL_CODE
from dekr_infer.model.weights import NOTES

MOST_DEVICE = 255  # ais_bench takes none above it
MOST_PARALLEL = 1024  # threads; more than any machine has, fewer than one breaks down under


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that ends with the default of a flag, unless its text tells the default in words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_value = isinstance(action.default, (str, int, float, Path)) and not isinstance(action.default, bool)
        shown = has_value and action.default != argparse.SUPPRESS and action.option_strings and "default" not in text
        return f"{text} (default: %(default)s)" if shown else text


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like every other error: one `error:` line, exit code 2."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False)

    def error(self, message: str) -> None:  # type: ignore[override]
        """Print the error line and exit with code 2."""
        self.exit(2, f"error: {message}; see --help\n")


def add_config(parser: Parser) -> None:
    """Add `--cfg` and the KEY VALUE pairs after the flags."""
    parser.add_argument("--cfg", metavar="FILE", help="YAML file in upstream's form (default: HRNet-W32 on COCO)")
    parser.add_argument(
        "pairs", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings, e.g. DATASET.ROOT data/coco"
    )


def split_words(argv: Arguments) -> tuple[list[str], list[str]]:
    """Split a command line at `--`: the command's own words, and the words for the tool that it runs.

    Args:
        argv: without the command's name; `None` takes the words from the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def add_category(parser: Parser) -> None:
    """Add `--category`, for annotation files in which several categories have keypoints."""
    parser.add_argument("--category", metavar="NAME", help="the people's category, where several have keypoints")


def add_report(parser: Parser) -> None:
    """Add `--report`, for the commands that evaluate."""
    parser.add_argument(
        "--report", type=html_file, metavar="FILE.html", help="also write what scripts/report.py writes about this run"
    )


def print_warnings(warnings: Mapping[str, str]) -> None:
    """Print warnings by name on stderr, one line each."""
    for warning in warnings.values():
        print(f"warning: {one_line(warning)}", file=sys.stderr)


def print_note(weights: str | None) -> None:
    """Print a line that tells random or demo weights from trained ones."""
    if weights in NOTES:
        print(NOTES[weights], flush=True)


def config_of(args: argparse.Namespace) -> CfgNode:
    """Return the frozen configuration of `--cfg` and the pairs."""
    return load_config(args.cfg, args.pairs)


def positive_int(text: str) -> int:
    """Parse a whole number from 1 on, of at most 31 bits (an argument type)."""
    return _within(text, 1, 2**31 - 1)


def html_file(text: str) -> Path:
    """Parse the name of a report (an argument type); a JSON file gets the same name with its own ending."""
    path = Path(text)
    if path.suffix != ".html":
        raise argparse.ArgumentTypeError(f"{text} does not end in .html")
    return path


def share_of_one(text: str) -> float:
    """Parse a number from 0 to 1 (an argument type)."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def worker_count(text: str) -> int:
    """Parse a number of threads (an argument type)."""
    return _within(text, 1, MOST_PARALLEL)


def non_negative_int(text: str) -> int:
    """Parse a whole number from 0 on, of at most 32 bits (an argument type)."""
    return _within(text, 0, 2**32 - 1)


def add_devices(parser: Parser) -> None:
    """Add `--device`, for models of NPUs."""
    parser.add_argument("--device", type=_devices, metavar="N[,N]", help="NPUs, for a model of theirs (default: 0)")


def _devices(text: str) -> list[int]:
    numbers = [_within(part, 0, MOST_DEVICE) for part in text.split(",")]
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text} names a device twice")
    return numbers


def _within(text: str, least: int, most: int) -> int:
    value = int(text)
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} to {most}")
    return value


def yes_no(text: str) -> bool:
    """Parse yes or no in any of the spellings that ais_bench takes (an argument type)."""
    word = text.lower()
    if word in ("yes", "true", "t", "y", "1"):
        return True
    if word in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text} is neither yes nor no")


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


class Stopped(KeyboardInterrupt):
    """The process received a termination signal other than Ctrl-C's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise `Stopped` on SIGTERM and SIGHUP, to clean up as after Ctrl-C; ignored signals (nohup) stay ignored."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    replaced = []
    if threading.current_thread() is threading.main_thread():  # Python allows signal handlers there only
        replaced = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    try:
        for number in replaced:
            signal.signal(number, stop)
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _keep_interrupts() -> Iterator[None]:
    """Send an interruption again that struck in a finaliser, where Python prints the exception and drops it."""

    def again(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            before(lost)
            return
        number = lost.exc_value.number if isinstance(lost.exc_value, Stopped) else signal.SIGINT
        timer = threading.Timer(0.01, os.kill, (os.getpid(), number))  # raised from here, it would be dropped, too
        timer.daemon = True
        waiting.append((timer, number))
        timer.start()

    waiting: list[tuple[threading.Timer, int]] = []
    before = sys.unraisablehook
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before
        late = [(timer, number) for timer, number in waiting if not timer.finished.is_set()]
        for timer, _ in late:
            timer.cancel()
    if late:
        raise Stopped(late[0][1])  # the work has ended before its interruption could be sent again


class _PrintWarnings(logging.Handler):
    """Prints what the package logs, one line each, between the updates of progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"warning: {one_line(record.getMessage())}", file=sys.stderr)


_print_warnings = _PrintWarnings(logging.WARNING)


def run(work: Callable[[], None]) -> int:
    """Run a command's work; report expected failures as one line on stderr.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong configuration, 130 interrupted, 143 terminated, 129 hung up.
    """
    _open_streams()
    logging.getLogger("dekr_infer").addHandler(_print_warnings)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path need not be text
    try:
        with raise_on_sigterm(), _keep_interrupts():
            work()
            _flush_stdout()
    except DekrError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else int(signal.SIGINT)
        return _fail(INTERRUPTED, SIGNAL_CODE + number)
    except BrokenPipeError:
        _drop_stdout()
        return 1
    except MemoryError:
        return _fail(NO_MEMORY, 1)
    except RuntimeError as error:
        if "start new thread" not in str(error):  # CPython's words; it has no exception of its own for this
            raise
        return _fail(NO_THREADS, 1)
    except OSError as error:
        _drop_stdout()
        if error.errno == errno.EAGAIN and not error.filename:
            return _fail(NO_THREADS, 1)
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}; resolve this and run the same command again", 1)
    return 0


def _open_streams() -> None:
    """Redirect closed standard streams to /dev/null; otherwise the next file opened would take their descriptor."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115  # stays open


def _flush_stdout() -> None:
    """Flush standard output while a failure can still be reported."""
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = "standard output"
        raise


def _drop_stdout() -> None:
    """Discard buffered output, so that the interpreter does not try to write it again at exit."""
    with contextlib.suppress(OSError, ValueError):  # a caller's buffer has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code


Arguments = Sequence[str] | None
