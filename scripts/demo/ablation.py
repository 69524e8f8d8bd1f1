"""Measure what each part of the chain contributes on the demo set: the metrics with a part left out, or done wrong.

Runs the project's own commands on drawn people and the shipped weights. Finished work in --work is reused.

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
from dekr_infer.cli.app import Arguments, Parser, cores, non_negative_int, positive_int, run, worker_count
from dekr_infer.errors import DekrError
from dekr_infer.onnx_graph.dialects import ASCEND, ONNX
from dekr_infer.pose.decode import CENTRE
from dekr_infer.skeleton import COCO_17
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.atomic import read_json
from scripts.demo import people

WEIGHTS = ROOT / "scripts/demo/weights"
IMAGES, SEED = 60, 2017  # the demo set of the quickstart
PUBLISHED = "all parts"  # the published flow
MATCHED = "with TEST.MATCH_HMP"  # the quickstart's setting
NO_FLIP, NO_RESCORE, NEITHER = "flip off", "rescoring off", "flip and rescoring off"
DIALECT = "dialect onnx"
UNSHIFTED, UNSWAPPED, NEGATED = "flip shift left out", "left and right not swapped", "offsets negated"
VARIANTS = (PUBLISHED, MATCHED, NO_FLIP, NO_RESCORE, NEITHER, DIALECT, UNSHIFTED, UNSWAPPED, NEGATED)
FIELDS = ("AP", "AP .5", "AP .75", "AR")  # of the table


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--work", type=Path, default=Path("quickstart/ablation"), help="folder for all files")
    parser.add_argument("--pictures", type=positive_int, default=IMAGES, metavar="N", help="images to draw (%(default)s)")
    parser.add_argument("--seed", type=non_negative_int, default=SEED)
    parser.add_argument("--threads", type=worker_count, default=cores(), help="(default: all cores)")
    args = parser.parse_args(argv)

    def work() -> None:
        metrics = ablation(args.work, args.pictures, args.seed, args.threads)
        print(f"{'':<28}" + "".join(f"{name:>8}" for name in FIELDS))
        for variant, values in metrics.items():
            print(f"{variant:<28}" + "".join(f"{values[name]:8.3f}" for name in FIELDS))

    return run(work)


def ablation(work: Path, images: int, seed: int, threads: int) -> dict[str, dict[str, float]]:
    """Return the ten metrics of every variant, on a number of drawn images.

    Raises:
        DekrError: a command failed and printed its own message.
    """
    data = work / "data"
    _do(people.main, "--output", data, "--pictures", images, "--seed", seed)
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
    outputs = {
        DIALECT: (work / ONNX / "out", work / ONNX / "out_flip"),
        UNSHIFTED: (plain, work / ASCEND / "out_unshifted"),
        UNSWAPPED: (plain, _derived(flipped, flipped.with_name("out_unswapped"), _swapped)),
        NEGATED: (negated[0], negated[1]),
    }
    settings = {
        MATCHED: ("TEST.MATCH_HMP", "True"),
        NO_FLIP: ("TEST.FLIP_TEST", "False"),
        NO_RESCORE: ("RESCORE.VALID", "False"),
        NEITHER: ("TEST.FLIP_TEST", "False", "RESCORE.VALID", "False"),
    }
    return {
        variant: _metrics(work, data, outputs.get(variant, (plain, flipped)), settings.get(variant, ()))
        for variant in VARIANTS
    }


def _config(data: Path) -> list[str]:
    weights = ("TEST.MODEL_FILE", WEIGHTS / "pose_dekr_demo.pth", "RESCORE.MODEL_FILE", WEIGHTS / "rescore_demo.pth")
    pairs = ("DATASET.ROOT", data, *weights, "TEST.MATCH_HMP", "False")
    return ["--cfg", str(ROOT / "dekr_infer/config/demo.yaml"), *map(str, pairs)]


def _metrics(work: Path, data: Path, outputs: Sequence[Path], settings: Sequence[str]) -> dict[str, float]:
    results = work / "results"
    folders = ("--dump_dir", outputs[0], "--dump_dir_flip", outputs[1], "--output", results)
    _do(postprocess_command.main, *folders, *_config(data), *settings)
    metrics: dict[str, float] = read_json(results / "metrics.json")["figures"]
    return metrics


def _do(command: Callable[[Arguments], int], *words: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = command([str(word) for word in words])
    if code:
        raise DekrError(f"{command.__module__} failed; see its message above")


def _derived(source: Path, target: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Write every tensor of a folder, changed, into another folder, which is returned."""
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
    """Exchange left and right once more, so that the merge's own exchange undoes it."""
    if _is_heat(values):
        return values[:, [*COCO_17.partners, CENTRE]]
    by_joint = values.reshape(1, len(COCO_17.partners), 2, *values.shape[2:])
    return by_joint[:, list(COCO_17.partners)].reshape(values.shape)


if __name__ == "__main__":
    sys.exit(main())
