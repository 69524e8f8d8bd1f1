"""Commands killed and interrupted at random moments leave nothing wrong, and a normal run then ends as if undisturbed.

Two runs into one folder at once: the second says so and stops, and the first is not disturbed.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dekr_infer.geometry import Size
from dekr_infer.launch import SIGNAL_CODE
from dekr_infer.storage.atomic import UNFINISHED
from tests.support import counts
from tests.support.commands import assert_refused
from tests.support.folders import contents
from tests.support.fork_server import Running, Zygote
from tests.support.workspace import EVALUATE, INFER, POSTPROCESS, PREPROCESS, SETTINGS, WORDS, Place, undisturbed_run

SIZES = {f"p{number}.jpg": Size(40 + number, 40 + number) for number in range(8)}
STAGES = (PREPROCESS, INFER, POSTPROCESS, EVALUATE)
OUTPUTS = {PREPROCESS: ("prep_data",), INFER: ("out",), POSTPROCESS: ("results",), EVALUATE: ("evaluated",)}
IN_A_ROW = 3  # kills before a normal run
OF_EVALUATE = 5  # kills by signal; its work is the longest
LONG = 36  # kills by stage and signal in the long form
SHARE_LOCK = f".share-*{UNFINISHED}"  # of the evaluation, which also writes files of that ending
INTERRUPTED = SIGNAL_CODE + signal.SIGINT  # exit code


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed_run(tmp_path_factory.mktemp("undisturbed"), STAGES, SIZES)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


def wanted_of(source: Path, stage: str) -> dict[str, bytes]:
    return {name: data for name, data in contents(source / "w").items() if name.startswith(OUTPUTS[stage])}


def start(zygote: Zygote, place: Place) -> Running:
    return zygote.start(place.inputs, place.folder / "log", place.stage, [*WORDS[place.stage], *SETTINGS[place.stage]])


def clear(place: Place) -> None:
    shutil.rmtree(place.outputs)
    place.outputs.mkdir()


def wait_for_workers(group: int) -> None:
    """Workers of a killed run notice it at once, but are not waited for by anybody."""
    deadline = time.monotonic() + 3
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.005)


def is_unfinished(name: str) -> bool:
    return any(part.endswith(UNFINISHED) for part in Path(name).parts)


def put_through(zygote: Zygote, place: Place, wanted: dict[str, bytes], number: int, kills: int) -> None:
    """Send a signal at random moments until it has struck so many times; between them, look at what is left."""
    rng = random.Random(f"{place.stage} {number}")
    began = time.monotonic()
    code, _ = start(zygote, place).end()
    duration = time.monotonic() - began
    assert code == 0 and place.written() == wanted
    clear(place)
    struck = tries = 0
    while struck < kills:
        tries += 1
        assert tries < 20 * kills, "the signals come too late"
        running = start(zygote, place)
        time.sleep(rng.uniform(0, duration))
        with suppress(ProcessLookupError):  # it has ended already
            os.killpg(running.pid, number) if number == signal.SIGINT else os.kill(running.pid, number)
        code, said = running.end()
        assert code in {signal.SIGKILL: (-signal.SIGKILL, 0), signal.SIGINT: (INTERRUPTED, 0)}[number], said
        assert "Traceback" not in said
        wait_for_workers(running.pid)
        written = place.written()
        if code == INTERRUPTED and said and written != wanted:  # struck while there was work to do
            others = [name for name in written.keys() | wanted.keys() if written.get(name) != wanted.get(name)]
            assert said.splitlines()[-1].startswith("error: interrupted"), f"{said}; not done: {sorted(others)}"
        for name, data in place.written().items():
            assert is_unfinished(name) or wanted.get(name) == data, f"{name} is not what it should be"
        struck += code != 0
        counts.DONE[f"kills by {signal.Signals(number).name}"] += code != 0
        if code == 0 or struck % IN_A_ROW == 0 or struck == kills:
            code, said = start(zygote, place).end()
            assert code == 0, said
            assert place.written() == wanted
            clear(place)


BOTH = pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])


@BOTH
@pytest.mark.parametrize("stage", STAGES)
def test_after_kills_a_normal_run_leaves_the_same_bytes(stage, number, zygote, source, tmp_path):
    kills = OF_EVALUATE if stage == EVALUATE else IN_A_ROW
    put_through(zygote, Place(tmp_path, stage, source / "in"), wanted_of(source, stage), number, kills)


@pytest.mark.long
@BOTH
@pytest.mark.parametrize("stage", STAGES)
def test_after_many_kills_a_normal_run_leaves_the_same_bytes(stage, number, zygote, source, tmp_path):
    kills = LONG // 3 if stage == PREPROCESS else LONG  # its workers take time to start
    put_through(zygote, Place(tmp_path, stage, source / "in"), wanted_of(source, stage), number, kills)


def holds_one(place: Place) -> bool:
    """Whether a run holds a lock there: the file or folder alone is there a moment earlier."""
    for path in place.outputs.rglob(SHARE_LOCK if place.stage == EVALUATE else f".*{UNFINISHED}"):
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(handle)
    return False


def meet(zygote: Zygote, place: Place) -> Running:
    """A run that holds its folders and is stopped; one that ended too early is started again."""
    for _ in range(20):
        running = start(zygote, place)
        while not holds_one(place) and Path(f"/proc/{running.pid}").exists():
            time.sleep(0.001)
        with suppress(ProcessLookupError, FileNotFoundError):
            os.kill(running.pid, signal.SIGSTOP)
            while ") T " not in Path(f"/proc/{running.pid}/stat").read_text():  # it stops a moment later
                time.sleep(0.001)
            if holds_one(place):
                return running
            os.kill(running.pid, signal.SIGCONT)
        running.end()
        clear(place)
    raise AssertionError("every run ended too soon to be met")


@pytest.mark.parametrize("stage", STAGES)
def test_a_second_run_into_the_same_folder_is_refused(stage, zygote, source, tmp_path):
    place = Place(tmp_path, stage, source / "in")
    first = meet(zygote, place)
    try:
        before = place.written()
        assert_refused(place.run(), 1, "another run is writing here", "wait for it or name another folder")
        assert place.written() == before
    finally:
        os.kill(first.pid, signal.SIGCONT)
    code, said = first.end()
    assert code == 0, said
    assert place.written() == wanted_of(source, stage)
