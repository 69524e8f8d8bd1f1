"""Serve one NPU: run a converted model on what `ascend_session` puts into shared memory.

    python3 ascend_worker.py DEVICE MODEL DESCRIPTOR

A script of its own, for the Python that has the wheels aclruntime and ais_bench, which may be as old as 3.7. It needs
these and numpy, and nothing of this project. DESCRIPTOR is the open file that both processes map. Requests come as
lines of JSON on standard input, and end with it; answers are lines of JSON on standard output. What ais_bench and its
libraries print is led to standard error.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    del sys.path[0]  # this script's folder: its modules are no packages

import json
import mmap
import os
import time
from typing import Any


def main(device: int, path: str, descriptor: int) -> None:
    """Load the model, describe it, and answer requests until there are no more.

    The first answer has `input` (name, shape, bytes) and `outputs` (their number). A request has a `slot`, which its
    answer repeats, and either `memory` (bytes to map) and `gears` (shapes to try), or what `run_pass` takes. An answer
    with `error` replaces any other; `missing` replaces the first where ais_bench cannot be imported.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        from ais_bench.infer.interface import InferSession
    except Exception as error:
        answer(slot=-1, missing=text_of(error))
        return
    session = None
    try:
        try:
            session = InferSession(device, path)
            entry = session.get_inputs()[0]
            described = [entry.name, [int(side) for side in entry.shape], int(entry.size)]
            answer(slot=-1, input=described, outputs=len(session.get_outputs()))
        except Exception as error:
            answer(slot=-1, error=text_of(error))
            return
        memory = None
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if "memory" in request:
                    memory = mmap.mmap(descriptor, request["memory"])
                    done: dict[str, Any] = {"refused": first_refused(session, entry.name, request["gears"])}
                else:
                    done = run_pass(session, memory, **request)
            except Exception as error:
                done = {"error": text_of(error)}
            answer(**dict(done, slot=request["slot"]))
    finally:
        free = getattr(session, "free_resource", None) or getattr(session, "finalize", None)
        if free is not None:
            free()


def first_refused(session: Any, name: str, gears: list[list[int]]) -> list[Any] | None:
    """Return the first shape, and the reason, that is none of the model's; `None` if it takes them all.

    The first alone: the front end of 2023 must not be asked again after it has refused one.
    """
    for shape in gears:
        try:
            session.set_dynamic_dims("{}:{}".format(name, ",".join(map(str, shape))))
        except Exception as error:
            return [shape, text_of(error)]
    return None


def run_pass(
    session: Any, memory: Any, slot: int, shape: list[int], dtype: str, mode: str, start: int, stop: int
) -> dict[str, Any]:
    """Run the model once.

    Args:
        session: of ais_bench.
        memory: both processes' memory.
        slot: of the request; not needed here.
        shape: of the input.
        dtype: of the input.
        mode: as `InferSession.infer` names it.
        start: the slot's first byte in the memory, where the input lies; the outputs are written behind it.
        stop: the slot's end.
    Returns:
        `outputs`: dtype, shape and place of each, and `milliseconds` on the device.
    """
    import numpy as np

    image: Any = np.ndarray(shape, dtype, memory, start)  # plain and C-contiguous, or ais_bench of 2023 sends garbage
    place = start + image.nbytes
    began = time.perf_counter()
    outputs = session.infer([image], mode=mode)
    milliseconds = device_milliseconds(session)
    if milliseconds is None:
        milliseconds = (time.perf_counter() - began) * 1000
    described = []
    for values in outputs:
        if place + values.nbytes > stop:
            raise RuntimeError("the outputs are larger than those of a DEKR network")
        np.ndarray(values.shape, values.dtype, memory, place)[...] = values
        described.append([str(values.dtype), list(values.shape), place])
        place += values.nbytes
    return {"outputs": described, "milliseconds": milliseconds}


def device_milliseconds(session: Any) -> float | None:
    """Return what the last pass took on the device, and forget it; `None` where ais_bench does not tell.

    The list of times would grow with every pass. Its entries are numbers in 2023, starts and ends later.
    """
    summary = getattr(session, "summary", None) or getattr(session, "sumary", None)
    reset = getattr(session, "reset_summaryinfo", None) or getattr(session, "reset_sumaryinfo", None)
    times = list(summary().exec_time_list) if summary is not None else []
    if reset is not None:
        reset()
    if not times:
        return None
    last = times[-1]
    return float(last[1] - last[0] if isinstance(last, (tuple, list)) else last)


def text_of(error: Exception) -> str:
    """Return an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
