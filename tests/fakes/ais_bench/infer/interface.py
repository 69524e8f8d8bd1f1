"""InferSession in its three generations (AIS_BENCH_DIALECT), over the stand-in that the fake atc writes.

AIS_BENCH_TROUBLE: `device`, `fails` (every pass), `slow`, `noisy`, and once, as the file AIS_BENCH_LOG tells, or with
`always_` before it on every pass, `dies` and `hangs`. AIS_BENCH_LOG notes what is opened and freed. A stand-in with a
member `toy` holds `toy_model` of that scale: numpy computes it, under any Python from 3.7 on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
import zipfile
from collections import namedtuple

import numpy as np

from ais_bench.options import DIALECT, illegal

TROUBLE = os.environ.get("AIS_BENCH_TROUBLE", "")
LOG = os.environ.get("AIS_BENCH_LOG", os.devnull)
Described = namedtuple("Described", "name shape size")
Times = namedtuple("Times", "exec_time_list")


def note(text):
    with open(LOG, "a") as log:
        log.write(text + "\n")


class Toy:
    """`toy_model` by numpy: each output value is one input value times a weight."""

    input_dtype = "float32"

    def __init__(self, scale):
        weights = scale * np.arange(1, 19), -scale * np.arange(1, 35)
        self.heat, self.offset = (values.astype(np.float32)[:, None, None] for values in weights)

    def run(self, image):
        return self.heat * image[:, 0, None, ::4, ::4], self.offset * image[:, 1, None, 1::4, 2::4], 1.0


def load(path):
    with zipfile.ZipFile(path) as stand_in:
        if "toy" in stand_in.namelist():
            sizes = stand_in.read("input_sizes").decode().split(";")
            return Toy(float(stand_in.read("toy"))), {tuple(map(int, size.split(","))) for size in sizes}, "float32"
    from ais_bench.session import load_model

    return load_model(path)


class Runtime:
    """What aclruntime is: it takes an address and a number of bytes, and compares nothing but the latter."""

    def __init__(self, device, path):
        if TROUBLE == "device":
            raise RuntimeError(f"[-1][ACL: general failure] acl open device {device} failed")
        self.device = device
        self.network, self.sizes, self.output = load(path)
        self.times, self.chosen = [], None
        note(f"open {device}")

    def get_inputs(self):
        area, item = max(h * w for h, w in self.sizes), np.dtype(self.network.input_dtype).itemsize
        side = [-1, -1] if len(self.sizes) > 1 else list(*self.sizes)
        return [Described("image", [1, 3, *side], 3 * area * item)]

    def get_outputs(self):
        return [Described("Conv_1:0:heatmap", [], 0), Described("Conv_2:0:offset", [], 0)]

    def set_dynamic_dims(self, text):
        shape = tuple(map(int, text.rpartition(":")[2].split(",")))
        if len(self.sizes) < 2 or shape[:2] != (1, 3) or shape[2:] not in self.sizes:
            print("[ERROR] check dynamic dims failed, please set correct dymDims parameter", flush=True)
            raise RuntimeError("[-1][ACL: general failure] ")
        self.chosen = shape

    def set_staticbatch(self):
        self.chosen = (1, 3, *next(iter(self.sizes))) if len(self.sizes) == 1 else None

    def run(self, address, size):
        trouble, always = TROUBLE.replace("always_", ""), TROUBLE.startswith("always_")
        with open(LOG) as log:
            first = log.read().count("open") < 2
        if trouble == "dies" and (always or first):
            print("the driver is gone", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "hangs" and (always or first):
            time.sleep(60)
        if trouble == "slow":
            note("pass")
            time.sleep(0.2)
        if self.chosen is None or TROUBLE == "fails":
            raise RuntimeError("[-1][ACL: general failure] ")
        dtype = np.dtype(self.network.input_dtype)
        if size != np.prod(self.chosen) * dtype.itemsize:
            raise RuntimeError(f"[-1][ACL: general failure] {size} bytes")
        image = np.frombuffer(ctypes.string_at(address, size), dtype).reshape(self.chosen)
        started = time.perf_counter() * 1000
        outputs = self.network.run(image)[:2]
        ended = time.perf_counter() * 1000
        self.times.append(ended - started if DIALECT == "T23" else (started, ended))
        if TROUBLE == "noisy":
            print("[INFO] " + "x" * 100000, flush=True)
        return [values.astype(self.output) for values in outputs]

    def sumary(self):
        return Times(list(self.times))

    def reset_sumaryinfo(self):
        self.times.clear()

    def free_resource(self):
        note(f"free {self.device}")


class Session:
    """What all three have."""

    def __init__(self, device_id, model_path, acl_json_path=None, debug=False, loop=1):
        if DIALECT != "T23" and (illegal(model_path) or not model_path.endswith(".om")):
            raise RuntimeError(f"path:{model_path} is illegal")
        self.session = Runtime(device_id, model_path)

    def get_inputs(self):
        return self.session.get_inputs()

    def get_outputs(self):
        return self.session.get_outputs()

    def _infer(self, arrays, mode):
        if mode not in ("static", "dymdims"):
            raise RuntimeError("wrong infer_mode")
        if mode == "static":
            self.session.set_staticbatch()
        else:
            self.session.set_dynamic_dims("image:" + ",".join(map(str, arrays[0].shape)))
        return self.session.run(arrays[0].__array_interface__["data"][0], arrays[0].nbytes)


class Of2023(Session):
    def set_dynamic_dims(self, dym_dims):
        self.session.set_dynamic_dims(dym_dims)

    def infer(self, feeds, mode="static", custom_sizes=100000):
        if any(type(feed) is not np.ndarray for feed in feeds):
            raise RuntimeError("type invalid")
        return self._infer(feeds, mode)

    def sumary(self):
        return self.session.sumary()

    def reset_sumaryinfo(self):
        self.session.reset_sumaryinfo()

    def finalize(self):
        self.session.free_resource()


class Of2025(Session):
    def set_dynamic_dims(self, dym_dims):
        self.session.set_dynamic_dims(dym_dims)

    def infer(self, feeds, mode="static", custom_sizes=100000, out_array=True):
        if not isinstance(feeds, list) or not feeds:
            raise ValueError("the list be checked is not a list!")
        return self._infer([np.ascontiguousarray(feed) for feed in feeds], mode)

    def summary(self):
        return self.session.sumary()

    def reset_summaryinfo(self):
        self.session.reset_sumaryinfo()

    def free_resource(self):
        self.session.free_resource()

    @staticmethod
    def finalize():
        note("finalize")


class Of2026(Session):
    def __getattr__(self, name):
        return getattr(self.session, name)

    def infer(self, feeds, mode="static", custom_sizes=100000, out_array=True, iteration_times=1, in_out_list=None):
        return self._infer([np.array(feed) for feed in feeds], mode)

    def summary(self):
        return self.session.sumary()

    def reset_summaryinfo(self):
        self.session.reset_sumaryinfo()


InferSession = {"T23": Of2023, "T25": Of2025, "T26": Of2026}[DIALECT]
