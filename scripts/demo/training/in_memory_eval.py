"""Evaluation of a network in training, in memory: images -> two passes -> people -> COCO metrics.

    python3 scripts/demo/training/in_memory_eval.py --root data/demo --state models/demo_train/state.pth

prints the ten metrics of a training state's averaged weights on a data set that people.py wrote.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
if __package__ in (None, ""):  # run as a script: the repository is not on the path yet
    sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from dekr_infer.cli.app import Arguments, Parser, run, worker_count
from dekr_infer.config.load import load_config
from dekr_infer.config.settings import decode_settings, rescore_net
from dekr_infer.data.coco import load_data_set
from dekr_infer.data.sources import ImageFiles, frames_of, image_source
from dekr_infer.detector import Detector
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.coco_metrics import metrics_table
from dekr_infer.evaluation.evaluate import evaluate
from dekr_infer.geometry import PUBLISHED_SIZES
from dekr_infer.model.checkpoint import read_state
from dekr_infer.pose.preprocess import mirror, normalise, warp
from dekr_infer.structures import Frame, Maps, Passes
from scripts.demo.training.grouped import GroupedNet, grouped_state
from scripts.demo.training.widen_channels import widened

DEMO = ROOT / "dekr_infer/config/demo.yaml"
SPLIT = "val2017"


def read_training_file(path: Path) -> dict[str, Any]:
    """Return the content of a training state or a checkpoint.

    Raises:
        DekrError: the file is missing or damaged.
    """
    if not path.is_file():
        raise DekrError(f"{path}: no such file; create it with scripts/demo/train.py")
    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise DekrError(f"{path}: damaged ({type(error).__name__}); delete it and run scripts/demo/train.py") from None
    return loaded


def load_grouped(path: Path, cfg: str | Path = DEMO, widen: bool = False) -> GroupedNet:
    """Return the network in evaluation mode, from a training state (its average) or from a checkpoint.

    Args:
        path: the file.
        cfg: name or file of the configuration.
        widen: allow a file with fewer channels for every joint than `cfg` has.
    Raises:
        DekrError: the file is missing, damaged, or belongs to another network.
    """
    network = GroupedNet(load_config(cfg).MODEL.SPEC)
    loaded = read_training_file(path)
    try:
        state = loaded["average"] if "average" in loaded else grouped_state(read_state(path))
        network.load_state_dict(widened(state, network.state_dict()) if widen else state)
    except (RuntimeError, KeyError, AttributeError):
        raise DekrError(f"{path}: belongs to another network than {cfg}; pass its --cfg or another file") from None
    return network.eval()


class GroupedBackend:
    """The network in training as the detector's backend."""

    input_sizes = PUBLISHED_SIZES

    def __init__(self, network: GroupedNet) -> None:
        self.network = network

    def infer(self, frame: Frame, flip: bool) -> Passes:
        """Warp the image of a frame and run both passes."""
        warped = warp(frame.read(), frame.placement.input)
        return Passes(*(self.run(pixels) for pixels in (warped, mirror(warped))[: 1 + flip]))

    @torch.inference_mode()
    def run(self, warped: np.ndarray) -> Maps:
        """Run the network on an image in its input size, (H, W, 3) uint8 BGR."""
        image = torch.from_numpy(normalise(warped)).to(memory_format=torch.channels_last)
        h, w = image.shape[2] // 4, image.shape[3] // 4
        heat, offset = self.network(image, torch.arange(h * w))
        return Maps(heat[0].contiguous().numpy(), offset.flatten(1).T.reshape(-1, h, w).contiguous().numpy())


def demo_detector(network: GroupedNet, rescore: Path | None = None, flip: bool = True) -> Detector:
    """Return the detector of a network in training, with a rescoring checkpoint if one is given."""
    pairs = ["RESCORE.MODEL_FILE", str(rescore)] if rescore else ["RESCORE.VALID", "False"]
    config = load_config(DEMO, pairs)
    return Detector(GroupedBackend(network), decode_settings(config), flip=flip, rescore=rescore_net(config))


def demo_metrics(detector: Detector, root: Path) -> dict[str, float]:
    """Return the ten COCO metrics of a detector on the data set below `root`."""
    data = load_data_set(root, SPLIT)
    return evaluate(detector, data, frames_of(data, PUBLISHED_SIZES, ImageFiles(image_source(root, SPLIT)))).metrics


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="data set, as people.py writes it")
    parser.add_argument("--state", type=Path, default=ROOT / "models/demo_train/state.pth", help="state or checkpoint")
    parser.add_argument("--rescore", type=Path, help="rescoring checkpoint")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="both passes (default)")
    parser.add_argument("--threads", type=worker_count, default=1, help="of torch (1)")
    args = parser.parse_args(argv)

    def work() -> None:
        torch.set_num_threads(args.threads)
        detector = demo_detector(load_grouped(args.state), args.rescore, args.flip)
        print(metrics_table(demo_metrics(detector, args.root)))

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
