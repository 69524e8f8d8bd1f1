#!/usr/bin/env python3
"""What each part of the chain is worth on the demo set: the figures with a part left out, or done wrong on purpose.

Runs the project's own commands on drawn people and the shipped weights. What is there in --work is not made again.

  python3 scripts/demo/ablation.py --work quickstart/ablation
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __package__ in (None, ""):  # run as a script: the repository is not on the path yet
    sys.path.insert(0, str(ROOT))

import numpy as np

from dekr_infer.cli import export as export_command
from dekr_infer.cli import onnx_infer
from dekr_infer.cli import postprocess as postprocess_command
from dekr_infer.cli import preprocess as preprocess_command
from dekr_infer.cli.app import Arguments, Parser, cores, positive_int, non_negative_int, run, worker_count
from dekr_infer.errors import DekrError
from dekr_infer.onnx_graph.dialects import ASCEND, ONNX
from dekr_infer.pose.decode import CENTRE
from dekr_infer.skeleton import COCO_17
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.atomic import read_json
from scripts.demo import people

WEIGHTS = ROOT / "scripts/demo/weights"
PICTURES, SEED = 60, 2017  # the demo set of the quickstart
RIGHT = "all parts"  # of the published flow
MATCHED = "with TEST.MATCH_HMP"  # as the quickstart runs
SINGLE, RAW, BARE = "flip off", "rescoring off", "flip and rescoring off"
DIALECT = "dialect onnx"
UNSHIFTED, UNSWAPPED, NEGATED = "flip shift left out", "left and right not swapped", "offsets negated"
VARIANTS = (RIGHT, MATCHED, SINGLE, RAW, BARE, DIALECT, UNSHIFTED, UNSWAPPED, NEGATED)
FIELDS = ("AP", "AP .5", "AP .75", "AR")  # of the table


def main(argv: Arguments = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--work", type=Path, default=Path("quickstart/ablation"), help="folder for everything made")
    parser.add_argument("--pictures", type=positive_int, default=PICTURES)
    parser.add_argument("--seed", type=non_negative_int, default=SEED)
    parser.add_argument("--threads", type=worker_count, default=cores(), help="(default: all cores)")
    args = parser.parse_args(argv)

    def work() -> None:
        figures = ablation(args.work, args.pictures, args.seed, args.threads)
        print(f"{'':<28}" + "".join(f"{name:>8}" for name in FIELDS))
        for variant, values in figures.items():
            print(f"{variant:<28}" + "".join(f"{values[name]:8.3f}" for name in FIELDS))

    return run(work)


def ablation(work: Path, pictures: int, seed: int, threads: int) -> dict[str, dict[str, float]]:
    """The ten figures of every variant, on so many drawn pictures.

    Raises:
        DekrError: a command failed; its own message stands on stderr.
    """
    data = work / "data"
    _do(people.main, "--output", data, "--pictures", pictures, "--seed", seed)
    prepared, mirrored = work / "prep_data", work / "prep_data_flip"
    _do(preprocess_command.main, "--output", prepared, "--output_flip", mirrored, *_config(data))
    unshifted = _derived(prepared, work / "prep_data_unshifted", lambda image: image[..., ::-1])
    for dialect in (ASCEND, ONNX):
        graph = work / f"{dialect}.onnx"
        if not graph.is_file():
            _do(export_command.main, "--output", graph, "--dialect", dialect, "--threads", threads, *_config(data))
        inputs = {"out": prepared, "out_flip": mirrored} | ({"out_unshifted": unshifted} if dialect == ASCEND else {})
        for name, folder in inputs.items():
            places = ("--input", folder, "--output", work / dialect, "--output_dirname", name)
            _do(onnx_infer.main, "--model", graph, *places, "--threads", threads)
    plain, flipped = work / ASCEND / "out", work / ASCEND / "out_flip"
    negated = [_derived(folder, folder.with_name(f"{folder.name}_negated"), _negated) for folder in (plain, flipped)]
    dumps = {
        DIALECT: (work / ONNX / "out", work / ONNX / "out_flip"),
        UNSHIFTED: (plain, work / ASCEND / "out_unshifted"),
        UNSWAPPED: (plain, _derived(flipped, flipped.with_name("out_unswapped"), _swapped)),
        NEGATED: (negated[0], negated[1]),
    }
    settings = {
        MATCHED: ("TEST.MATCH_HMP", "True"),
        SINGLE: ("TEST.FLIP_TEST", "False"),
        RAW: ("RESCORE.VALID", "False"),
        BARE: ("TEST.FLIP_TEST", "False", "RESCORE.VALID", "False"),
    }
    return {
        variant: _figures(work, data, dumps.get(variant, (plain, flipped)), settings.get(variant, ()))
        for variant in VARIANTS
    }


def _config(data: Path) -> list[str]:
    weights = ("TEST.MODEL_FILE", WEIGHTS / "pose_dekr_demo.pth", "RESCORE.MODEL_FILE", WEIGHTS / "rescore_demo.pth")
    pairs = ("DATASET.ROOT", data, *weights, "TEST.MATCH_HMP", "False")
    return ["--cfg", str(ROOT / "dekr_infer/config/demo.yaml"), *map(str, pairs)]


def _figures(work: Path, data: Path, dumps: Sequence[Path], settings: Sequence[str]) -> dict[str, float]:
    results = work / "results"
    folders = ("--dump_dir", dumps[0], "--dump_dir_flip", dumps[1], "--output", results)
    _do(postprocess_command.main, *folders, *_config(data), *settings)
    figures: dict[str, float] = read_json(results / "metrics.json")["figures"]
    return figures


def _do(command: Callable[[Arguments], int], *words: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = command([str(word) for word in words])
    if code:
        raise DekrError(f"{command.__module__} failed; see its message above")


def _derived(source: Path, target: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A folder with every tensor of another one changed; made anew each time."""
    shutil.rmtree(target, ignore_errors=True)
    with tensors.exclusive(target):
        for name in sorted(tensors.names_in(source)):
            tensors.write(target, name, change(tensors.read(source / name)))
    return target


def _is_heat(values: np.ndarray) -> bool:
    return values.shape[1] == CENTRE + 1


def _negated(values: np.ndarray) -> np.ndarray:
    return values if _is_heat(values) else -values


def _swapped(values: np.ndarray) -> np.ndarray:
    """Left and right exchanged once more, so that the merge's own exchange undoes it."""
    if _is_heat(values):
        return values[:, [*COCO_17.partners, CENTRE]]
    by_joint = values.reshape(1, len(COCO_17.partners), 2, *values.shape[2:])
    return by_joint[:, list(COCO_17.partners)].reshape(values.shape)


if __name__ == "__main__":
    sys.exit(main())
