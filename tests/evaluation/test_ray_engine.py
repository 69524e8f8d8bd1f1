"""`evaluate --engine ray` on two local Ray nodes: results of one process; images, workers and nodes that are lost."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dekr_infer.cli import evaluate as command
from dekr_infer.evaluation import ray_engine
from dekr_infer.geometry import Size
from tests.support.commands import Ran, assert_refused, run_command
from tests.support.folders import contents
from tests.support.workspace import ROOT, make_inputs

SIZES = {f"p{number}.jpg": Size(40 + number, 40 + (number + number * number) % 31) for number in range(8)}
RESULTS = "keypoints_val2017_results.json"
FREE = 80_000_000  # bytes of the object store, little more than the least that Ray takes

pytestmark = pytest.mark.long
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray, the extra ray, is not installed")


def evaluate(*flags: object, output: str = "r") -> Ran:
    words = ["--model", "net.onnx", "--output", output, "--run", "run", "--shard_images", 3, "--threads", 1, *flags]
    return run_command(command.main, *words, "DATASET.ROOT", "coco", "RESCORE.MODEL_FILE", "rescore.pth")


def on_ray(*flags: object, output: str = "r") -> Ran:
    return evaluate("--engine", "ray", *flags, output=output)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eight images, and what one process finds, in `in/local`."""
    folder = tmp_path_factory.mktemp("local")
    make_inputs(folder, SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "in")
        assert evaluate(output="local").code == 0
    return folder / "in"


@pytest.fixture
def place(source, tmp_path, monkeypatch):
    for name in ("coco", "net.onnx", "rescore.pth"):
        (tmp_path / name).symlink_to(source / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the workers import this module, as pytest does
    return tmp_path


@pytest.fixture
def cluster(place):
    """Two nodes of one CPU each, with an object store that holds few tensors."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    resources = {"num_cpus": 1, "object_store_memory": FREE}
    cluster = Cluster(initialize_head=True, head_node_args={**resources, "include_dashboard": False})
    cluster.second = cluster.add_node(**resources)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


# -- what the workers run; each sets `command.worker_of` ---------------------------------------------------------------


def behave(config, args, act):
    """A worker whose images call `act(key)` when they are decoded."""
    detector, frames = WORKER_OF(config, args)

    def read(frame):
        act(frame.key)
        return frame.read()

    return detector, {key: replace(f, read=lambda f=f: read(f)) for key, f in frames.items()}


WORKER_OF = command.worker_of


def note(name: str, text: str = "") -> int:
    """Add a line to a file that all processes see; return their number before."""
    path = Path(name)
    before = len(path.read_text().splitlines()) if path.exists() else 0
    with path.open("a") as file:
        file.write(text + "\n")
    return before


def worker_with_a_node(config, args):
    import ray

    return behave(config, args, lambda key: note("nodes", f"{key} {ray.get_runtime_context().get_node_id()}"))


def slow_worker(config, args):
    def act(key):
        note("begun", key)
        time.sleep(0.5)

    return behave(config, args, act)


def poisoned_worker(config, args):
    def act(key):
        if key == "p4":
            note("deaths")
            os.kill(os.getpid(), signal.SIGKILL)

    return behave(config, args, act)


def worker_killed_once(config, args):
    def act(key):
        if key == "p4" and note("deaths") == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return behave(config, args, act)


def raising_worker(config, args):
    def act(key):
        if key == "p4":
            raise RuntimeError("a fault\nof two lines")

    return behave(config, args, act)


def broken_worker(config, args):
    os._exit(3)


# -- tests -------------------------------------------------------------------------------------------------------------


@needs_ray
def test_two_nodes_give_the_results_of_one_process(source, place, cluster, monkeypatch):
    """Also their order, each image once, and nothing large in the object store."""
    monkeypatch.setattr(command, "worker_of", worker_with_a_node)
    ran = on_ray()
    assert ran.code == 0, ran
    assert contents(place / "r") == contents(source / "local")
    worked = [line.split() for line in (place / "nodes").read_text().splitlines()]
    assert sorted({key for key, _ in worked}) == sorted({f"p{n}" for n in range(8)})
    assert len({node for _, node in worked}) == 2
    assert "8 of them done before" in on_ray().out


@needs_ray
def test_a_killed_actor_is_replaced_and_its_image_done(source, place, cluster, monkeypatch):
    monkeypatch.setattr(command, "worker_of", worker_killed_once)
    ran = on_ray()
    assert ran.code == 0, ran
    assert contents(place / "r") == contents(source / "local")
    assert len((place / "deaths").read_text().splitlines()) == 2  # the second attempt succeeds


@needs_ray
def test_an_image_that_kills_its_worker_is_skipped_after_two_attempts(source, place, cluster, monkeypatch):
    monkeypatch.setattr(command, "worker_of", poisoned_worker)
    check_one_error(source, place, on_ray(), "p4.jpg: ended its worker 2 times; it is skipped")
    assert len((place / "deaths").read_text().splitlines()) == 2


@needs_ray
def test_an_image_that_raises_is_an_error_row_and_done_by_the_next_run(source, place, cluster, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(command, "worker_of", raising_worker)
        check_one_error(source, place, on_ray(), "p4.jpg: RuntimeError: a fault of two lines")
    ran = on_ray()
    assert ran.code == 0 and "7 of them done before" in ran.out
    assert contents(place / "r") == contents(source / "local")


def check_one_error(source: Path, place: Path, ran: Ran, text: str) -> None:
    """All images but p4 are as of one process, and the exit code is 1."""
    assert ran.code == 1 and f"warning: {text}" in ran.err.splitlines(), ran
    assert ran.err.splitlines()[-1].startswith("error: 1 of 8 images could not be read, the first is p4.jpg;")
    others = [e for e in json.loads((source / "local" / RESULTS).read_text()) if e["image_id"] != 1000 - 4]
    assert json.loads((place / "r" / RESULTS).read_text()) == others
    rows = [json.loads(line) for line in (place / "r/run/shard-000001.jsonl").read_text().splitlines()[1:]]
    assert [row["result"].get("error") for row in rows] == [None, text, None]


@needs_ray
def test_a_killed_node_is_done_without(source, place, cluster, monkeypatch):
    monkeypatch.setattr(command, "worker_of", slow_worker)

    def kill():
        while not (place / "begun").exists() or len((place / "begun").read_text().split()) < 3:
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    ran = on_ray()
    killer.join()
    assert ran.code == 0, ran
    assert contents(place / "r") == contents(source / "local")


@needs_ray
def test_ctrl_c_ends_the_command_and_the_ray_that_it_started(place):
    """Without a cluster: the command starts Ray on this machine."""
    words = ["--engine", "ray", "--model", "net.onnx", "--threads", "1", "--output", "r"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/evaluate.py"), *words, "DATASET.ROOT", "coco", "RESCORE.VALID", "False"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and "8 images" in process.stdout.readline()
    time.sleep(1.5)  # Ray starts
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("error: interrupted")


@needs_ray
def test_workers_that_do_not_start_end_the_run_with_one_line(place, cluster, monkeypatch):
    monkeypatch.setattr(command, "worker_of", broken_worker)
    assert_refused(on_ray(), 1, "Ray cannot start a worker, 3 times in a row")


@needs_ray
def test_more_threads_than_any_node_has_are_refused(place, cluster):
    assert_refused(on_ray("--threads", 3), 2, "--threads 3: no node of the Ray cluster has so many CPUs, the largest 1")


def test_nothing_but_people_is_returned(place):
    """A worker's answer of an image is a few kilobytes, its outputs are megabytes."""
    args = command.parse(["--model", "net.onnx", "--threads", "1", "DATASET.ROOT", "coco", "RESCORE.VALID", "False"])
    work = partial(command.worker_of, command.config_of(args), args)
    worker = ray_engine._Worker(os.getcwd(), work)
    found = worker.find("p4")
    assert worker.ready() == "" and len(found.people) > 0
    assert len(pickle.dumps(found)) < 2048 * (1 + len(found.people))
    assert found.people.poses.dtype == np.float32


def test_without_ray_one_line_names_the_extra(place, monkeypatch):
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    assert_refused(on_ray(), 2, f"--engine ray: {sys.executable} has no Ray; install it (pip install 'ray>=2.44')")
    assert_refused(on_ray("--model", "net.om"), 2, "--engine ray: net.om runs on NPUs")
