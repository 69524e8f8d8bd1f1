"""Run a folder of tensors: its order, its names, its input sizes, its summary."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from ais_bench.options import DIALECT, illegal, stop
from dekr_infer.backends.onnxruntime import OnnxRuntime

TROUBLE, _, CONCERNS = os.environ.get("AIS_BENCH_TROUBLE", "").partition("@")
PERCENTILE = "P99" if DIALECT == "T26" else "percentile(99%)"


def list_files(text: str) -> list[Path]:
    path = Path(text)
    if not path.is_dir():
        stop(1, f"{text} is not a file or folder")
    kept = []
    for entry in os.listdir(path):
        if DIALECT != "T23" and illegal(str(path / entry)):
            raise RuntimeError(f"input data is illegal: {illegal(str(path / entry))}")
        if entry.endswith((".npy", ".NPY", ".bin", ".BIN")) and not (DIALECT != "T23" and (path / entry).is_dir()):
            kept.append(entry)
    if not kept:
        raise RuntimeError(f"no input files in {text}")
    return [path / name for name in sorted(kept, key=natural)]


def natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in re.split(r"(\d+)", name)]


def load_model(text: str) -> tuple[OnnxRuntime, set[tuple[int, ...]], str]:
    """The stand-in's graph, the input sizes it was compiled for, and the dtype of its outputs."""
    if not Path(text).is_file():
        stop(1, "[1][ACL: invalid parameter]")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(text) as stand_in:
        stand_in.extract("model.onnx", folder)
        input_sizes = {
            tuple(map(int, input_size.split(",")))
            for input_size in stand_in.read("input_sizes").decode().split(";")
            if input_size
        }
        options = stand_in.read("options").decode() if "options" in stand_in.namelist() else ""
        output = "float16" if "--output_type=FP16" in options.split() else "float32"
        return OnnxRuntime(Path(folder) / "model.onnx", 1), input_sizes, output


def as_sent(file: Path, input_sizes: set[tuple[int, ...]], dtype: str) -> np.ndarray:
    """What the device sees: memory as it lies, taken for the model's dtype; only byte counts are compared."""
    values = np.fromfile(file, dtype) if file.suffix.lower() == ".bin" else np.load(file)
    if values.ndim != 4 or values.shape[:2] != (1, 3) or values.shape[2:] not in input_sizes:
        print("[ERROR] set_dynamic_dims failed", flush=True)
        raise RuntimeError("[-1][ACL: general failure]")
    sent = values.tobytes(order="A")
    expected = values.size * np.dtype(dtype).itemsize
    if len(sent) != expected:
        raise RuntimeError(f"tensorsize {expected} filesize {len(sent)} not match")
    return np.frombuffer(sent, dtype).reshape(values.shape)


def statistics(times: list[float]) -> dict[str, float]:
    figures = {key: float(getattr(np, key)(times)) for key in ("min", "max", "mean", "median")}
    return figures | {PERCENTILE: float(np.percentile(times, 99)), "count": len(times)}


def run(args: argparse.Namespace) -> None:
    network, input_sizes, output = load_model(args.model)
    if args.output_dirname and not args.output:
        raise RuntimeError("output_dirname needs output")
    name = args.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S")
    folder = Path(args.output or ".") / name
    if DIALECT != "T23":
        os.umask(0o027)
        if folder.exists() and illegal(str(folder)):
            raise RuntimeError(illegal(str(folder)))
    folder.mkdir(parents=True, exist_ok=True)  # never emptied, and made before the inputs are looked at
    files = list_files(args.input)
    if input_sizes and not args.auto_set_dymdims_mode:
        raise RuntimeError("dynamic model needs a dynamic option")
    if TROUBLE == "device":
        raise RuntimeError("acl open device 0 failed")
    network.run(as_sent(files[0], input_sizes, network.input_dtype))
    print("[INFO] warm up 1 done", flush=True)
    times, info = [], {}
    troubled = CONCERNS in args.model
    for number, file in enumerate(files):
        for _ in range(args.loop):
            *outputs, milliseconds = network.run(as_sent(file, input_sizes, network.input_dtype))
            times.append(milliseconds)
        if TROUBLE in ("wrong", "nan") and troubled:
            outputs[1] = outputs[1][:, ::-1] if TROUBLE == "wrong" else outputs[1] * np.float32("nan")
        names = [folder / f"{file.name.split('.')[0]}_{index}.npy" for index in range(len(outputs))]
        for path, values in zip(names, outputs, strict=True):
            if not (TROUBLE == "lost" and file == files[-1] and path == names[-1]):
                np.save(path, values.astype(output))
        info[str(number)] = {"infiles": [str(file)], "outfiles": [str(path) for path in names]}
        if TROUBLE == "child":
            subprocess.Popen(["sleep", "61"])
            print("a child", flush=True)
        if TROUBLE == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("on hold", flush=True)
            while os.path.exists("hold"):
                time.sleep(0.02)
        if TROUBLE in ("slow", "child"):
            time.sleep(60)
    summary = {
        "filesinfo": info,
        "args": vars(args),
        **{key: statistics(times) for key in ("NPU_compute_time", "H2D_latency", "D2H_latency")},
        "npu_compute_time_list": times,
        "throughput": 1000 / float(np.mean(times)),
        "pid": os.getpid(),
    }
    folder.with_name(f"{folder.name}_summary.json").write_text(json.dumps(summary))
    print("[INFO] -----------------Performance Summary------------------")
    print(f"[INFO] throughput 1000*batchsize.mean(1.0)/NPU_compute_time.mean: {summary['throughput']}")
