"""Start a command by its name: `python3 DEKR_preprocess.py`, `python3 scripts/predict.py` and `dekr NAME` end up here.

Runs on Python 3.7 and newer without any package, so that an old Python or a missing package is reported in one line.
Ctrl-C ends the process with one line, too, while the command still imports its packages, which takes seconds.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

OLDEST, NEWEST = (3, 11), (3, 13)
INTERRUPTED = "interrupted; finished results are kept, run the same command again to resume"
NO_MEMORY = "not enough memory; free some, or use a machine with more"
SIGNAL_CODE = 128  # a shell reports a signal as this plus its number, for example 130 for Ctrl-C
SET_UP = "'source .venv/bin/activate', or 'bash scripts/setup_venv.sh requirements.txt' if there is no .venv"
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "yaml": "PyYAML", "google": "protobuf", "jinja2": "Jinja2"}

# For libraries that read it when they are imported. The products in numpy are small: threads that share one cost more
# than the product, on a busy machine 30 ms. OpenCV's limit is that of data.images, which also reports its complaints.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_IO_MAX_IMAGE_PIXELS": str(1 << 28),
    "OPENCV_LOG_LEVEL": "SILENT",
}

# Name -> module of dekr_infer that holds `main(argv)`, and the line in `dekr --help`.
COMMANDS = {
    "preprocess": ("cli.preprocess", "COCO images to network tensors, original and flipped"),
    "export": ("cli.export", "a trained checkpoint to ONNX, proven against torch"),
    "onnx_infer": ("cli.onnx_infer", "an ONNX file over folders of tensors on the CPU, as ais_bench does"),
    "postprocess": ("cli.postprocess", "network outputs to people and COCO metrics"),
    "evaluate": ("cli.evaluate", "COCO images to COCO metrics in one process, without tensors on the disk"),
    "pipeline": ("cli.pipeline", "all steps in a row; does only what has changed since the last run"),
    "predict": ("cli.predict", "the people in images and videos of one's own: drawings and JSON"),
    "draw_results": ("cli.draw_results", "the people of a COCO result file over their images"),
    "report": ("cli.report", "one HTML file that says how good results are, where not, and why"),
    "compare": ("cli.compare", "two runs side by side: metrics that moved, and whether by luck"),
    "ledger": ("cli.ledger", "where AP goes: each choice of the chain turned the other way"),
    "compare_nodes": ("cli.compare_nodes", "two graphs or precisions node by node, worst first"),
    "check_upstream": ("cli.check_upstream", "upstream's code and ours side by side, stage by stage"),
    "random_checkpoint": ("cli.random_checkpoint", "checkpoints with random weights, to rehearse every command"),
    "doctor": ("cli.doctor", "what this host has and what it lacks, with remedies"),
    "check_atc": ("cli.check_atc", "what atc would refuse in an ONNX file"),
    "chip_name": ("cli.chip_name", "this host's chip as atc names it"),
    "atc": ("cli.atc", "an ONNX file to a model for an Ascend chip"),
    "ais_bench": ("cli.ais_bench", "a converted model over both folders of tensors on the NPU"),
    "tune_npu": ("cli.tune_npu", "which form of the graph is the fastest on this NPU (experimental)"),
}


def main_of(name: str) -> Callable[..., int]:
    """Return the `main(argv=None) -> exit code` of a command; nothing is imported until it is called."""

    def main(argv: Sequence[str] | None = None) -> int:
        return launch(name, argv)

    return main


def launch(name: str, argv: Sequence[str] | None = None) -> int:
    """Import a command and run it; return its exit code.

    Args:
        name: a key of `COMMANDS`.
        argv: the words after the command's name; `None` takes them from the process.
    """
    if python_error():
        return _fail(f"{python_error()}: {SET_UP}")
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    own = argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if own:
        signal.signal(signal.SIGINT, _end)
    try:
        try:
            command = importlib.import_module("dekr_infer." + COMMANDS[name][0])
        finally:
            if own:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        code: int = command.main(argv)
        if own and code > SIGNAL_CODE:
            _end_threads(code)
    except MemoryError:
        return _fail(NO_MEMORY)
    except ImportError as error:
        if "failed to map segment" in str(error) or "cannot allocate memory" in str(error).lower():
            return _fail(NO_MEMORY)
        package = (error.name or "").partition(".")[0]
        if package in ("", "dekr_infer"):
            raise
        distribution = DISTRIBUTIONS.get(package, package)
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            return _fail(f"{sys.executable}: has no package {distribution}; activate the environment: {SET_UP}")
        reason = " ".join(str(error).split())
        problem = f"{sys.executable}: cannot import {package} ({reason})"
        return _fail(f"{problem}; install {distribution} again, or use the project's environment: {SET_UP}")
    return code


def _end_threads(code: int) -> None:
    """End an interrupted process whose threads are still at work: Python would wait for one that is stuck."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if any(not thread.daemon for thread in others):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def python_error() -> str:
    """Return what is wrong with the version of this Python; an empty text if it is supported."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return ""
    found = ".".join(map(str, sys.version_info[:2]))
    return "{}: is Python {}; {}.{} to {}.{} is needed".format(sys.executable, found, *(OLDEST + NEWEST))


def dekr(argv: Sequence[str] | None = None) -> int:
    """Run `dekr NAME ...`, the installed entry point; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        sys.argv = ["dekr " + words[0]] + words[1:]  # argparse takes the name of its usage line from here
        return launch(words[0])
    if words and words[0] not in ("-h", "--help"):
        close = difflib.get_close_matches(words[0], COMMANDS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        return _fail(f"unknown command {words[0]}; {hint}see dekr --help", 2)
    print("usage: dekr COMMAND ...\n")
    for name, (_, line) in COMMANDS.items():
        print(f"  {name:<18} {line}")
    print("\ndekr COMMAND --help explains a command.")
    return 0 if words else 2


def _fail(message: str, code: int = 1) -> int:
    sys.stderr.write(f"error: {message}\n")
    return code


def _end(number: int, _frame: FrameType | None) -> None:
    """End the process at once: an exception could be caught or disguised in the middle of an import."""
    with contextlib.suppress(OSError, AttributeError, ValueError):  # standard error may be closed
        sys.stderr.write(f"error: {INTERRUPTED}\n")
        sys.stderr.flush()
    os._exit(SIGNAL_CODE + number)
