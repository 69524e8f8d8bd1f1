"""Measure what each part of the chain contributes on the demo set: the metrics with a part left out, or done wrong.

The steps of the published chain run on drawn people and the shipped weights; finished work in --work is reused.

  python3 scripts/demo/ablation.py --work quickstart/ablation
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __package__ in (None, ""):  # run as a script: the repository is not on the path yet
    sys.path.insert(0, str(ROOT))

from yacs.config import CfgNode

from dekr_infer.backends.folder_runner import Options, list_tensors, run_folder
from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.backends.output_folder import OutputFolder
from dekr_infer.backends.tensor_folder import write_tensors
from dekr_infer.cli.app import Arguments, Parser, cores, non_negative_int, positive_int, run, worker_count
from dekr_infer.cli.progress import progress
from dekr_infer.config.load import load_config
from dekr_infer.config.settings import decode_settings, refine_settings, rescore_net
from dekr_infer.data.coco import DataSet, load_data_set
from dekr_infer.data.sources import frames_of, image_source
from dekr_infer.detector import Detector
from dekr_infer.evaluation.evaluate import Evaluation, evaluate
from dekr_infer.export.export import export_onnx
from dekr_infer.geometry import PUBLISHED_SIZES
from dekr_infer.model.head import build_network
from dekr_infer.pose.decode import CENTRE
from dekr_infer.skeleton import COCO_17
from dekr_infer.storage import npy
from dekr_infer.storage.atomic import folder_lock
from dekr_infer.structures import Frame, Maps, Passes
from scripts.demo.people import write_data_set

WEIGHTS = ROOT / "scripts/demo/weights"
SPLIT = "val2017"
IMAGES, SEED = 60, 2017  # the demo set of the quickstart
PUBLISHED = "all parts"  # the published flow
MATCHED = "with TEST.MATCH_HMP"  # the quickstart's setting
NO_FLIP, NO_RESCORE, NEITHER = "flip off", "rescoring off", "flip and rescoring off"
UNSHIFTED, UNSWAPPED, NEGATED = "flip shift left out", "left and right not swapped", "offsets negated"
COLUMNS = ("AP", "AP .5", "AP .75", "AR")  # of the table


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--work", type=Path, default=Path("quickstart/ablation"), help="folder for all files")
    parser.add_argument("--pictures", type=positive_int, default=IMAGES, metavar="N", help="to draw (%(default)s)")
    parser.add_argument("--seed", type=non_negative_int, default=SEED)
    parser.add_argument("--threads", type=worker_count, default=cores(), help="(default: all cores)")
    args = parser.parse_args(argv)

    def work() -> None:
        evaluations = ablation(args.work, args.pictures, args.seed, args.threads)
        for evaluation in evaluations.values():
            for warning in evaluation.warnings.values():
                print(f"warning: {warning}", file=sys.stderr)
        print(f"{'':<28}" + "".join(f"{name:>8}" for name in COLUMNS))
        for variant, evaluation in evaluations.items():
            print(f"{variant:<28}" + "".join(f"{evaluation.metrics[name]:8.3f}" for name in COLUMNS))

    return run(work)


def ablation(work: Path, images: int, seed: int, threads: int) -> dict[str, Evaluation]:
    """Evaluate every variant on a number of drawn images.

    Raises:
        DekrError: a step fails; or `work` holds another data set.
    """
    write_data_set(work / "data", SPLIT, images, seed)
    data, config = load_data_set(work / "data", SPLIT), load_config("demo", demo_pairs(work / "data"))
    run_network(work, data, config, threads)
    settings, refine, rescore = decode_settings(config), refine_settings(config), rescore_net(config)
    published = OutputFolder(work / "out", work / "out_flip")
    detectors = {
        PUBLISHED: Detector(published, settings, rescore=rescore),
        MATCHED: Detector(published, settings, refine=refine, rescore=rescore),
        NO_FLIP: Detector(published, settings, flip=False, rescore=rescore),
        NO_RESCORE: Detector(published, settings),
        NEITHER: Detector(published, settings, flip=False),
        UNSHIFTED: Detector(OutputFolder(work / "out", work / "out_unshifted"), settings, rescore=rescore),
        UNSWAPPED: Detector(ChangedOutputs(published, _unswapped), settings, rescore=rescore),
        NEGATED: Detector(ChangedOutputs(published, _negated), settings, rescore=rescore),
    }
    frames = frames_of(data, PUBLISHED_SIZES)
    return {variant: evaluate(detector, data, frames) for variant, detector in detectors.items()}


def demo_pairs(data: Path) -> list[str]:
    """Return the KEY VALUE pairs of the demo's weights and a data set."""
    weights = ("TEST.MODEL_FILE", WEIGHTS / "pose_dekr_demo.pth", "RESCORE.MODEL_FILE", WEIGHTS / "rescore_demo.pth")
    return [str(word) for word in ("DATASET.ROOT", data, *weights)]


def run_network(work: Path, data: DataSet, config: CfgNode, threads: int) -> None:
    """Write the outputs of both passes below `work`, and those of flipped tensors without the flip shift."""
    tensors, flipped, unshifted = (work / name for name in ("prep_data", "prep_data_flip", "prep_data_unshifted"))
    write_tensors(data, image_source(config.DATASET.ROOT, SPLIT), (tensors, flipped), workers=threads)
    with folder_lock(unshifted):
        for name in sorted(npy.names_in(tensors)):
            npy.write(unshifted, name, npy.read(tensors / name)[..., ::-1])
    graph = work / "demo.onnx"
    export_onnx(build_network(config), Path(config.TEST.MODEL_FILE), graph, check=False, threads=threads)
    runner = OnnxRuntime(graph, threads)
    for folder in (tensors, flipped, unshifted):
        output = work / folder.name.replace("prep_data", "out")
        with progress(output.name, len(data.images)) as advance:
            run_folder(runner, list_tensors([folder]), output, Options(replace_others=True), {}, advance)


@dataclass(frozen=True)
class ChangedOutputs:
    """A backend whose outputs are those of another backend, changed."""

    backend: OutputFolder
    change: Callable[[Passes], Passes]
    input_sizes = PUBLISHED_SIZES

    def infer(self, frame: Frame, flip: bool) -> Passes:
        """Return the changed outputs of a frame."""
        return self.change(self.backend.infer(frame, flip))


def _negated(passes: Passes) -> Passes:
    """Negate the offsets of both passes."""
    return Passes(*(maps._replace(offset=-maps.offset) for maps in passes if maps is not None))


def _unswapped(passes: Passes) -> Passes:
    """Exchange left and right in the flipped pass once more, so that the merge's own exchange undoes it."""
    assert passes.flipped is not None
    heatmap, offset = passes.flipped.heatmap, passes.flipped.offset
    by_joint = offset.reshape(len(COCO_17), 2, *offset.shape[1:])[list(COCO_17.partners)]
    swapped = Maps(heatmap[[*COCO_17.partners, CENTRE]], by_joint.reshape(offset.shape), passes.flipped.sources)
    return Passes(passes.original, swapped)


if __name__ == "__main__":
    sys.exit(main())
