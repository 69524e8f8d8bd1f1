"""Find people on all nodes of a Ray cluster: the thin driver of `evaluate --engine ray`.

Each actor holds one session. A call is one image: the actor decodes it, runs the graph and finds the people, which are
all that passes through Ray. Shards are written by the driver, as without Ray, so a killed run resumes. All nodes see
the same files at the same paths.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2

from dekr_infer.detector import Detector
from dekr_infer.errors import ConfigError, DekrError, one_line
from dekr_infer.evaluation.evaluate import Found, find_people
from dekr_infer.skeleton import Skeleton
from dekr_infer.structures import Frame, People

ATTEMPTS = 2  # at an image that ends its worker
STARTS = 3  # of workers that fail in a row
PATIENCE = 300.0  # seconds without any worker

Make = Callable[[], tuple[Detector, Mapping[str, Frame]]]


class _Worker:
    """An actor: a detector, and the images by key. `make` runs on the actor's node."""

    def __init__(self, folder: str, make: Make) -> None:
        self.problem = ""
        try:
            os.chdir(folder)
            cv2.setNumThreads(1)  # the graph has the cores
            self.detector, self.frames = make()
        except (DekrError, OSError) as error:
            self.problem = str(error)

    def ready(self) -> str:
        """Return why this worker cannot work; an empty text if it can."""
        return self.problem

    def find(self, key: str) -> Found:
        """Find the people of one image; whatever it raises becomes the image's error."""
        frame = self.frames[key]
        try:
            ((_, found),) = find_people(self.detector, [frame], keep_unreadable=True)
        except Exception as error:
            return failed(frame, f"{type(error).__name__}: {error}", self.detector.skeleton)
        return found


def failed(frame: Frame, reason: str, skeleton: Skeleton) -> Found:
    """Return the row of an image that could not be evaluated."""
    assert frame.image_id is not None
    return Found(frame.image_id, People.nobody(skeleton), error=f"{frame.name}: {one_line(reason)[:300]}")


def find_people_on_ray(
    make: Make, frames: Sequence[Frame], threads: int, skeleton: Skeleton
) -> Generator[tuple[Frame, Found], None, None]:
    """Yield the people of every frame once, in the order in which they are found.

    A worker that ends, or whose node does, is replaced, and its image is tried again; an image that ends its worker
    twice, or raises, is yielded with its error.

    Args:
        make: returns a worker's detector and its frames by key; pickled by reference.
        frames: the frames to do.
        threads: CPUs of each worker; a node has as many workers as fit.
        skeleton: of the people.
    Raises:
        ConfigError: Ray is not installed, or no node has so many CPUs.
        DekrError: a worker cannot be started.
    """
    if find_spec("ray") is None:
        raise ConfigError(f"--engine ray: {sys.executable} has no Ray; install it (pip install 'ray>=2.44')")
    with _connected() as ray:
        yield from _drive(ray, make, frames, threads, skeleton)


@contextmanager
def _connected() -> Iterator[Any]:
    """Yield Ray, connected to the cluster that RAY_ADDRESS names or that runs here, or to one that it starts."""
    import ray

    if ray.is_initialized():
        yield ray
        return
    try:
        with _signals_wait():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
    finally:
        ray.shutdown()  # left to the interpreter's end, it may crash there


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let Ctrl-C and the like wait for the end of a block: Ray crashes if its start breaks off."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():  # only there they arrive
        yield
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            if before[number] != signal.SIG_IGN:
                signal.signal(number, lambda number, _: arrived.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])


def _drive(
    ray: Any, make: Make, frames: Sequence[Frame], threads: int, skeleton: Skeleton
) -> Generator[tuple[Frame, Found], None, None]:
    """Hand the frames to workers; see `find_people_on_ray`."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    count = min(sum(number // threads for number in cpus), len(frames))
    if not count and frames:
        raise ConfigError(f"--threads {threads}: no node of the Ray cluster has so many CPUs, the largest {max(cpus)}")
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    options = {"num_cpus": threads, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
    kind: Any = ray.remote(**options, runtime_env={"env_vars": {"PYTHONPATH": path}})(_Worker)
    running: dict[Any, tuple[Any, Frame | None]] = {}  # by what Ray will return: an actor, and its image or its start
    idle: list[Any] = []  # actors, kept for images that come back
    waiting, attempts, lost_starts, left = deque(frames), Counter[str](), 0, len(frames)

    def start() -> None:
        actor = kind.remote(os.getcwd(), make)
        running[actor.ready.remote()] = actor, None

    try:
        for _ in range(count):
            start()
        while left:
            while waiting and idle:
                actor, following = idle.pop(), waiting.popleft()
                running[actor.find.remote(following.key)] = actor, following
            done, _ = ray.wait(list(running), timeout=PATIENCE)
            if not done:
                if all(frame is None for _, frame in running.values()):
                    raise DekrError(f"Ray has started no worker in {PATIENCE:g} s; see 'ray status'")
                continue
            actor, frame = running.pop(done[0])
            try:
                answer = ray.get(done[0])
            except ray.exceptions.RayActorError as error:
                if frame is None:
                    lost_starts += 1
                    if lost_starts == STARTS:
                        reason = one_line(str(error).strip().splitlines()[-1])[:300]
                        raise DekrError(f"Ray cannot start a worker, {STARTS} times in a row: {reason}") from None
                else:
                    attempts[frame.key] += 1
                    if attempts[frame.key] < ATTEMPTS:
                        waiting.appendleft(frame)
                    else:
                        left -= 1
                        yield frame, failed(frame, f"ended its worker {ATTEMPTS} times; it is skipped", skeleton)
                if waiting and not idle:
                    start()
                continue
            if frame is None and answer:
                raise DekrError(answer)
            idle.append(actor)
            if frame is None:
                lost_starts = 0
            else:
                left -= 1
                yield frame, answer
    finally:
        for actor in (*idle, *(actor for actor, _ in running.values())):
            with suppress(Exception):  # it has ended
                ray.kill(actor)
