"""Mutation score: of small changes to a module, the share that its tests notice.

cosmic-ray (pip install cosmic-ray) finds the places and makes the changes. Each mutant runs in a fork of a process that
has the libraries loaded already; a process of its own would take many times as long. Changes of annotations are left
out, and of the many replacements of one operator in one line only one is taken. What has run is kept in --output, and
not run again.

  python3 scripts/bench/mutation.py --sample 60
  python3 scripts/bench/mutation.py geometry decode
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.abc
import importlib.util
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
MODULES = {  # name -> module, the tests that should notice
    "geometry": ("geometry", "tests/test_geometry.py tests/pose/test_preprocess.py"),
    "preprocess": ("pose.preprocess", "tests/pose/test_preprocess.py"),
    "decode": ("pose.decode", "tests/pose/test_decode.py tests/test_golden.py"),
    "refine": ("pose.refine", "tests/pose/test_refine.py tests/test_golden.py"),
    "gaussian_fit": ("pose.gaussian_fit", "tests/pose/test_refine.py"),
    "rescore": ("pose.rescore", "tests/pose/test_rescore.py tests/test_golden.py"),
    "coco_metrics": ("evaluation.coco_metrics", "tests/evaluation/test_coco_metrics.py tests/cli/test_draw_results.py"),
    "diagnostics": ("evaluation.diagnostics", "tests/evaluation/test_diagnostics.py"),
    "metrics_file": (
        "evaluation.metrics_file",
        "tests/evaluation/test_metrics_file.py tests/evaluation/test_evaluate.py",
    ),
    "config.load": ("config.load", "tests/config"),
    "config.settings": ("config.settings", "tests/config"),
    "schema": ("config.schema", "tests/config"),
    "float16": ("onnx_graph.float16", "tests/onnx_graph/test_float16.py"),
    "agreement": ("evaluation.agreement", "tests/evaluation/test_agreement.py"),
    "folder_runner": ("backends.folder_runner", "tests/backends tests/evaluation/test_provenance.py"),
    "tensor_folder": ("backends.tensor_folder", "tests/backends/test_tensor_folder.py"),
    "run_record": ("storage.run_record", "tests/storage tests/evaluation/test_provenance.py"),
    "fold": (
        "export.fold",
        "tests/export/test_fold.py tests/export/test_variants.py "
        "tests/export/test_export.py::test_initializers_and_convolutions_lead_back_to_checkpoint_keys",
    ),
    "cpu_optimize": ("onnx_graph.cpu_optimize", "tests/onnx_graph tests/backends/test_onnxruntime_backend.py"),
    "dialects": ("onnx_graph.dialects", "tests/onnx_graph"),
}
LEFT_OUT = re.compile(r"Variable|RemoveDecorator|_Is(Not)?$|_(RShift|LShift|BitOr|BitAnd|BitXor|Pow|Mod)$")
PATIENCE = 5  # times the tests' usual duration, and ten seconds; then a mutant counts as noticed


def mutants(source: str) -> Iterator[dict[str, Any]]:
    """Yield the changed sources of a module, each with its operator and the changed line."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    plain, seen = _without_annotations(source), set()
    for name in plugins.operator_names():
        if LEFT_OUT.search(name):
            continue
        for occurrence in range(10_000):
            try:
                changed = mutate_code(source, plugins.get_operator(name)(), occurrence)
            except AttributeError:  # cosmic-ray's own, for exceptions with dots in their names
                continue
            if changed is None:
                break
            try:
                same = _without_annotations(changed) == plain
            except SyntaxError:
                continue
            lines = [
                line for line in difflib.ndiff(source.splitlines(), changed.splitlines()) if line[:2] in ("- ", "+ ")
            ]
            family = (name.split("_")[0], occurrence, lines[0] if lines else "")
            if not same and family not in seen:
                seen.add(family)
                yield {"operator": name, "occurrence": occurrence, "lines": lines, "source": changed}


def _without_annotations(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if hasattr(node, "annotation"):
            node.annotation = ast.Constant(0)
        if hasattr(node, "returns"):
            node.returns = None
    return ast.dump(tree)


class Replacement(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed source."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def find_spec(self, fullname: str, path: object, target: object = None) -> Any:
        """Find the one module."""
        origin = str(ROOT / (self.name.replace(".", "/") + ".py"))
        found = importlib.util.spec_from_file_location(fullname, origin, loader=self)
        return found if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed source."""
        exec(compile(self.source, str(module.__file__), "exec"), module.__dict__)


def passes(name: str, source: str, tests: list[str], seconds: float) -> bool:
    """Return whether the tests pass with a module's source, in a fork."""
    child = os.fork()
    if not child:
        os.setsid()
        with open(os.devnull, "r+b") as nothing:
            for number in range(3):
                os.dup2(nothing.fileno(), number)
        sys.meta_path.insert(0, Replacement(name, source))
        import pytest

        code = 1
        try:
            code = pytest.main(["-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])
        finally:
            os._exit(int(code))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> int:
    """Run the mutants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="modules (default: all)")
    parser.add_argument("--sample", type=int, default=60, metavar="N", help="mutants of a module (default: 60)")
    parser.add_argument(
        "--output", type=Path, default=Path("mutation.jsonl"), help="what has run (default: mutation.jsonl)"
    )
    args = parser.parse_args()
    os.chdir(ROOT)
    import cv2, hypothesis, numpy, onnx, onnx_ir, onnxruntime, pycocotools.cocoeval, pytest, torch  # noqa: E401, F401, I001

    done = {}
    if args.output.is_file():
        done = {tuple(row["key"]): row for row in map(json.loads, args.output.read_text().splitlines())}
    for short in args.names or MODULES:
        module, tests = MODULES[short][0], MODULES[short][1].split()
        name = f"dekr_infer.{module}"
        source = (ROOT / (name.replace(".", "/") + ".py")).read_text()
        began = time.monotonic()
        if not passes(name, source, tests, 600):
            raise SystemExit(f"error: {tests}: fail without a change")
        usual = time.monotonic() - began
        every = list(mutants(source))
        chosen = random.Random(0).sample(every, min(args.sample, len(every)))
        noticed: Counter[bool] = Counter()
        for mutant in chosen:
            key = (short, mutant["operator"], mutant["occurrence"], *mutant["lines"])
            if key not in done:
                survives = passes(name, mutant["source"], tests, PATIENCE * usual + 10)
                done[key] = {"key": key, "noticed": not survives}
                with args.output.open("a") as file:
                    file.write(json.dumps(done[key]) + "\n")
            noticed[done[key]["noticed"]] += 1
            if not done[key]["noticed"]:
                print(f"  survives: {short}: {mutant['operator'].removeprefix('core/')}: {' '.join(mutant['lines'])}")
        total = sum(noticed.values())
        print(
            f"{short:<16} {noticed[True]:3d} of {total:3d} noticed ({len(every)} in all), {usual:.1f} s a run",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
